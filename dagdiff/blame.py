"""Whose NaN it is: what has entered training and is not finite, named before the loss is blamed for it."""

import torch
from torch import Tensor

from dagdiff import engine
from dagdiff.aggregate import Aggregate
from dagdiff.expert import Expert
from dagdiff.mixture import SOURCES

_STATES = {
    "forward": "the data, or their conditions,",
    "student": "the states of the student's chains",
    "expert": "the states of the expert's chains",
}


def faulty_source(aggregate: Aggregate, expert: Expert) -> str | None:
    """Name what was not finite when it entered D, or when the expert answered; None if all was.

    This is one look at the device. In several processes all find the same, unless records differ.
    """
    names = [*aggregate.finite.names, *expert.finite.names]
    flags = torch.cat([part.finite.flags(aggregate.device) for part in (aggregate, expert)])
    flags = engine.mean({"flags": flags})["flags"]
    bad = {name for name, value in zip(names, flags.tolist(), strict=True) if value != 0.0}
    if not bad:
        return None
    if "states forward" in bad:
        return _STATES["forward"]
    for source in SOURCES:
        if f"labels {source}" in bad and (f"states {source}" not in bad or _labels_first(aggregate, source)):
            return f"the {'expert' if 'answers' in bad else 'objective'}'s labels of {source} states"
    for source in SOURCES:
        if f"states {source}" in bad:
            return _STATES[source]
    return "the expert's answers"


def cure(source: str) -> str:
    """What to do about a faulty source."""
    if "data" in source:
        return "Drop or repair those rows."
    if "student's chains" in source:
        return "Lower the learning rate, clip harder, or set a threshold."
    if "objective" in source:
        return "Look at what its annotate makes of finite states."
    return "Check the expert's weights, precision, guidance and threshold."


def _labels_first(aggregate: Aggregate, source: str) -> bool:
    """Whether a label is not finite where the state is: then the state is not what spoilt it."""
    records = aggregate.records(source)
    rows = {name: _rows(values) for name, values in records.items()}
    sound = rows["x_t"]
    return any(bool((sound & ~finite).any()) for finite in rows.values())


def _rows(values: Tensor) -> Tensor:
    """Which rows are finite."""
    return values.isfinite().reshape(len(values), -1).all(1)
