r"""Can two clouds be told apart? A classifier tries, and how often it is right on rows it has not seen is the answer.

Train on one half of both clouds, ask about the other half. If the laws are equal no classifier does better than a coin,
:math:`P(\text{right}) = 1/2`; if they hardly overlap it reaches 1 (Lopez-Paz & Oquab 2017, "Revisiting classifier
two-sample tests", https://arxiv.org/abs/1610.06545). Unlike a distance the accuracy has no unit, so it compares across
dimensions and noise levels; unlike the MMD it needs no bandwidth to be right.

The classifier here is a ridge-penalised logistic regression on the coordinates, their squares, and random cosines
(Rahimi & Recht 2007, https://papers.nips.cc/paper/2007/hash/013a006f03dbc5392effeb8f18fda755-Abstract.html): convex, so
the generator alone decides the answer, and quick. The coordinates see another mean, the squares another width, the
cosines another form. A classifier that fails proves nothing: 0.5 says "not told apart by this one", never "equal".

:func:`median_bandwidths` gives the MMD its scale where nothing is known of the data's.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dagdiff.checks import Refusal, check_finite
from dagdiff.metrics.samples import mmd


class Accuracy(NamedTuple):
    """The share of held-out rows that the classifier puts right, and that share's standard error if laws are equal."""

    accuracy: float
    error: float

    @property
    def clear_of_chance(self) -> bool:
        """Whether the clouds were told apart: more than two standard errors above 0.5."""
        return self.accuracy > 0.5 + 2.0 * self.error


def classifier_accuracy(x: Tensor, y: Tensor, generator: Generator | None = None) -> Accuracy:
    """Held-out accuracy of telling rows of ``x`` ``(n, *D)`` from rows of ``y`` ``(m, *D)``: 0.5 is chance, 1 certain.

    Both classes weigh alike whatever n and m, and a tie counts half. Where n = m, rows of one number stay in one half:
    chains that start from the same noise are near twins, and a twin seen in training would give the other away.
    ``generator`` draws the halves and the cosines. The standard error is that of a coin, ``sqrt(1/n' + 1/m') / 4`` for
    n' and m' held-out rows.

    Raises:
        Refusal: for fewer than 4 rows, values that are NaN or infinite, or rows of two shapes.
    """
    x, y = _check(x, y)
    order = _shuffled(len(x), generator)
    other = order if len(x) == len(y) else _shuffled(len(y), generator)
    (x_seen, x_held), (y_seen, y_held) = _halves(x, order), _halves(y, other)
    features = Features(torch.cat([x_seen, y_seen]), median_bandwidths(x_seen, y_seen), generator)
    weights = _logistic(features(x_seen), features(y_seen))
    right = [_right(features(x_held) @ weights), _right(-features(y_held) @ weights)]
    return Accuracy(sum(right) / 2.0, math.sqrt(1.0 / len(x_held) + 1.0 / len(y_held)) / 4.0)


def median_bandwidths(x: Tensor, y: Tensor, factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)) -> tuple[float, ...]:
    """The median heuristic: the median distance within the pooled sample, in units of x, times each of ``factors``.

    At most 500 rows of each are looked at, evenly spaced. Should all rows be equal, every bandwidth serves alike, and
    the median is taken for 1. Gretton et al. 2012, section 8, https://jmlr.org/papers/v13/gretton12a.html.
    """
    pooled = torch.cat([_thinned(x), _thinned(y)]).detach().double().flatten(1)
    apart = torch.pdist(pooled)
    middle = float(apart.median()) or float(apart.mean()) or 1.0
    return tuple(factor * middle for factor in factors)


def scaled_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD, its bandwidths fixed in 2-D (:func:`mmd`'s own) and else by the median heuristic.

    Fixed bandwidths make numbers comparable across steps and runs; they suit the toys, which live in 2-D with
    unit deviation. In other dimensions distances grow as the root of the dimension and no fixed scale will do.
    """
    return mmd(x, y) if x.shape[1:].numel() == 2 else mmd(x, y, median_bandwidths(x, y))


class Features:
    """What the classifier looks at: coordinates, squares and random cosines, each of unit deviation on ``rows``.

    Args:
        rows: the rows that set the scales, ``(n, d)``.
        bandwidths: lengths on which the cosines vary, in units of x; they take turns.
        generator: of the cosines.
    """

    def __init__(self, rows: Tensor, bandwidths: tuple[float, ...], generator: Generator | None) -> None:
        device = generator.device if generator else None
        waves = torch.randn(rows.shape[1], _COSINES, generator=generator, device=device).to(rows)
        phases = torch.rand(_COSINES, generator=generator, device=device).to(rows)
        lengths = rows.new_tensor(bandwidths).repeat(-(-_COSINES // len(bandwidths)))[:_COSINES]
        self.waves, self.phases = waves / lengths, 2.0 * math.pi * phases
        self.middle, self.width = rows.mean(dim=0), _positive(rows.std(dim=0))
        raw = self._raw(rows)
        self.mean, self.deviation = raw.mean(dim=0), _positive(raw.std(dim=0))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the features, ``(n, 2 d + 100)``; the classes weigh alike, so no constant is needed."""
        return (self._raw(rows) - self.mean) / self.deviation

    def _raw(self, rows: Tensor) -> Tensor:
        scaled = (rows - self.middle) / self.width
        return torch.cat([scaled, scaled.square(), torch.cos(rows @ self.waves + self.phases)], dim=1)


@torch.enable_grad()
def _logistic(x: Tensor, y: Tensor) -> Tensor:
    """Weights of the logistic regression that makes ``x @ weights`` positive and ``y @ weights`` negative."""
    weights = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    softplus = torch.nn.functional.softplus

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = softplus(-x @ weights).mean() + softplus(y @ weights).mean() + _RIDGE * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()


def _right(scores: Tensor) -> float:
    """The share of scores above 0; a score of exactly 0 is half right."""
    return float((scores.sign().mean() + 1.0) / 2.0)


def _check(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Reject clouds that can't be compared; flatten them to float64 rows on one device."""
    for name, cloud in (("x", x), ("y", y)):
        if cloud.ndim < 2 or len(cloud) < 4:
            raise Refusal(f"{name} must hold at least 4 rows; got shape {tuple(cloud.shape)}. Draw more samples.")
        check_finite(name, cloud)
    if x.shape[1:] != y.shape[1:]:
        shapes = f"{tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
        raise Refusal(f"x and y must have rows of one shape; got {shapes}. Reshape one to the other.")
    return x.detach().double().flatten(1), y.detach().to(x.device).double().flatten(1)


def _shuffled(n: int, generator: Generator | None) -> Tensor:
    return torch.randperm(n, generator=generator, device=generator.device if generator else None)


def _halves(rows: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    mixed, half = rows[order.to(rows.device)], len(rows) // 2
    return mixed[:half], mixed[half:]


def _thinned(rows: Tensor) -> Tensor:
    return rows[:: -(-len(rows) // _MOST)]


def _positive(deviation: Tensor) -> Tensor:
    """A feature that never varies stays 0."""
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


_COSINES = 100
_RIDGE = 0.1  # on features of unit deviation
_MOST = 500  # rows of each cloud that the median looks at
