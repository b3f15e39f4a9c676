"""What is known of the distribution that samples should have: all that a metric may compare them with."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Generator, Tensor

from dagdiff.checks import Refusal
from dagdiff.metrics.classifier import Classifier


class MixtureLike(Protocol):
    """An isotropic Gaussian mixture: ``means`` ``(M, *D)``, ``stds`` ``(M,)``, ``weights`` ``(M,)``."""

    @property
    def means(self) -> Tensor:
        """Centres of the modes."""

    @property
    def stds(self) -> Tensor:
        """Width of each mode."""

    @property
    def weights(self) -> Tensor:
        """Share of each mode; they sum to 1."""


@dataclass(frozen=True)
class Truth:
    """The target distribution, as far as it is known; a metric uses what it needs.

    Args:
        reference: real points, ``(m, *D)``.
        mixture: the modes, where the distribution is a Gaussian mixture.
        classifier: of such data, where they have classes.
        asked: the classes that the samples were asked to show, ``(n,)``.
        paired: the expert's samples from the noise of the first rows, ``(p, *D)`` with p at most n.
        missing: the classes that the student's training data lack.
        generator: of what a metric draws itself.

    Raises:
        Refusal: if a missing class is not one of the classifier's.
    """

    reference: Tensor
    mixture: MixtureLike | None = None
    classifier: Classifier | None = None
    asked: Tensor | None = None
    paired: Tensor | None = None
    missing: tuple[int, ...] = ()
    generator: Generator | None = None
    _seen: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        number = self.classifier.classes if self.classifier else 0
        if any(not 0 <= each < number for each in self.missing):
            raise Refusal(f"missing must number classes below {number}; got {list(self.missing)}. Pass e.g. (0,).")

    def features(self, points: Tensor) -> Tensor:
        """Return the classifier's features of points, ``(n, F)``; without a classifier the flattened points."""
        return self._look(points)[1] if self.classifier else points.flatten(1)

    def classes(self, points: Tensor) -> Tensor:
        """Return the classes that points look like, ``(n,)`` int64; only where there is a classifier."""
        return self._look(points)[2]

    def _look(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Show each tensor to the classifier once, however many metrics ask. The tensor is kept, and so is its id."""
        if self.classifier is None:
            raise Refusal("there is no classifier of these data. Pass one, or leave the metric away.")
        if id(points) not in self._seen:
            self._seen[id(points)] = (points, *self.classifier.see(points))
        return self._seen[id(points)]
