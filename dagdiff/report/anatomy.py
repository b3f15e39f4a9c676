"""A student's shift in words: what each step does wrong, the anatomy of its loss, and what to train on to repair it."""

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

SMALL = 0.01
"""An error of a step, or a displacement, is there if it is surely above this part of the spread of expert samples."""

TWICE = 2.0
"""Steps err most if their errors are surely above this many times those of all others."""

FAR = 5.0
"""Where they are above this many times the others', these are not worth a word."""


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
    """Return the shift as three tables of fixed width, one line a step, and a legend.

    First what each step does: its own error, how far the student's states are from the expert's, what later steps make
    of that, and its part of the distance of the ends, all with bounds. Then the imitation loss on each law of states
    and the two gaps as ratios. Then own states compared with forward and with expert states, by energy distance,
    squared MMD and the classifier's accuracy.
    """
    lines = [f"step    t  {'error of the step':<24} {'displacement':<24} {'growth':<20} share of the end"]
    for row in shift.rows:
        error = _number(row.step_error, row.step_error_low, row.step_error_high)
        moved = _number(row.displacement, row.displacement_low, row.displacement_high)
        grown = _number(row.growth, row.growth_low, row.growth_high)
        shared = _shared(row)
        lines.append(f"{row.step:>4} {row.t:>4.2f}  {error:<24} {moved:<24} {grown:<20} {shared}")
    lines += [
        "",
        "           imitation loss on           data mismatch           own errors",
        "step    t  forward   expert      own   expert / forward       own / expert",
    ]
    for row in shift.rows:
        lines.append(
            f"{row.step:>4} {row.t:>4.2f} {row.loss_forward:>8.3g} {row.loss_expert:>8.3g} {row.loss_own:>8.3g} "
            f"{_bounded(row.mismatch_ratio):>20} {_bounded(row.errors_ratio):>20}"
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
    return "\n".join(line.rstrip() for line in [*lines, "", *_legend(shift)])


def _legend(shift: Shift) -> list[str]:
    """What the columns are, with the numbers that hold for all steps."""
    chance = max(row.accuracy_error for row in shift.rows)
    scale = shift.rows[0].spread
    spread = f", in which the teacher's samples spread by {scale:.3g}" if math.isfinite(scale) else ""
    return [
        "error of the step: distance of the student's guess to the teacher's at the same state",
        "displacement: distance of the student's state to the teacher's of the same noise",
        "growth: what the teacher, taking over there, makes of it by the end, over it",
        "share of the end: part of the distance of both ends that the error of this step alone makes",
        "own, expert, forward: states of the student's chains, of the teacher's in its place, noised data",
        f"classifier: how often own states are told from those; up to {0.5 + 2 * chance:.3f} may be chance",
        f"ends: W2 of these student and expert samples is between {shift.ends.low:.3g} and {shift.ends.high:.3g}",
        f"distances are root mean squares in units of x{spread}",
        "[low, high] hold for all steps at once with 95 %",
    ]


def conclusion(shift: Shift) -> str:
    """Say in sentences what the student does wrong, and at which steps; only what is clear of chance.

    A step errs if the lower bound of its error is above a hundredth of the spread of the expert's samples, and does not
    if the upper one is below. Some steps err *most* if the lower bound of each is above twice the upper one of every
    other. Then follow which of them makes most of the distance of the ends (a share above a half), where the student's
    states leave the expert's, what later steps make of that (a growth clear of 1), and :func:`advice`.
    """
    rows = shift.rows
    if any(math.isnan(row.step_error_low) for row in rows):  # measured by an older version
        return advice(rows)
    erring, calm = _erring(rows), all(row.step_error_high <= SMALL * row.spread for row in rows)
    if calm:
        most = max(row.step_error_high / row.spread for row in rows)
        return (
            f"the student acts as its teacher: at every step its error is below {_percent(max(most, 1e-4))} of the "
            "spread of the teacher's samples. There is no shift to repair"
        )
    told = advice(rows)
    if _standing_out(rows):  # then neither states nor a larger student is the cure
        told = told.replace(_MORE, "; what is left is that step itself")
    return "\n".join(filter(None, [erring, _ending(rows), _leaving(rows), told]))


def _erring(rows: Sequence[StepShift]) -> str:
    """Which steps err, and which of them most."""
    there = [row for row in rows if row.step_error_low > SMALL * row.spread]
    if not there:
        return "whether any step errs is undecided: measure more chains"
    most = _standing_out(rows)
    others = [row for row in rows if row not in most]
    if most and others:
        rest = max(row.step_error_high / row.spread for row in others)
        told = f"{_sizes(most)}, elsewhere at most {_percent(rest)}"
        if rest <= SMALL:
            return f"the student errs at {_named(most, rows)} alone: {told}"
        far = min(row.step_error_low / row.spread for row in most) > FAR * rest
        every = "" if far or len(there) < len(rows) else "every step, "
        return f"the student errs {'at ' * bool(every)}{every}most at {_named(most, rows)}: {told}"
    if len(there) == len(rows):
        return f"the student errs at {'its only step' if len(rows) == 1 else 'every step'}: {_sizes(rows)}"
    return f"the student errs at {_named(there, rows)}: {_sizes(there)}; elsewhere it is small, or undecided"


def _standing_out(rows: Sequence[StepShift]) -> list[StepShift]:
    """The fewest steps whose errors are all surely above twice those of every other; none if there are no such."""
    falling = sorted(rows, key=lambda row: row.step_error / row.spread, reverse=True)
    for count in range(1, len(rows)):
        first, rest = falling[:count], falling[count:]
        low = min(row.step_error_low for row in first)
        if low > SMALL * first[0].spread and low > TWICE * max(row.step_error_high for row in rest):
            return sorted(first, key=lambda row: row.step)
    return []


def _ending(rows: Sequence[StepShift]) -> str:
    """Which step makes most of the distance of the ends."""
    for row in rows:
        if row.share_low > 0.5 and len(rows) > 1:
            return f"{_named([row], rows)} makes {_shared(row)} of the distance of its ends to the teacher's"
    return ""


def _leaving(rows: Sequence[StepShift]) -> str:
    """From where on own states are elsewhere, and what later steps make of it."""
    left = [row for row in rows if row.displacement_low > SMALL * row.spread]
    if not left:
        return ""
    first = left[0]
    moved = _number(first.displacement, first.displacement_low, first.displacement_high)
    told = f"its states leave the teacher's by step {first.step} (displacement {moved})"
    if first.growth_low > 1.0 or first.growth_high < 1.0:
        grown = _number(first.growth, first.growth_low, first.growth_high, form=".2f")
        told += f"; later steps {'enlarge' if first.growth > 1.0 else 'shrink'} it, {grown} times"
    return told


def _named(some: Sequence[StepShift], rows: Sequence[StepShift]) -> str:
    """Steps in words, the first and the last by that name too."""
    told = _steps(some)
    if len(some) == 1 and len(rows) > 1:
        place = {rows[0].step: " (the first)", rows[-1].step: " (the last)"}
        told += place.get(some[0].step, "")
    return told


def _sizes(some: Sequence[StepShift]) -> str:
    """How large the errors of steps are, in parts of the spread."""
    part = sorted(some, key=lambda row: row.step_error / row.spread)
    least, most = part[0], part[-1]
    if len(some) == 1 or most.step_error < 1.05 * least.step_error:
        scale = 100.0 / most.spread
        bounds = (most.step_error_low, most.step_error_high) if len(some) == 1 else (math.nan, math.nan)
        told = _number(scale * most.step_error, scale * bounds[0], scale * bounds[1], unit=" %")
    else:
        told = f"{_percent(least.step_error / least.spread)} to {_percent(most.step_error / most.spread)}"
    return f"by {told} of the spread of the teacher's samples"


def _shared(row: StepShift) -> str:
    """A step's part of the distance of the ends."""
    return _number(100.0 * row.share, 100.0 * row.share_low, 100.0 * row.share_high, form=".0f", unit=" %")


def _percent(part: float) -> str:
    return f"{100.0 * part:.2g} %" if part < 1.0 else f"{100.0 * part:.0f} %"


def _number(value: float, low: float, high: float, form: str = ".3g", unit: str = "") -> str:
    """A number with its bounds, as far as they are known; a dash for none."""
    if math.isnan(value):
        return "-"
    bounds = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{unit}{bounds}"


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
    return f"no shift to repair: losses on the three laws of states differ by {_times(most)} at most{_MORE}"


_MORE = "; what is left takes a larger student or more updates"


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
