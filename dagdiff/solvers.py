r"""Solvers of the expert's own path: one sub-step from t to s < t, by one or two questions to it.

In the variable :math:`\lambda = \log(\alpha / \sigma)`, half the log of the signal-to-noise ratio, a step of length h
keeps the noise and moves towards a prediction D of the clean state: it is a DDIM step with D in place of the answer.
DDIM takes the answer at t (first order); the others make D of two answers (second order), so that fewer sub-steps lead
as near to the end of the path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.schedule import Schedule
from dagdiff.shapes import States, Times, column
from dagdiff.transition import keep_noise

Ask = Callable[[States, Times], States]
"""``(x_t, t) -> x0``: the expert, with its condition, guidance and threshold."""


class Level(NamedTuple):
    """A time and how much signal and noise its states hold, all ``(B,)``."""

    t: Times
    alpha: Tensor
    sigma: Tensor

    def of(self, rows: int) -> "Level":
        """The first ``rows`` of it."""
        return Level(self.t[:rows], self.alpha[:rows], self.sigma[:rows])


class Before(NamedTuple):
    """The sub-step before: the answer made there, ``(B, *D)``, and where it started."""

    answer: States
    here: Level

    def of(self, rows: int) -> "Before":
        """The first ``rows`` of it."""
        return Before(self.answer[:rows], self.here.of(rows))


class Solver(Protocol):
    """A sub-step from ``here`` to ``there``; ``before`` is None in the first."""

    def __call__(
        self, ask: Ask, x_t: States, here: Level, there: Level, before: Before | None
    ) -> tuple[States, States]:
        """Return x_s and the expert's answer at t, both ``(B, *D)``."""
        ...


@dataclass(frozen=True)
class DdimSolver:
    """DDIM, first order, one question (Song et al. 2020, https://arxiv.org/abs/2010.02502)."""

    def __call__(
        self, ask: Ask, x_t: States, here: Level, there: Level, before: Before | None
    ) -> tuple[States, States]:
        """Return x_s and the answer at t."""
        answer = ask(x_t, here.t)
        return _step(x_t, answer, here, there), answer


@dataclass(frozen=True)
class HeunSolver:
    r"""Heun's method in lambda, second order, two questions: at t, and where DDIM would land.

    .. math:: D = x_0(t) + w\,(x_0(s) - x_0(t)), \qquad w = \frac{1}{1 - e^{-h}} - \frac1h

    the weight of the exponential Runge-Kutta method of second order (Hochbruck and Ostermann 2010, equation 5.3,
    https://doi.org/10.1017/S0962492910000048). At t = 0, where nothing is left to ask, a sub-step is DDIM's.
    """

    def __call__(
        self, ask: Ask, x_t: States, here: Level, there: Level, before: Before | None
    ) -> tuple[States, States]:
        """Return x_s and the answer at t."""
        answer, noisy, h = ask(x_t, here.t), there.sigma > 0, _rise(here, there)
        landed = torch.where(column(noisy, x_t), _step(x_t, answer, here, there), x_t)
        then = ask(landed, torch.where(noisy, there.t, here.t))
        weight = torch.where(noisy, -1.0 / torch.expm1(-h) - 1.0 / h, torch.zeros_like(h))
        return _step(x_t, answer + column(weight, x_t) * (then - answer), here, there), answer


@dataclass(frozen=True)
class DpmSolver:
    r"""DPM-Solver++(2M), second order, one question (Lu et al. 2022, https://arxiv.org/abs/2211.01095).

    .. math:: D = x_0(t) + \frac{h}{2 h'}\,(x_0(t) - x_0(t'))

    with the answer at the start t' of the sub-step before and its length h'. The first sub-step, and one that ends at
    t = 0, where h is infinite, are DDIM's.
    """

    def __call__(
        self, ask: Ask, x_t: States, here: Level, there: Level, before: Before | None
    ) -> tuple[States, States]:
        """Return x_s and the answer at t."""
        answer = ask(x_t, here.t)
        if before is None:
            return _step(x_t, answer, here, there), answer
        ratio = _rise(here, there) / _rise(before.here, here)
        weight = torch.where(there.sigma > 0, 0.5 * ratio, torch.zeros_like(ratio))
        return _step(x_t, answer + column(weight, x_t) * (answer - before.answer), here, there), answer


def check_solver(solver: Solver, schedule: Schedule) -> None:
    """Reject a solver of second order on a schedule whose signal-to-noise ratio does not rise towards t = 0."""
    if isinstance(solver, DdimSolver):
        return
    t = torch.linspace(1.0, 0.0, 65)
    alpha, sigma = (values.double().cpu() for values in schedule(t))
    falls = alpha[1:] * sigma[:-1] <= alpha[:-1] * sigma[1:]
    if bool(falls.any()):
        place = float(t[1:][falls][0])
        raise Refusal(
            f"{type(solver).__name__} walks by the signal-to-noise ratio, which does not rise at t={place:.2f} of this "
            "schedule. Pass --solver ddim."
        )


def _step(x_t: States, guess: States, here: Level, there: Level) -> States:
    return keep_noise(x_t, guess, here[1:], there[1:])


def _rise(here: Level, there: Level) -> Tensor:
    """How much lambda rises, ``(B,)``; infinite where there is no signal here, or no noise there."""
    return (there.alpha / there.sigma).log() - (here.alpha / here.sigma).log()
