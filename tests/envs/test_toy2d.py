"""The worlds: scale, box, strata, labels, seeds."""

import math

import pytest
import torch
from helpers import seeded
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.envs.toy2d import MIXTURES, WORLDS, GaussianMixture, Mixture, world

every_world = pytest.mark.parametrize("name", WORLDS)
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def mode_counts(points: Tensor, mixture: Mixture) -> Tensor:
    return torch.cdist(points, mixture.means).argmin(dim=1).bincount(minlength=len(mixture.means))


@every_world
def test_zero_mean_unit_deviation_and_a_box_that_holds_the_data(name: str) -> None:
    it = world(name)
    points = it.sample(200_000, seeded())
    assert it.name == name
    assert points.shape == (200_000, 2) and points.dtype == torch.float32
    assert points.mean(dim=0).abs().max() < 0.01
    assert (points.std(dim=0) - 1).abs().max() < 0.015
    outside = (points.abs() > it.box).any(dim=1).double().mean()
    assert outside < 1e-4
    assert points.abs().max() > 0.85 * it.box  # the box is no larger than it must be


@every_world
def test_reference_has_the_law_of_sample(name: str) -> None:
    it = world(name)
    free, even = it.sample(50_000, seeded()), it.reference(50_000, seeded(1))
    assert torch.allclose(free.mean(dim=0), even.mean(dim=0), atol=0.03)
    assert torch.allclose(free.T.cov(), even.T.cov(), atol=0.03)
    assert torch.allclose((free**3).mean(dim=0), (even**3).mean(dim=0), atol=0.08)


@every_mixture
def test_reference_gives_each_mode_its_exact_share_and_sample_does_not(name: str) -> None:
    it = world(name)
    assert it.mixture is not None
    fair = 2000 * it.mixture.weights
    assert (mode_counts(it.reference(2000, seeded()), it.mixture) - fair).abs().max() <= 1.01
    assert (mode_counts(it.sample(2000, seeded()), it.mixture) - fair).abs().max() > 2


def test_reference_rows_come_in_random_order() -> None:
    it = world("gaussians8")
    assert it.mixture is not None
    assert mode_counts(it.reference(2000, seeded())[:400], it.mixture).min() > 20


@every_mixture
def test_labels_name_the_nearest_mode_of_the_very_points_of_sample(name: str) -> None:
    it = world(name)
    assert it.mixture is not None and it.labels == len(it.mixture.means)
    points, labels = it.sample_labelled(5000, seeded())
    assert labels.dtype == torch.int64
    assert torch.equal(points, it.sample(5000, seeded()))
    assert torch.equal(labels, torch.cdist(points, it.mixture.means).argmin(dim=1))


@every_mixture
def test_mixture_parameters_are_those_of_the_samples(name: str) -> None:
    it = world(name)
    assert it.mixture is not None
    points, labels = it.sample_labelled(100_000, seeded())
    for mode, (mean, std, weight) in enumerate(zip(it.mixture.means, it.mixture.stds, it.mixture.weights, strict=True)):
        mine = points[labels == mode]
        assert len(mine) / len(points) == pytest.approx(float(weight), abs=0.006)
        assert torch.allclose(mine.mean(dim=0), mean, atol=0.01)
        assert torch.allclose(mine.std(dim=0), std.expand(2), rtol=0.06)


@every_world
def test_draw_maps_each_u_to_its_own_row(name: str) -> None:
    it = world(name)
    u = torch.rand(64, generator=seeded())
    other = u.clone()
    other[:32] = torch.rand(32, generator=seeded(1))
    first, second = it.draw(u, seeded(2)), it.draw(other, seeded(2))
    assert torch.equal(first[32:], second[32:])
    assert not torch.isclose(first[:32], second[:32]).all(dim=1).all()


@every_world
def test_draw_is_finite_at_the_ends_and_keeps_float64(name: str) -> None:
    ends = torch.tensor([0.0, 1.0 - 2.0**-24, 1.0], dtype=torch.float64)
    points = world(name).draw(ends, seeded())
    assert points.isfinite().all() and points.dtype == torch.float64


def test_refusing_labels_names_the_labelled_worlds() -> None:
    with pytest.raises(Refusal, match=r"'moons' has no labels.*gaussians8, grid25, imbalanced"):
        world("moons").sample_labelled(4)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: world("gaussian8"), "Did you mean 'gaussians8'"),
        (lambda: world("moons").sample(0), "n must be at least 1"),
        (lambda: world("moons").reference(-1), "n must be at least 1"),
        (lambda: GaussianMixture("none", torch.empty(0, 2), 0.1), "means, stds, weights must be"),
        (lambda: GaussianMixture("odd", torch.zeros(2, 2), torch.ones(3)), "means, stds, weights must be"),
        (lambda: GaussianMixture("solid", torch.zeros(2, 3), 0.1), "means, stds, weights must be"),
        (lambda: GaussianMixture("flat", torch.zeros(2, 2), 0.0), "stds and weights must be above 0"),
        (lambda: GaussianMixture("more", torch.zeros(2, 2), 0.1, torch.ones(2)), "weights sum to 1"),
        (lambda: GaussianMixture("nan", torch.full((2, 2), math.nan), 0.1), "means holds 4 values"),
    ],
)
def test_refusals(build, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refusal, match=match):
        build()
