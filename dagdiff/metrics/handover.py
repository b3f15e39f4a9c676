r"""Which step does the damage: at each step the expert takes the student's chain over, and finishes it.

With :math:`y_k` the end of the chain that the student makes up to step k and the expert from there on, all from the
same noise and with the same fresh noise, :math:`y_0` is the expert's end, :math:`y_K` the student's, and

.. math:: y_K - y_0 = \sum_k (y_{k+1} - y_k) .

Each term is the error of one step, made at the state to which the student itself has come, as the rest of the chain
passes it on in the expert's hands: the performance difference lemma (Kakade and Langford 2002, ICML) with a vector in
the place of a cost. The *share* of a step is the part of the whole that its term holds,

.. math:: \langle y_{k+1} - y_k, y_K - y_0 \rangle / \lVert y_K - y_0 \rVert^2 ,

means over rows above and below; shares sum to 1, and one below 0 undoes a part of what others did.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dagdiff.metrics.statistics import bootstrap_means
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Step, Transition, chain, fresh_noise


class Handover(NamedTuple):
    """The chains of student and expert from the same noise, and the ends of those that change hands."""

    own: list[Step]
    """The student's chain."""
    led: list[Step]
    """The expert's in the student's place."""
    ends: list[States]
    """y_0 to y_K, ``(B, *D)`` each: where the expert ends that takes over at step k."""


def hand_over(
    policy: Denoiser,
    expert: Denoiser,
    transition: Transition,
    times: Times,
    noise: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
    tell: Callable[[], object] = lambda: None,
) -> Handover:
    """Run both chains from the same noise, and finish the student's from each of its states by the expert.

    Args:
        policy: the student.
        expert: in the student's place (:class:`dagdiff.policy.ExpertPolicy`).
        transition: the student's law of motion.
        times: its grid, K + 1 times.
        noise: where the chains start, ``(B, *D)``.
        condition: of the chains.
        generator: of the fresh noise, which all chains share.
        tell: called after each step.
    """
    fresh = [fresh_noise(transition, noise, generator) for _ in times[:-1]]

    def run(by: Denoiser, start: States, first: int = 0) -> list[Step]:
        return list(chain(by, transition, times[first:], start, condition, fresh=fresh[first:]))

    own, led = run(policy, noise), run(expert, noise)
    ends = []
    for number, (mine, theirs) in enumerate(zip(own, led, strict=True)):
        apart = not torch.equal(mine.x_t, theirs.x_t)
        ends.append(run(expert, mine.x_t, number)[-1].x_s if apart else led[-1].x_s)
        tell()
    return Handover(own, led, [*ends, own[-1].x_s])


class StepBounds(NamedTuple):
    """One step: numbers with their bounds, in units of x but for ``growth`` and ``share``."""

    step_error: tuple[float, float]
    displacement: tuple[float, float]
    growth: tuple[float, float]
    cost: float
    share: float
    share_bounds: tuple[float, float]


def step_bounds(found: Handover, errors: Sequence[Tensor], level: float, least: float) -> list[StepBounds]:
    """Return what each step does, with bounds from a bootstrap over rows; NaN where nothing is displaced.

    Args:
        found: chains and ends.
        errors: the student's guess minus the expert's at each own state, ``(B, *D)`` each.
        level: of every interval.
        least: the distance of the ends, root mean square, below which nobody has a share in it.
    """
    moved = [mine.x_t - theirs.x_t for mine, theirs in zip(found.own, found.led, strict=True)]
    kept = [end - found.ends[0] for end in found.ends]
    made = [after - before for before, after in zip(found.ends[:-1], found.ends[1:], strict=True)]
    whole, steps = kept[-1], len(made)
    columns = [
        *(_product(error, error) for error in errors),
        *(_product(each, each) for each in moved),
        *(_product(each, each) for each in kept[:-1]),
        *(_product(each, whole) for each in made),
        *(_product(each, each) for each in made),
        _product(whole, whole),
    ]
    table = torch.stack(columns, dim=1)
    means, drawn = table.mean(0), bootstrap_means(table)
    tail = (1.0 - level) / 2.0

    def bounds(values: Tensor) -> tuple[float, float]:
        low, high = torch.quantile(values, torch.tensor([tail, 1.0 - tail], dtype=values.dtype)).tolist()
        return low, high

    rows, shared = [], float(means[-1].sqrt()) > least
    for step in range(steps):
        error, move, keep, part = (drawn[:, step + steps * place] for place in range(4))
        share = float(means[step + 3 * steps] / means[-1]) if shared else float("nan")
        rows.append(
            StepBounds(
                bounds(error.sqrt()),
                bounds(move.sqrt()),
                bounds((keep / move).sqrt()) if bool((move > 0.0).all()) else _UNKNOWN,
                float(means[step + 4 * steps].sqrt()),
                share,
                bounds(part / drawn[:, -1]) if shared else _UNKNOWN,
            )
        )
    return rows


def spread(ends: States) -> float:
    """Return the root mean square distance of ends ``(B, *D)`` from their mean, a coordinate; 1 where they are one."""
    found = float((ends - ends.mean(0)).double().square().mean().sqrt())
    return found if found > 1e-6 else 1.0


def _product(a: States, b: States) -> Tensor:
    """The mean product of two states' coordinates, a row each, ``(B,)``."""
    return (a.double() * b.double()).flatten(1).mean(1).cpu()


_UNKNOWN = (float("nan"), float("nan"))
