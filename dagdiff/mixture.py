"""Which states a batch is made of, and who drives a rollout: shares, beta, and how both change over training.

A *ramp* is any callable ``progress -> value`` with progress in [0, 1]: 0 in the first round, 1 at the end of training.
The same ramps serve DAgger's beta (the part of the steps that the expert drives; Ross, Gordon and Bagnell 2011,
https://arxiv.org/abs/1011.0686) and the growth of the on-policy shares.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, SupportsFloat

from dagdiff.checks import Refusal, check_share, check_shares

if TYPE_CHECKING:  # ramps are described and checked before torch is loaded
    import torch

Ramp = Callable[[float], float]
"""``progress -> value``, both in [0, 1]."""

SOURCES = ("forward", "student", "expert")
"""The three state sources, in the order of :class:`Shares` and of the ``source`` column of a batch."""


class Shares(NamedTuple):
    """The parts of a batch that are forward-diffused, from student chains, and from expert chains; they sum to 1."""

    forward: float = 0.25
    student: float = 0.5
    expert: float = 0.25

    def ramped(self, height: float) -> "Shares":
        """Scale the two on-policy shares by ``height`` in [0, 1]; forward states take the rest."""
        student, expert = self.student * height, self.expert * height
        return Shares(max(0.0, 1.0 - student - expert), student, expert)

    def counts(self, rows: int, generator: "torch.Generator | None" = None) -> tuple[int, int, int]:
        """Split ``rows`` exactly: each source gets its part, rounded up or down so that the mean is right."""
        ((forward, student, expert),) = self.counts_of([rows], generator).tolist()
        return forward, student, expert

    def counts_of(self, sizes: Sequence[int], generator: "torch.Generator | None" = None) -> "torch.Tensor":
        """Return the :meth:`counts` of batches of these sizes, ``(n, 3)`` int64."""
        import torch

        check_shares(self)
        rows = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
        ends = torch.tensor(self, dtype=torch.float64).cumsum(0) * rows
        if (ends - ends.round()).abs().max() > 1e-9:  # only then is there something to draw
            ends = (ends + torch.rand(rows.shape, generator=generator, dtype=torch.float64)).floor()
        ends = ends.round().minimum(rows)
        ends[:, -1:] = rows
        return torch.diff(ends, prepend=torch.zeros_like(rows)).long()


@dataclass(frozen=True)
class Constant:
    """The same value always."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_share("value", self.value)

    def __call__(self, progress: float) -> float:
        """Return ``value``."""
        return self.value


def as_ramp(name: str, value: "Ramp | SupportsFloat") -> Ramp:
    """Return a ramp as it is, and a number in [0, 1] as a :class:`Constant`; reject anything else, by its ``name``."""
    if callable(value):
        return value
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise Refusal(f"{name} must be a number in [0, 1] or a callable progress -> value; got {value!r}. Pass 0.5.")
    check_share(name, float(value))
    return Constant(float(value))


@dataclass(frozen=True)
class LinearRamp:
    """From ``start`` to ``end`` in a straight line until ``progress`` reaches ``until``, then flat."""

    start: float = 0.0
    end: float = 1.0
    until: float = 0.2

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.until)

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress``."""
        return self.start + (self.end - self.start) * min(progress / self.until, 1.0)


@dataclass(frozen=True)
class CosineRamp:
    """From ``start`` to ``end`` along half a cosine until ``progress`` reaches ``until``, then flat."""

    start: float = 0.0
    end: float = 1.0
    until: float = 0.2

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.until)

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress``."""
        return self.start + (self.end - self.start) * (1.0 - math.cos(math.pi * min(progress / self.until, 1.0))) / 2.0


@dataclass(frozen=True)
class ExponentialRamp:
    """From ``start`` towards ``end``, halving the distance every ``half_life`` of training.

    DAgger's beta_i = p^(i-1) over n rounds is ``ExponentialRamp(1, 0, -log(2) / (n log(p)))``.
    """

    start: float = 1.0
    end: float = 0.0
    half_life: float = 0.1

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.half_life)

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress``."""
        return self.end + (self.start - self.end) * math.exp2(-progress / self.half_life)


@dataclass(frozen=True)
class Indicator:
    """``first`` in the first round, ``then`` ever after: DAgger's parameter-free beta is 1, then 0."""

    first: float = 1.0
    then: float = 0.0

    def __post_init__(self) -> None:
        _check_ends(self.first, self.then, 1.0)

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress``."""
        return self.first if progress <= 0.0 else self.then


def _check_ends(start: float, end: float, length: float) -> None:
    check_share("a ramp's first value", start)
    check_share("a ramp's last value", end)
    if not length > 0.0:
        raise Refusal(f"a ramp's length must be above 0; got {length}. Pass e.g. 0.2, a fifth of training.")
