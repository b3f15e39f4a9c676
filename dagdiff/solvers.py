r"""Solvers of the expert's own path: one sub-step from t to s < t, by one or two questions to it.

In the variable :math:`\lambda = \log(\alpha / \sigma)`, half the log of the signal-to-noise ratio, a step of length h
keeps the noise and moves towards a guess D of the clean state: it is a DDIM step with D in place of the answer. DDIM
takes the answer at t (first order); the others make D of two answers (second order), so that fewer sub-steps lead as
near to the end of the path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.schedule import Schedule
from dagdiff.shapes import States, Times, column
from dagdiff.transition import ddim

Ask = Callable[[States, Times], States]
"""``(x_t, t) -> x0``: the expert, with its condition, guidance and threshold."""


class Before(NamedTuple):
    """The sub-step before: the answer made there, ``(B, *D)``, and where it started, ``(B,)``."""

    answer: States
    t: Times

    def of(self, rows: int) -> "Before":
        """The first ``rows`` of it."""
        return Before(self.answer[:rows], self.t[:rows])


class Solver(Protocol):
    """A sub-step. It returns x_s and the expert's answer at t, both ``(B, *D)``; ``before`` is None in the first."""

    def __call__(
        self, ask: Ask, x_t: States, t: Times, s: Times, before: Before | None, schedule: Schedule
    ) -> tuple[States, States]:
        """Walk from t to s."""
        ...


@dataclass(frozen=True)
class DdimSolver:
    """DDIM, first order, one question (Song et al. 2020, https://arxiv.org/abs/2010.02502)."""

    def __call__(
        self, ask: Ask, x_t: States, t: Times, s: Times, before: Before | None, schedule: Schedule
    ) -> tuple[States, States]:
        """Walk from t to s."""
        answer = ask(x_t, t)
        return ddim(x_t, answer, t, s, schedule), answer


@dataclass(frozen=True)
class HeunSolver:
    r"""Heun's method in lambda, second order, two questions: at t, and where DDIM would land.

    .. math:: D = x_0(t) + w\,(x_0(s) - x_0(t)), \qquad w = \frac{1}{1 - e^{-h}} - \frac1h

    the weight of the exponential Runge-Kutta method of second order (Hochbruck and Ostermann 2010, equation 5.3,
    https://doi.org/10.1017/S0962492910000048). At t = 0, where nothing is left to ask, a sub-step is DDIM's.
    """

    def __call__(
        self, ask: Ask, x_t: States, t: Times, s: Times, before: Before | None, schedule: Schedule
    ) -> tuple[States, States]:
        """Walk from t to s."""
        answer = ask(x_t, t)
        h, noisy = _rise(t, s, schedule), schedule(s)[1] > 0
        landed = ddim(x_t, answer, t, s, schedule)
        there = ask(torch.where(column(noisy, x_t), landed, x_t), torch.where(noisy, s, t))
        weight = torch.where(noisy, -1.0 / torch.expm1(-h) - 1.0 / h, torch.zeros_like(h))
        return ddim(x_t, answer + column(weight, x_t) * (there - answer), t, s, schedule), answer


@dataclass(frozen=True)
class DpmSolver:
    r"""DPM-Solver++(2M), second order, one question (Lu et al. 2022, https://arxiv.org/abs/2211.01095).

    .. math:: D = x_0(t) + \frac{h}{2 h'}\,(x_0(t) - x_0(t'))

    with the answer at the start t' of the sub-step before and its length h'. The first sub-step, and one that ends at
    t = 0, where h is infinite, are DDIM's.
    """

    def __call__(
        self, ask: Ask, x_t: States, t: Times, s: Times, before: Before | None, schedule: Schedule
    ) -> tuple[States, States]:
        """Walk from t to s."""
        answer = ask(x_t, t)
        if before is None:
            return ddim(x_t, answer, t, s, schedule), answer
        ratio = _rise(t, s, schedule) / _rise(before.t, t, schedule)
        weight = torch.where(schedule(s)[1] > 0, 0.5 * ratio, torch.zeros_like(ratio))
        return ddim(x_t, answer + column(weight, x_t) * (answer - before.answer), t, s, schedule), answer


def check_solver(solver: Solver, schedule: Schedule) -> None:
    """Refuse a solver of second order on a schedule whose signal-to-noise ratio does not rise towards t = 0."""
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


def _rise(t: Times, s: Times, schedule: Schedule) -> Tensor:
    """How much lambda rises from t to s, ``(B,)``; infinite where there is no signal at t, or no noise at s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
