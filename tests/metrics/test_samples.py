"""The sample metrics against plain loops, scipy, POT and prdc, and on samples whose score is known beforehand."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Generator, Tensor

from dagdiff.checks import Refusal
from dagdiff.envs.toy2d import Mixture, world
from dagdiff.metrics import samples
from dagdiff.metrics.base import score
from dagdiff.metrics.samples import (
    energy_distance,
    mmd,
    mode_statistics,
    prdc,
    sliced_wasserstein,
    wasserstein2,
)
from dagdiff.metrics.truth import Truth
from dagdiff.tasks.base import Task

METRICS = Task.metrics


def scores(x: Tensor, reference: Tensor, mixture: Mixture | None = None, seed: int = 2) -> dict[str, float]:
    return score(METRICS, x, Truth(reference, mixture, generator=Generator().manual_seed(seed)))


def cloud(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *(shape or (2,)), generator=Generator().manual_seed(seed))


def mixture_of(name: str) -> Mixture:
    found = world(name).mixture
    assert found is not None
    return found


def pair_means(x: Tensor, y: Tensor, kernel) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]
    """Plain double loops over all pairs between, and all pairs of different rows within."""
    a, b = x.double().numpy(), y.double().numpy()
    between = [kernel(p, q) for p in a for q in b]
    within = [[kernel(p, q) for i, p in enumerate(c) for j, q in enumerate(c) if i != j] for c in (a, b)]
    return float(np.mean(between)), float(np.mean(within[0])), float(np.mean(within[1]))


def test_energy_distance_is_the_double_loop() -> None:
    x, y = cloud(9), cloud(7, seed=1) + 0.5
    xy, xx, yy = pair_means(x, y, lambda p, q: np.linalg.norm(p - q))
    assert energy_distance(x, y) == pytest.approx(2 * xy - xx - yy, rel=1e-10)


def test_mmd_is_the_double_loop_averaged_over_bandwidths() -> None:
    x, y = cloud(9), cloud(7, seed=1) + 0.5
    expected = []
    for h in (0.3, 1.0):
        xy, xx, yy = pair_means(x, y, lambda p, q, h=h: np.exp(-((p - q) @ (p - q)) / (2 * h * h)))
        expected.append(xx + yy - 2 * xy)
    assert mmd(x, y, bandwidths=(0.3, 1.0)) == pytest.approx(np.mean(expected), rel=1e-9)


def test_mmd_agrees_with_sklearn() -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = cloud(60, 3).double().numpy(), (cloud(50, 3, seed=1) * 1.3).double().numpy()
    kernel = [pairwise.rbf_kernel(a, b, gamma=1 / (2 * 0.5**2)) for a, b in ((x, x), (y, y), (x, y))]
    within = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    expected = sum(within) - 2 * kernel[2].mean()
    assert mmd(torch.tensor(x), torch.tensor(y), bandwidths=(0.5,)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", [energy_distance, mmd])
def test_unbiased_for_equal_laws_and_large_for_others(metric) -> None:  # type: ignore[no-untyped-def]
    same = [metric(cloud(100, seed=2 * i), cloud(100, seed=2 * i + 1)) for i in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(len(same))
    assert min(same) < 0 < max(same)
    assert metric(cloud(100), cloud(100, seed=1) + 0.7) > max(same)


def test_energy_distance_of_two_points_is_known() -> None:
    x, y = torch.zeros(3, 2), torch.tensor([[3.0, 4.0]]).expand(4, 2)
    assert energy_distance(x, y) == pytest.approx(10.0)
    assert wasserstein2(x, y) == pytest.approx(5.0)
    assert sliced_wasserstein(x, y, 4000, Generator().manual_seed(0)) == pytest.approx(5 / math.sqrt(2), rel=0.03)


def test_wasserstein_is_the_best_assignment() -> None:
    x, y = cloud(80), cloud(80, seed=1) * 0.5 + 1
    cost = cdist(x.double().numpy(), y.double().numpy()) ** 2
    assert wasserstein2(x, y) == pytest.approx(math.sqrt(cost[linear_sum_assignment(cost)].mean()), rel=1e-9)


def test_wasserstein_of_unequal_numbers_repeats_rows() -> None:
    x, y = cloud(12), cloud(18, seed=1)
    both = wasserstein2(x.repeat_interleave(3, dim=0), y.repeat_interleave(2, dim=0))
    assert wasserstein2(x, y) == pytest.approx(both, rel=1e-9)


def test_wasserstein_raises_when_the_solver_stops_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_ITERATIONS", 3)
    with pytest.raises(UserWarning, match="numItermax"):
        wasserstein2(cloud(100), cloud(100, seed=1))


@pytest.mark.parametrize(("n", "m"), [(50, 50), (40, 64), (64, 9)])
def test_sliced_wasserstein_agrees_with_pot_on_the_same_directions(n: int, m: int) -> None:
    ot = pytest.importorskip("ot")
    x, y = cloud(n, 3), cloud(m, 3, seed=1) + 0.2
    directions = samples._directions(40, 3, Generator().manual_seed(5)).numpy().T
    expected = ot.sliced_wasserstein_distance(x.double().numpy(), y.double().numpy(), projections=directions)
    assert sliced_wasserstein(x, y, 40, Generator().manual_seed(5)) == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_takes_its_randomness_from_the_generator() -> None:
    x, y = cloud(50), cloud(50, seed=1) * torch.tensor([3.0, 1.0])
    first, again, other = (sliced_wasserstein(x, y, 3, Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(("n", "m", "k"), [(200, 200, 5), (150, 220, 3)])
def test_prdc_agrees_with_the_package(n: int, m: int, k: int) -> None:
    oracle = pytest.importorskip("prdc")
    fake, real = cloud(n, 4) * 1.2 + 0.3, cloud(m, 4, seed=1)
    expected = oracle.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    assert prdc(fake, real, k)._asdict() == pytest.approx(expected, rel=1e-9)


def test_prdc_tells_missing_from_bad() -> None:
    it = world("gaussians8")
    real = it.reference(1000, Generator().manual_seed(0))
    fair = prdc(it.sample(1000, Generator().manual_seed(1)), real)
    narrow = prdc(real[real[:, 0] > 0.5] + 1e-3, real)
    wide = prdc(real + 0.4 * cloud(1000), real)
    assert fair.coverage == pytest.approx(1 - 2**-5, abs=0.03) and fair.density == pytest.approx(1, abs=0.1)
    assert narrow.precision > 0.95 and narrow.recall < 0.5 and narrow.coverage < 0.5
    assert wide.precision < 0.5 and wide.recall > 0.9


@pytest.mark.parametrize("name", ["gaussians8", "grid25", "imbalanced"])
def test_mode_statistics_of_the_true_law(name: str) -> None:
    it, mixture = world(name), mixture_of(name)
    found = mode_statistics(it.sample(50_000, Generator().manual_seed(0)), mixture.means, mixture.stds, mixture.weights)
    assert found.on_mode == pytest.approx(1 - math.exp(-4.5), abs=0.002)
    assert 0 <= found.mode_kl < 5e-4
    assert found.spread == pytest.approx(1, abs=0.01)


def test_chance_alone_gives_the_stated_mode_kl() -> None:
    it, mixture = world("grid25"), mixture_of("grid25")
    kls = [
        mode_statistics(
            it.sample(2000, Generator().manual_seed(s)), mixture.means, mixture.stds, mixture.weights
        ).mode_kl
        for s in range(60)
    ]
    assert np.mean(kls) == pytest.approx(24 / 4000, rel=0.15)


def test_mode_statistics_of_collapsed_lost_widened_and_lost_samples() -> None:
    it, mixture = world("gaussians8"), mixture_of("gaussians8")
    points, labels = it.sample_labelled(20_000, Generator().manual_seed(0))
    parameters = mixture.means, mixture.stds, mixture.weights
    lost = mode_statistics(points[labels != 3], *parameters)
    assert lost.mode_kl == pytest.approx(math.log(8 / 7), abs=2e-3) and lost.spread == pytest.approx(1, abs=0.02)
    alone = mode_statistics(points[labels == 3], *parameters)
    assert alone.mode_kl == pytest.approx(math.log(8))
    point = mode_statistics(mixture.means.repeat(20, 1) + 0.05, *parameters)
    assert point.on_mode == 1 and point.mode_kl == pytest.approx(0, abs=1e-12) and point.spread < 1e-5
    half = mode_statistics(mixture.means[labels] + 0.5 * (points - mixture.means[labels]), *parameters)
    uncut = 2 / (
        2 - 9 * math.exp(-4.5) / (1 - math.exp(-4.5))
    )  # E|z|^2 over that of the cut Gaussian: halves escape no cut
    assert half.spread == pytest.approx(0.5 * math.sqrt(uncut), abs=0.01)
    assert half.on_mode == pytest.approx(1, abs=1e-3)
    assert mode_statistics(torch.zeros(50, 2), *parameters).on_mode == 0


def test_spread_is_unbiased_with_few_samples_a_mode_and_nan_with_fewer() -> None:
    it, mixture = world("gaussians8"), mixture_of("gaussians8")
    parameters = mixture.means, mixture.stds, mixture.weights
    spreads = [mode_statistics(it.reference(96, Generator().manual_seed(s)), *parameters).spread for s in range(80)]
    assert np.mean(spreads) == pytest.approx(1, abs=0.025)
    assert math.isnan(mode_statistics(it.reference(32), *parameters).spread)


def test_modes_of_images_are_counted_in_their_dimension() -> None:
    means = torch.stack([torch.full((2, 3), -2.0), torch.full((2, 3), 2.0)])
    x = means.repeat(5000, 1, 1) + 0.3 * cloud(10_000, 2, 3)
    found = mode_statistics(x, means, torch.tensor([0.3, 0.3]), torch.tensor([0.5, 0.5]))
    assert found.on_mode == pytest.approx(0.8264, abs=0.01)  # chi-square with 6 degrees, below 9
    assert found.spread == pytest.approx(1, abs=0.01)


def test_score_has_every_key_and_orders_good_before_bad() -> None:
    it = world("gaussians8")
    reference = it.reference(600, Generator().manual_seed(0))
    good = scores(it.sample(600, Generator().manual_seed(1)), reference, it.mixture)
    bad = scores(reference[reference[:, 0] > 0], reference, it.mixture)
    keys = "energy w2 sliced_w2 mmd precision recall density coverage on_mode mode_kl spread"
    assert list(good) == keys.split() and all(isinstance(value, float) for value in good.values())
    assert all(good[key] < bad[key] for key in ("energy", "w2", "sliced_w2", "mmd", "mode_kl"))
    assert all(good[key] > bad[key] for key in ("recall", "coverage"))
    plain = scores(reference, reference)
    assert set(good) - set(plain) == {"on_mode", "mode_kl", "spread"}, "what is not known can't be told"
    assert plain["w2"] == pytest.approx(0, abs=1e-6)


def test_score_looks_at_2000_random_rows_for_the_wasserstein_distance() -> None:
    ordered = torch.cat([torch.zeros(2000, 2), torch.ones(2000, 2)])
    few = samples._some(ordered, Generator().manual_seed(0))
    assert few.shape == (2000, 2) and float(few.mean()) == pytest.approx(0.5, abs=0.05)


def test_score_of_2000_rows_is_quick() -> None:
    it = world("grid25")
    x, y = it.sample(2000, Generator().manual_seed(0)), it.reference(2000, Generator().manual_seed(1))
    start = time.process_time()
    scores(x, y, it.mixture)
    assert time.process_time() - start < 5  # about 1 s on a quiet core


@settings(max_examples=25)
@given(
    n=st.integers(7, 20), m=st.integers(7, 20), shape=st.lists(st.integers(1, 4), max_size=3), shift=st.floats(-9, 9)
)
def test_symmetry_and_translation(n: int, m: int, shape: list[int], shift: float) -> None:
    x = torch.randn(n, *shape, generator=Generator().manual_seed(0), dtype=torch.float64)
    y = 1.5 * torch.randn(m, *shape, generator=Generator().manual_seed(1), dtype=torch.float64)

    def sliced(a: Tensor, b: Tensor) -> float:
        return sliced_wasserstein(a, b, 5, Generator().manual_seed(2))

    for metric in (energy_distance, mmd, wasserstein2, sliced):
        assert metric(x, y) == pytest.approx(metric(y, x), abs=1e-9)
        assert metric(x, y) == pytest.approx(metric(x + shift, y + shift), abs=1e-6)
    assert sliced(x, y) <= wasserstein2(x, y) + 1e-9
    there, back = prdc(x, y), prdc(y, x)
    assert (there.precision, there.recall) == (back.recall, back.precision)


DISTANCES = [energy_distance, mmd, wasserstein2, sliced_wasserstein, prdc]


@pytest.mark.parametrize("metric", DISTANCES)
def test_bad_clouds_are_refused(metric) -> None:  # type: ignore[no-untyped-def]
    good = cloud(10)
    with pytest.raises(Refusal, match="x holds 1 values that are NaN"):
        metric(torch.cat([good, torch.tensor([[math.nan, 0.0]])]), good)
    with pytest.raises(Refusal, match="y holds 2 values that are NaN"):
        metric(good, torch.cat([good, torch.full((1, 2), math.inf)]))
    with pytest.raises(Refusal, match=r"x must hold at least 2 rows; got shape \(1, 2\)"):
        metric(good[:1], good)
    with pytest.raises(Refusal, match=r"y must hold at least 2 rows; got shape \(0, 2\)"):
        metric(good, good[:0])
    with pytest.raises(Refusal, match=r"rows of one shape; got \(2,\) and \(3,\)"):
        metric(good, cloud(10, 3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: mmd(x, x, bandwidths=()), "bandwidths must be positive"),
        (lambda x: mmd(x, x, bandwidths=(1.0, 0.0)), "bandwidths must be positive"),
        (lambda x: sliced_wasserstein(x, x, projections=0), "projections must be at least 1"),
        (lambda x: prdc(x, x, k=0), "k must be at least 1"),
        (lambda x: prdc(x, x[:5], k=5), "k must be below the number of rows; got k=5, 10 and 5 rows"),
        (lambda x: mode_statistics(x, x, torch.ones(9), torch.ones(10)), "stds and weights must be positive"),
        (lambda x: mode_statistics(x, x, torch.ones(10), torch.zeros(10)), "stds and weights must be positive"),
        (lambda x: mode_statistics(x, x, torch.ones(10), torch.full((10,), math.nan)), "weights holds 10 values"),
        (
            lambda x: mode_statistics(x, torch.zeros(2, 3), torch.ones(2), torch.ones(2)),
            "x and means must have rows of one shape",
        ),
    ],
)
def test_refusals(call, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refusal, match=match):
        call(cloud(10))
