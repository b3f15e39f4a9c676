"""Intervals over seeds: known cases, coverage, and pairing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, ttest_ind

from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import (
    Interval,
    bootstrap_mean,
    chance_of_draw,
    holm,
    paired_difference,
    probability_of_improvement,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


def test_interval_prints_and_knows_zero() -> None:
    assert str(Interval(0.12, 0.1, 0.15)) == "0.12 [0.1, 0.15]"
    assert f"{Interval(0.12, 0.1, 0.15):.3f}" == "0.120 [0.100, 0.150]"
    assert Interval(2.0, 1.0, 3.0).clear_of_zero and Interval(-2.0, -3.0, -1.0).clear_of_zero
    assert not Interval(1.0, 0.0, 2.0).clear_of_zero and not Interval(0.0, -1.0, 1.0).clear_of_zero


def test_a_large_sample_gives_the_normal_interval() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bootstrap_mean(values, level=0.9)
    half = norm.ppf(0.95) * float(values.std(correction=0)) / 20
    assert found.mean == pytest.approx(float(values.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_two_values_are_resampled_as_counted_by_hand() -> None:
    assert bootstrap_mean([0.0, 1.0], level=0.8) == (0.5, 0.0, 1.0)  # means 0, 1/2, 1 with shares 1/4, 1/2, 1/4
    assert bootstrap_mean([0.0, 1.0], level=0.4) == (0.5, 0.5, 0.5)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(size=30), level=0.8, resamples=2000) for _ in range(600)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.78, abs=0.05)


def test_pairing_removes_what_the_seeds_share() -> None:
    shared = np.random.default_rng(0).normal(size=10) * 5
    a, b = shared, shared + 0.3 + 0.1 * np.random.default_rng(1).normal(size=10)
    paired = paired_difference(a, b)
    assert paired.clear_of_zero and paired.high < 0 and paired.mean == pytest.approx(float(np.mean(a - b)))
    assert not bootstrap_mean(a).clear_of_zero


@given(values=numbers, shift=st.floats(-10, 10))
def test_order_shift_and_seed(values: list[float], shift: float) -> None:
    found = bootstrap_mean(values, resamples=50)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == bootstrap_mean(values, resamples=50)
    moved = bootstrap_mean([value + shift for value in values], resamples=50)
    assert moved == pytest.approx([part + shift for part in found], abs=1e-6)


@pytest.mark.parametrize("values", [[3.5], [3.5, 3.5, 3.5]])
def test_no_spread_no_interval(values: list[float]) -> None:
    assert bootstrap_mean(values) == Interval(3.5, 3.5, 3.5)
    assert paired_difference(values, [1.0] * len(values)) == Interval(2.5, 2.5, 2.5)


@given(a=numbers, b=numbers)
def test_probability_of_improvement_is_the_mann_whitney_statistic(a: list[float], b: list[float]) -> None:
    found = probability_of_improvement(a, b)
    assert found == pytest.approx(mannwhitneyu(b, a).statistic / (len(a) * len(b)))
    assert found + probability_of_improvement(b, a) == pytest.approx(1)


def test_probability_of_improvement_takes_smaller_as_better() -> None:
    assert probability_of_improvement([1.0, 2.0], [3.0, 4.0]) == 1
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_a_new_draw_is_a_t_test_of_one_against_the_others() -> None:
    others, new = [1.0, 1.4, 0.7, 1.1], 2.3
    found = chance_of_draw(new, float(np.mean(others)), float(np.std(others, ddof=1)), len(others))
    assert found == pytest.approx(ttest_ind([new], others).pvalue)


def test_holm_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.02, 0.01, 0.9, 0.015]) == pytest.approx([0.045, 0.04, 0.9, 0.045])  # .01 x 4, .015 x 3, .02 x 2
    assert holm([0.5, 0.6]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bootstrap_mean([]), "values must be a non-empty list"),
        (lambda: bootstrap_mean(torch.zeros(2, 2)), r"values must be a non-empty list.*\(2, 2\)"),
        (lambda: bootstrap_mean([1.0, math.nan]), "values holds 1 values that are NaN"),
        (lambda: bootstrap_mean([1.0, 2.0], level=1.0), "level must lie between 0 and 1"),
        (lambda: bootstrap_mean([1.0, 2.0], resamples=0), "resamples must be at least 1"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "pair up by seed; got 1 and 2 values"),
        (lambda: paired_difference([math.inf], [1.0]), "a holds 1 values"),
        (lambda: probability_of_improvement([1.0], []), "b must be a non-empty list"),
    ],
)
def test_refusals(call, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refusal, match=match):
        call()
