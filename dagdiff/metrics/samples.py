r"""How far samples ``x`` are from the law behind a cloud ``y``: distances, coverage, and modes counted by name.

No single number sees everything, so there are several. The energy distance and the squared MMD are averages
over pairs,

.. math:: D(x, y) = 2\,E|X - Y| - E|X - X'| - E|Y - Y'|,

unbiased, so equal laws give 0 in mean and now and then a little less. The Wasserstein distance moves one cloud onto the
other, in data units; between finite samples it is *not* 0 for equal laws, so print it beside its floor (real against
real). Precision and recall, density and coverage tell bad samples from missing ones. Where the law is a mixture, the
modes are simply counted.

Every ``x`` is ``(n, *D)``, ``y`` ``(m, *D)``; all is computed in float64 on flattened rows and answered as a Python
float.
"""

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from dagdiff.checks import Refusal, check_at_least, check_finite
from dagdiff.metrics.base import Distance, Metric, Number
from dagdiff.metrics.truth import Truth


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance, a U-statistic: 0 in mean for equal laws, so perhaps just below.

    Székely & Rizzo 2013, "Energy statistics", https://doi.org/10.1016/j.jspi.2013.03.018. Some packages return half of
    it, or its root.
    """
    x, y = _clouds(x, y)
    return float(2.0 * _between(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean())


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0)) -> float:
    """Squared maximum mean discrepancy as a U-statistic, averaged over Gaussian kernels exp(-|x-y|^2 / (2 h^2)).

    The default bandwidths ``h`` suit data of unit deviation in few dimensions; being fixed, they make scores
    comparable. Gretton et al. 2012, "A kernel two-sample test", https://jmlr.org/papers/v13/gretton12a.html.
    """
    if not bandwidths or not all(0.0 < h < math.inf for h in bandwidths):
        raise Refusal(f"bandwidths must be positive numbers; got {tuple(bandwidths)}. Pass e.g. (0.1, 0.5, 2.0).")
    x, y = _clouds(x, y)
    squares = _between(x, y).square_(), torch.pdist(x).square_(), torch.pdist(y).square_()
    means = torch.stack([torch.stack([(d / (-2.0 * h * h)).exp_().mean() for d in squares]) for h in bandwidths])
    xy, xx, yy = means.mean(dim=0)
    return float(xx + yy - 2.0 * xy)


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """Exact 2-Wasserstein distance between two clouds of equal weights, in data units (not squared).

    Solved by POT's network simplex (Bonneel et al. 2011; Flamary et al. 2021, https://jmlr.org/papers/v22/20-451.html).
    Raises UserWarning, as an error, if the solver stops before the optimum. Half a second for 2000 rows, and cubic
    growth.
    """
    import ot

    x, y = _clouds(x, y)
    cost = ot.dist(x.cpu().numpy(), y.cpu().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return math.sqrt(max(float(ot.emd2([], [], cost, numItermax=_ITERATIONS)), 0.0))


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 500, generator: Generator | None = None) -> float:
    """Root mean square of the 1-D 2-Wasserstein distances along random directions, in data units.

    Exact in each direction for ``n != m`` too: both quantile functions are steps, compared on their common refinement.
    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters", https://doi.org/10.1007/s10851-014-0506-3.
    """
    check_at_least("projections", projections, 1)
    x, y = _clouds(x, y)
    (n, dim), m = x.shape, len(y)
    directions = _directions(projections, dim, generator).to(x)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # steps end at ends / (n m)
    widths = torch.diff(ends, prepend=ends.new_zeros(1)).to(x) / (n * m)
    x_steps = (directions @ x.T).sort(dim=1).values[:, (ends - 1) // m]
    y_steps = (directions @ y.T).sort(dim=1).values[:, (ends - 1) // n]
    return math.sqrt(float(((x_steps - y_steps).square_() @ widths).mean()))


class PRDC(NamedTuple):
    """Samples that look real (precision, density), real points the samples reach (recall, coverage), as shares."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(x: Tensor, y: Tensor, k: int = 5) -> PRDC:
    """Precision, recall, density, coverage of samples ``x`` against real data ``y``, by balls to the k-th neighbour.

    *Precision*: samples inside a real point's ball. *Recall*: real points inside a sample's ball (Kynkäänniemi et al.
    2019, https://arxiv.org/abs/1904.06991). *Density*: real balls a sample lies in, over k; it may exceed 1.
    *Coverage*: real balls that hold a sample (Naeem et al. 2020, https://arxiv.org/abs/2002.09797). Equal laws give
    about 1 - 2^-k coverage.
    """
    x, y = _clouds(x, y)
    check_at_least("k", k, 1)
    if min(len(x), len(y)) <= k:
        raise Refusal(f"k must be below the number of rows; got k={k}, {len(x)} and {len(y)} rows. Draw more rows.")
    apart = _between(x, y)
    in_real = apart < _radii(y, k)
    in_fake = apart < _radii(x, k)[:, None]
    shares = in_real.any(1), in_fake.any(0), in_real.sum(1).double() / k, in_real.any(0)
    return PRDC(*(float(share.double().mean()) for share in shares))


