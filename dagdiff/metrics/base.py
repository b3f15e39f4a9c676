"""A metric: ``(samples, truth) -> numbers by name``, and what each number says to those who read it.

Any callable of that signature is a metric. A subclass of :class:`Metric` also says what its numbers mean; glossary and
report are made from that. A class in this room that has a ``name`` is found by it (:mod:`dagdiff.metrics.names`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from dagdiff.checks import Refusal, check_finite
from dagdiff.metrics.truth import Truth

Scorer = Callable[[Tensor, Truth], Mapping[str, float]]
"""What a metric is: samples ``(n, *D)`` and the truth in, numbers by name out."""


class Number(NamedTuple):
    """What a reader needs to know of a number.

    Args:
        meaning: a sentence.
        title: its name in a sentence, where that is not its id.
        larger_is_better: whether a larger one is better.
        scale: the factor by which it is shown, with one decimal; None shows the number as it is.
        floor: what real points score, in words.
        chance: for a distance that students may be judged by, the part of the floor that is chance; else None.
        compared: whether students are compared by it seed by seed.
        excess: whether the expert's own is subtracted from it.
    """

    meaning: str
    title: str = ""
    larger_is_better: bool = False
    scale: float | None = None
    floor: str = ""
    chance: float | None = None
    compared: bool = False
    excess: bool = False


class Metric(ABC):
    """A metric that says what its numbers mean.

    ``name`` is what it is found by, ``numbers`` are its numbers by id. ``by_parts`` asks for parts of the samples, each
    as large as the reference, and the mean over them: for distances that depend on the number of points. A metric that
    sees parts is not told ``asked`` and ``paired``, which belong to the whole.
    """

    name: ClassVar[str] = ""
    numbers: ClassVar[Mapping[str, Number]] = {}
    by_parts: bool = False

    @abstractmethod
    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return the numbers; leave away what can't be told from what is known of the truth."""


class Distance(Metric):
    """A metric of one number: how far two clouds of rows are apart; smaller is better.

    Args:
        by_parts: as in :class:`Metric`.
    """

    def __init__(self, by_parts: bool = False) -> None:
        self.by_parts = by_parts

    @abstractmethod
    def between(self, x: Tensor, y: Tensor) -> float:
        """Return the distance between rows ``x`` ``(n, F)`` or ``(n, *D)`` and ``y``."""

    def rows(self, points: Tensor, truth: Truth) -> Tensor:
        """Return the rows that are compared: the points themselves."""
        return points

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return the distance to the reference under the metric's name."""
        return {self.name: self.between(self.rows(samples, truth), self.rows(truth.reference, truth))}


def score(metrics: Iterable[Scorer], samples: Tensor, truth: Truth) -> dict[str, float]:
    """Return the numbers of all metrics of samples ``(n, *D)``, in their order.

    Raises:
        Refusal: if a metric returns something else than numbers, or a number that another metric has returned.
    """
    check_finite("samples", samples)
    size = min(len(samples), len(truth.reference))
    parts = [part for part in samples.split(size) if len(part) == size] if size else []
    blind = replace(truth, asked=None, paired=None)
    found: dict[str, float] = {}
    for metric in metrics:
        each = [metric(part, blind) for part in parts] if _sees_parts(metric) else [metric(samples, truth)]
        numbers = {name: sum(one[name] for one in each) / len(each) for name in _checked(metric, each[0])}
        if again := sorted(numbers.keys() & found.keys()):
            raise Refusal(f"{_named(metric)} returns {again[0]!r}, which is measured already. Leave it away.")
        found |= numbers
    return found


def numbers_of(metric: Scorer | type[Metric]) -> dict[str, Number]:
    """What a metric, or its class, says of its numbers; nothing, if it is a plain function."""
    return dict(getattr(metric, "numbers", {}))


def _sees_parts(metric: Scorer) -> bool:
    return isinstance(metric, Metric) and metric.by_parts


def _checked(metric: Scorer, numbers: Any) -> Mapping[str, float]:
    if not isinstance(numbers, Mapping) or not all(
        isinstance(name, str) and isinstance(value, int | float) for name, value in numbers.items()
    ):
        raise Refusal(
            f"{_named(metric)} must return a dict of floats by name; got {numbers!r:.80}. Call float() on each."
        )
    return numbers


def _named(metric: Scorer) -> str:
    return f"metric {getattr(metric, '__qualname__', type(metric).__qualname__)}"
