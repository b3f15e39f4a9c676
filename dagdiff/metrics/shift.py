"""Covariate shift, measured: at each step, how far the student's own states are from those it was trained on.

Three state laws meet at every time t of the grid: forward-diffused data, the expert's chains, and the student's own
chains. The *imitation loss* is the squared distance between the student's guess and the expert's; on the student's own
states minus on forward states it is the *loss gap*: what off-policy training does not see. Distances between the laws,
and a classifier that tries to tell them apart, say where the chain has gone; the gap says whether the student can cope
there. Only where it can't is there anything to repair, so :func:`verdict` looks at the gap alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.metrics.base import Number
from dagdiff.metrics.samples import energy_distance, sliced_wasserstein
from dagdiff.metrics.statistics import Interval, bootstrap_mean
from dagdiff.metrics.twosample import classifier_accuracy, scaled_mmd
from dagdiff.schedule import perturb
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition, chain


@dataclass(frozen=True)
class StepShift:
    """The shift at one step: the student's imitation loss on each law of states, and distances between the laws.

    Distances compare the student's states with forward and with expert states: energy distance and sliced
    2-Wasserstein, both in units of x, and the squared MMD. ``accuracy_*`` is a classifier's share of right answers when
    asked which of the two a held-out state is, 0.5 by chance give or take ``accuracy_error``. ``gap_low`` and
    ``gap_high`` bound the loss gap. ``loss_zero`` is the mean square of the expert's guesses on own states: the loss of
    a student that always answers 0, a scale for the others. What was not measured is NaN.
    """

    step: int
    t: float
    loss_forward: float
    loss_own: float
    loss_expert: float
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
    gap_low: float = math.nan
    gap_high: float = math.nan

    @property
    def loss_gap(self) -> float:
        """Imitation loss on own states minus on forward states."""
        return self.loss_own - self.loss_forward

    @property
    def ratio(self) -> Interval:
        """Own loss over forward loss with its bounds, or 1 where both are negligible; the verdict's currency."""
        if max(self.loss_own, self.loss_forward) <= NEGLIGIBLE * self.loss_zero:
            return Interval(1.0, 1.0, 1.0)
        forward = max(self.loss_forward, NEGLIGIBLE * self.loss_zero, 1e-12)
        return Interval(*(1.0 + gap / forward for gap in (self.loss_gap, self.gap_low, self.gap_high)))

    def as_row(self) -> dict[str, float]:
        """The fields and the gap, by name."""
        return {**asdict(self), "loss_gap": self.loss_gap}


LOSSES = {
    "loss_forward": Number(
        "Imitation loss on forward states (noised data): squared difference of the two predictions.", floor="0"
    ),
    "loss_own": Number(
        "Imitation loss on student states: the same, at the states of the student's own chains.", floor="0"
    ),
    "loss_gap": Number(
        "Loss on student states minus on forward states: what training on noised data alone does not see.",
        floor="0",
        compared=True,
    ),
}
"""What the held-out imitation losses of a run mean, each a mean over steps."""

NEGLIGIBLE = 1e-6
"""A loss below this part of ``loss_zero`` is none: errors of a thousandth of the guess need no repair."""

SURE = 1.1
"""A step shifts if its ratio of losses is surely above this: below it, there is hardly anything to repair."""

OPEN = 2.0
"""A step that is not surely shifted is undecided if its ratio may still be above this."""


def imitation_loss(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    x_t: States,
    t: Times,
    s: Times,
    condition: Condition = None,
) -> float:
    """Return the mean squared distance between the policy's guess and the expert's, on given states.

    The expert's guess is the one that its sub-steps amount to up to ``transition.horizon(s)``. Its evaluations here are
    measurement, not training, and are not charged to ``expert.nfe``.
    """
    error, _ = _errors(policy, expert, transition, x_t, t, s, condition)
    return float(error.square().mean())


def measure_shift(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    times: Times,
    x0: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
) -> list[StepShift]:
    """Return the shift at every step of the grid, measured on as many chains as there are rows of clean data ``x0``.

    ``x0`` are data of the kind that the student's forward states are made of; ``condition`` goes with its rows. Student
    and expert chains start from the same noise; the expert walks its own DDIM path. The bounds of the loss gap come
    from a bootstrap over rows, chain i beside forward state i (they share their condition), and hold for all K steps at
    once with 95 % (each at 1 - 0.05 / K, Bonferroni).
    """
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    with torch.no_grad():
        own = list(chain(policy, transition, times, noise, condition, generator))
    with expert.ledger.free():
        led = expert.walk(noise, times, condition)
    rows = []
    for number, (mine, theirs) in enumerate(zip(own, led, strict=False)):
        fresh = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        laws = {"forward": perturb(x0, fresh, mine.t, expert.schedule), "own": mine.x_t, "expert": theirs}
        asked = {law: _errors(policy, expert, transition, x_t, mine.t, mine.s, condition) for law, x_t in laws.items()}
        found = _losses(asked, len(own)) | _distances(laws, generator)
        rows.append(StepShift(step=number, t=float(mine.t[0]), **found))
    return rows