class Modes(NamedTuple):
    """What became of a mixture's modes: samples on one, KL of the mode counts, width relative to the truth."""

    on_mode: float
    mode_kl: float
    spread: float


def mode_statistics(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor) -> Modes:
    """Count the modes of samples ``x`` ``(n, *D)`` of a mixture: ``means`` ``(M, *D)``, ``stds``, ``weights`` ``(M,)``.

    *on_mode*: share of samples within 3 standard deviations of the nearest mean; 0.989 for the target in 2-D.

    *mode_kl*: KL(h || weights) in nats, h the shares of samples nearest to each mean. A mode without samples adds 0 to
    the sum; it shows in the surplus of the others (one of eight equal modes lost: log(8/7)). Chance gives (M - 1) / 2n.

    *spread*: rms distance of the on-mode samples to their own centre over its value in the target cut off at
    3 deviations, averaged over modes with at least 10 such samples. 1 is true, 0 collapsed; NaN if no mode has 10.
    """
    x, means = _clouds(x, means, least=1, other="means")
    stds, weights = check_finite("stds", stds).to(x), check_finite("weights", weights).to(x)
    if stds.shape != (len(means),) or weights.shape != stds.shape or not bool((torch.minimum(stds, weights) > 0).all()):
        raise Refusal(f"stds and weights must be positive, ({len(means)},); got {stds}, {weights}. Give one a mode.")
    distance, nearest = _between(x, means).min(dim=1)
    on_mode = distance <= _CUT * stds[nearest]
    shares = torch.bincount(nearest, minlength=len(means)).to(x) / len(x)
    kl = torch.special.xlogy(shares, shares / weights).sum()
    return Modes(float(on_mode.double().mean()), float(kl), _spread(x[on_mode], nearest[on_mode], stds))


class Energy(Distance):
    """The energy distance of the samples to the reference."""

    name = "energy"
    numbers: ClassVar = {
        "energy": Number(
            "Energy distance to the target distribution, in units of x: 0 is best; chance may bring it just below.",
            title="energy distance",
            scale=1000.0,
            floor="0 in mean",
            chance=1.0,
            compared=True,
            excess=True,
        )
    }

    def between(self, x: Tensor, y: Tensor) -> float:
        """Return :func:`energy_distance`."""
        return energy_distance(x, y)


class Wasserstein(Metric):
    """The exact Wasserstein distance, among 2000 rows of each at most, which the truth's generator chooses."""

    name = "w2"
    numbers: ClassVar = {
        "w2": Number(
            "Wasserstein distance: how far samples must be moved (root mean square) to become real; never quite 0.",
            title="W2",
            floor="above 0; it falls with the number of points",
            compared=True,
            excess=True,
        )
    }

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``w2``."""
        chosen = [_some(cloud, truth.generator) for cloud in (samples, truth.reference)]
        return {"w2": wasserstein2(*chosen)}


class SlicedWasserstein(Metric):
    """The sliced Wasserstein distance, along directions that the truth's generator draws."""

    name = "sliced_w2"
    numbers: ClassVar = {"sliced_w2": Number("The same along random lines, averaged.", floor="above 0, as of w2")}

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``sliced_w2``."""
        return {"sliced_w2": sliced_wasserstein(samples, truth.reference, generator=truth.generator)}


class Mmd(Distance):
    """The squared maximum mean discrepancy."""

    name = "mmd"
    numbers: ClassVar = {
        "mmd": Number(
            "Maximum mean discrepancy, squared: how far averages of smooth bumps differ; 0 for equal distributions.",
            floor="0 in mean",
        )
    }

    def between(self, x: Tensor, y: Tensor) -> float:
        """Return :func:`mmd`."""
        return mmd(x, y)


class Neighbours(Metric):
    """Precision, recall, density and coverage, in features where there is a classifier; among 5000 rows at most.

    Args:
        by_parts: as in :class:`~dagdiff.metrics.base.Metric`.
    """

    name = "neighbours"
    numbers: ClassVar = {
        "precision": Number("Share of samples that lie among real points.", larger_is_better=True),
        "recall": Number("Share of real points that lie among samples.", larger_is_better=True),
        "density": Number(
            "How crowded with real points the places of the samples are; 1 for equal distributions.",
            larger_is_better=True,
            floor="1",
        ),
        "coverage": Number(
            "Share of real points that have a sample near by; about 0.97 for equal distributions.",
            larger_is_better=True,
            floor="0.97",
            compared=True,
        ),
    }

    def __init__(self, by_parts: bool = False) -> None:
        self.by_parts = by_parts

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return the four shares."""
        x, y = truth.features(samples), truth.features(truth.reference)
        return prdc(x[some_rows(len(x))], y[some_rows(len(y))])._asdict()


