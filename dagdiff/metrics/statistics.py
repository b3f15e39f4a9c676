r"""Is the difference real? Intervals over seeds, by the bootstrap.

A run of a stochastic method is one draw of a random variable; a handful of seeds gives a handful of draws. The
percentile bootstrap resamples them with replacement and reads an interval for the mean off the resampled means (Efron
1979, https://doi.org/10.1214/aos/1176344552). Two methods run on the *same* seeds share data, initial weights and test
noise, so compare them seed by seed: :math:`a_i - b_i` loses what they share, and its interval is the narrower for it.
With three seeds even that interval is too narrow; it says how far the runs disagree, not what a hundred more would
show.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dagdiff.checks import Refusal, check_above, check_at_least, check_finite


class Interval(NamedTuple):
    """A mean with a confidence interval. Prints as ``0.12 [0.1, 0.15]``; a format such as ``.3f`` serves all three."""

    mean: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether 0 lies outside: the sign of the mean is then not a matter of seeds."""
        return self.low > 0.0 or self.high < 0.0

    def __format__(self, spec: str) -> str:
        mean, low, high = (format(value, spec or ".4g") for value in self)
        return f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``a - b`` where ``a[i]`` and ``b[i]`` share a seed; rejects unequal lengths."""
    first, second = _values("a", a), _values("b", b)
    if len(first) != len(second):
        raise Refusal(
            f"a and b must pair up by seed; got {len(first)} and {len(second)} values. Run the missing seeds."
        )
    return bootstrap_mean(first - second, level, resamples, seed)


def bootstrap_mean(values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of independent ``values`` ``(n,)`` with its percentile bootstrap interval at ``level``.

    A single value, or equal ones, say nothing of the spread: then low = high = mean. Refuses empty and non-finite
    values.
    """
    data = _values("values", values)
    check_at_least("resamples", resamples, 1)
    if not 0.0 < level < 1.0:
        raise Refusal(f"level must lie between 0 and 1; got {level}. Pass e.g. level=0.95.")
    if bool((data == data[0]).all()):
        return Interval(float(data[0]), float(data[0]), float(data[0]))
    from scipy.stats import bootstrap

    options = {"n_resamples": resamples, "confidence_level": level, "batch": max(1, 10**7 // len(data))}
    rng = np.random.default_rng(seed)
    low, high = bootstrap((data.numpy(),), np.mean, method="percentile", rng=rng, **options).confidence_interval
    return Interval(float(data.mean()), float(low), float(high))


def bootstrap_means(values: ArrayLike, resamples: int = 4000, seed: int = 0) -> Tensor:
    """Return the means of resampled rows of ``values`` ``(n, m)``, ``(resamples, m)``: the columns stay together.

    Percentiles of a function of the columns are bounds of that function of the means, such as a ratio of two.
    """
    data = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if data.ndim != 2 or len(data) == 0:
        raise Refusal(f"values must be a table with a row a draw; got shape {tuple(data.shape)}.")
    check_at_least("resamples", resamples, 1)
    n, rng, found = len(data), np.random.default_rng(seed), []
    for left in range(resamples, 0, -(at_once := max(1, 10**7 // n))):
        count = min(at_once, left)
        places = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(places.ravel(), minlength=count * n).reshape(count, n)
        found.append(torch.from_numpy(times).double() @ data / n)
    return torch.cat(found)


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """Chance that a run of ``a`` beats a run of ``b``, where smaller is better: the share of all pairs with a < b.

    Ties count half. Every ``a`` meets every ``b`` (the Mann-Whitney statistic), so the runs need no pairing and may
    differ in number: the field's standard, of which this is the case of one task. Swap the arguments where larger is
    better. Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", https://arxiv.org/abs/2108.13264.
    """
    first, second = _values("a", a)[:, None], _values("b", b)
    return float((first < second).double().mean() + 0.5 * (first == second).double().mean())


def chance_of_draw(value: float, mean: float, deviation: float, n: int) -> float:
    """Probability that a new draw lies as far from the mean of ``n`` others as ``value``, either way.

    For normal draws with that mean and standard deviation (of n - 1 degrees of freedom) the distance over
    ``deviation * sqrt(1 + 1 / n)`` follows Student's t.
    """
    check_at_least("n", n, 2)
    check_above("deviation", deviation, 0)
    from scipy.stats import t

    return float(2 * t.sf(abs(value - mean) / (deviation * np.sqrt(1 + 1 / n)), n - 1))


def holm(chances: Sequence[float]) -> list[float]:
    """Correct probabilities for being tested together, by Holm's step-down rule.

    Calling wrong what is then below a level errs in *any* of them with at most that probability, whatever hangs
    together with what: the k-th smallest of m is multiplied by m - k + 1, and none becomes smaller than one before it.
    Holm 1979, "A simple sequentially rejective multiple test procedure", https://www.jstor.org/stable/4615733.
    """
    order = np.argsort(chances)
    scaled = np.asarray(chances, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(chance) for chance in corrected]


def _values(name: str, values: ArrayLike) -> Tensor:
    data = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if data.ndim != 1 or len(data) == 0:
        raise Refusal(f"{name} must be a non-empty list of numbers; got shape {tuple(data.shape)}. Give one a seed.")
    return check_finite(name, data)
