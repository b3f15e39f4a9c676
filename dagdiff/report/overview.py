"""The overview: a line for each comparison of forward, published and mixture; the first table of page and terminal."""

from collections.abc import Sequence
from typing import NamedTuple

from dagdiff.report.glossary import quantity
from dagdiff.report.rows import Difference, Row
from dagdiff.report.verdict import change, level, outcome, title

HEAD = ("task", "objective", "forward", "published", "mixture", "expert", "mixture minus forward", "result")
"""The names of its columns."""

SHOWN = ("forward", "published", "mixture")
"""The kinds of training that a line compares."""


class Line(NamedTuple):
    """A comparison: where, in which objective, and its rows; ``mixture`` is always one of them."""

    case: str
    title: str
    rows: dict[str, Row]

    @property
    def mixture(self) -> Row:
        """The row of the mixture."""
        return self.rows["mixture"]

    @property
    def gain(self) -> Difference | None:
        """The mixture minus forward, if both have a common seed."""
        return self.mixture.minus("forward")

    @property
    def result(self) -> str:
        """The result of the mixture against forward."""
        return outcome(self.mixture, "forward")

    def is_forward(self, variant: str) -> bool:
        """Whether the variant is forward training under another name: the same runs."""
        row, forward = self.rows.get(variant), self.rows.get("forward")
        return variant == "published" and row is not None and forward is not None and row.runs == forward.runs

    def distance(self, variant: str) -> str:
        """The distance of a kind of training as it is shown; empty where it was not run."""
        row = self.rows.get(variant)
        if self.is_forward(variant):
            return "= forward"
        return "" if row is None else level(row.distance, row.judged_by)

    @property
    def cells(self) -> list[str]:
        """The line as the table shows it, under :data:`HEAD`."""
        metric = self.mixture.judged_by
        gain = change(self.gain.interval, metric) if self.gain else ""
        distances = [self.distance(variant) for variant in SHOWN]
        return [self.case, self.title, *distances, level(self.mixture.expert, metric), gain, self.result]


def overview(rows: Sequence[Row]) -> list[Line]:
    """Return a line for each comparison that has a mixture, in the order of the rows."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        peers = {row.variant: row for row in mine if row.variant in SHOWN}
        if "mixture" in peers:
            name = title(mine[0], [row for row in rows if row.case == mine[0].case])
            lines.append(Line(mine[0].case, name, peers))
    return lines


def caption(metric: str) -> str:
    """Say what the table shows."""
    distance = quantity(metric)
    return (
        f"{distance[0].upper()}{distance[1:]} to the target, smaller is better. In square brackets: the 95 % bootstrap "
        "interval over seeds."
    )


def lead(lines: Sequence[Line]) -> Line | None:
    """Return the line that is shown first: of the largest gap between forward training and its expert."""
    gaps = {
        place: line.rows["forward"].excess[line.mixture.judged_by]
        for place, line in enumerate(lines)
        if "forward" in line.rows
    }
    known = {place: gap for place, gap in gaps.items() if gap == gap}
    return lines[max(known, key=lambda place: known[place])] if known else None
