"""The two-sample classifier: chance for equal laws, certain for separated ones, and it sees more than means."""

import time
from collections.abc import Callable

import pytest
import torch
from helpers import seeded
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.metrics.samples import mmd
from dagdiff.metrics.twosample import Accuracy, classifier_accuracy, median_bandwidths, scaled_mmd

SHAPES = [(2,), (3, 4, 4)]


def normal(n: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_laws_are_chance_within_the_standard_error(shape: tuple[int, ...]) -> None:
    """Over 30 draws the accuracy is 0.5 in mean, and its spread is the standard error that is told."""
    found = [
        classifier_accuracy(normal(200, shape, 2 * k), normal(200, shape, 2 * k + 1), seeded(k)) for k in range(30)
    ]
    values, error = torch.tensor([each.accuracy for each in found]), found[0].error
    assert error == pytest.approx(0.5 / 200**0.5), "100 held-out rows of each"
    assert float(values.mean()) == pytest.approx(0.5, abs=3.5 * error / 30**0.5)
    assert 0.6 * error < float(values.std()) < 1.4 * error


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_separated_laws_are_certain(shape: tuple[int, ...]) -> None:
    found = classifier_accuracy(normal(200, shape, 0), normal(300, shape, 1) + 6.0, seeded())
    assert found.accuracy == 1.0 and found.clear_of_chance


def ring(n: int, seed: int) -> Tensor:
    points = normal(n, (2,), seed)
    return 2.0**0.5 * points / points.norm(dim=1, keepdim=True)  # mean 0 and variance 1 in each coordinate


@pytest.mark.parametrize(
    ("other", "least"),
    [
        (lambda n, seed: normal(n, (2,), seed) + 1.0, 0.7),
        (lambda n, seed: 3.0 * normal(n, (2,), seed), 0.7),
        (ring, 0.7),
    ],
    ids=["mean", "width", "form"],
)
def test_it_sees_mean_width_and_form(other: Callable, least: float) -> None:
    assert classifier_accuracy(normal(1000, (2,), 0), other(1000, 1), seeded()).accuracy > least


def test_the_best_accuracy_is_reached_and_not_passed() -> None:
    """Two unit Gaussians 1 apart: no classifier beats Phi(1/2) = 0.691."""
    apart = torch.tensor([1.0, 0.0])
    found = classifier_accuracy(normal(4000, (2,), 0), normal(4000, (2,), 1) + apart, seeded())
    assert found.accuracy == pytest.approx(0.6915, abs=3.0 * found.error)


@pytest.mark.parametrize("jitter", [0.0, 1e-7, 1e-3])
def test_twins_are_not_told_apart_nor_taken_for_each_other(jitter: float) -> None:
    """Chains of one noise are near copies; were they split by chance, memory would push the answer below 0.5."""
    x = normal(300, (3, 4, 4), 0)
    found = classifier_accuracy(x, x + jitter * normal(300, (3, 4, 4), 1), seeded())
    assert found.accuracy == pytest.approx(0.5, abs=2.0 * found.error)


def test_unequal_numbers_of_rows_weigh_alike() -> None:
    x, y = normal(1600, (2,), 0), normal(100, (2,), 1)
    found = classifier_accuracy(x, y, seeded())
    assert found.error == pytest.approx((1 / 800 + 1 / 50) ** 0.5 / 4)
    assert abs(found.accuracy - 0.5) < 3.0 * found.error, "answering with the larger class earns nothing"


def test_the_generator_decides_and_no_gradient_is_asked_for() -> None:
    x, y = normal(100, (2,), 0), normal(100, (2,), 1) + 0.5
    with torch.no_grad():
        first = classifier_accuracy(x, y, seeded(3))
    assert first == classifier_accuracy(x.requires_grad_(), y, seeded(3))
    assert len({classifier_accuracy(x, y, seeded(k)).accuracy for k in range(5)}) > 1


def test_2000_rows_take_less_than_a_second() -> None:
    x, y = normal(2000, (3, 4, 4), 0), normal(2000, (3, 4, 4), 1)
    began = time.process_time()
    classifier_accuracy(x, y, seeded())
    assert time.process_time() - began < 2.0, "a second, and one more for a busy machine"


def test_a_coordinate_that_never_varies_does_no_harm() -> None:
    x, y = normal(100, (2,), 0), normal(100, (2,), 1) + 4.0
    flat = torch.zeros(100, 1)
    assert classifier_accuracy(torch.cat([x, flat], 1), torch.cat([y, flat], 1), seeded()).accuracy > 0.95
    assert classifier_accuracy(torch.zeros(10, 2), torch.zeros(10, 2), seeded()).accuracy == 0.5


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), "x must hold at least 4 rows"),
        (torch.zeros(9, 2), torch.zeros(9), "y must hold at least 4 rows"),
        (torch.zeros(9, 2), torch.zeros(9, 3), "rows of one shape"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.nan), "y holds 18 values that are NaN"),
    ],
)
def test_refusals(x: Tensor, y: Tensor, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        classifier_accuracy(x, y)


def test_clear_of_chance_is_two_standard_errors() -> None:
    assert Accuracy(0.53, 0.01).clear_of_chance and not Accuracy(0.515, 0.01).clear_of_chance
    assert not Accuracy(0.4, 0.01).clear_of_chance


def test_the_median_heuristic_follows_the_scale_of_the_data() -> None:
    x, y = normal(300, (3, 4, 4), 0), normal(300, (3, 4, 4), 1)
    found = median_bandwidths(x, y)
    assert found[2] == pytest.approx((2 * 48) ** 0.5, rel=0.03), "two normal points in 48 dimensions"
    assert median_bandwidths(10.0 * x, 10.0 * y) == pytest.approx([10.0 * h for h in found])
    assert scaled_mmd(10.0 * x, 10.0 * y + 3.0) == pytest.approx(scaled_mmd(x, y + 0.3), rel=1e-4)
    assert median_bandwidths(torch.zeros(5, 2), torch.zeros(5, 2), (1.0, 2.0)) == (1.0, 2.0)


def test_in_the_plane_bandwidths_stay_fixed() -> None:
    x, y = normal(100, (2,), 0), normal(100, (2,), 1) + 0.5
    assert scaled_mmd(x, y) == mmd(x, y)
    wide = normal(100, (5,), 0), normal(100, (5,), 1)
    assert scaled_mmd(*wide) == mmd(*wide, median_bandwidths(*wide))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mmd_is_unbiased_and_sees_a_shift(shape: tuple[int, ...]) -> None:
    found = torch.tensor([scaled_mmd(normal(60, shape, 2 * k), normal(60, shape, 2 * k + 1)) for k in range(40)])
    assert float(found.min()) < 0.0 and abs(float(found.mean())) < 3.5 * float(found.std()) / 40**0.5
    assert scaled_mmd(normal(60, shape, 0), normal(60, shape, 1) + 1.0) > 2.0 * float(found.max())
