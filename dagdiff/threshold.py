"""The reflected formulation in practice: operators that bring a prediction of x0 back into the set where data live.

An operator is any callable ``x0 -> x0``. Where each objective applies it is said in :mod:`dagdiff.objectives`; the
student's own output inside a loss is never thresholded, because a clipped output has no gradient where it needs one
most.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_finite, check_share
from dagdiff.shapes import States, column


class Threshold(Protocol):
    """Any map from predictions to predictions of the same shape, ``(B, *D) -> (B, *D)``."""

    def __call__(self, x0: States) -> States:
        """Return the predictions, brought back into the data's range."""
        ...


@dataclass(frozen=True)
class NoThreshold:
    """Leave the prediction as it is."""

    def __call__(self, x0: States) -> States:
        """Return x0 itself."""
        return x0


@dataclass(frozen=True)
class StaticThreshold:
    """Clamp every coordinate to [low, high]; pixels live in [-1, 1]."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)

    def __call__(self, x0: States) -> States:
        """Return x0 clamped."""
        return x0.clamp(self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold:
    """Clamp to m, a quantile of the row's absolute values, and scale back by bound / m where m exceeds ``bound``.

    Source: Imagen (Saharia et al. 2022, https://arxiv.org/abs/2205.11487).
    """

    quantile: float = 0.995
    bound: float = 1.0

    def __post_init__(self) -> None:
        check_share("quantile", self.quantile)
        _check_order(0.0, self.bound)

    def __call__(self, x0: States) -> States:
        """Return x0 clamped and rescaled row by row."""
        (reach,) = row_quantiles(x0.abs().flatten(1).float(), self.quantile)
        reach = column(reach.to(x0.dtype).clamp(min=self.bound), x0)
        return x0.clamp(-reach, reach) * (self.bound / reach)


@dataclass(frozen=True, eq=False)
class QuantileBox:
    """Clamp each channel to its own range [low_c, high_c], estimated from data: latents have no natural box."""

    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or self.low.ndim != 1 or not (self.low < self.high).all():
            raise Refusal(
                f"low must lie below high in every channel; got low={self.low.tolist()}, high={self.high.tolist()}. "
                "Use QuantileBox.estimate."
            )

    @classmethod
    def estimate(cls, data: States, quantile: float = 0.999) -> "QuantileBox":
        """Take the central ``quantile`` of each channel of ``data``, ``(N, C, ...)``."""
        check_share("quantile", quantile)
        channels = check_finite("data", data).transpose(0, 1)
        tail = (1.0 - quantile) / 2.0
        found = [row_quantiles(channel.reshape(1, -1), tail, 1.0 - tail) for channel in channels]
        low, high = (torch.cat(part).to(data.dtype) for part in zip(*found, strict=True))
        return cls(low, high)

    def __call__(self, x0: States) -> States:
        """Return x0 clamped channel by channel (dimension 1)."""
        shape = [1, -1, *[1] * (x0.ndim - 2)]
        return x0.clamp(self.low.to(x0.device).reshape(shape), self.high.to(x0.device).reshape(shape))


@dataclass(frozen=True)
class Fold:
    """Reflect at the walls of [low, high] as often as needed (Lou and Ermon 2023, https://arxiv.org/abs/2304.04740)."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)

    def __call__(self, x0: States) -> States:
        """Return x0 folded back into the box: a triangle wave of period 2 (high - low)."""
        width = self.high - self.low
        return self.low + width - (torch.remainder(x0 - self.low, 2.0 * width) - width).abs()


def row_quantiles(values: Tensor, *shares: float) -> tuple[Tensor, ...]:
    """Return the quantiles ``shares`` of each row of ``(R, N)`` values, ``(R,)`` float64, linear between two of them.

    As ``torch.quantile``, which takes at most 2^24 values in all.
    """
    ordered, last = values.sort(dim=1).values, values.shape[1] - 1
    places = [(share * last, int(share * last)) for share in shares]
    return tuple(
        torch.lerp(ordered[:, below].double(), ordered[:, min(below + 1, last)].double(), place - below)
        for place, below in places
    )


def _check_order(low: float, high: float) -> None:
    if not low < high:
        raise Refusal(f"low must lie below high; got low={low}, high={high}. Pass e.g. low=-1, high=1.")
