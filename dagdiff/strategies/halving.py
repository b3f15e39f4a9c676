"""True progressive distillation: the student of one stage is the expert of the next, with ever fewer steps.

Source: Salimans and Ho (2022, https://arxiv.org/abs/2202.00512), where the steps halve; any whole ratio serves.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from dagdiff.checks import Refusal, check_at_least
from dagdiff.dagger import DAgger
from dagdiff.expert import Expert
from dagdiff.policy import StudentPolicy
from dagdiff.round import Round, as_round
from dagdiff.state import Shard, load_state, state_of
from dagdiff.strategies.curriculum import Curriculum


def check_stages(stages: Sequence[int]) -> None:
    """Reject stages that do not fall, each dividing the one before."""
    for steps in stages:
        check_at_least("stages", steps, 1)
    if not stages or any(before % after or after >= before for before, after in pairwise(stages)):
        raise Refusal(f"stages must fall, each dividing the one before; got {list(stages)}. Pass e.g. 16,8,4.")


class Halving:
    """One loop a stage: iterate over it, and it yields each round with the loop it belongs to.

    Args:
        stages: the student's steps in each stage, falling.
        student: what all loops train.
        expert: the first stage's expert.
        make: ``(expert, steps) -> DAgger``, whose student starts where the last stage's ended.
        curriculum: how each loop's rounds are run.
    """

    def __init__(
        self,
        stages: Sequence[int],
        student: nn.Module,
        expert: Expert,
        make: Callable[[Expert, int], DAgger],
        curriculum: Curriculum = iter,
    ) -> None:
        check_stages(stages)
        self.stages, self.student, self.expert, self.make, self.curriculum = stages, student, expert, make, curriculum
        self.watch: Callable[[], object] | None = None
        self.stage, self.finished = 0, list[Round]()  # the rounds of the stages before
        self.loop: DAgger | None = None
        self._graduate: dict[str, Tensor] = {}
        self._resumed: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[tuple[DAgger, Round]]:
        """Run the stages; those that a state to resume from has left behind are not yielded again."""
        state, self._resumed = self._resumed, None
        for stage in range(self.stage, len(self.stages)):
            self.stage, before = stage, self.finished[-1] if self.finished else None
            self.loop = self.make(self._teacher(stage), self.stages[stage])
            self.loop.watch = self.watch or self.loop.watch
            if state is not None:
                self.loop.load_state_dict(state)
                state = None
            made = list[Round]()
            for done in self.curriculum(self.loop):
                made.append(_after(before, done))
                yield self.loop, made[-1]
            self.finished += made
            if stage + 1 < len(self.stages):
                self._graduate = copy.deepcopy(self.student.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the present loop, and what the stages before it have left."""
        assert self.loop is not None, "before the first round there is no state"
        state = self.loop.state_dict()
        graduate = Shard(f"graduate-{self.stage}", lambda: self._graduate) if self._graduate else None
        own = {"stage": self.stage, "finished": [asdict(done) for done in self.finished], "graduate": graduate}
        return {**state, "stages": own, "curriculum": state_of(self.curriculum)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state when the rounds are iterated over."""
        own = state["stages"]
        self.stage, self._graduate = own["stage"], own["graduate"] or {}
        self.finished = [as_round(each) for each in own["finished"]]
        if self._graduate:
            self.student.load_state_dict(self._graduate)
        load_state(self.curriculum, state["curriculum"])
        self._resumed = state

    def _teacher(self, stage: int) -> Expert:
        """The expert of a stage: the student of the one before, as it is now, in as many of its steps as fit in one."""
        if stage == 0:
            return self.expert
        frozen = copy.deepcopy(self.student).requires_grad_(False).eval()
        expert, ratio = self.expert, self.stages[stage - 1] // self.stages[stage]
        graduate = StudentPolicy(frozen, expert.threshold)
        return Expert(graduate, expert.schedule, ratio, threshold=expert.threshold, null=expert.null)


def _after(before: Round | None, done: Round) -> Round:
    """Return a round whose counts run on from the last round of the stage before."""
    if before is None:
        return done
    counts = ("updates", "nfe_student", "nfe_expert", "seconds")
    return replace(done, **{name: getattr(before, name) + getattr(done, name) for name in counts})
