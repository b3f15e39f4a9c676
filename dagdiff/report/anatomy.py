"""A student's shift in words: the anatomy of its loss on own states as a table, and what to train on to repair it."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from dagdiff.checks import Refusal
from dagdiff.metrics.shift import Shift, StepShift
from dagdiff.metrics.statistics import Interval

SURE = 1.1
"""A gap is there if its ratio of losses is surely above this: below it, there is hardly anything to repair."""

OPEN = 2.0
"""Where a gap is not surely there, it is undecided if its ratio may still be above this."""


def advice(rows: Sequence[StepShift]) -> str:
    """Say what the student's loss on its own states is made of, and what to train on, by one rule for both gaps.

    A gap (data mismatch or own errors) is there at a step if the lower bound of its ratio of losses is above 1.1. It is
    *undecided* if it is not, but the upper bound is above 2: measure more chains. Where both losses are below a
    millionth of ``loss_zero`` there is none. The ratio named for some steps is that of their summed losses. The bounds
    hold for both gaps and all steps at once (:func:`~dagdiff.metrics.shift.measure_shift`), so a student without any
    shift is accused in at most about one of forty.

    A trap: the rule takes the expert's guess for the right answer. Students of distribution matching (DMD2) are not
    asked for it, only to end in the same law, so their imitation loss is large everywhere, and its gaps say little; for
    them trust the distances, the classifier, and the intervention curve (:mod:`dagdiff.metrics.intervention`).

    Raises:
        Refusal: if there are no rows, or a gap of one has no bounds.
    """
    if not rows or any(math.isnan(bound) for row in rows for bound in (row.mismatch_low, row.errors_low)):
        raise Refusal("advice needs rows whose gaps have bounds. Pass the rows of measure_shift.")
    found = [
        _gap(
            rows,
            lambda row: row.mismatch_ratio,
            ("data mismatch", "loss_expert", "loss_forward"),
            "the data do not cover the expert's states: train on expert or student states",
        ),
        _gap(
            rows,
            lambda row: row.errors_ratio,
            ("own errors", "loss_own", "loss_expert"),
            "the student leaves the expert's states and errs more there: train on student states (DAgger)",
        ),
    ]
    return "\n".join(filter(None, found)) or _none(rows)


def format_shift(shift: Shift) -> str:
    """Return the shift as two tables of fixed width, one line a step, and what bounds the distance of the ends.

    First the imitation loss on each law of states, the two gaps as ratios with their bounds, displacement and growth.
    Then own states compared with forward and with expert states, by energy distance, squared MMD and the classifier's
    accuracy.
    """
    lines = [
        "           imitation loss on           data mismatch           own errors           dis-",
        "step    t  forward   expert      own   expert / forward       own / expert          placed  growth",
    ]
    for row in shift.rows:
        lines.append(
            f"{row.step:>4} {row.t:>4.2f} {row.loss_forward:>8.3g} {row.loss_expert:>8.3g} {row.loss_own:>8.3g} "
            f"{_bounded(row.mismatch_ratio):>20} {_bounded(row.errors_ratio):>20} "
            f"{row.displacement:>8.2g} {row.growth:>7.2g}"
        )
    surprising = any(math.isfinite(row.surprise) for row in shift.rows)
    lines += [
        "",
        "            energy distance           MMD^2          classifier       " + ("surprise" if surprising else ""),
        "step    t  forward   expert  forward   expert  forward  expert" + ("     (nats)" if surprising else ""),
    ]
    for row in shift.rows:
        numbers = row.energy_forward, row.energy_expert, row.mmd_forward, row.mmd_expert
        lines.append(
            f"{row.step:>4} {row.t:>4.2f} {' '.join(f'{number:>8.2g}' for number in numbers)} "
            f"{row.accuracy_forward:>8.3f} {row.accuracy_expert:>7.3f}"
            + (f" {row.surprise:>10.2g}" if surprising else "")
        )
    chance = max(row.accuracy_error for row in shift.rows)
    lines += [
        f"classifier: how often own states are told from those; up to {0.5 + 2 * chance:.3f} may be chance",
        f"ends: W2 of these student and expert samples is between {shift.ends.low:.3g} and {shift.ends.high:.3g}",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _gap(
    rows: Sequence[StepShift], ratio: Callable[[StepShift], Interval], names: tuple[str, str, str], cure: str
) -> str:
    """Say where one of the two gaps is, and its cure; nothing where it is not."""
    name, above, below = names
    there = [row for row in rows if ratio(row).low > SURE]
    unsure = [row for row in rows if row not in there and ratio(row).high > OPEN]
    said = []
    if there:
        losses = [sum(getattr(row, law) for row in there) for law in (above, below)]
        times = _times(losses[0] / max(losses[1], 1e-12))
        laws = [law.removeprefix("loss_") for law in (above, below)]
        said.append(f"{name} at {_steps(there)}: loss on {laws[0]} states {times} that on {laws[1]} states; {cure}")
    if unsure:
        low, high = min(ratio(row).low for row in unsure), max(ratio(row).high for row in unsure)
        between = f"between {_times(max(low, 0.0))} and {_times(high)}"
        said.append(f"{name} undecided at {_steps(unsure)} ({between}): measure more chains")
    return "; ".join(said)


def _none(rows: Sequence[StepShift]) -> str:
    most = max(max(row.mismatch_ratio.high, row.errors_ratio.high) for row in rows)
    return (
        f"no shift to repair: losses on the three laws of states differ by {_times(most)} at most; what is left takes "
        "a larger student or more updates"
    )


def _bounded(ratio: Interval) -> str:
    return f"{_times(ratio.mean)} [{_times(ratio.low)[:-1]}, {_times(ratio.high)[:-1]}]"


def _steps(rows: Sequence[StepShift]) -> str:
    """Steps in words: "step 2", "steps 0, 2-4"."""
    steps = [row.step for row in rows]
    starts = [steps[0], *(b for a, b in pairwise(steps) if b != a + 1)]
    ends = [*(a for a, b in pairwise(steps) if b != a + 1), steps[-1]]
    spans = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"step{'s' if len(steps) > 1 else ''} {spans}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10.0 else f"{ratio:.0f}x" if ratio < 1000.0 else "over 1000x"
