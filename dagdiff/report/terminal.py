"""The report in a terminal: the page's first table, then its sentences and counts."""

import textwrap
from collections.abc import Sequence

from dagdiff.report.glossary import quantity
from dagdiff.report.overview import HEAD, SHOWN, caption, overview
from dagdiff.report.results import Results
from dagdiff.report.rows import Row, distinct
from dagdiff.report.verdict import caveat, change, counts, findings, level, number, outcome, remaining_gap, title


def table(results: Results) -> str:
    """Return the page's first table as text, then what it says in words; students that it lacks follow it."""
    rows, metric = results.rows, results.judged_by
    lines = overview(rows)
    head = textwrap.fill(caption(metric), 100)
    parts = [f"{head}\n\n{_laid([HEAD, *(line.cells for line in lines)])}"] if lines else []
    if not lines or {row.variant for row in rows} - set(SHOWN):
        parts.append(students(results))
    words = [finding.text for finding in findings(rows)] + [caveat(rows), *counts(rows)]
    parts.append("\n".join(textwrap.fill(each, 100, subsequent_indent="  ") for each in words if each))
    return "\n\n".join(parts) + "\n"


def students(results: Results) -> str:
    """Return a text table of all students, with the floor and the expert of each task."""
    rows, metric = results.rows, results.judged_by
    head = "objective", "trained on", quantity(metric), "minus forward", "result", "remaining gap", "coverage"
    lines: list[Sequence[str]] = [[*head, "student/forward loss", "seconds"]]
    for case, reference in results.references.items():
        lines.append([case, *[""] * 8])
        for name in ("floor", "expert"):
            distance, coverage = level(reference[name][metric], metric), number(reference[name]["coverage"])
            lines.append([f"  ({name})", "", distance, "", "", "", coverage, "", ""])
        mine = [row for row in rows if row.case == case]
        lines += [_cells(label, row, title(row, mine)) for label, row in distinct(mine)]
    return _laid(lines)


def _laid(lines: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns, the first line over a rule."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _cells(label: str, row: Row, name: str) -> list[str]:
    """A row of the text table."""
    forward, coverage = row.minus("forward"), row.metrics["coverage"]
    return [
        f"  {name}",
        label,
        level(row.distance, row.judged_by),
        change(forward.interval, row.judged_by) if forward else "",
        outcome(row, "forward"),
        remaining_gap(row),
        number(coverage.mean) if coverage else "–",
        number(row.ratio),
        number(row.seconds),
    ]
