"""Batches: networks are shown some rows at a time, so that memory does not grow with the number of samples.

What is drawn does not depend on the size of a batch: noise is drawn for all rows at once, as without batches, and only
then divided. Answers of a network may differ in the last digit, since kernels depend on the number of rows.
"""

import math
from collections.abc import Callable, Sequence

import torch

from dagdiff.checks import check_at_least, check_times
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition, fresh_noise, sample

Tell = Callable[[int], object]
"""Is told of rows that are finished, by their number."""


def rows_at_once(shape: Sequence[int]) -> int:
    """Return how many rows a network is shown where nobody says it: 2**19 numbers, of images at most 2,048."""
    rows = max(1, _NUMBERS // math.prod(shape))
    return min(rows, _IMAGES) if len(shape) == 3 else rows


class InParts:
    """A denoiser that is shown some rows at a time, to spare memory.

    Args:
        denoiser: it.
        rows: how many.
    """

    def __init__(self, denoiser: Denoiser, rows: int) -> None:
        check_at_least("batch_size", rows, 1)
        self.denoiser, self.rows = denoiser, rows

    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the predictions, ``(B, *D)``."""
        if len(x_t) <= self.rows:
            return self.denoiser(x_t, t, condition)
        places = (slice(start, start + self.rows) for start in range(0, len(x_t), self.rows))
        return torch.cat([self.denoiser(x_t[at], t[at], _of(condition, at)) for at in places])


def sample_in_batches(
    policy: Denoiser,
    transition: Transition,
    times: Times,
    noise: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
    rows: int = 1,
    tell: Tell = lambda rows: None,
) -> States:
    """Return what :func:`dagdiff.transition.sample` returns, ``(B, *D)``; each batch is led to its end before the next.

    Args:
        policy: acts.
        transition: the transition.
        times: the grid, K + 1 times.
        noise: where the chains start, ``(B, *D)``.
        condition: of the chains.
        generator: of the fresh noise; that of all K steps is kept in the host's memory, if the law takes any.
        rows: of a batch.
        tell: told of each batch that is done.
    """
    check_at_least("batch_size", rows, 1)
    place = noise.device if len(noise) <= rows else torch.device("cpu")
    stochastic = getattr(transition, "stochastic", True)
    draws = [fresh_noise(transition, noise, generator).to(place) for _ in check_times(times)[1:]] if stochastic else []
    ends = []
    for start in range(0, len(noise), rows):
        at = slice(start, start + rows)
        fresh = [drawn[at] for drawn in draws]
        ends.append(sample(policy, transition, times, noise[at], _of(condition, at), fresh=fresh))
        tell(len(ends[-1]))
    return torch.cat(ends)


def _of(condition: Condition, rows: slice) -> Condition:
    return None if condition is None else condition[rows]


_NUMBERS, _IMAGES = 2**19, 2048
