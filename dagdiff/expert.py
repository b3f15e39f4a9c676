"""The expert: the many-step teacher, asked for advice at any state, wherever that state came from.

It answers with a *prediction* of x0, like every policy. Asked for ``target(x_t, t, s)`` it first walks its own path
from t to s in k sub-steps and then names the prediction with which ONE DDIM step lands at the same place: the
progressive target of Salimans and Ho (2022, https://arxiv.org/abs/2202.00512), for any k. Every network evaluation is
counted in ``nfe``.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from dagdiff.checks import check_above, check_at_least, check_same_shape
from dagdiff.finite import Finite
from dagdiff.ledger import Ledger
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, Denoiser, States, Times, column
from dagdiff.solvers import Before, DdimSolver, Level, Solver, check_solver
from dagdiff.threshold import NoThreshold, Threshold

Weight = float | Tensor
"""A weight of guidance: one for all rows, or one a row."""

Guide = Callable[[States, Times, States, States, Weight], States]
"""``(x_t, t, told, free, weight) -> guess``: what the guesses with and without a condition become under guidance.

A weight a row comes as ``(B, 1, ..., 1)``.
"""


def classifier_free(x_t: States, t: Times, told: States, free: States, weight: Weight) -> States:
    """Return x0_null + w (x0_condition - x0_null) (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598)."""
    return free + weight * (told - free)


def no_label(condition: Tensor) -> Tensor:
    """The null condition of labelled datasets: -1 in every row."""
    return torch.full_like(condition, -1)


class Expert:
    """A teacher in its role: a denoiser asked with sub-steps, guidance and a threshold.

    Args:
        denoiser: the teacher, ``(x_t, t, condition) -> x0``.
        schedule: the noise schedule of its states.
        substeps: sub-steps k between the two ends of a question; 1 is the plain prediction.
        guidance: classifier-free weight w (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598), used where a
            condition is given: x0_null + w (x0_condition - x0_null), two evaluations; 1 asks the denoiser alone. A
            callable tells the weights ``(B,)`` of conditions ``(B,)`` that hold them.
        threshold: the reflected operator, applied to every prediction.
        null: makes the null condition from a condition.
        solver: of the sub-steps.
        span: the time that k sub-steps are for; a walk of another length takes its part of k, rounded up. None: each
            walk takes k, whatever its length.
        guide: what guidance makes of both guesses.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        substeps: int = 1,
        guidance: float | Callable[[Tensor], Tensor] = 1.0,
        threshold: Threshold | None = None,
        null: Callable[[Tensor], Tensor] = no_label,
        solver: Solver = DdimSolver(),  # noqa: B008  (frozen)
        span: float | None = None,
        guide: Guide = classifier_free,
    ) -> None:
        check_at_least("substeps", substeps, 1)
        check_above("span", 1.0 if span is None else span, 0.0)
        check_solver(solver, schedule)
        self.denoiser, self.schedule, self.null = denoiser, schedule, null
        self.substeps, self.guidance, self.threshold = substeps, guidance, threshold or NoThreshold()
        self.solver, self.span, self.guide = solver, span, guide
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
        """Return the thresholded, guided prediction of x0, ``(B, *D)``.

        Raises:
            Refusal: if the denoiser answers with another shape than the states'.
        """
        guess = self._ask(x_t, t, condition)
        if condition is not None and self.guidance != 1.0:
            free = self._ask(x_t, t, self.null(condition))
            weight = column(self.guidance(condition), x_t) if callable(self.guidance) else self.guidance
            guess = self.guide(x_t, t, guess, free, weight)
        guess = self.threshold(guess)
        if not self.ledger.is_free:
            self.finite.see("answers", guess)
        return guess

    def advance(self, x_t: States, t: Times, s: Times, condition: Condition = None) -> States:
        """Walk from t to s, row by row, in equal sub-steps; return x_s, ``(B, *D)``.

        With a ``span`` the rows' numbers of sub-steps differ; they are looked at once, on the host.
        """
        if self.span is None:
            return self._advance(x_t, t, s, condition, [len(x_t)] * self.substeps, self.substeps)
        counts = ((t - s) * (self.substeps / self.span) - _WHOLE).ceil().clamp(min=1.0)
        order = counts.argsort(descending=True, stable=True)
        at_work = counts[order].tolist()
        rows = [sum(count > number for count in at_work) for number in range(int(at_work[0]) if at_work else 0)]
        asked = None if condition is None else condition[order]
        landed = self._advance(x_t[order], t[order], s[order], asked, rows, counts[order])
        return torch.empty_like(landed).index_copy(0, order, landed)

    def _advance(
        self, x_t: States, t: Times, s: Times, condition: Condition, rows: list[int], counts: Tensor | int
    ) -> States:
        """Walk in ``counts`` sub-steps a row; ``rows[i]`` rows, the first ones, take part in sub-step i."""
        start, landed, before, here = t, [], None, Level(t, *self.schedule(t))
        for number, left in enumerate(rows):
            if left < len(x_t):
                landed.append(x_t[left:])
                x_t, here, before = x_t[:left], here.of(left), None if before is None else before.of(left)
            asked = condition if condition is None or left == len(condition) else condition[:left]
            part = (number + 1) / (counts if isinstance(counts, int) else counts[:left])
            end = torch.lerp(start[:left], s[:left], part)
            there = Level(end, *self.schedule(end))
            x_t, answer = self.solver(partial(self, condition=asked), x_t, here, there, before)
            here, before = there, Before(answer, here)
        return torch.cat([x_t, *reversed(landed)]) if landed else x_t

    def walk(self, noise: States, times: Times, condition: Condition = None) -> list[States]:
        """Walk its own chain down the grid, k sub-steps an interval; return the states at all its times."""
        states = [noise]
        for t, s in pairwise(times):
            states.append(self.advance(states[-1], t.expand(len(noise)), s.expand(len(noise)), condition))
        return states

    def target(self, x_t: States, t: Times, s: Times, condition: Condition = None) -> States:
        """Return the prediction with which one DDIM step from t to s < t lands where k sub-steps lead, ``(B, *D)``."""
        if self.substeps == 1 and self.span is None:
            return self(x_t, t, condition)
        x_s = self.advance(x_t, t, s, condition)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        ratio = sigma_s / sigma_t
        return self.threshold((x_s - column(ratio, x_t) * x_t) / column(alpha_s - ratio * alpha_t, x_t))

    def _ask(self, x_t: States, t: Times, condition: Condition) -> States:
        self.ledger.charge(len(x_t))
        return check_same_shape("the expert", self.denoiser(x_t, t, condition), x_t)


_WHOLE = 1e-3
"""Sub-steps that rounding may add to a whole number of them, and that are none."""
