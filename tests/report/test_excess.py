"""What is left of an excess: numpy's ratio, an interval that pairs seeds, and words where a ratio would mislead."""

import numpy as np
import pytest

from dagdiff.checks import Refusal
from dagdiff.report.excess import NOTHING, REPAIRED, Excess, excess_left


def test_the_ratio_of_means_with_a_paired_interval() -> None:
    baseline = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    found = excess_left(list(baseline / 4), list(baseline), noise=0.1).ratio
    assert found is not None
    assert tuple(found) == pytest.approx((0.25, 0.25, 0.25))  # pairing: the ratio is the same whichever seeds are drawn
    ours = [0.9, 0.3, 1.8, 1.2, 6.0]
    found = excess_left(ours, list(baseline), noise=0.1).ratio
    assert found is not None and found.mean == pytest.approx(np.mean(ours) / baseline.mean())
    assert 0.15 <= found.low < found.mean < found.high <= 0.9


def test_the_interval_covers_the_true_ratio() -> None:
    """On draws whose means are in the ratio 0.5, some 95 of 100 intervals hold it; with 20 seeds a few less."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        common = rng.normal(size=20)
        a, b = 0.5 + 0.1 * common + 0.05 * rng.normal(size=20), 1.0 + 0.2 * common + 0.05 * rng.normal(size=20)
        found = excess_left(list(a), list(b), 0.0, resamples=1000).ratio
        held += found is not None and found.low <= 0.5 <= found.high
    assert 85 <= held <= 100


@pytest.mark.parametrize(
    ("ours", "baseline", "words"),
    [
        ([0.1, 0.2, 0.1], [0.01, -0.02, 0.03], NOTHING),  # the baseline's own interval includes 0
        ([0.1, 0.2, 0.1], [0.04, 0.03, 0.04], NOTHING),  # clear of 0, and still no more than noise
        ([-0.1, 0.02, 0.01], [1.0, 2.0, 1.5], REPAIRED),
        ([0.04, 0.04, 0.04], [1.0, 2.0, 1.5], REPAIRED),
    ],
)
def test_words_where_there_is_nothing_to_divide(ours: list[float], baseline: list[float], words: str) -> None:
    assert excess_left(ours, baseline, noise=0.05) == Excess(None, words)


def test_one_seed_has_a_ratio_without_width() -> None:
    found = excess_left([0.5], [2.0], noise=0.1).ratio
    assert found is not None and tuple(found) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(("ours", "baseline"), [([], []), ([1.0], [1.0, 2.0])])
def test_seeds_must_pair(ours: list[float], baseline: list[float]) -> None:
    with pytest.raises(Refusal, match="must pair up by seed"):
        excess_left(ours, baseline, 0.0)
