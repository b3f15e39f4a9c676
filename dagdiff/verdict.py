"""What results say, in words and in a text table.

The words follow from the intervals alone. If one is clear of zero, something is claimed; if it is not, nothing is; with
a single seed there is no interval at all.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from dagdiff.excess import NOTHING, REPAIRED
from dagdiff.glossary import BASELINES, DISTANCES
from dagdiff.metrics.statistics import Interval
from dagdiff.results import Difference, Results, Row, distinct


class Verdict(NamedTuple):
    """A sentence, and which way it goes: better, worse, or open."""

    way: str
    text: str


def verdicts(results: Results) -> list[str]:
    """What may be claimed of ddil, in words: for each task and objective against forward-only, and another base."""
    return [verdict.text for verdict in judge(results.rows)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on rows of :class:`~dagdiff.results.Results`, each with its way."""
    found = []
    for row in (row for row in rows if row.variant == "ddil"):
        peers = {other.variant: other for other in rows if other.group == row.group}
        for baseline, name in BASELINES.items():
            difference = row.minus(baseline)
            told = baseline == "base" and "forward" in peers and peers["forward"].runs == peers.get("base", row).runs
            if difference and not told:
                verdict = _compare(difference, name, DISTANCES[row.judged_by])
                more = _excess(row) + _shift(row, peers["forward"], verdict.way) if baseline == "forward" else ""
                found.append(Verdict(verdict.way, f"{row.place}, {title(row, rows)}: {verdict.text}.{more}"))
    return found or [Verdict("open", "ddil and a baseline were not run on a common seed: nothing can be compared.")]


def caveat(rows: Sequence[Row]) -> str:
    """How far the intervals can be trusted; empty from six common seeds on."""
    seeds = [found.seeds for row in rows for baseline in row.against if (found := row.minus(baseline))]
    if not seeds or min(seeds) > 5:
        return ""
    if min(seeds) == 1:
        return "With one seed there is no interval. Run at least five."
    chance = 2 ** (min(seeds) - 1)
    return (
        f"With {min(seeds)} seeds an interval is clear of zero as soon as all differences have one sign, or nearly so, "
        f"which chance alone brings about once in {chance} comparisons. Read such intervals as hints; run more seeds."
    )


def table(results: Results) -> str:
    """A text table of all students with the floor and the expert of each task, and the verdicts below it."""
    rows = results.rows
    metric = results.judged_by
    head = "objective", "trained on", DISTANCES[metric], "minus forward", "excess left", "coverage", "own/forward"
    lines = [[*head, "seconds"]]
    for place, reference in results.references.items():
        lines.append([place, *[""] * 7])
        for name in ("floor", "expert"):
            distance, coverage = (number(reference[name][each]) for each in (metric, "coverage"))
            lines.append([f"  ({name})", "", distance, "", "", coverage, "", ""])
        mine = [row for row in rows if row.place == place]
        lines += [_cells(label, row, title(row, mine)) for label, row in distinct(mine)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    words = [verdict.text for verdict in judge(rows)] + [caveat(rows)]
    wrapped = [textwrap.fill(each, 100, subsequent_indent="  ") for each in words if each]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], "", *wrapped]) + "\n"


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
    decimals = max(decimals, *(_decimals(bound, 1) for bound in interval[1:] if bound))
    mean, low, high = (f"{value:,.{decimals}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits; 9 at most."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return min(9, max(0, digits - 1 - exponent))


def _compare(found: Difference, name: str, distance: str) -> Verdict:
    """Put a difference in distance into words: a claim only where the interval is clear of zero."""
    levels = f"({number(found.ours, 2)} for {number(found.theirs, 2)}"
    if found.seeds < 2:
        return Verdict(
            "open", f"nothing can be claimed against {name} {levels}): with one common seed no interval exists"
        )
    levels += f", {found.seeds} seeds)"
    if not found.interval.clear_of_zero:
        change = spell(found.interval, 2)
        text = f"no difference to {name} can be claimed: the {distance} changes by {change} {levels}"
        return Verdict("open", f"{text}; the interval includes zero")
    if found.interval.mean < 0:
        mean, low, high = found.interval
        text = f"ddil lowers the {distance} by {spell(Interval(-mean, -high, -low), 2)} against {name} {levels}"
        return Verdict("better", f"{text}; the interval is clear of zero")
    text = f"ddil is worse than {name}: it raises the {distance} by {spell(found.interval, 2)} {levels}"
    return Verdict("worse", f"{text}; the interval is clear of zero")


def told_excess(row: Row) -> str:
    """What is left of forward-only's excess over the expert, in a table's cell; empty if they were not compared."""
    if row.left is None:
        return ""
    told = {NOTHING: "nothing to repair", REPAIRED: REPAIRED}
    return told.get(row.left.words, spell(row.left.ratio, 2))


def _excess(row: Row) -> str:
    """A sentence on how much is left of forward-only's excess over the expert; empty if they were not compared."""
    if row.left is None or row.left.ratio is None:
        return f" In excess, {row.left.words}." if row.left else ""
    return f" Of forward-only's excess over the expert {spell(row.left.ratio, 2)} is left."


def _shift(row: Row, forward: Row, way: str) -> str:
    """Say how much worse each student imitates on its own states, and whether there was anything to repair."""
    if not math.isfinite(row.ratio + forward.ratio):
        return ""
    before, after = number(forward.ratio, 2), number(row.ratio, 2)
    text = f" Loss on own states is {before}x that on forward states under forward-only training, {after}x under ddil"
    return f"{text}: there is hardly a shift to repair here." if way == "open" and forward.ratio < 1.1 else f"{text}."


def title(row: Row, rows: Sequence[Row]) -> str:
    """Objective, and what else tells the row's comparison from others: steps, updates, or another setup."""
    alike = [other for other in rows if (other.place, other.objective) == (row.place, row.objective)]
    parts = [row.objective]
    if len({other.steps for other in rows}) > 1:
        parts.append(f"{row.steps} steps")
    if len({other.records[0].setup for other in alike if other.steps == row.steps}) > 1:
        parts.append(f"{row.records[0].updates} updates, setup {row.records[0].setup[:4]}")
    return ", ".join(parts)


def _cells(label: str, row: Row, name: str) -> list[str]:
    """A row of the text table."""
    forward, coverage = row.minus("forward"), row.metrics["coverage"]
    covered = number(coverage.mean) if coverage else "–"
    difference = spell(forward.interval) if forward else ""
    return [
        f"  {name}",
        label,
        spell(row.distance),
        difference,
        told_excess(row),
        covered,
        number(row.ratio),
        number(row.seconds),
    ]
