"""The expert: the many-step teacher, asked for advice at any state, wherever that state came from.

It answers with a *guess* of x0, like every policy. Asked for ``target(x_t, t, s)`` it first walks its own path from t
to s in k DDIM sub-steps and then names the guess with which ONE step lands at the same place: the progressive target of
Salimans and Ho (2022, https://arxiv.org/abs/2202.00512), for any k. Every network evaluation is counted in ``nfe``.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dagdiff.checks import check_at_least, check_same_shape
from dagdiff.finite import Finite
from dagdiff.ledger import Ledger
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, Denoiser, States, Times, column
from dagdiff.threshold import NoThreshold, Threshold
from dagdiff.transition import ddim


def no_label(condition: Tensor) -> Tensor:
    """The null condition of labelled worlds: -1 in every row."""
    return torch.full_like(condition, -1)


class Expert:
    """A teacher in its role: a denoiser asked with sub-steps, guidance and a threshold.

    Args:
        denoiser: the teacher, ``(x_t, t, condition) -> x0``.
        schedule: the noise schedule of its states.
        substeps: DDIM sub-steps k between the two ends of a question; 1 is the plain guess.
        guidance: classifier-free weight w (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598), used where a
            condition is given: x0_null + w (x0_condition - x0_null), two evaluations; 1 asks the denoiser alone.
        threshold: the reflected operator, applied to every guess.
        null: makes the null condition from a condition.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        substeps: int = 1,
        guidance: float = 1.0,
        threshold: Threshold | None = None,
        null: Callable[[Tensor], Tensor] = no_label,
    ) -> None:
        check_at_least("substeps", substeps, 1)
        self.denoiser, self.schedule, self.null = denoiser, schedule, null
        self.substeps, self.guidance, self.threshold = substeps, guidance, threshold or NoThreshold()
        self.ledger, self.finite = Ledger(), Finite(["answers"])

    @property
    def nfe(self) -> int:
        """Network evaluations so far, in rows, without those that were free (:class:`dagdiff.ledger.Ledger`)."""
        return self.ledger.nfe

    @nfe.setter
    def nfe(self, rows: int) -> None:
        self.ledger.nfe = rows

    @torch.no_grad()
    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the thresholded, guided guess of x0, ``(B, *D)``.

        Raises:
            Refusal: if the denoiser answers with another shape than the states'.
        """
        guess = self._ask(x_t, t, condition)
        if condition is not None and self.guidance != 1.0:
            free = self._ask(x_t, t, self.null(condition))
            guess = free + self.guidance * (guess - free)
        guess = self.threshold(guess)
        if not self.ledger.is_free:
            self.finite.see("answers", guess)
        return guess

    def advance(self, x_t: States, t: Times, s: Times, condition: Condition = None) -> States:
        """Walk from t to s in k equal DDIM sub-steps, row by row; return x_s, ``(B, *D)``."""
        start = t
        for i in range(1, self.substeps + 1):
            end = torch.lerp(start, s, i / self.substeps)
            x_t, t = ddim(x_t, self(x_t, t, condition), t, end, self.schedule), end
        return x_t

    def walk(self, noise: States, times: Times, condition: Condition = None) -> list[States]:
        """Walk its own chain down the grid, k sub-steps an interval; return the states at all its times."""
        states = [noise]
        for t, s in pairwise(times):
            states.append(self.advance(states[-1], t.expand(len(noise)), s.expand(len(noise)), condition))
        return states

    def target(self, x_t: States, t: Times, s: Times, condition: Condition = None) -> States:
        """Return the guess with which one DDIM step from t to s < t lands where k sub-steps lead, ``(B, *D)``."""
        if self.substeps == 1:
            return self(x_t, t, condition)
        x_s = self.advance(x_t, t, s, condition)
        alpha_t, sigma_t = (column(values, x_t) for values in self.schedule(t))
        alpha_s, sigma_s = (column(values, x_t) for values in self.schedule(s))
        ratio = sigma_s / sigma_t
        return self.threshold((x_s - ratio * x_t) / (alpha_s - ratio * alpha_t))

    def _ask(self, x_t: States, t: Times, condition: Condition) -> States:
        self.ledger.charge(len(x_t))
        return check_same_shape("the expert", self.denoiser(x_t, t, condition), x_t)