class ModeCounts(Metric):
    """What became of the modes, where the distribution is a mixture."""

    name = "modes"
    numbers: ClassVar = {
        "on_mode": Number(
            "Share of samples within 3 standard deviations of a mode of the target; 0.989 for equal distributions.",
            floor="0.989 in 2-D",
        ),
        "mode_kl": Number(
            "How far the shares of the modes are from the true ones, in nats: 0 when each gets its own.",
            floor="(modes - 1) / 2n",
        ),
        "spread": Number("Width of the modes over their true width: 1 is right, 0 is collapse.", floor="1"),
    }

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return the counts; nothing where there are no modes."""
        if truth.mixture is None:
            return {}
        return mode_statistics(samples, truth.mixture.means, truth.mixture.stds, truth.mixture.weights)._asdict()


def _spread(x: Tensor, mode: Tensor, stds: Tensor) -> float:
    """Mean over modes of the rms distance to the sample mean, over that of a Gaussian cut off at ``_CUT``."""
    member = torch.nn.functional.one_hot(mode, len(stds)).to(x)
    counts = member.sum(dim=0)
    centres = member.T @ x / counts.clamp(min=1)[:, None]
    variance = member.T @ (x - centres[mode]).square().sum(dim=1) / (counts - 1).clamp(min=1)
    half = x.new_tensor([x.shape[1] / 2.0, x.shape[1] / 2.0 + 1.0])
    inside, moment = torch.special.gammainc(half, x.new_tensor(_CUT**2 / 2.0))
    kept = x.shape[1] * moment / inside  # E|z|^2 of the cut Gaussian, by the chi-square laws of d and d + 2 degrees
    return float((variance / kept).sqrt().div(stds)[counts >= _ENOUGH].mean())


_CUT = 3.0  # standard deviations within which a sample counts as on its mode
_ENOUGH = 10  # samples a mode needs before its width is measured
_ITERATIONS = 5_000_000  # of the network simplex; POT's own limit stops short from about 5000 rows on
_MOST = 2000  # rows of the exact Wasserstein distance
_NEAR = 5000  # rows among which neighbours are looked for


def _clouds(x: Tensor, y: Tensor, least: int = 2, other: str = "y") -> tuple[Tensor, Tensor]:
    """Flatten both to float64 rows on one device; reject too few rows, NaN and infinity, and rows of two shapes."""
    for name, cloud in (("x", x), (other, y)):
        if cloud.ndim < 1 or len(cloud) < least:
            raise Refusal(f"{name} must hold at least {least} rows; got shape {tuple(cloud.shape)}. Draw more samples.")
        check_finite(name, cloud)
    if x.shape[1:] != y.shape[1:]:
        shapes = f"{tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
        raise Refusal(f"x and {other} must have rows of one shape; got {shapes}. Reshape one to the other.")
    x, y = x.detach().double(), y.detach().to(x.device).double()
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _between(x: Tensor, y: Tensor) -> Tensor:
    """Distances between all rows. In few dimensions subtracting is both exact and quicker than the matrix product."""
    few = x.shape[1] <= 32
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist" if few else "use_mm_for_euclid_dist")


def _radii(y: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row (the row itself is the nearest of all)."""
    return _between(y, y).topk(k + 1, dim=1, largest=False).values[:, -1]


def _directions(projections: int, dim: int, generator: Generator | None) -> Tensor:
    device = generator.device if generator else None
    return torch.nn.functional.normalize(torch.randn(projections, dim, generator=generator, device=device).double())


def some_rows(n: int) -> Tensor:
    """Numbers of at most 5000 of n rows, always the same, and without order: every tenth row may be of one class."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_NEAR]


def _some(x: Tensor, generator: Generator | None) -> Tensor:
    """Return at most ``_MOST`` rows, chosen at random: the first rows may all belong to one mode."""
    if len(x) <= _MOST:
        return x
    device = generator.device if generator else None
    return x[torch.randperm(len(x), generator=generator, device=device)[:_MOST].to(x.device)]
