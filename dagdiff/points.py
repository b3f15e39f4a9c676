"""A table of clean points as data: what a tensor becomes that is given where something to draw from is asked for."""

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from dagdiff.checks import Refusal, as_floats, check_at_least, check_finite
from dagdiff.rollout import Data


class Points:
    """A fixed table of points ``(N, *D)``, drawn from with replacement; ``labels`` ``(N,)`` are optional."""

    def __init__(self, points: Tensor, labels: Tensor | None = None) -> None:
        if points.ndim < 1 or points.numel() == 0:
            raise Refusal(
                f"points must be a non-empty (N, *D) tensor; got {tuple(points.shape)}. Give at least one row."
            )
        if labels is not None and labels.shape != points.shape[:1]:
            raise Refusal(f"labels must be ({len(points)},), one a point; got {tuple(labels.shape)}. Match the two.")
        self.points, self.labels = check_finite("points", points), labels

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` rows with replacement, ``(n, *D)``."""
        return self._take(self.points, self._rows(n, generator), generator)

    def sample_labelled(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the rows of :meth:`sample` with their labels; reject where there are none."""
        if self.labels is None:
            raise Refusal("these points have no labels. Sample without labels, or pass Points(points, labels).")
        rows = self._rows(n, generator)
        return self._take(self.points, rows, generator), self._take(self.labels, rows, generator)

    def _rows(self, n: int, generator: Generator | None) -> Tensor:
        check_at_least("n", n, 1)
        device = generator.device if generator else None
        return torch.randint(len(self.points), (n,), generator=generator, device=device).to(self.points.device)

    @staticmethod
    def _take(table: Tensor, rows: Tensor, generator: Generator | None) -> Tensor:
        """Rows of a table, on the generator's device: a table may be too large to live there."""
        return table[rows].to(generator.device if generator else table.device)


def as_data(data: Any) -> Data:
    """Return what can be drawn from: data as they are, and a tensor or an array ``(N, *D)`` as :class:`Points`.

    An array becomes float32; so do whole numbers in a tensor.

    Raises:
        Refusal: for anything else.
    """
    if isinstance(data, np.ndarray) or (isinstance(data, Tensor) and not data.is_floating_point()):
        data = as_floats("the data", data, "Give a tensor (N, *D).")
    if isinstance(data, Tensor):
        return Points(data)
    if not isinstance(data, Data):
        raise Refusal(
            f"the data must have sample(n, generator), or be a tensor (N, *D); got a {type(data).__name__}. "
            "Give e.g. Points(tensor) of dagdiff.envs.sets."
        )
    return data
