r"""Excess: what is lost by imitating in few steps, a student's distance to the truth minus its expert's own.

On the same grid and scored alike, the expert's distance is what no imitator is asked to beat. With forward-only
training as the yardstick, the part of its excess that another training leaves is

.. math:: \rho = \frac{\overline{D} - D_{expert}}{\overline{D}_{forward} - D_{expert}}

with means over common seeds: at 1 the whole gap remains, at 0 none. The ratio says nothing where there is no gap, so
where an excess is no more than chance would make it, words stand in its place.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval, bootstrap_mean


class Excess(NamedTuple):
    """The part of the baseline's excess that is left, or in words why there is none to tell."""

    ratio: Interval | None
    words: str = ""


NOTHING = "no gap"
REPAIRED = "matches the expert"


def excess_left(ours: Sequence[float], baseline: Sequence[float], noise: float, resamples: int = 10_000) -> Excess:
    """Return the ratio of mean excesses, which are paired by seed, with a percentile bootstrap interval over seeds.

    Args:
        ours: each seed's distance minus the expert's.
        baseline: the same of the baseline, in the same order.
        noise: what the excess of perfect samples may be by chance, such as the distance of real points.
        resamples: of the bootstrap; numerator and denominator draw the same seeds.
    """
    if len(ours) != len(baseline) or not ours:
        raise Refusal(f"excesses must pair up by seed; got {len(ours)} and {len(baseline)}. Run the missing seeds.")
    a, b = np.asarray(ours, dtype=float), np.asarray(baseline, dtype=float)
    if bootstrap_mean(b).low <= noise:
        return Excess(None, NOTHING)
    if a.mean() <= noise:
        return Excess(None, REPAIRED)
    rows = np.random.default_rng(0).integers(len(a), size=(resamples, len(a)))
    below = b[rows].mean(axis=1)
    drawn = a[rows].mean(axis=1)[below > 0.0] / below[below > 0.0]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Excess(Interval(float(a.mean() / b.mean()), float(low), float(high)))
