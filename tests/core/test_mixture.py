"""Shares, their exact and fair counts, and the ramps at their ends."""

import math

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.mixture import SOURCES, Constant, CosineRamp, ExponentialRamp, Indicator, LinearRamp, Ramp, Shares


@given(
    st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(sum),
    st.integers(1, 1000),
    st.integers(0, 99),
)
def test_counts_sum_and_stay_within_a_row_of_their_part(parts: list[int], rows: int, seed: int) -> None:
    shares = Shares(*(part / sum(parts) for part in parts))
    counts = shares.counts(rows, seeded(seed))
    assert sum(counts) == rows
    assert all(abs(count - share * rows) < 1 + 1e-5 for count, share in zip(counts, shares, strict=True))
    assert all(count == 0 for count, share in zip(counts, shares, strict=True) if share == 0.0)


@pytest.mark.parametrize(
    ("shares", "rows", "counts"),
    [
        (Shares(1, 0, 0), 7, (7, 0, 0)),
        (Shares(0, 1, 0), 7, (0, 7, 0)),
        (Shares(0, 0, 1), 7, (0, 0, 7)),
        (Shares(0.5, 0.25, 0.25), 256, (128, 64, 64)),
        (Shares(0.7, 0.2, 0.1), 10, (7, 2, 1)),
        (Shares(0.1, 0.2, 0.7), 100, (10, 20, 70)),
    ],
)
def test_whole_parts_are_exact_and_draw_nothing(shares: Shares, rows: int, counts: tuple[int, ...]) -> None:
    generator = seeded()
    before = generator.get_state()
    assert shares.counts(rows, generator) == counts
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("shares", "rows"),
    [
        (Shares(0.5, 0.5, 0.0), 5),
        (Shares(0.25, 0.25, 0.5), 2),
        (Shares(1 / 3, 1 / 3, 1 / 3), 10),
        (Shares(0.39, 0.39, 0.22), 10),  # two rows left over, remainders 0.9, 0.9, 0.2
        (Shares(0.8, 0.15, 0.05), 4),
    ],
)
def test_the_rows_left_over_are_fair(shares: Shares, rows: int) -> None:
    generator, draws = seeded(), 4000
    mean = torch.tensor([shares.counts(rows, generator) for _ in range(draws)], dtype=torch.float64).mean(0)
    for found, share in zip(mean.tolist(), shares, strict=True):
        assert found == pytest.approx(share * rows, abs=5 * 0.5 / math.sqrt(draws))


@given(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(sum), st.floats(0, 1))
def test_ramped_shares_are_shares(parts: list[int], height: float) -> None:
    shares = Shares(*(part / sum(parts) for part in parts))
    ramped = shares.ramped(height)
    assert ramped.student == pytest.approx(shares.student * height)
    assert ramped.expert == pytest.approx(shares.expert * height)
    assert sum(ramped) == pytest.approx(1.0)
    assert sum(ramped.counts(64, seeded())) == 64


def test_full_height_without_forward_states_is_no_refusal() -> None:
    """1 - 0.9 - 0.1 is -2.8e-17 in floating point."""
    assert Shares(0.0, 0.9, 0.1).ramped(1.0).counts(10, seeded()) == (0, 9, 1)


def test_ramped_at_its_ends() -> None:
    shares = Shares(0.25, 0.5, 0.25)
    assert shares.ramped(0.0) == Shares(1.0, 0.0, 0.0)
    assert shares.ramped(1.0) == shares


@pytest.mark.parametrize("shares", [(0.5, 0.6, 0.0), (-0.5, 1.0, 0.5), (math.nan, 0.5, 0.5)])
def test_broken_shares_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(Refusal, match=r"shares must .* got Shares\(.*Pass e.g. 0.5,0.5,0"):
        Shares(*shares).counts(8)


def test_sources_are_in_the_order_of_shares() -> None:
    assert SOURCES == Shares._fields == ("forward", "student", "expert")


@pytest.mark.parametrize("ramp", [LinearRamp(0.1, 0.9, 0.25), CosineRamp(0.1, 0.9, 0.25)], ids=str)
def test_ramps_at_their_ends_and_middle(ramp: Ramp) -> None:
    assert ramp(0.0) == 0.1
    assert ramp(0.125) == pytest.approx(0.5)
    for progress in (0.25, 0.5, 1.0):
        assert ramp(progress) == pytest.approx(0.9)
    rising = [ramp(i / 100) for i in range(26)]
    assert rising == sorted(rising)


def test_the_cosine_starts_flat_and_the_line_does_not() -> None:
    assert CosineRamp(until=1.0)(0.1) == pytest.approx((1 - math.cos(math.pi / 10)) / 2)
    assert LinearRamp(until=1.0)(0.1) == pytest.approx(0.1)
    assert LinearRamp(1.0, 0.0, until=1.0)(0.75) == pytest.approx(0.25), "ramps fall, too"


@given(st.floats(0.05, 0.95), st.integers(1, 50))
def test_the_exponential_ramp_is_daggers_power(p: float, rounds: int) -> None:
    beta = ExponentialRamp(1, 0, -math.log(2) / (rounds * math.log(p)))
    for number in range(1, rounds + 1):
        assert beta((number - 1) / rounds) == pytest.approx(p ** (number - 1), rel=1e-9)


def test_the_exponential_ramp_halves_the_distance() -> None:
    ramp = ExponentialRamp(0.2, 0.8, 0.1)
    assert [ramp(x) for x in (0.0, 0.1, 0.2)] == pytest.approx([0.2, 0.5, 0.65])


def test_indicator_and_constant() -> None:
    assert [Indicator()(x) for x in (0.0, 0.01, 1.0)] == [1.0, 0.0, 0.0]
    assert [Indicator(0.7, 0.2)(x) for x in (0.0, 0.5)] == [0.7, 0.2]
    assert Constant(0.3)(0.9) == 0.3


def test_ramp_refusals() -> None:
    with pytest.raises(Refusal, match=r"value must lie in \[0, 1\]; got 2"):
        Constant(2)
    for kind in (LinearRamp, CosineRamp, ExponentialRamp):
        with pytest.raises(Refusal, match=r"a ramp's first value must lie in \[0, 1\]; got -1"):
            kind(-1, 1, 0.2)
        with pytest.raises(Refusal, match=r"a ramp's last value must lie in \[0, 1\]; got 3"):
            kind(0, 3, 0.2)
        with pytest.raises(Refusal, match=r"a ramp's length must be above 0; got 0.*Pass e.g. 0.2"):
            kind(0, 1, 0.0)
    with pytest.raises(Refusal, match="first value"):
        Indicator(1.5)
