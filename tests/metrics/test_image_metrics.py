"""The image metrics against scipy, closed forms and plain loops; the classifier; and digits with known damage."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Generator, Tensor

from dagdiff.checks import Refusal
from dagdiff.envs.images import ImageWorld, biased, digits
from dagdiff.metrics.base import score
from dagdiff.metrics.classifier import Classifier, kept_classifier, train_classifier
from dagdiff.metrics.images import (
    class_kl,
    class_shares,
    class_tv,
    diversity,
    fid,
    frechet_distance,
    gaussian_frechet,
    kernel_distance,
    lpips_diversity,
    paired_gaps,
)
from dagdiff.metrics.samples import prdc, some_rows
from dagdiff.metrics.truth import Truth
from dagdiff.tasks.images import ImageTask


def scores(x: Tensor, reference: Tensor, eye: Classifier, **known: Any) -> dict[str, float]:
    """Every number that a task of images measures."""
    return score(ImageTask.metrics, x, Truth(reference, None, eye, **known))


def cloud(n: int, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=Generator().manual_seed(seed), dtype=torch.float64)


def covariance(width: int, seed: int) -> Tensor:
    return torch.cov(cloud(3 * width, width, seed).T)


@pytest.fixture(scope="module")
def world() -> ImageWorld:
    pytest.importorskip("sklearn")
    return digits()


@pytest.fixture(scope="module")
def eye(world: ImageWorld) -> Classifier:
    """A quickly trained classifier of the digits."""
    assert world.train.labels is not None
    return train_classifier(world.train.points, world.train.labels, updates=80, batch_size=64)


@pytest.fixture(scope="module")
def halves(world: ImageWorld) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of 440 held-out digits."""
    held = world.reference(880, Generator().manual_seed(0))
    return held[:440], held[440:]


def test_frechet_is_scipys_matrix_root() -> None:
    x, y = cloud(200), cloud(150, seed=1) @ covariance(5, 2) + 0.3
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    apart = float((x.mean(0) - y.mean(0)).square().sum())
    expected = apart + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians_is_known() -> None:
    mean, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 3.0])
    turn = torch.linalg.qr(cloud(3, 3)).Q
    zero, eye_ = torch.zeros(3).double(), torch.eye(3).double()
    turned = turn @ torch.diag(scale.double() ** 2) @ turn.T
    expected = float(mean.square().sum() + (scale - 1).square().sum())  # commuting covariances
    assert gaussian_frechet(zero, eye_, mean.double(), turned) == pytest.approx(expected, rel=1e-9)
    assert gaussian_frechet(mean.double(), turned, mean.double(), turned) == pytest.approx(0.0, abs=1e-12)


def test_frechet_bears_covariances_without_full_rank() -> None:
    x = torch.cat([cloud(4, 3), torch.zeros(4, 20)], dim=1)  # rank 3 of 23, fewer rows than columns
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(x, x + 1.0) == pytest.approx(23.0, rel=1e-9)


def test_frechet_approaches_its_law_from_above() -> None:
    small, large = (np.mean([frechet_distance(cloud(n, seed=i), cloud(n, seed=50 + i)) for i in range(8)])
                    for n in (50, 500))  # fmt: skip
    assert 5 * large < small < 20 * large, "the bias falls as 1 / n"


