r"""Covariate shift, measured: what a student's loss on its own states is made of, step by step.

Three laws of states meet at every time t of the grid: forward-diffused data, chains of the expert in the student's own
environment, and the student's own chains; chains start from the same noise and take the same fresh noise. The
*imitation loss* is the squared distance between the student's guess and the expert's. Off-policy training sees it on
forward states; what it does not see is the sum of two gaps,

.. math:: L_{own} - L_{forward} = \underbrace{L_{expert} - L_{forward}}_{\text{data mismatch}}
          + \underbrace{L_{own} - L_{expert}}_{\text{own errors}} .

*Data mismatch*: the states of the data are not those to which an expert leads. Its own chains, or the student's, show
them. *Own errors*: the student leaves the expert's states, and does worse where it goes. Only its own states show that:
it is what DAgger is for. How far it goes is the *displacement*; its *growth* is what the rest of the chain, in the
expert's hands, makes of it. What each step adds to that is in :mod:`dagdiff.metrics.handover`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dagdiff.expert import Expert
from dagdiff.metrics.handover import StepBounds, hand_over, spread, step_bounds
from dagdiff.metrics.imitation import guess_errors
from dagdiff.metrics.samples import energy_distance, sliced_wasserstein
from dagdiff.metrics.statistics import Interval, bootstrap_mean
from dagdiff.metrics.twosample import classifier_accuracy, scaled_mmd
from dagdiff.policy import ExpertPolicy
from dagdiff.schedule import Schedule, perturb
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition


@dataclass(frozen=True)
class StepShift:
    """The shift at one step: the student's imitation loss on each law of states, and distances between the laws.

    ``mismatch_*`` and ``errors_*`` bound data mismatch and own errors. ``step_error`` is the root of ``loss_own``: how
    far the student's guess is from the expert's at the same state. ``displacement`` is the root mean square distance of
    an own state to the expert's of the same noise; ``growth`` that of the ends to which the expert leads both, over it.
    ``cost`` is what the error of this step alone moves the end by, and ``share`` its part of the distance between both
    ends (:mod:`dagdiff.metrics.handover`); ``spread`` is that of the expert's ends, a scale. Distances compare the
    student's states with forward and with expert states: energy distance and sliced 2-Wasserstein, both in units of x,
    and the squared MMD. ``accuracy_*`` is a classifier's share of right answers when asked which of the two a held-out
    state is, 0.5 by chance give or take ``accuracy_error``. ``surprise`` is how much less likely own states are, in
    nats, than states of the true law are on average. ``loss_zero`` is the mean square of the expert's guesses on own
    states: the loss of a student that always answers 0, a scale for the others. What was not measured is NaN.
    """

    step: int
    t: float
    loss_forward: float
    loss_expert: float
    loss_own: float
    energy_forward: float
    energy_expert: float
    sliced_w2_forward: float
    sliced_w2_expert: float
    mmd_forward: float = math.nan
    mmd_expert: float = math.nan
    accuracy_forward: float = math.nan
    accuracy_expert: float = math.nan
    accuracy_error: float = math.nan
    loss_zero: float = math.nan
    mismatch_low: float = math.nan
    mismatch_high: float = math.nan
    errors_low: float = math.nan
    errors_high: float = math.nan
    displacement: float = math.nan
    growth: float = math.nan
    surprise: float = math.nan
    step_error_low: float = math.nan
    step_error_high: float = math.nan
    displacement_low: float = math.nan
    displacement_high: float = math.nan
    growth_low: float = math.nan
    growth_high: float = math.nan
    cost: float = math.nan
    share: float = math.nan
    share_low: float = math.nan
    share_high: float = math.nan
    spread: float = math.nan

    @property
    def step_error(self) -> float:
        """Root mean square distance of the student's guess to the expert's on own states, in units of x."""
        return math.sqrt(self.loss_own)

    @property
    def data_mismatch(self) -> float:
        """Imitation loss on expert states minus on forward states."""
        return self.loss_expert - self.loss_forward

    @property
    def own_errors(self) -> float:
        """Imitation loss on own states minus on expert states."""
        return self.loss_own - self.loss_expert

    @property
    def mismatch_ratio(self) -> Interval:
        """Loss on expert states over loss on forward states, with its bounds; 1 where both are negligible."""
        return self._ratio(self.loss_forward, self.data_mismatch, self.mismatch_low, self.mismatch_high)

    @property
    def errors_ratio(self) -> Interval:
        """Loss on own states over loss on expert states, with its bounds; 1 where both are negligible."""
        return self._ratio(self.loss_expert, self.own_errors, self.errors_low, self.errors_high)

    def _ratio(self, below: float, *gaps: float) -> Interval:
        least = NEGLIGIBLE * self.loss_zero
        if max(below, below + gaps[0]) <= least:
            return Interval(1.0, 1.0, 1.0)
        return Interval(*(1.0 + gap / max(below, least, 1e-12) for gap in gaps))

    def as_row(self) -> dict[str, float]:
        """The fields, the error of the step and the two gaps, by name."""
        derived = {name: getattr(self, name) for name in ("step_error", "data_mismatch", "own_errors")}
        return {**asdict(self), **derived}


NEGLIGIBLE = 1e-6
"""A loss below this part of ``loss_zero`` is none: errors of a thousandth of the guess need no repair."""


class Bracket(NamedTuple):
    """Bounds of the 2-Wasserstein distance between the ends of own and of expert chains, in units of x."""

    low: float
    high: float


class Shift(NamedTuple):
    """The shift at each step, and how far apart the ends of the chains are, of these samples.

    Own and expert end of the same noise are one way to pair the two clouds, so their root mean square distance bounds
    the 2-Wasserstein distance from above. The root of the dimension times the sliced one bounds it from below: a
    direction sees, on average, one of D parts of a squared distance.
    """

    rows: list[StepShift]
    ends: Bracket
    handed: States | None = None
    """Ends of the first rows, ``(rows, K + 1, *D)``: where the expert ends that takes over at step k. The first is the
    expert's own, the last the student's; a row is one noise."""


class Density(Protocol):
    """What is known of the true law of states: ``(x_t, t) -> log q_t(x_t)``, ``(B,)``, up to a constant of t."""

    def __call__(self, x_t: States, t: Times) -> Tensor:
        """Return the logarithm of the density."""
        ...


def measure_shift(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    times: Times,
    x0: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
    density: Density | None = None,
    truth: States | None = None,
    tell: Callable[[], object] | None = None,
) -> Shift:
    """Return the shift, measured on as many chains as there are rows of clean data ``x0``, at nobody's cost.

    The bounds of both gaps come from a bootstrap over rows, row i of a law beside row i of the other (they share their
    condition, and chains their noise), and hold for all K steps at once with 95 % (each gap at 1 - 0.05 / 2 K,
    Bonferroni); so do those of each other number (each at 1 - 0.05 / K). With k sub-steps the teacher is asked for some
    K (K + 7) / 2 * k guesses a row, and the student for 4 K.

    Args:
        policy: the student in its role, or any denoiser.
        expert: the teacher in its role.
        transition: the student's law of motion.
        times: its grid, K + 1 times.
        x0: data of the kind that the student's forward states are made of, ``(B, *D)``.
        condition: of the rows of ``x0``, and of the chains.
        generator: of all draws.
        density: of the true states, where it is known.
        truth: points of the true law, for the mean of ``density`` there.
        tell: called after each step.
    """
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    fresh = torch.Generator(x0.device)
    fresh.manual_seed(int(torch.randint(2**31, (), generator=generator, device=x0.device)))
    acting = ExpertPolicy(expert, transition, times)
    rows, errors = [], []
    with torch.no_grad(), expert.ledger.free():
        chains = hand_over(policy, acting, transition, times, noise, condition, fresh)
        scale, count = spread(chains.led[-1].x_s), len(chains.own)
        for number, (mine, theirs) in enumerate(zip(chains.own, chains.led, strict=True)):
            eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            laws = {"forward": perturb(x0, eps, mine.t, expert.schedule), "own": mine.x_t, "expert": theirs.x_t}
            asked = {
                law: guess_errors(policy, expert, transition, x_t, mine.t, mine.s, condition)
                for law, x_t in laws.items()
            }
            errors.append(asked["own"][0])
            found = _losses(asked, count) | _distances(laws, generator)
            found["spread"], found["displacement"] = scale, _rms(mine.x_t - theirs.x_t)
            if found["displacement"] > 0.0:
                found["growth"] = _rms(chains.ends[number] - chains.ends[0]) / found["displacement"]
            if density is not None and truth is not None:
                found["surprise"] = surprise(density, mine.x_t, mine.t, truth, expert.schedule, generator)
            rows.append(StepShift(step=number, t=float(mine.t[0]), **found))
            if tell is not None:
                tell()
    bounds = step_bounds(chains, errors, 1.0 - 0.05 / count, least=1e-3 * scale)
    rows = [_with_bounds(row, found) for row, found in zip(rows, bounds, strict=True)]
    handed = torch.stack([end[:_HANDED] for end in chains.ends], dim=1)
    return Shift(rows, bracket(chains.own[-1].x_s, chains.led[-1].x_s, generator), handed)


def surprise(
    density: Density,
    x_t: States,
    t: Times,
    truth: States,
    schedule: Schedule,
    generator: torch.Generator | None = None,
) -> float:
    """Return how much less likely states ``x_t`` at one time are, in nats, than states of the true law are on average.

    Args:
        density: of the true states.
        x_t: a student's own states, ``(B, *D)``.
        t: their time, ``(B,)``, the same in all rows.
        truth: clean points of the true law, ``(m, *D)``.
        schedule: of the noise.
        generator: of the noise on ``truth``.
    """
    noise = torch.randn(truth.shape, generator=generator, device=x_t.device)
    real = perturb(truth, noise, t[:1], schedule)
    known = float(density(real, t[:1].expand(len(real))).mean())
    return known - float(density(x_t, t).mean())


def _losses(asked: dict[str, tuple[States, States]], steps: int) -> dict[str, Any]:
    """The loss on each law, the scale of the own one, and the bounds of both gaps."""
    rows = {law: error.double().square().flatten(1).mean(dim=1).cpu() for law, (error, _) in asked.items()}
    found = {f"loss_{law}": float(losses.mean()) for law, losses in rows.items()}
    found["loss_zero"] = float(asked["own"][1].square().mean())
    for name, high, low in (("mismatch", "expert", "forward"), ("errors", "own", "expert")):
        gap = bootstrap_mean(rows[high] - rows[low], level=1.0 - 0.05 / (2 * steps), resamples=_RESAMPLES)
        found |= {f"{name}_low": gap.low, f"{name}_high": gap.high}
    return found


def _with_bounds(row: StepShift, found: StepBounds) -> StepShift:
    """A step with what comes from all rows and steps."""
    (error_low, error_high), (moved_low, moved_high) = found.step_error, found.displacement
    (growth_low, growth_high), (share_low, share_high) = found.growth, found.share_bounds
    return replace(
        row, step_error_low=error_low, step_error_high=error_high, displacement_low=moved_low,
        displacement_high=moved_high, growth_low=growth_low, growth_high=growth_high, cost=found.cost,
        share=found.share, share_low=share_low, share_high=share_high,
    )  # fmt: skip


def bracket(own: States, led: States, generator: torch.Generator | None = None) -> Bracket:
    """Return the bounds for two clouds ``(B, *D)``, row by row from the same noise."""
    dimension = own[0].numel()
    low = math.sqrt(dimension) * sliced_wasserstein(own, led, generator=generator)
    high = math.sqrt(dimension) * _rms(own - led)
    return Bracket(min(low, high), high)


def _distances(laws: dict[str, States], generator: torch.Generator | None) -> dict[str, float]:
    """Own states against forward and expert states, by every measure."""
    found = {}
    for law in ("forward", "expert"):
        found[f"energy_{law}"] = energy_distance(laws["own"], laws[law])
        found[f"sliced_w2_{law}"] = sliced_wasserstein(laws["own"], laws[law], generator=generator)
        found[f"mmd_{law}"] = scaled_mmd(laws["own"], laws[law])
        found[f"accuracy_{law}"], found["accuracy_error"] = classifier_accuracy(laws["own"], laws[law], generator)
    return found


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


_RESAMPLES = 4000
_HANDED = 8  # rows whose ends are kept to be looked at
