r"""How good image samples are: distances between features, counts of classes, and gaps between paired chains.

The features are those of a classifier trained on the same data (:mod:`dagdiff.metrics.classifier`), so the Frechet
distance here is **FD-cnn**, never "FID": its numbers say nothing beside published FIDs. Its bias falls as 1/n and
differs from model to model (Chong & Forsyth 2020, https://arxiv.org/abs/1911.07023): compare equal n only, look at the
unbiased kernel distance too, and print the *floor*, the score of other real images, beside the teacher's and the
students'.

FD puts quality and variety into one number; precision and recall tell them apart, and the class counts name what was
lost. Samples that start from the same noise as the teacher's can be compared one by one, which has no floor at all.

:func:`fid` and :func:`lpips_diversity` are the published measures, for colour photographs and for those who have their
weights.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_at_least, check_finite
from dagdiff.metrics.base import Distance, Metric, Number
from dagdiff.metrics.classifier import Classifier
from dagdiff.metrics.samples import some_rows
from dagdiff.metrics.truth import Truth


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features ``x`` ``(n, F)`` and ``y`` ``(m, F)``, in float64.

    Heusel et al. 2017, https://arxiv.org/abs/1706.08500.
    """
    x, y = _features(x, y)
    return gaussian_frechet(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))


def gaussian_frechet(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    r"""Squared Frechet (2-Wasserstein) distance between two Gaussians.

    .. math:: |m_x - m_y|^2 + \operatorname{tr} A + \operatorname{tr} B - 2 \operatorname{tr} (A^{1/2} B A^{1/2})^{1/2}

    (Dowson & Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X). The last trace is the sum of the singular
    values of :math:`A^{1/2} B^{1/2}`, so both roots are of symmetric matrices, and nothing turns complex.
    """
    apart = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace()
    return max(float(apart - 2.0 * torch.linalg.svdvals(_root(cov_x) @ _root(cov_y)).sum()), 0.0)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared MMD of features with the kernel (x.y / F + 1)^3, a U-statistic: 0 in mean for equal laws, at any n.

    The "KID" of Binkowski et al. 2018, https://arxiv.org/abs/1801.01401, taken over all rows at once.
    """
    x, y = _features(x, y)
    return _kernel_within(x) + _kernel_within(y) - 2.0 * _kernel_sum(x, y) / (len(x) * len(y))


def class_shares(classes: Tensor, number: int) -> Tensor:
    """Return the share of each of ``number`` classes, ``(K,)``: the class histogram."""
    return torch.bincount(classes, minlength=number).double() / len(classes)


def class_kl(found: Tensor, real: Tensor) -> float:
    """KL(found || real) of class shares in nats; infinite where the samples hold a class that reality lacks."""
    return float(torch.special.xlogy(found, found).sum() - torch.special.xlogy(found, real.to(found)).sum())


def class_tv(found: Tensor, real: Tensor) -> float:
    """Total variation of class shares, in [0, 1]: the part of the samples that is in the wrong class."""
    return float((found - real.to(found)).abs().sum() / 2.0)


def diversity(features: Tensor, classes: Tensor | None = None) -> float:
    """Mean distance between two samples' features, or between two of the same class; NaN if there is no such pair."""
    rows = features.double().flatten(1)
    groups = [rows] if classes is None else [rows[classes == each] for each in classes.unique()]
    apart = [torch.pdist(group) for group in groups]
    return float(torch.cat(apart).mean())


class Gaps(NamedTuple):
    """Mean squared distance, an entry, between samples and the teacher's from the same noise."""

    pixel_gap: float
    feature_gap: float


def paired_gaps(samples: Tensor, paired: Tensor, classifier: Classifier) -> Gaps:
    """Compare samples with those of the same rows in ``paired``, in pixels and in features.

    Raises:
        Refusal: if their numbers or shapes differ.
    """
    if samples.shape != paired.shape:
        raise Refusal(
            f"samples and paired must be equally many images of one shape; got {tuple(samples.shape)} and "
            f"{tuple(paired.shape)}. Draw as many of both."
        )
    pixels = (samples.double() - paired.to(samples.device).double()).square().mean()
    features = (classifier.see(samples)[0].double() - classifier.see(paired)[0].double()).square().mean()
    return Gaps(float(pixels), float(features))


class Frechet(Distance):
    """The Frechet distance of features; only where there is a classifier."""

    name = "fd"
    numbers: ClassVar = {
        "fd": Number(
            "Frechet distance of Gaussians fitted to the features of a classifier of the same data (FD-cnn, not FID).",
            title="FD-cnn",
            floor="above 0; it falls with the number of images",
            chance=0.2,  # the rest of the floor is bias; it varied by a fifth of itself over splits of the digits
            compared=True,
            excess=True,
        )
    }

    def between(self, x: Tensor, y: Tensor) -> float:
        """Return :func:`frechet_distance`."""
        return frechet_distance(x, y)

    def rows(self, points: Tensor, truth: Truth) -> Tensor:
        """Return the features."""
        return truth.features(points)

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``fd``; nothing without a classifier."""
        return super().__call__(samples, truth) if truth.classifier else {}


class Kernel(Frechet):
    """The kernel distance of features; only where there is a classifier."""

    name = "kd"
    numbers: ClassVar = {
        "kd": Number(
            "Kernel distance of those features, squared: 0 in mean for equal distributions.", floor="0 in mean"
        )
    }

    def between(self, x: Tensor, y: Tensor) -> float:
        """Return :func:`kernel_distance`."""
        return kernel_distance(x, y)


class ClassCounts(Metric):
    """The classes that samples look like, counted; only where there is a classifier."""

    name = "classes"
    numbers: ClassVar = {
        "class_tv": Number(
            "Share of samples in the wrong class, by the classifier's counts: 0 when each class gets its own.",
            floor="above 0, by chance",
        ),
        "missing": Number(
            "Share of samples in the classes that the training data lack, as the classifier sees them.",
            larger_is_better=True,
            floor="their share in the data",
            compared=True,
        ),
    }
    by_parts = True

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``class_tv``, and ``missing`` where the training data lack classes."""
        if truth.classifier is None:
            return {}
        found, real = (class_shares(truth.classes(x), truth.classifier.classes) for x in (samples, truth.reference))
        missing = {"missing": float(found[list(truth.missing)].sum())} if truth.missing else {}
        return {"class_tv": class_tv(found, real), **missing}


class Diversity(Metric):
    """How far samples are from each other in features; only where there is a classifier."""

    name = "diversity"
    numbers: ClassVar = {
        "diversity": Number("Mean distance between two samples' features.", floor="that of real images")
    }
    by_parts = True

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``diversity``."""
        if truth.classifier is None:
            return {}
        features = truth.features(samples)
        return {"diversity": diversity(features[some_rows(len(features))])}


class PairedGaps(Metric):
    """How far samples are from the expert's of the same noise; only where there are such and a classifier."""

    name = "gaps"
    numbers: ClassVar = {
        "pixel_gap": Number("Mean squared distance, a pixel, to what the expert makes of the same noise.", floor="0"),
        "feature_gap": Number("The same in the classifier's features.", floor="0"),
    }

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return both gaps."""
        if truth.classifier is None or truth.paired is None:
            return {}
        return paired_gaps(samples[: len(truth.paired)], truth.paired, truth.classifier)._asdict()


class Agreement(Metric):
    """Whether samples show the class that they were asked to show; only where they were, and there is a classifier."""

    name = "agreement"
    numbers: ClassVar = {
        "agreement": Number(
            "Share of samples that look like the class they were asked to show.",
            larger_is_better=True,
            floor="the classifier's accuracy",
        )
    }

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``agreement``."""
        if truth.classifier is None or truth.asked is None:
            return {}
        return {"agreement": float((truth.classes(samples) == truth.asked.to(samples.device)).double().mean())}


def fid(samples: Tensor, reference: Tensor) -> float:
    """Frechet *Inception* distance, by torchmetrics and the weights it downloads; grey images are shown as colours.

    Raises:
        Refusal: if a package or the weights are missing.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=2048, normalize=True).to(samples.device)
    except _MISSING as error:
        raise _no_weights("FID", error) from None
    for images, real in ((reference, True), (samples, False)):
        for part in images.split(100):
            metric.update(_colours(part), real=real)
    return float(metric.compute())


def lpips_diversity(samples: Tensor) -> float:
    """Mean LPIPS distance between neighbouring rows (1st and 2nd, 3rd and 4th, ...): perceived diversity.

    Zhang et al. 2018, https://arxiv.org/abs/1801.03924. Put samples of one condition side by side.

    Raises:
        Refusal: if a package or the weights are missing.
    """
    check_at_least("the number of samples", len(samples), 2)
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(samples.device)
    except _MISSING as error:
        raise _no_weights("LPIPS", error) from None
    even = samples[: len(samples) // 2 * 2]
    for one, other in zip(even[::2].split(100), even[1::2].split(100), strict=True):
        metric.update(_colours(one), _colours(other))
    return float(metric.compute())


def _features(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Reject features that can't be compared; answer in float64 on one device."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise Refusal(f"features must be (n, F) and (m, F) with 2 rows at least; got {shapes}. Use one classifier.")
    return check_finite("features", x).double(), check_finite("features", y).to(x.device).double()


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(matrix.double())
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """The sum of the kernel over all pairs, a block of rows at a time."""
    return sum(float((part @ y.T / x.shape[1] + 1.0).pow_(3).sum()) for part in x.split(1000))


def _kernel_within(x: Tensor) -> float:
    """The mean of the kernel over pairs of different rows."""
    itself = float((x.square().mean(1) + 1.0).pow(3).sum())
    return (_kernel_sum(x, x) - itself) / (len(x) * (len(x) - 1))


def _colours(images: Tensor) -> Tensor:
    """Images in [-1, 1] with one or three channels as three in [0, 1]."""
    return images.float().clamp(-1.0, 1.0).add(1.0).div(2.0).expand(-1, 3, -1, -1)


def _no_weights(name: str, error: Exception) -> Refusal:
    return Refusal(
        f"{name} needs torchmetrics, torch-fidelity, torchvision and their weights ({error}). Run: pip install "
        "'dagdiff[fid]', once with a network connection; or use the metric fd, which needs none."
    )


_MISSING = (ImportError, OSError)  # no package; no connection, or no file of weights
