"""The refusals: each names the value, what was wrong with it, and the cure."""

import pytest
import torch

from dagdiff.checks import (
    Refusal,
    check_at_least,
    check_finite,
    check_in,
    check_same_shape,
    check_share,
    check_shares,
    check_times,
)


def test_a_refusal_is_a_value_error() -> None:
    assert issubclass(Refusal, ValueError)


def test_unknown_names_get_the_nearest_known_one() -> None:
    assert check_in("fruit", "pear", ["apple", "pear"]) == "pear"
    with pytest.raises(Refusal, match=r"unknown fruit 'aple'\. Did you mean 'apple'\? Known: apple, pear\."):
        check_in("fruit", "aple", ["pear", "apple"])
    with pytest.raises(Refusal, match=r"unknown fruit 'xyzzy'\. Known: apple, pear\."):
        check_in("fruit", "xyzzy", ["pear", "apple"])


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_too_small_numbers(value: float) -> None:
    check_at_least("rounds", 1, 1)
    with pytest.raises(Refusal, match=rf"rounds must be at least 1; got {value}\. Pass e\.g\. rounds=1\."):
        check_at_least("rounds", value, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_numbers_outside_the_unit_interval(value: float) -> None:
    for inside in (0, 0.5, 1):
        check_share("eta", inside)
    with pytest.raises(Refusal, match=rf"eta must lie in \[0, 1\]; got {value}\. Pass e\.g\. eta=0\.5"):
        check_share("eta", value)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.5), "must be three numbers >= 0"),
        ((1.5, -0.5, 0.0), r"got \(1.5, -0.5, 0.0\)"),
        ((float("nan"), 0.5, 0.5), "nan"),
        ((float("inf"), 0.0, 0.0), "inf"),
        ((0.5, 0.25, 0.0), "which sum to 0.75"),
        ((0.5, 0.5, 0.5), "which sum to 1.5"),
    ],
)
def test_shares_that_are_no_shares(shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        check_shares(shares)
    assert "Pass e.g. 0.5,0.5,0." in str(refusal.value)


def test_good_input_comes_back() -> None:
    values, grid = torch.randn(3, 2), torch.tensor([0.8, 0.3, 0.0])
    assert check_finite("x", values) is values
    assert check_same_shape("the expert", values, torch.zeros(3, 2)) is values
    assert check_times(grid) is grid
    meta = torch.empty(3, device="meta")
    assert check_times(meta) is meta, "a grid without values cannot be looked at"
    check_shares((0.2, 0.3, 0.5))


def test_counts_of_broken_values_and_shapes_are_told() -> None:
    with pytest.raises(Refusal, match=r"data holds 2 values that are NaN or infinite, of 3\. Drop or repair"):
        check_finite("data", torch.tensor([float("nan"), 1.0, float("-inf")]))
    with pytest.raises(
        Refusal, match=r"the student must answer .* \(3, 2\); got \(3,\)\. Return one prediction of x0 per row"
    ):
        check_same_shape("the student", torch.zeros(3), torch.zeros(3, 2))
