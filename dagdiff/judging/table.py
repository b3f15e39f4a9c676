"""Rows and tables of the bench, in Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dagdiff.report.glossary import scale_of

if TYPE_CHECKING:
    from dagdiff.judging.judge import Judgement

COLUMNS = ("energy", "fd", "w2", "coverage", "on_mode", "mode_kl", "spread", "class_tv")
"""The metrics that a row shows, as far as the task has them."""

TITLES = {
    "energy": "energy", "fd": "Fréchet", "w2": "W2", "coverage": "coverage", "on_mode": "on a mode",
    "mode_kl": "mode KL", "spread": "spread", "class_tv": "class TV",
}  # fmt: skip


def header(scores: Mapping[str, Any]) -> list[str]:
    """The two lines above the rows of one task."""
    names = [
        "entry",
        "steps",
        "law",
        *map(_title, _columns(scores)),
        "its expert",
        "W2 to its expert",
        "surprise by step",
    ]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def row(found: "Judgement") -> str:
    """A student's row."""
    law = "–" if found.kind == "samples" else found.law
    cells = [found.entry, str(found.steps), law, *_cells(found.scores), _cell(found.expert, _judged(found.scores))]
    ends = "–" if found.ends is None else f"{found.ends['low']:.2g} to {found.ends['high']:.2g}"
    surprises = [step.get("surprise", math.nan) for step in found.shift]
    known = [f"{value:.2g}" for value in surprises if math.isfinite(value)]
    return f"| {' | '.join([*cells, ends, ' / '.join(known) or '–'])} |"


def floor(found: "Judgement") -> str:
    """The row of real points that are scored as if they were samples."""
    return f"| {' | '.join(['real points (the floor)', '', '', *_cells(found.floor), '', '', ''])} |"


def expert(found: "Judgement") -> str:
    """The row of the expert in a student's place."""
    cells = [f"the expert, {found.steps} steps", str(found.steps), found.law, *_cells(found.expert), "", "", ""]
    return f"| {' | '.join(cells)} |"


def table(found: Sequence["Judgement"]) -> str:
    """A task's table of entries: the floor, then students by their number of steps, the nearest first."""
    judged = _judged(found[0].scores)
    ordered = sorted(found, key=lambda each: (each.steps, fmean(each.scores[judged])))
    return "\n".join([*header(found[0].scores), floor(found[0]), *map(row, ordered)])


def _columns(scores: Mapping[str, Any]) -> list[str]:
    return [name for name in COLUMNS if name in scores]


def _judged(scores: Mapping[str, Any]) -> str:
    """The distance that counts: the Fréchet distance of images, the energy distance in the plane."""
    return "fd" if "fd" in scores else "energy"


def _title(name: str) -> str:
    scale = scale_of(name)
    return f"{TITLES[name]} x {scale:.0f}" if scale else TITLES[name]


def _cells(scores: Mapping[str, Sequence[float]]) -> Iterable[str]:
    return [_cell(scores, name) for name in _columns(scores)]


def _cell(scores: Mapping[str, Sequence[float]], name: str) -> str:
    """A mean over seeds, with the least and the most; as numbers of one size."""
    values = [value * (scale_of(name) or 1.0) for value in scores[name] if math.isfinite(value)]
    if not values:
        return "–"
    spell = "{:.1f}" if scale_of(name) else "{:.3f}"
    mean, *ends = (spell.format(each) for each in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} [{ends[0]}, {ends[1]}]"
