r"""Is a student behind its expert in the same place? A distance of each, and the error of the difference.

Both clouds start from the same noise and meet the same reference, so they share much of their chance. What is left is
estimated by the delete-a-group jackknife: leave out one tenth of the rows at a time, the same rows of both clouds, and
see how far the difference :math:`d` of the two distances moves,

.. math:: \text{error}^2 = \frac{G - 1}{G} \sum_g (d_g - \bar d)^2 ,

and likewise for tenths of the reference; the two variances add up. It asks nothing of the distance but that it is a
smooth function of the rows (Shao and Tu 1995, "The jackknife and bootstrap", chapter 2). One run is one seed: the error
says whether other samples of the *same* student would tell the same, not whether another run would.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dagdiff.metrics.base import Distance
from dagdiff.metrics.statistics import Interval
from dagdiff.metrics.truth import Truth


class Standing(NamedTuple):
    """A student beside the expert in its place: the same steps, the same noise.

    ``student`` and ``teacher`` are their distances to the reference by that ``metric``, ``error`` is the standard error
    of the difference.
    """

    metric: str
    student: float
    teacher: float
    error: float

    @property
    def difference(self) -> Interval:
        """The student's distance minus the expert's, with a 95 % interval: Student's t of ten groups."""
        found = self.student - self.teacher
        return Interval(found, found - _T * self.error, found + _T * self.error)

    @property
    def behind(self) -> bool:
        """Whether the student is farther off than chance explains: by more than three standard errors."""
        return self.student - self.teacher > _CLEAR * self.error


def compare(distance: Distance, student: Tensor, teacher: Tensor, truth: Truth) -> Standing:
    """Compare the samples of a student and of its teacher, row by row from the same noise, both ``(n, *D)``.

    The error is found on 500 rows of each cloud at most, and scaled to their number.
    """
    student, teacher, reference = (distance.rows(points, truth) for points in (student, teacher, truth.reference))
    between = _by_parts(distance.between) if distance.by_parts else distance.between
    found = between(student, reference), between(teacher, reference)
    mine, theirs, real = student[:_MOST], teacher[:_MOST], reference[:_MOST]

    def difference(rows: Tensor, others: Tensor) -> float:
        return between(mine[rows], real[others]) - between(theirs[rows], real[others])

    rows, others = (torch.arange(len(cloud), device=cloud.device) for cloud in (mine, real))
    of_samples = _jackknife(lambda left: difference(left, others), rows) * len(mine) / len(student)
    of_reference = _jackknife(lambda left: difference(rows, left), others) * len(real) / len(reference)
    return Standing(distance.name, *found, math.sqrt(of_samples + of_reference))


def _by_parts(between: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor], float]:
    """The mean distance of parts of the reference's size."""

    def mean(samples: Tensor, reference: Tensor) -> float:
        size = min(len(samples), len(reference))
        found = [between(part, reference) for part in samples.split(size) if len(part) == size]
        return sum(found) / len(found)

    return mean


def _jackknife(statistic: Callable[[Tensor], float], rows: Tensor) -> float:
    """The variance of a statistic of ``rows``, by leaving out one group of them at a time."""
    groups = min(_GROUPS, len(rows))
    left = [statistic(rows[rows % groups != group]) for group in range(groups)]
    mean = sum(left) / groups
    return (groups - 1) / groups * sum((each - mean) ** 2 for each in left)


_T = 2.262  # the 97.5 % quantile of Student's t with nine degrees of freedom
_CLEAR = 3.0  # standard errors; with ten groups that is a chance of 1 in 130
_GROUPS = 10
_MOST = 500
