"""What results say, in words.

The words follow from the intervals alone. A comparison is *better* or *worse* where its interval excludes 0, and
*inconclusive* where it includes 0 or where one seed gives none. Where the baseline matches its expert already there is
*no gap*: a better mean is then no gain.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dagdiff.metrics.statistics import Interval
from dagdiff.report.excess import NOTHING, REPAIRED
from dagdiff.report.glossary import BASELINES, objective_name, quantity, scale_of, variant_name
from dagdiff.report.rows import Difference, Row

BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"
OUTCOMES = (BETTER, WORSE, NOTHING, INCONCLUSIVE)
"""The results of a comparison, in the order in which they are counted."""


class Finding(NamedTuple):
    """A sentence, and its result: one of :data:`OUTCOMES`."""

    way: str
    text: str


def outcome(row: Row, baseline: str) -> str:
    """Return the result of a row against a baseline, one of :data:`OUTCOMES`; empty if they were not compared."""
    found = row.minus(baseline)
    if found is None:
        return ""
    if found.seeds < 2:
        return INCONCLUSIVE
    if found.interval.low > 0.0:
        return WORSE
    if baseline in row.remaining and row.remaining[baseline].words == NOTHING:
        return NOTHING
    return BETTER if found.interval.clear_of_zero else INCONCLUSIVE


def comparisons(rows: Sequence[Row]) -> Iterator[tuple[Row, str, Difference]]:
    """Yield each row of the mixture with each baseline that it was compared with, and the difference.

    The published method is left out where it is forward training: the same runs are not compared twice.
    """
    for row in (row for row in rows if row.variant == "mixture"):
        peers = {other.variant: other for other in rows if other.group == row.group}
        for baseline in BASELINES:
            difference = row.minus(baseline)
            twin = peers.get("forward") if baseline == "published" else None
            if difference and not (twin and twin.runs == peers["published"].runs):
                yield row, baseline, difference


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Return what may be claimed of the mixture, a sentence for each comparison with its result."""
    found = []
    for row, baseline, difference in comparisons(rows):
        way = outcome(row, baseline)
        text = f"{row.case}, {title(row, rows)}: {_sentence(row, baseline, difference, way)}."
        if baseline == "forward":
            forward = next(other for other in rows if (other.group, other.variant) == (row.group, "forward"))
            text += _remaining(row, way) + _shift(row, forward)
        found.append(Finding(way, text))
    return found or [Finding(INCONCLUSIVE, "No seed has both the mixture and a baseline: nothing can be compared.")]


def counts(rows: Sequence[Row]) -> list[str]:
    """How often the mixture is better, worse and so on, a sentence for each baseline."""
    mixtures = {row.objective for row in rows if row.variant == "mixture"}
    sentences = []
    for baseline in BASELINES:
        compared = [row for row, name, _ in comparisons(rows) if name == baseline]
        if not compared:
            continue
        objectives = dict.fromkeys(row.objective for row in compared)
        only = f" ({', '.join(map(objective_name, objectives))} only)" if set(objectives) < mixtures else ""
        sentences.append(f"Mixture against {variant_name(baseline)}{only}: {tally(compared, baseline)}.")
    return sentences


def tally(rows: Sequence[Row], baseline: str) -> str:
    """Count the results of rows against a baseline: "better in 4 of 6, no gap in 2"; what never occurs is left out."""
    ways = [outcome(row, baseline) for row in rows]
    found = [(way, ways.count(way)) for way in OUTCOMES if way in ways]
    words = [f"{way} in {n}" for way, n in found]
    return ", ".join([f"{words[0]} of {len(ways)}", *words[1:]]) if words else ""


def caveat(rows: Sequence[Row]) -> str:
    """How far the intervals can be trusted; empty from six common seeds on."""
    seeds = [difference.seeds for _, _, difference in comparisons(rows)]
    if not seeds or min(seeds) > 5:
        return ""
    if min(seeds) == 1:
        return "With one seed there is no interval. Run at least five."
    chance = 2 ** (min(seeds) - 1)
    return (
        f"With {min(seeds)} seeds an interval excludes 0 as soon as all differences have one sign, or nearly so. "
        f"Chance alone does this once in {chance} comparisons. Read such results as hints; run more seeds."
    )


def number(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, where that is readable; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.0e}" if 0.0 < abs(value) < 1e-6 else f"{value:,.{_decimals(value, digits)}f}"


