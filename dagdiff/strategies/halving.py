"""True progressive distillation: the student of one stage is the expert of the next, with ever fewer steps.

Source: Salimans and Ho (2022, https://arxiv.org/abs/2202.00512), where the steps halve; any whole ratio serves.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from dagdiff.checks import Refusal, check_at_least
from dagdiff.dagger import DAgger
from dagdiff.expert import Expert
from dagdiff.policy import StudentPolicy
from dagdiff.round import Round
from dagdiff.strategies.curriculum import Curriculum


def check_stages(stages: Sequence[int]) -> None:
    """Refuse stages that do not fall, each dividing the one before."""
    for steps in stages:
        check_at_least("a stage's steps", steps, 1)
    if not stages or any(before % after or after >= before for before, after in pairwise(stages)):
        raise Refusal(f"stages must fall, each dividing the one before; got {list(stages)}. Pass e.g. 16,8,4.")


def halve(
    stages: Sequence[int], expert: Expert, make: Callable[[Expert, int], DAgger], curriculum: Curriculum = iter
) -> Iterator[tuple[DAgger, Round]]:
    """Run one loop a stage and yield its rounds, each with the loop it belongs to.

    Args:
        stages: the student's steps in each stage, falling.
        expert: the first stage's expert.
        make: ``(expert, steps) -> DAgger``, whose student starts where the last stage's ended.
        curriculum: how each loop's rounds are run.
    """
    check_stages(stages)
    before: Round | None = None
    for steps, after in zip(stages, [*stages[1:], 0], strict=True):
        loop = make(expert, steps)
        for done in curriculum(loop):
            last = _after(before, done)
            yield loop, last
        before = last
        if after:
            frozen = copy.deepcopy(loop.student).requires_grad_(False).eval()
            graduate = StudentPolicy(frozen, expert.threshold)
            expert = Expert(graduate, expert.schedule, steps // after, threshold=expert.threshold, null=expert.null)


def _after(before: Round | None, done: Round) -> Round:
    """Return a round whose counts run on from the last round of the stage before."""
    if before is None:
        return done
    counts = ("updates", "nfe_student", "nfe_expert", "seconds")
    return replace(done, **{name: getattr(before, name) + getattr(done, name) for name in counts})