def verdict(rows: Sequence[StepShift]) -> str:
    """Say in words where there is a shift to repair, by this rule on the ratio of own to forward loss at each step.

    *Shift*: the ratio's lower bound is above 1.1. *Undecided*: it is not, but the upper bound is above 2; measure more
    chains. *No shift to repair*: otherwise, and where both losses are below a millionth of ``loss_zero``. The ratio
    named for some steps is that of their summed losses. The bounds hold for all steps at once (:func:`measure_shift`),
    so a student without any shift is accused in at most about one verdict of forty.

    A trap: the rule takes the expert's path for the right answer. Students of distribution matching (DMD2) are not
    asked to follow it, only to end in the same law, so their imitation loss is large everywhere and its gap a weak
    yardstick; for them trust the distances, the classifier, and the intervention curve
    (:mod:`dagdiff.metrics.intervention`).

    Raises:
        Refusal: if there are no rows, or the loss gap of one has no bounds.
    """
    if not rows or any(math.isnan(row.gap_low) for row in rows):
        raise Refusal("a verdict needs rows whose loss gap has bounds. Pass the rows of measure_shift.")
    shifted = [row for row in rows if row.ratio.low > SURE]
    unsure = [row for row in rows if row not in shifted and row.ratio.high > OPEN]
    clear = [row for row in rows if row not in shifted and row not in unsure]
    told = [_told_shift(shifted)] if shifted else []
    told += [_told_unsure(unsure)] if unsure else []
    return "; ".join(told) if told else _told_none(clear)


def format_table(rows: Sequence[StepShift]) -> str:
    """Return the shift as a table of fixed width (97 columns), one line a step, and a line on reading the classifier's.

    Columns: the loss on each law of states and the ratio of own to forward; then own states compared with forward and
    with expert states, by energy distance, squared MMD and the classifier's accuracy.
    """
    lines = [
        "           imitation loss on          own/      energy distance           MMD^2          classifier",
        "step    t  forward      own   expert  forward  forward   expert  forward   expert  forward  expert",
    ]
    for row in rows:
        numbers = row.energy_forward, row.energy_expert, row.mmd_forward, row.mmd_expert
        lines.append(
            f"{row.step:>4} {row.t:>4.2f} {row.loss_forward:>8.3g} {row.loss_own:>8.3g} {row.loss_expert:>8.3g} "
            f"{_times(row.ratio.mean):>8} {' '.join(f'{number:>8.2g}' for number in numbers)} "
            f"{row.accuracy_forward:>8.3f} {row.accuracy_expert:>7.3f}"
        )
    chance = max(row.accuracy_error for row in rows)
    lines.append(f"classifier: how often own states are told from those; up to {0.5 + 2 * chance:.3f} may be chance")
    return "\n".join(lines)


def _errors(
    policy: Denoiser, expert: Expert, transition: Transition, x_t: States, t: Times, s: Times, condition: Condition
) -> tuple[States, States]:
    """The policy's guess minus the expert's, and the expert's, both ``(B, *D)``."""
    with torch.no_grad(), expert.ledger.free():
        target = expert.target(x_t, t, transition.horizon(s), condition)
        return policy(x_t, t, condition) - target, target


def _losses(asked: dict[str, tuple[States, States]], steps: int) -> dict[str, Any]:
    """The loss on each law, the scale of the own one, and the bounds of the gap."""
    losses = {f"loss_{law}": float(error.square().mean()) for law, (error, _) in asked.items()}
    own, forward = (asked[law][0].double().square().flatten(1).mean(dim=1).cpu() for law in ("own", "forward"))
    gap = bootstrap_mean(own - forward, level=1.0 - 0.05 / steps, resamples=_RESAMPLES)
    scale = float(asked["own"][1].square().mean())
    return {**losses, "loss_zero": scale, "gap_low": gap.low, "gap_high": gap.high}


def _distances(laws: dict[str, States], generator: torch.Generator | None) -> dict[str, float]:
    """Own states against forward and expert states, by every measure."""
    found = {}
    for law in ("forward", "expert"):
        found[f"energy_{law}"] = energy_distance(laws["own"], laws[law])
        found[f"sliced_w2_{law}"] = sliced_wasserstein(laws["own"], laws[law], generator=generator)
        found[f"mmd_{law}"] = scaled_mmd(laws["own"], laws[law])
        found[f"accuracy_{law}"], found["accuracy_error"] = classifier_accuracy(laws["own"], laws[law], generator)
    return found


def _told_shift(rows: Sequence[StepShift]) -> str:
    own, forward = sum(row.loss_own for row in rows), sum(row.loss_forward for row in rows)
    times = _times(own / max(forward, 1e-12))
    return f"shift at {_named(rows)}: loss on own states {times} that on forward states"


def _told_unsure(rows: Sequence[StepShift]) -> str:
    low, high = min(row.ratio.low for row in rows), max(row.ratio.high for row in rows)
    return f"undecided at {_named(rows)} (between {_times(max(low, 0.0))} and {_times(high)}): measure more chains"


def _told_none(rows: Sequence[StepShift]) -> str:
    most = max(row.ratio.high for row in rows)
    return f"no shift to repair at these steps: loss on own states at most {_times(most)} that on forward states"


def _named(rows: Sequence[StepShift]) -> str:
    """Steps in words: "step 2", "steps 0, 2-4"."""
    steps = [row.step for row in rows]
    starts = [steps[0], *(b for a, b in pairwise(steps) if b != a + 1)]
    ends = [*(a for a, b in pairwise(steps) if b != a + 1), steps[-1]]
    spans = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"step{'s' if len(steps) > 1 else ''} {spans}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10.0 else f"{ratio:.0f}x" if ratio < 1000.0 else "over 1000x"


_RESAMPLES = 4000
