"""NaN is named by its source: data, labels and states are looked at where they enter, before the loss is blamed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import loop_options, same, state
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.finite import Finite
from dagdiff.learner import Loss
from dagdiff.mixture import Constant
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.round import NonFiniteLoss, NonFiniteSource
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.tasks.teachers import train_teacher

SCHEDULE, DATA = CosineSchedule(), world("gaussians8")
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


class Failing:
    """Answers as asked, and from a call on with a bad value in one row."""

    def __init__(self, start: int, bad: float = math.nan) -> None:
        self.left, self.bad = start, bad

    def spoil(self, values: Tensor) -> Tensor:
        self.left -= 1
        if self.left >= 0:
            return values
        values = values.clone()
        values[-1] = self.bad
        return values


class FailingTeacher(Failing):
    """The exact expert of the data, which fails from a call on."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        mixture = DATA.mixture
        assert mixture is not None
        exact = GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, SCHEDULE)
        return self.spoil(exact(x_t, t, condition))


class FailingData(Failing):
    """Points of the data, which fail from a draw on."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.spoil(DATA.sample(n, generator))


def loop(
    objective: Any = None, teacher: Any = None, data: Any = None, learner: nn.Module | None = None, **more: Any
) -> DAgger:
    objective = objective or Progressive()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        learner = learner or Student(MLP(width=16), SCHEDULE)
    draws = torch.Generator().manual_seed(100)
    env = DenoisingEnv((2,), type(objective).sampler(SCHEDULE), step_grid(4), 16, generator=draws)
    options = {"shares": (0.4, 0.4, 0.2), "rounds": 6, "updates_per_round": 4, "batch_size": 24, **more}
    expert = Expert(teacher or FailingTeacher(10**9), SCHEDULE, 2)
    return DAgger(learner, expert, objective, env, DATA if data is None else data, **loop_options(**options))


def stopped(run: DAgger) -> tuple[str, int]:
    """The message with which a loop stops, and after how many rounds; the student is at the end of the last."""
    done, kept = 0, state(run.student)
    with pytest.raises(NonFiniteSource) as refused:
        for each in run:
            done, kept = each.number, state(run.student)
    text = str(refused.value)
    assert same(kept, state(run.student)) and f"is back at update {4 * done}." in text
    assert f"not finite from round {done + 1} on" in text and "\n" not in text
    return text, done


@BAD
@pytest.mark.parametrize(
    ("shares", "named"),
    [((1, 0, 0), "the expert's labels of forward states"), ((0, 1, 0), "the expert's labels of student states")],
)
def test_a_teacher_that_answers_nan_is_named_with_its_round(shares: tuple, named: str, bad: float) -> None:
    text, done = stopped(loop(teacher=FailingTeacher(8, bad), shares=shares))
    assert text.startswith(named) and "learning rate" not in text and done > 0


def test_a_teacher_that_drives_and_fails_is_named_and_not_the_chains() -> None:
    text, _ = stopped(loop(teacher=FailingTeacher(30), shares=(0, 1, 0), beta=Constant(1.0), reuse=1))
    assert text.startswith("the expert's labels of student states")


@pytest.mark.parametrize("make", [Consistency, lambda: DistributionMatching(critic_updates=2)], ids=["lcm", "dmd2"])
@pytest.mark.parametrize("start", [10, 20])
def test_every_objective_names_the_teacher(make: Callable[[], Any], start: int) -> None:
    """DMD2 asks it in the loss, where NaN in one row moved nothing and was never seen."""
    text, _ = stopped(loop(make(), FailingTeacher(start)))
    assert "the expert's" in text.partition(" are ")[0]


@BAD
def test_data_that_turn_nan_are_named(bad: float) -> None:
    text, done = stopped(loop(data=FailingData(4, bad)))
    assert text.startswith("the data") and "Drop or repair those rows." in text and done > 0


def test_real_data_of_a_gan_head_are_named() -> None:
    gan = DistributionMatching(critic_updates=2, gan_weight=0.1)
    text, done = stopped(loop(gan, data=FailingData(40), shares=(0, 0.5, 0.5)))
    assert text.startswith("the data") and done > 0


def test_held_out_rows_are_refused_before_training_and_the_teacher_named_at_them() -> None:
    with pytest.raises(Refusal, match=r"the held-out rows of the data holds? 2 values that are NaN or infinite"):
        loop(data=FailingData(1), heldout=8)
    run = loop(heldout=8, shares=(1, 0, 0))
    teacher = run.expert.denoiser
    assert isinstance(teacher, FailingTeacher)
    rounds = iter(run)
    next(rounds)
    measure = run.heldout.imitation

    def failing(*parts: Any) -> Any:
        teacher.left = 0
        return measure(*parts)

    run.heldout.imitation = failing
    with pytest.raises(NonFiniteSource, match="the expert's labels of held-out forward states are not finite from"):
        next(rounds)


def test_labels_of_an_objective_of_ones_own_are_named() -> None:
    class Own(Progressive):
        def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
            found = super().annotate(expert, states)
            return found.set("target", torch.where(found["t"][:, None] > 0.9, math.nan, found["target"]))

    assert stopped(loop(Own(), shares=(0, 0, 1)))[0].startswith("the objective's labels of expert states")


def test_chains_that_the_student_drives_to_infinity_are_named() -> None:
    class Wild(Student):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            guess = super().forward(x_t, t, condition)
            return guess if len(x_t) <= 4 else guess + math.inf

    text, _ = stopped(loop(learner=Wild(MLP(width=16), SCHEDULE), shares=(0, 1, 0)))
    assert text.startswith("the states of the student's chains") and "Lower the learning rate" in text


def test_a_loss_of_its_own_fault_is_still_blamed_on_the_learning_rate() -> None:
    class Wrong(Progressive):
        def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
            found = super().loss(student, batch)
            return Loss(found.loss * math.inf, found.parts)

    with pytest.raises(NonFiniteLoss, match="Lower the learning rate") as refused:
        list(loop(Wrong()))
    assert not isinstance(refused.value, NonFiniteSource)


def test_an_expert_that_failed_elsewhere_is_not_blamed_here() -> None:
    run = loop(rounds=2)
    run.expert(torch.full((3, 2), math.nan), torch.ones(3))
    assert len(list(run)) == 2


def test_a_teacher_in_training_whose_loss_is_nan_is_not_kept() -> None:
    class Nothing:
        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            return torch.full((n, 2), math.nan)

    with pytest.raises(NonFiniteLoss, match="the teacher's loss is not finite at update 2"):
        list(train_teacher(Student(MLP(width=8), SCHEDULE), Nothing(), SCHEDULE, updates=2, batch_size=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_flags_see_every_bad_value_and_no_large_one(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for bad in (math.nan, math.inf, -math.inf):
        flags = Finite(["one", "two"])
        flags.see("one", torch.tensor([-most, most, 0.0], dtype=dtype))
        flags.see("two", torch.tensor([[1.0, bad], [2.0, 3.0]], dtype=dtype))
        flags.see("two", torch.ones(2, dtype=dtype))
        assert flags.flags().isnan().tolist() == [False, True] and flags.flags()[0] == 0.0
        flags.clear()
        assert flags.flags().tolist() == [0.0, 0.0]


def test_flags_take_whole_numbers_empty_tensors_and_none() -> None:
    flags = Finite(["one"])
    for values in (torch.arange(3), torch.empty(0, 2), torch.empty(2, device="meta")):
        flags.see("one", values)
    assert flags.flags().tolist() == [0.0]