def test_kernel_distance_is_the_double_loop() -> None:
    x, y = cloud(9), cloud(7, seed=1) + 0.5

    def kernel(p: Tensor, q: Tensor) -> float:
        return float(p @ q / 5 + 1) ** 3

    xx, yy = (np.mean([kernel(p, q) for i, p in enumerate(c) for j, q in enumerate(c) if i != j]) for c in (x, y))
    xy = np.mean([kernel(p, q) for p in x for q in y])
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_kernel_distance_in_blocks_is_the_same() -> None:
    x, y = cloud(1500, 2), cloud(1100, 2, seed=1) * 1.2
    k = [(a @ b.T / 2 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(m.sum() - m.diagonal().sum()) / (len(m) * (len(m) - 1)) for m in k[:2]]
    assert kernel_distance(x, y) == pytest.approx(float(within[0] + within[1] - 2 * k[2].mean()), rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    same = [kernel_distance(cloud(60, seed=2 * i), cloud(60, seed=2 * i + 1)) for i in range(80)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert min(same) < 0 < max(same)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_know_neither_order_nor_rotation(distance: Any) -> None:
    x, y = cloud(80), cloud(80, seed=1) + 0.4
    turn = torch.linalg.qr(cloud(5, 5, seed=3)).Q
    found = distance(x, y)
    assert distance(x.flip(0), y) == pytest.approx(found, rel=1e-9)
    assert distance(y, x) == pytest.approx(found, rel=1e-9)
    assert distance(x @ turn, y @ turn) == pytest.approx(found, rel=1e-9)
    assert distance(x.float(), y.float()) == pytest.approx(found, rel=1e-5)


def test_frechet_does_not_feel_a_common_shift_and_scales_as_a_square() -> None:
    x, y = cloud(80), cloud(80, seed=1) + 0.4
    assert frechet_distance(3 * x + 7, 3 * y + 7) == pytest.approx(9 * frechet_distance(x, y), rel=1e-8)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_refuse_what_cannot_be_compared(distance: Any) -> None:
    for bad in (cloud(5, 4), cloud(1), torch.zeros(5, 5, 1)):
        with pytest.raises(Refusal, match=r"features must be \(n, F\) and \(m, F\) with 2 rows at least"):
            distance(cloud(5), bad)
    with pytest.raises(Refusal, match="features holds 25 values that are NaN"):
        distance(cloud(5), torch.full((5, 5), torch.nan))


def test_class_counts() -> None:
    found = class_shares(torch.tensor([0, 0, 1, 3]), 4)
    assert found.tolist() == [0.5, 0.25, 0.0, 0.25]
    even = torch.full((4,), 0.25).double()
    assert class_kl(found, even) == pytest.approx(0.5 * np.log(2))
    assert class_tv(found, even) == 0.25
    assert (class_kl(even, even), class_tv(even, even)) == (0.0, 0.0)
    assert class_kl(even, found) == np.inf
    assert class_tv(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1.0


def test_diversity_is_the_mean_of_pairs() -> None:
    points, classes = torch.tensor([[0.0, 0], [3, 4], [0, 0], [6, 8]]), torch.tensor([0, 0, 1, 1])
    assert diversity(points) == pytest.approx((5 + 0 + 10 + 5 + 5 + 10) / 6)
    assert diversity(points, classes) == pytest.approx((5 + 10) / 2)
    assert np.isnan(diversity(points, torch.arange(4)))


def test_the_classifier_knows_digits_and_its_seed_decides_it(world: ImageWorld, eye: Classifier) -> None:
    assert world.test.labels is not None and world.train.labels is not None
    assert eye.accuracy(world.test.points, world.test.labels) > 0.95
    assert not eye.training
    data = world.train.points[:64], world.train.labels[:64]
    one, again, other = (train_classifier(*data, updates=2, batch_size=32, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert len(one.fingerprint) == 12


def test_rows_are_seen_alone_and_in_batches(world: ImageWorld, eye: Classifier) -> None:
    together, classes = eye.see(world.test.points[:20])
    apart, same = eye.see(world.test.points[:20], batch_size=3)
    torch.testing.assert_close(apart, together)
    assert torch.equal(classes, same)
    assert torch.equal(classes, eye(world.test.points[:20]).argmax(1))
    assert together.shape == (20, eye.feature_size)


@pytest.mark.parametrize(
    ("shape", "features"), [((1, 8, 8), 64), ((1, 14, 14), 64), ((1, 28, 28), 128), ((3, 32, 32), 128)]
)
def test_classifiers_of_every_size(shape: tuple[int, ...], features: int) -> None:
    found = Classifier(shape, 10).to("meta")
    assert found(torch.empty(2, *shape, device="meta")).shape == (2, 10)
    assert found.feature_size == features
    if shape == (1, 28, 28):
        assert sum(part.numel() for part in found.parameters()) == 458_858


def test_classifiers_are_kept_by_their_data(tmp_path: Path, world: ImageWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.train.labels is not None
    points, labels = world.train.points[:256], world.train.labels[:256]
    first = kept_classifier(tmp_path, points, labels, updates=1)
    (file,) = tmp_path.iterdir()
    kept_classifier(tmp_path, points.roll(1, dims=3), labels, updates=1)
    assert len(list(tmp_path.iterdir())) == 2, "other data were judged by the same weights"
    monkeypatch.setattr("dagdiff.metrics.classifier.train_classifier", None)  # it must not be trained again
    assert kept_classifier(tmp_path, points, labels, updates=1).fingerprint == first.fingerprint
    file.write_bytes(b"broken")
    with pytest.raises(Refusal, match="does not hold the weights of this network"):
        kept_classifier(tmp_path, points, labels, updates=1)


def test_training_refuses_too_little(world: ImageWorld) -> None:
    with pytest.raises(Refusal, match="256 images at least; got 10 images"):
        train_classifier(torch.zeros(10, 1, 8, 8), torch.zeros(10).long())
    with pytest.raises(Refusal, match=r"got 256 images and labels \(255,\)"):
        train_classifier(torch.zeros(256, 1, 8, 8), torch.zeros(255).long())
    with pytest.raises(Refusal, match=r"of 8 x 8 at least; got \(1, 4, 4\)"):
        Classifier((1, 4, 4), 10)
    with pytest.raises(Refusal, match="classes must be at least 2"):
        Classifier((1, 8, 8), 1)
    with pytest.raises(Refusal, match="updates must be at least 1"):
        train_classifier(torch.zeros(256, 1, 8, 8), torch.zeros(256).long(), updates=0)


def test_the_floor_is_near_nought_and_damage_is_seen(eye: Classifier, halves: tuple[Tensor, Tensor]) -> None:
    real, other = halves
    floor = scores(other, real, eye)
    noise = torch.randn(other.shape, generator=Generator().manual_seed(0))
    damaged = [scores(other + level * noise, real, eye) for level in (0.2, 0.4, 0.8)]
    rising = [float(found["fd"]) for found in (floor, *damaged)]
    assert rising == sorted(rising) and rising[-1] > 8 * rising[0]
    assert float(damaged[-1]["kd"]) > 10 * abs(float(floor["kd"]))
    assert float(damaged[-1]["precision"]) < 0.6 * float(floor["precision"])
    assert float(floor["class_tv"]) < 0.1
    same = scores(real, real, eye)
    assert float(same["fd"]) == pytest.approx(0.0, abs=1e-9)
    assert same["class_tv"] == 0.0


def test_a_lost_class_raises_fd_and_shows_in_the_counts(
    world: ImageWorld, eye: Classifier, halves: tuple[Tensor, Tensor], generator: Generator
) -> None:
    real, other = halves
    floor = scores(other, real, eye, missing=(3,))
    lost = scores(biased(world, [3]).sample(440, generator), real, eye, missing=(3,))
    half = scores(biased(world).sample(440, generator), real, eye, missing=(5, 6, 7, 8, 9))
    assert float(half["fd"]) > 2 * float(lost["fd"]) > 3 * float(floor["fd"])
    assert float(lost["missing"]) < 0.01 < 0.07 < float(floor["missing"]) < 0.13
    assert float(half["class_tv"]) == pytest.approx(0.5, abs=0.06)
    assert float(half["recall"]) < float(floor["recall"]) - 0.2
    assert float(half["coverage"]) < float(floor["coverage"]) - 0.3


def test_collapse_shows_in_diversity(eye: Classifier, halves: tuple[Tensor, Tensor]) -> None:
    real, other = halves
    classes = eye.see(other)[1]
    features_of = lambda images: eye.see(images)[0]  # noqa: E731
    means = torch.stack([other[classes == k].mean(0) for k in range(10)])[classes]
    true, dull = ((diversity(features, classes), diversity(features)) for features in map(features_of, (other, means)))
    assert dull[0] < 0.2 * true[0] and dull[1] > 0.5 * true[1]
    assert scores(other, real, eye)["diversity"] == pytest.approx(true[1])


def test_the_score_is_made_of_its_parts(eye: Classifier, halves: tuple[Tensor, Tensor]) -> None:
    real, other = halves
    features, classes = eye.see(other)
    found = scores(other, real, eye, asked=classes.where(torch.arange(440) < 110, -1), paired=real)
    expected = prdc(features, eye.see(real)[0])
    assert found["agreement"] == 0.25
    assert found["recall"] == pytest.approx(expected.recall) and found["density"] == pytest.approx(expected.density)
    gaps = paired_gaps(other, real, eye)
    assert (found["pixel_gap"], found["feature_gap"]) == gaps
    assert gaps.pixel_gap == pytest.approx(float((other - real).square().mean()), rel=1e-5)
    assert gaps.feature_gap == pytest.approx(float((features - eye.see(real)[0]).square().mean()), rel=1e-5)
    assert paired_gaps(real, real, eye) == (0.0, 0.0)
    alone = scores(other, real, eye)
    assert set(found) - set(alone) == {"agreement", "pixel_gap", "feature_gap"} and "missing" not in alone


def test_few_of_many_rows_are_chosen_without_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagdiff.metrics.samples._NEAR", 50)
    rows = some_rows(1000)
    assert len(rows.unique()) == 50
    assert torch.equal(rows, some_rows(1000))
    assert (rows % 10).bincount(minlength=10).count_nonzero() == 10
    assert sorted(some_rows(30).tolist()) == list(range(30))


def test_many_samples_are_scored_in_parts_and_seen_once(
    eye: Classifier, halves: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is as large as the reference; each part, the reference and the whole are shown to the classifier once."""
    real, other = halves
    shown: list[int] = []
    see = Classifier.see
    monkeypatch.setattr(Classifier, "see", lambda self, images: (shown.append(len(images)), see(self, images))[1])
    found = scores(other, real[:100], eye, asked=torch.zeros(440))
    assert sorted(shown) == [100] * 5 + [440]
    monkeypatch.setattr(Classifier, "see", see)
    parts = [scores(part, real[:100], eye) for part in other[:400].split(100)]
    for name in ("energy", "fd", "kd", "precision", "class_tv", "diversity"):
        assert found[name] == pytest.approx(sum(part[name] for part in parts) / 4)
    assert found["agreement"] == eye.accuracy(other, torch.zeros(440)), "the whole, and not the first part, was asked"


def test_what_cannot_be_scored_is_refused(eye: Classifier, halves: tuple[Tensor, Tensor]) -> None:
    real, other = halves
    with pytest.raises(Refusal, match=r"samples and paired must be equally many .* \(9, 1, 8, 8\) and \(440"):
        scores(other[:9], real[:9], eye, paired=real)
    with pytest.raises(Refusal, match=r"missing must number classes below 10; got \[10\]"):
        scores(other, real, eye, missing=(10,))
    with pytest.raises(Refusal, match="samples holds 440 values that are NaN"):
        scores(torch.cat([other[:, :, :7], other[:, :, 7:].where(torch.arange(8) > 0, torch.nan)], 2), real, eye)
    with pytest.raises(Refusal, match="there is no classifier of these data"):
        Truth(real).classes(other)


@pytest.mark.parametrize(("module", "measure"), [("fid", lambda x: fid(x, x)), ("lpip", lpips_diversity)])
def test_published_measures_name_what_is_missing(module: str, measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"torchmetrics.image.{module}", None)
    with pytest.raises(Refusal, match=r"needs torchmetrics, torch-fidelity, torchvision .*'dagdiff\[fid\]'"):
        measure(torch.zeros(4, 1, 8, 8))


class Metric:
    """Stands in for a metric of torchmetrics, without weights: it remembers what it was shown."""

    shown: list[tuple[Any, ...]]

    def __init__(self, **settings: Any) -> None:
        assert settings["normalize"] is True  # it expects images in [0, 1]
        Metric.shown = []

    def to(self, device: object) -> "Metric":
        return self

    def update(self, *images: Tensor, real: bool | None = None) -> None:
        Metric.shown.append((*images, real))

    def compute(self) -> Tensor:
        return torch.tensor(7.0)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    fake = ModuleType(f"torchmetrics.image.{module}")
    setattr(fake, name, Metric)
    for parent in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


def test_inception_is_shown_colours_in_the_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "fid", "FrechetInceptionDistance")
    samples, real = torch.full((150, 1, 8, 8), 1.5), torch.full((120, 1, 8, 8), -1.0)
    assert fid(samples, real) == 7.0
    seen = {kind: torch.cat([part for part, what in Metric.shown if what is kind]) for kind in (True, False)}
    assert torch.equal(seen[True], torch.zeros(120, 3, 8, 8))
    assert torch.equal(seen[False], torch.ones(150, 3, 8, 8)), "samples beyond the range are clamped"


def test_lpips_compares_neighbours_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "lpip", "LearnedPerceptualImagePatchSimilarity")
    samples = (torch.arange(5) / 10).reshape(5, 1, 1, 1).expand(5, 3, 2, 2)
    assert lpips_diversity(samples) == 7.0
    ((one, other, _),) = Metric.shown
    assert ((one[:, 0, 0, 0] * 20 - 10).round().tolist(), (other[:, 0, 0, 0] * 20 - 10).round().tolist()) == (
        [0, 2],
        [1, 3],
    )
    with pytest.raises(Refusal, match="the number of samples must be at least 2"):
        lpips_diversity(samples[:1])
