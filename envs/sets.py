"""Sets: which part of a dataset the student is shown. The teacher knows the whole dataset in all three.

All of it (:class:`Matched`), a handful of points (:class:`Scarce`), or one half-plane (:class:`Biased`). A table of
one's own is a set too (:class:`Points`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from dagdiff.checks import Refusal, check_at_least, check_finite, check_seed
from dagdiff.envs.toy2d import World, uniform
from dagdiff.points import Points as Points


class Matched:
    """The whole dataset: the student is shown what the teacher knows."""

    def __init__(self, world: World) -> None:
        self.sample, self.sample_labelled = world.sample, world.sample_labelled


class Scarce(Points):
    """A fixed handful of a dataset's points, the same for the same ``seed``: few data, a teacher who knows them all."""

    def __init__(self, world: World, points: int = 16, seed: int = 0) -> None:
        check_at_least("points", points, 1)
        draw = world.sample_labelled if world.labels else lambda *args: (world.sample(*args), None)
        super().__init__(*draw(points, torch.Generator().manual_seed(check_seed("seed", seed))))


class Biased:
    """Only the points with ``x . direction > 0``: the student never sees the other half of the dataset."""

    def __init__(self, world: World, direction: Sequence[float] = (1.0, 0.0)) -> None:
        side = check_finite("direction", torch.tensor([float(value) for value in direction]))
        if side.shape != (2,) or not bool(side.any()):
            raise Refusal(f"direction must be two numbers, not both 0; got {tuple(direction)}. Pass e.g. (1.0, 0.0).")
        self.world, self.direction = world, side
        self.sample(1, torch.Generator().manual_seed(0))

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` independent points of the half-plane, ``(n, 2)``."""
        return self._accept(n, generator)[1]

    def sample_labelled(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the points of :meth:`sample` with the modes they came from, ``(n, 2)`` and ``(n,)`` int64."""
        u, points = self._accept(n, generator)
        return points, self.world.label(u)

    def _accept(self, n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Keep the right side of 4n points; if fewer than n are left, throw all away and try 16n, ... 4096n."""
        for power in range(1, 7):
            u = uniform(n * 4**power, generator)
            points = self.world.draw(u, generator)
            inside = points @ self.direction.to(points) > 0
            if int(inside.sum()) >= n:
                return u[inside][:n], points[inside][:n]
        raise Refusal(f"{self.world.name!r} has no data towards {self.direction.tolist()}. Pass another direction.")


SETS: dict[str, Callable[[World], Matched | Points | Biased]] = {"matched": Matched, "scarce": Scarce, "biased": Biased}
