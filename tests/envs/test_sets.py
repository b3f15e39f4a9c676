"""What a student is shown of a world: sides, handfuls, tables, and their labels."""

import math

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.envs.sets import SETS, Biased, Matched, Points, Scarce
from dagdiff.envs.toy2d import CURVES, WORLDS, GaussianMixture, world

every_world = pytest.mark.parametrize("name", WORLDS)


@every_world
@pytest.mark.parametrize("kind", SETS)
def test_same_seed_same_points_and_other_seed_other_points(name: str, kind: str) -> None:
    data = SETS[kind](world(name))
    assert torch.equal(data.sample(50, seeded(3)), data.sample(50, seeded(3)))
    assert not torch.equal(data.sample(50, seeded(3)), data.sample(50, seeded(4)))


@pytest.mark.parametrize("name", [curve.name for curve in CURVES])
@pytest.mark.parametrize("kind", SETS)
def test_unlabelled_worlds_refuse_labels(name: str, kind: str) -> None:
    assert world(name).labels == 0 and world(name).mixture is None
    with pytest.raises(Refusal, match="no labels"):
        SETS[kind](world(name)).sample_labelled(4, seeded())


def test_matched_is_the_world() -> None:
    it = world("rings")
    assert torch.equal(Matched(it).sample(9, seeded()), it.sample(9, seeded()))


@every_world
def test_scarce_holds_sixteen_points_fixed_by_its_seed(name: str) -> None:
    it = world(name)
    seen = Scarce(it).sample(2000, seeded())
    assert len(seen.unique(dim=0)) == 16
    assert torch.equal(Scarce(it).points, it.sample(16, seeded()))
    assert not torch.equal(Scarce(it, seed=1).points, Scarce(it).points)
    assert Scarce(it, points=3).points.shape == (3, 2)


def test_scarce_points_keep_their_labels() -> None:
    it = world("grid25")
    assert it.mixture is not None
    points, labels = Scarce(it).sample_labelled(300, seeded())
    assert torch.equal(labels, torch.cdist(points, it.mixture.means).argmin(dim=1))
    assert torch.equal(points, Scarce(it).sample(300, seeded()))


@every_world
@given(angle=st.floats(0.0, math.tau))
def test_biased_points_lie_on_the_right_side_and_elsewhere_follow_the_world(name: str, angle: float) -> None:
    side = (math.cos(angle), math.sin(angle))
    points = Biased(world(name), side).sample(64, seeded())
    assert points.shape == (64, 2)
    assert (points @ torch.tensor(side) > 0).all()


def test_biased_is_the_world_given_the_side() -> None:
    it = world("pinwheel")
    whole = it.sample(40_000, seeded())
    half, cut = whole[whole[:, 0] > 0], Biased(it).sample(20_000, seeded(1))
    assert torch.allclose(half.mean(dim=0), cut.mean(dim=0), atol=0.03)
    assert torch.allclose(half.T.cov(), cut.T.cov(), atol=0.03)


def test_biased_labels_agree_with_its_points() -> None:
    it = world("imbalanced")
    assert it.mixture is not None
    points, labels = Biased(it).sample_labelled(500, seeded())
    assert torch.equal(labels, torch.cdist(points, it.mixture.means).argmin(dim=1))
    assert set(labels.tolist()) <= {1, 2, 4}


def test_biased_finds_a_rare_side() -> None:
    far = GaussianMixture("far", torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1, torch.tensor([0.99, 0.01]))
    assert (Biased(far).sample(100, seeded())[:, 0] > 0.5).all()


def test_points_of_any_shape_are_drawn_evenly_with_replacement() -> None:
    images = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    drawn = Points(images).sample(5000, seeded())
    assert drawn.shape == (5000, 2, 3)
    assert (drawn[:, 0, 0].long().bincount() - 1000).abs().max() < 120


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Scarce(world("moons")).sample(0), "n must be at least 1"),
        (lambda: Scarce(world("moons"), points=0), "points must be at least 1"),
        (lambda: Biased(world("moons")).sample(0), "n must be at least 1"),
        (lambda: Biased(world("moons"), (0.0, 0.0)), "direction must be two numbers, not both 0"),
        (lambda: Biased(world("moons"), (1.0, 0.0, 0.0)), "direction must be two numbers"),
        (lambda: Biased(world("moons"), (math.nan, 0.0)), "direction holds 1 values"),
        (lambda: Biased(GaussianMixture("left", torch.tensor([[-9.0, 0.0]]), 0.1)), "'left' has no data towards"),
        (lambda: Points(torch.empty(0, 2)), "points must be a non-empty"),
        (lambda: Points(torch.tensor(1.0)), "points must be a non-empty"),
        (lambda: Points(torch.tensor([[math.inf, 0.0]])), "points holds 1 values"),
        (lambda: Points(torch.zeros(3, 2), torch.zeros(2)), "labels must be \\(3,\\)"),
        (lambda: Points(torch.zeros(3, 2)).sample_labelled(2), "these points have no labels"),
    ],
)
def test_refusals(build, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refusal, match=match):
        build()
