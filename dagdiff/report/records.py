"""Records: the runs that ``results.json`` holds, as it is read; and what older files call by other names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dagdiff.metrics.base import Number


class Scores(dict[str, float]):
    """Numbers by id, whatever a file holds; what was not measured is NaN."""

    def __missing__(self, name: str) -> float:
        """Return NaN."""
        return math.nan


@dataclass(frozen=True)
class Record:
    """One run, as ``results.json`` holds it; numbers that are null there are NaN here.

    ``about`` says in words what sets its comparison apart from the plain one, ``case`` (the task and that) names its
    yardsticks, ``expert`` holds the scores of its expert in the student's place, from the same noise (of older files:
    nothing), ``teacher`` names a learned expert by its weights, ``milliseconds`` is the CPU time of an update, in
    suites that measure it, and ``course`` a list for each number of what it scored and had cost while it trained, in
    suites that look.
    """

    task: str
    objective: str
    variant: str
    steps: int
    seed: int
    shares: list[float]
    updates: int
    nfe_student: int
    nfe_expert: int
    seconds: float
    setup: str
    config: str
    samples: str
    metrics: Scores
    by_step: dict[str, list[float]]
    about: str = ""
    case: str = ""
    substeps: int = 0
    milliseconds: float = math.nan
    expert: Scores = field(default_factory=Scores)
    course: dict[str, Sequence[float]] = field(default_factory=dict)
    teacher: str = ""


_LATER = {"setup": "", "about": "", "case": "", "substeps": 0, "milliseconds": math.nan, "expert": {},
          "course": {}, "teacher": ""}  # fmt: skip
"""What older files lack, and what it is then."""

_SCORES = {str: (float, None)}
_KINDS: dict[Any, Any] = {
    str: str, int: int, float: (float, None), list[float]: [float], Scores: _SCORES,
    dict[str, Sequence[float]]: {str: [(float, None)]},
    dict[str, list[float]]: {name: [(float, None)] for name in ("t", "loss_forward", "loss_own")},
}  # fmt: skip

RECORD = {each.name + "?" * (each.name in _LATER): _KINDS[each.type] for each in fields(Record)}
"""How a file holds a record (:mod:`dagdiff.reading`)."""

REFERENCE = {"floor": _SCORES, "expert": _SCORES, "expert_by_nfe": {str: _SCORES}, "samples": str}
"""How a file holds the yardsticks of a case."""


def read_record(entry: Mapping[str, Any]) -> Record:
    """Return a record of ``results.json``."""
    later = _LATER | {"case": entry["task"]}
    plain = {field.name: entry[field.name] for field in fields(Record) if field.name not in later}
    plain |= {name: entry.get(name, value) for name, value in later.items()}
    by_step = {name: list(entry["by_step"][name]) for name in ("t", "loss_forward", "loss_own")}
    scores, expert = read_scores(entry["metrics"]), read_scores(entry.get("expert", {}))
    return Record(**{**plain, "metrics": scores, "by_step": by_step, "expert": expert})


def read_reference(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the yardsticks of a case: the scores of the floor, of the expert, and of the expert by NFE."""
    by_nfe = {int(steps): read_scores(found) for steps, found in entry["expert_by_nfe"].items()}
    scores = {name: read_scores(entry[name]) for name in ("floor", "expert")}
    return {**scores, "expert_by_nfe": by_nfe, "samples": entry["samples"]}


def read_scores(numbers: Mapping[str, float | None]) -> Scores:
    """Return numbers as floats, NaN where they are null; names that nobody knows are kept."""
    return Scores({name: math.nan if value is None else float(value) for name, value in numbers.items()})


def read_number(entry: Mapping[str, Any]) -> Number:
    """Return what a file says of a number; what this version does not know is left away."""
    return Number(**{name: value for name, value in entry.items() if name in Number._fields})


def in_present_words(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an older ``results.json`` under the names of today.

    Variants were ``base``, ``ddil``, ``reflected-ddil``; the peers' ``ddil`` had shares of its own. A case was called
    its place.
    """
    own = {"ddil": "mixture-25/50/25"} if content["suite"] == "peers" else {}
    settings = dict(content["settings"])
    if "variants" in settings:
        settings["variants"] = [own.get(name) or present_variant(name) for name in settings["variants"]]
    records = [
        {
            **entry,
            "variant": own.get(entry["variant"]) or present_variant(entry["variant"]),
            "case": entry.get("place") or entry.get("case") or entry["task"],
        }
        for entry in content["records"]
    ]
    return {**content, "settings": settings, "records": records}


def present_variant(name: str) -> str:
    """Return the name of today of what a student was trained on: ``reflected-ddil`` is ``mixture-box``."""
    if name.startswith("mix "):
        return f"mixture-{name.removeprefix('mix ')}"
    operator, _, states = name.rpartition("-")
    if operator in _OPERATORS and states in ("forward", "ddil"):
        return f"{_STATES.get(states, states)}-{_OPERATORS[operator]}"
    return _STATES.get(name, name)


_STATES = {"base": "published", "ddil": "mixture"}
_OPERATORS = {"reflected": "box", "dynamic": "dynamic", "quantile": "quantile", "fold": "fold"}
