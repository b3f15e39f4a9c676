r"""Two-dimensional datasets: laws one can draw from without end, see in one plot, and often write down exactly.

A dataset turns a uniform number :math:`u` and fresh noise :math:`\epsilon` into a point :math:`x(u, \epsilon)`: u says
*where on the manifold* (which mode, how far along a curve), the noise *how far off it*. Every dataset has about zero
mean and unit standard deviation an axis, the scale a noise schedule expects. One map serves two samplers:
:meth:`World.sample` throws each u on its own, so rows are independent; :meth:`World.reference` throws one into each of
n equal strata, so every mode gets its exact share. Gaussian mixtures carry their parameters, and so an exact expert.

Which part of a dataset the student is shown is told by a set (:mod:`dagdiff.envs.sets`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dagdiff.checks import Refusal, check_at_least, check_finite, check_in


class World(ABC):
    """A law on the plane. All of it but a share below 1e-4 lies in ``[-box, box]^2``.

    ``labels`` counts the classes (0: unlabelled); ``mixture`` holds the parameters of a Gaussian mixture, else None.
    """

    name: str
    box: float
    labels: int = 0
    mixture: "Mixture | None" = None

    @abstractmethod
    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Map uniforms ``u`` ``(n,)`` in [0, 1), row by row and with fresh noise, to points ``(n, 2)``."""

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` independent points, ``(n, 2)``."""
        return self.draw(uniform(n, generator), generator)

    def reference(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points ``(n, 2)`` of the same law, one in each n-th of the manifold, in random order.

        Independent draws fill the modes unevenly; carrying the surplus to far modes is most of the W2 between two real
        samples, a noisy floor. With exact counts the reference adds none of it; independent samples still bring theirs.
        """
        u = uniform(n, generator)
        strata = torch.randperm(n, generator=generator, device=u.device)
        return self.draw((strata + u) / n, generator)

    def sample_labelled(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the very points of :meth:`sample`, with the mode each came from: ``(n, 2)`` and ``(n,)`` int64."""
        u = uniform(n, generator)
        return self.draw(u, generator), self.label(u)

    def label(self, u: Tensor) -> Tensor:
        """Return the mode that ``u`` chooses, ``(n,)`` int64; a dataset without labels rejects."""
        raise Refusal(f"the world {self.name!r} has no labels. Sample without, or take one of: {', '.join(MIXTURES)}.")


@dataclass(frozen=True, eq=False)
class Mixture:
    """Parameters of an isotropic Gaussian mixture: ``means`` (M, 2), ``stds`` (M,), ``weights`` (M,) that sum to 1."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        modes = len(self.means)
        shapes = tuple(self.means.shape), tuple(self.stds.shape), tuple(self.weights.shape)
        if modes == 0 or shapes != ((modes, 2), (modes,), (modes,)):
            raise Refusal(f"means, stds, weights must be (M, 2), (M,), (M,); got {shapes}. Give one of each a mode.")
        if not (min(self.stds.min(), self.weights.min()) > 0 and abs(self.weights.sum() - 1.0) < 1e-5):
            raise Refusal(f"stds and weights must be above 0, weights sum to 1; got {self}. Leave out empty modes.")
        check_finite("means", self.means)


class GaussianMixture(World):
    """A mixture of round Gaussians: density, score and posterior mean have closed forms. The labels are its modes."""

    mixture: Mixture

    def __init__(self, name: str, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        """Take centres (M, 2), one width for all or one a mode, and weights (None: equal)."""
        widths = torch.as_tensor(stds, dtype=means.dtype)
        widths = widths if widths.ndim else widths.expand(len(means))
        shares = torch.ones(len(means)) / len(means) if weights is None else weights
        self.name, self.mixture, self.labels = name, Mixture(means, widths, shares), len(means)
        self.box = float((means.abs() + 4.0 * widths[:, None]).max())  # beyond 4 deviations lie 6e-5

    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Put ``u`` at the centre of its mode and add the mode's noise."""
        mode = self.label(u)
        return self.mixture.means.to(u)[mode] + self.mixture.stds.to(u)[mode, None] * _normal(u, generator)

    def label(self, u: Tensor) -> Tensor:
        """Return the mode whose stretch of the cumulated weights holds ``u``."""
        ends = self.mixture.weights.to(u).cumsum(0)
        return torch.searchsorted(ends, u, right=True).clamp(max=self.labels - 1)


def eight_gaussians() -> GaussianMixture:
    """Eight equal modes of width 0.1 on a circle of radius sqrt(2), far apart: the test of lost modes."""
    corner, edge = 1.0, math.sqrt(2.0)
    ring = [(edge, 0), (corner, corner), (0, edge), (-corner, corner)]
    ring += [(-x, -y) for x, y in ring]
    return GaussianMixture("gaussians8", torch.tensor(ring), 0.1)


def grid25() -> GaussianMixture:
    """Twenty-five equal modes of width 0.07, 0.7 apart on a 5 x 5 grid: many modes, with saddle points between them."""
    ticks = 0.7 * torch.arange(-2.0, 3.0)
    return GaussianMixture("grid25", torch.cartesian_prod(ticks, ticks), 0.07)


def imbalanced() -> GaussianMixture:
    """Five modes of weights 0.5 down to 0.02, standardised: the rare ones are the first to go."""
    weights = 0.5, 0.25, 0.15, 0.08, 0.02
    axes = [_standardised(axis, weights) for axis in ((-0.7, 1.1, 0.6, -1.2, 2.4), (-0.6, -0.7, 1.3, 1.3, 2.0))]
    return GaussianMixture("imbalanced", torch.tensor(axes).T, 0.1, torch.tensor(weights))


def _standardised(axis: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The values with weighted mean 0 and variance 1, in Python's arithmetic: the same on every processor."""
    mean = math.fsum(weight * value for weight, value in zip(weights, axis, strict=True))
    centred = [value - mean for value in axis]
    scale = math.sqrt(math.fsum(weight * value**2 for weight, value in zip(weights, centred, strict=True)))
    return [value / scale for value in centred]


class TwoMoons(World):
    """Two half circles, each reaching into the other's hollow."""

    name, box, noise = "moons", 2.05, 0.07

    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Choose the moon and the angle by ``u``; centre and scale by the exact moments of the two arcs."""
        moon, part = _split(u, 2)
        x, y = torch.cos(math.pi * part), torch.sin(math.pi * part)
        x, y = torch.where(moon == 0, x, 1.0 - x) - 0.5, torch.where(moon == 0, y, 0.5 - y) - 0.25
        curve = torch.stack([x / math.sqrt(0.75), y / math.sqrt(0.5625 - 1.0 / math.pi)], dim=1)
        return _blur(curve, self.noise, generator)


class Rings(World):
    """Three circles around one centre, equally likely, with radii as 1 : 2 : 3."""

    name, box, noise = "rings", 2.2, 0.05

    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Choose the ring and the angle by ``u``; the mean squared radius is 2."""
        ring, part = _split(u, 3)
        return _blur(_polar(math.sqrt(3.0 / 7.0) * (ring + 1), math.tau * part), self.noise, generator)


class Checkerboard(World):
    """The eight dark squares of a 4 x 4 board: hard edges, flat density."""

    name, box = "checkerboard", math.sqrt(3.0)

    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Choose the square and the place across it by ``u``; the height in it is the fresh noise."""
        square, across = _split(u, 8)
        column, row = square // 2, 2 * (square % 2) + square // 2 % 2
        height = torch.rand(len(u), generator=generator, device=u.device)
        return math.sqrt(3.0) * (torch.stack([column + across, row + height], dim=1) / 2.0 - 1.0)


class TwoSpirals(World):
    """Two Archimedean spirals of one and a half turns, each the other's mirror image through the centre."""

    name, box, noise = "spirals", 2.2, 0.05

    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Choose the arm and the way along it by ``u``: angle 3 pi sqrt(part), near enough uniform in arc length."""
        arm, part = _split(u, 2)
        angle = 3.0 * math.pi * part.sqrt()
        variance = 2.25 * math.pi**2 + angle.new_tensor([0.75, -0.75])
        return _blur(_polar(angle * (1 - 2 * arm), angle) / variance.sqrt(), self.noise, generator)


class Pinwheel(World):
    """Five blades, each a long thin Gaussian bent round the centre."""

    name, box, along, across = "pinwheel", 3.2, 0.3, 0.1

    def draw(self, u: Tensor, generator: Generator | None = None) -> Tensor:
        """Choose the blade by ``u``; noise goes along and across it. Turning by the radius leaves the moments alone."""
        noise = _normal(u, generator)
        radius, offset = 1.0 + self.along * noise[:, 0], self.across * noise[:, 1]
        turn = math.tau / 5 * _split(u, 5)[0] + 0.5 * radius.exp()
        scale = math.sqrt(2.0 / (1.0 + self.along**2 + self.across**2))
        return scale * (_polar(radius, turn) + _polar(offset, turn + math.pi / 2))


MIXTURES: dict[str, Callable[[], World]] = {"gaussians8": eight_gaussians, "grid25": grid25, "imbalanced": imbalanced}
CURVES = (TwoMoons, Rings, Checkerboard, TwoSpirals, Pinwheel)
WORLDS: dict[str, Callable[[], World]] = MIXTURES | {curve.name: curve for curve in CURVES}


def world(name: str) -> World:
    """Return the dataset of that name; reject an unknown one."""
    return WORLDS[check_in("world", name, WORLDS)]()


def uniform(n: int, generator: Generator | None) -> Tensor:
    """Return ``n`` uniforms in [0, 1), ``(n,)``, on the generator's device."""
    check_at_least("n", n, 1)
    return torch.rand(n, generator=generator, device=generator.device if generator else None)


def _normal(u: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(len(u), 2, generator=generator, device=u.device, dtype=u.dtype)


def _split(u: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Split a uniform into two independent parts: which of ``parts`` pieces (int64), and how far into it, [0, 1)."""
    piece = (u * parts).long().clamp(max=parts - 1)
    return piece, u * parts - piece


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _blur(curve: Tensor, noise: float, generator: Generator | None) -> Tensor:
    """Add noise to a curve of unit variance and shrink it by as much, so that the variance stays 1."""
    return math.sqrt(1.0 - noise**2) * curve + noise * _normal(curve, generator)