def spell(interval: Interval | None, digits: int = 3) -> str:
    """``mean [low, high]`` with equal decimals, or the mean alone where one seed gives no interval; a dash for None.

    The mean, or half the width if that is more, gets so many significant digits; no bound is rounded down to 0.
    """
    if interval is None or interval.low == interval.high:
        return number(interval.mean if interval else math.nan, digits)
    decimals = _decimals(max(abs(interval.mean), (interval.high - interval.low) / 2), digits)
    return bracketed(interval, max(decimals, *(_decimals(bound, 1) for bound in interval[1:] if bound)))


def level(value: Interval | float | None, metric: str) -> str:
    """A distance, or its ``mean [low, high]``, as it is shown: scaled with one decimal where the metric has a scale."""
    if scale_of(metric) is None:
        return number(value) if isinstance(value, float) else spell(value)
    found = Interval(value, value, value) if isinstance(value, float) else value
    if found is None or not math.isfinite(found.mean):
        return "–"
    return bracketed(scaled(found, metric), 1)


def change(interval: Interval, metric: str) -> str:
    """A difference of distances as it is shown; with more decimals where rounding would hide a bound's sign."""
    if scale_of(metric) is None:
        return spell(interval, 2)
    found = scaled(interval, metric)
    small = [_decimals(bound, 1) for bound in found[1:]] if found.clear_of_zero else []
    return bracketed(found, max([1, *small]))


def scaled(interval: Interval, metric: str) -> Interval:
    """Return an interval of a metric in the units in which it is shown."""
    return Interval(*((scale_of(metric) or 1.0) * bound for bound in interval))


def bracketed(interval: Interval, decimals: int) -> str:
    """``mean [low, high]`` with so many decimals, or the mean alone where there is no width; 0 has no sign."""
    mean, low, high = (f"{round(bound, decimals) + 0.0:,.{decimals}f}" for bound in interval)
    return mean if interval.low == interval.high else f"{mean} [{low}, {high}]"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits; 9 at most."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return min(9, max(0, digits - 1 - exponent))


def _sentence(row: Row, baseline: str, found: Difference, way: str) -> str:
    """Put a difference in distance into words that say no more than its result."""
    name, distance = variant_name(baseline), quantity(row.judged_by)
    ours, theirs = (level(mean, row.judged_by) for mean in (found.ours, found.theirs))
    if found.seeds < 2:
        return f"inconclusive against {name} ({ours} for {theirs}): with one common seed no interval exists"
    levels = f"({ours} for {theirs}, {found.seeds} seeds)"
    shown = change(found.interval, row.judged_by)
    if way == NOTHING:
        return f"no gap: {name} matches the expert already, and the mixture changes the {distance} by {shown} {levels}"
    if way == INCONCLUSIVE:
        text = f"inconclusive against {name}: the {distance} changes by {shown} {levels}"
        return f"{text}; the interval includes 0"
    mean, low, high = found.interval
    shown = change(Interval(-mean, -high, -low), row.judged_by) if way == BETTER else shown
    verb = "lowers" if way == BETTER else "raises"
    return f"the mixture {verb} the {distance} by {shown} against {name} {levels}; the interval excludes 0"


def remaining_gap(row: Row) -> str:
    """What remains of forward's gap to the expert, in a table's cell; empty if they were not compared."""
    return "" if row.left is None else row.left.words or spell(row.left.ratio, 2)


def _remaining(row: Row, way: str) -> str:
    """A sentence on how much of forward's gap to the expert remains; empty if there is nothing more to say."""
    if row.left is None or way == NOTHING:
        return ""
    if row.left.words == NOTHING:
        return " Forward itself matches the expert."
    if row.left.words == REPAIRED:
        return " The mixture matches the expert."
    return f" Of forward's gap to the expert {spell(row.left.ratio, 2)} remains."


def _shift(row: Row, forward: Row) -> str:
    """Say how much worse each student imitates on student states."""
    if not math.isfinite(row.ratio + forward.ratio):
        return ""
    before, after = number(forward.ratio, 2), number(row.ratio, 2)
    text = " Loss on student states over that on forward states"
    return f"{text}: {before} after forward training, {after} after the mixture."


def title(row: Row, rows: Sequence[Row]) -> str:
    """Objective, and what else tells the row's comparison from others: steps, updates, or another setup."""
    alike = [other for other in rows if (other.case, other.objective) == (row.case, row.objective)]
    parts = [objective_name(row.objective)]
    if len({other.steps for other in rows}) > 1:
        parts.append(f"{row.steps} steps")
    if len({other.records[0].setup for other in alike if other.steps == row.steps}) > 1:
        parts.append(f"{row.records[0].updates} updates, setup {row.records[0].setup[:4]}")
    return ", ".join(parts)
