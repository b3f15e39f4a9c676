"""What the bench says of a student: a file, and rows and tables in Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from dagdiff import __version__
from dagdiff.judging import terms
from dagdiff.report.glossary import scale_of
from dagdiff.sealed import read_sealed, save_sealed

Scores = dict[str, list[float]]
"""Metric -> its value on each seed."""


@dataclass(frozen=True)
class Judgement:
    """What the bench says of a student.

    Args:
        entry: its name.
        task: that it was judged on.
        kind: what was handed in: callable, run, pipeline, samples or chains.
        steps: of its chain; of samples, as many as were told.
        law: by which it moves: ddim or renoise.
        scores: its metrics.
        floor: those of real points.
        expert: those of the expert in the student's place.
        shift: its shift by step, on the first seed; empty where only samples are known.
        ends: bounds of the 2-Wasserstein distance between its ends and the expert's from the same noise, of the points
            of the first seed; None where only samples are known.
        seeds: the frozen ones that were taken.
        points: scored for each.
        bench: version of the terms.
        dagdiff: version of the package.
        versions: of what made it.
    """

    entry: str
    task: str
    kind: str
    steps: int
    law: str
    scores: Scores
    floor: Scores
    expert: Scores
    shift: list[dict[str, float]]
    ends: dict[str, float] | None
    seeds: list[int]
    points: int = 0
    bench: int = terms.VERSION
    dagdiff: str = __version__
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> str:
        """The student's row for the table of entries, in Markdown."""
        return row(self)


def save_judgement(found: Judgement, file: Path) -> None:
    """Write a judgement to a JSON file with its own digest."""
    save_sealed(file, asdict(found))


def read_judgement(file: Path) -> Judgement:
    """Return the judgement that a file holds.

    Raises:
        Refusal: if it can't be read, was changed, or is none.
    """
    content = read_sealed(file, KIND)
    for part in ("scores", "floor", "expert"):
        content[part] = {name: [_number(each) for each in values] for name, values in content[part].items()}
    content["shift"] = [{name: _number(value) for name, value in step.items()} for step in content["shift"]]
    return Judgement(**content)


def _number(value: float | None) -> float:
    """A number of a file; JSON has no NaN and holds null."""
    return math.nan if value is None else value


_SCORES = {str: [(float, None)]}
KIND = {
    **dict.fromkeys(("entry", "task", "kind", "law", "dagdiff"), str),
    **dict.fromkeys(("scores", "floor", "expert"), _SCORES),
    **dict.fromkeys(("steps", "points", "bench"), int),
    "shift": [{str: (float, None)}], "ends": ({"low": float, "high": float}, None), "seeds": [int],
    "versions": {str: str},
}  # fmt: skip
"""What a file of a judgement holds (:mod:`dagdiff.reading`)."""


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


def row(found: Judgement) -> str:
    """A student's row."""
    law = "–" if found.kind == "samples" else found.law
    cells = [found.entry, str(found.steps), law, *_cells(found.scores), _cell(found.expert, _judged(found.scores))]
    ends = "–" if found.ends is None else f"{found.ends['low']:.2g} to {found.ends['high']:.2g}"
    surprises = [step.get("surprise", math.nan) for step in found.shift]
    known = [f"{value:.2g}" for value in surprises if math.isfinite(value)]
    return f"| {' | '.join([*cells, ends, ' / '.join(known) or '–'])} |"


def floor(found: Judgement) -> str:
    """The row of real points that are scored as if they were samples."""
    return f"| {' | '.join(['real points (the floor)', '', '', *_cells(found.floor), '', '', ''])} |"


def expert(found: Judgement) -> str:
    """The row of the expert in a student's place."""
    cells = [f"the expert, {found.steps} steps", str(found.steps), found.law, *_cells(found.expert), "", "", ""]
    return f"| {' | '.join(cells)} |"


def table(found: Sequence[Judgement]) -> str:
    """A task's table of entries: the floor, then students by their number of steps, the nearest first."""
    judged = _judged(found[0].scores)
    ordered = sorted(found, key=lambda each: (each.steps, fmean(each.scores[judged])))
    return "\n".join([*header(found[0].scores), floor(found[0]), *map(row, ordered)])


def _columns(scores: Mapping[str, Any]) -> list[str]:
    return [name for name in COLUMNS if name in scores]


def _judged(scores: Mapping[str, Any]) -> str:
    """The distance that counts: the Fréchet distance of images, the energy distance in 2-D."""
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
