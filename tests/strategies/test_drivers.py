"""The drivers: DART's noise is as large as the student's error, and the gate lets the expert in where they differ."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.expert import Expert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policy import StudentPolicy
from dagdiff.rollout import MixturePolicy, Rollout
from dagdiff.schedule import CosineSchedule, VPSchedule, step_grid
from dagdiff.strategies.drivers import Dart, Gate
from dagdiff.transition import Ddim, Renoise

SCHEDULE, STEPS, SUBSTEPS = CosineSchedule(), 4, 3
both_laws = pytest.mark.parametrize("law", [Ddim, Renoise])


class Teacher:
    """A denoiser of any shape, counting its rows."""

    rows = 0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        return torch.sin(2 * x_t) + 1


class Off(nn.Module):
    """A student that is wrong by ``error``, a value a coordinate, where the expert has one sub-step; it counts rows."""

    def __init__(self, error: Tensor) -> None:
        super().__init__()
        self.error, self.rows = error, 0

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        return torch.sin(2 * x_t) + 1 + self.error


def roll(
    driver: Callable[..., MixturePolicy],
    student: nn.Module,
    beta: float,
    rows: int = 16,
    substeps: int = SUBSTEPS,
    law: Callable[..., Any] = Ddim,
) -> tuple[TensorDict, Expert]:
    """One roll-in's records, ``(rows, STEPS)``, and the expert, whose count is the roll-in's."""
    env = DenoisingEnv((2,), law(SCHEDULE), step_grid(STEPS), rows, generator=torch.Generator().manual_seed(3))
    expert = Expert(Teacher(), SCHEDULE, substeps)
    made = driver(StudentPolicy(student), expert, env.transition, False, torch.Generator().manual_seed(4), False)
    run = Rollout(env, made)
    if isinstance(student, Off):
        student.rows = 0
    expert.nfe = expert.denoiser.rows = 0
    records = run(beta).reshape(rows, -1)
    assert expert.nfe == expert.denoiser.rows
    return records, expert


def advice(expert: Expert, records: TensorDict, law: Callable[..., Any]) -> Tensor:
    flat = records.reshape(-1)
    target = expert.target(flat["x_t"], flat["t"], law(SCHEDULE).horizon(flat["s"]))
    return target.reshape(records["x_t"].shape)


# --- DART -------------------------------------------------------------------------------------------------------------


def test_dart_with_a_student_that_is_the_expert_is_plain_expert_chains() -> None:
    student = Off(torch.zeros(2))
    noisy, _ = roll(Dart, student, 1.0, substeps=1)
    plain, _ = roll(MixturePolicy, student, 1.0, substeps=1)
    for key in ("x_t", "action", "actor"):
        assert torch.equal(noisy[key], plain[key])


@pytest.mark.parametrize("error", [(0.3, 0.3), (0.05, 0.8), (0.0, 1.0)], ids=str)
@both_laws
def test_darts_noise_deviates_as_the_student_errs_in_each_coordinate(
    error: tuple[float, float], law: Callable[..., Any]
) -> None:
    records, expert = roll(Dart, Off(torch.tensor(error)), 1.0, rows=5000, substeps=1, law=law)
    noise = records["action"] - advice(expert, records, law)
    assert (records["actor"] == 1).all()
    for step in range(STEPS):
        torch.testing.assert_close(noise[:, step].mean(0), torch.zeros(2), atol=0.06, rtol=0)
        torch.testing.assert_close(noise[:, step].std(0), torch.tensor(error), atol=1e-3, rtol=0.05)
    flat = noise.reshape(-1, 2)
    covariance = float((flat[:, 0] * flat[:, 1]).mean())
    assert abs(covariance) < 0.05, "coordinates err apart"


def test_darts_noise_is_measured_at_its_own_step() -> None:
    """A student that is wrong at the third step only shakes the chains there only."""

    class Late(Off):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return super().forward(x_t, t) + torch.where((t - 0.5).abs() < 1e-6, 0.4, 0.0).unsqueeze(-1)

    records, expert = roll(Dart, Late(torch.zeros(2)), 1.0, rows=4000, substeps=1)
    deviation = (records["action"] - advice(expert, records, Ddim)).std(0).mean(-1)
    torch.testing.assert_close(deviation, torch.tensor([0.0, 0.0, 0.4, 0.0]), atol=0.02, rtol=0)


def test_dart_charges_the_students_questions_and_leaves_its_own_chains_alone() -> None:
    student = Off(torch.ones(2))
    _, expert = roll(Dart, student, 1.0)
    assert (student.rows, expert.nfe) == (16 * STEPS, 16 * STEPS * SUBSTEPS)
    alone, expert = roll(Dart, student, 0.0)
    plain, _ = roll(MixturePolicy, student, 0.0)
    assert torch.equal(alone["x_t"], plain["x_t"]) and expert.nfe == 0


# --- the gate ---------------------------------------------------------------------------------------------------------


@both_laws
def test_a_gate_that_lets_everything_pass_is_the_student(law: Callable[..., Any]) -> None:
    student = Off(torch.tensor([0.5, -0.5]))
    gated, _ = roll(partial(Gate, threshold=math.inf), student, 0.0, law=law)
    plain, _ = roll(MixturePolicy, student, 0.0, law=law)
    assert torch.equal(gated["x_t"], plain["x_t"]) and (gated["actor"] == 0).all()


@both_laws
def test_a_gate_that_lets_nothing_pass_is_the_expert(law: Callable[..., Any]) -> None:
    student = Off(torch.tensor([0.5, -0.5]))
    gated, _ = roll(partial(Gate, threshold=0.0), student, 0.0, law=law)
    plain, _ = roll(MixturePolicy, student, 1.0, law=law)
    assert torch.equal(gated["x_t"], plain["x_t"]) and (gated["actor"] == 1).all()


@both_laws
def test_the_expert_acts_exactly_where_they_differ_by_more(law: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    student = Student(MLP(width=8), SCHEDULE)
    records, expert = roll(partial(Gate, threshold=1.0), student, 0.0, rows=64, law=law)
    own = StudentPolicy(student)(records["x_t"].reshape(-1, 2), records["t"].reshape(-1)).reshape(64, STEPS, 2)
    theirs = advice(expert, records, law)
    apart = (own - theirs).square().mean(-1).sqrt() > 1.0
    assert 20 < int(apart.sum()) < 236
    assert torch.equal(records["actor"] == 1, apart)
    torch.testing.assert_close(records["action"], torch.where(apart[..., None], theirs, own), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.5, 1.0])
def test_the_budget_is_kept_to_the_row(budget: float) -> None:
    student = Off(torch.ones(2))
    records, expert = roll(partial(Gate, threshold=0.0, budget=budget), student, 0.0)
    asked = round(budget * 16)
    assert expert.nfe == asked * STEPS * SUBSTEPS
    assert records["actor"].sum(0).tolist() == [asked] * STEPS, "asked afresh at each step, and none twice"
    assert student.rows == 16 * STEPS


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_rows_that_beta_gives_to_the_expert_stay_the_experts(beta: float) -> None:
    gated, expert = roll(partial(Gate, threshold=math.inf, budget=0.5), Off(torch.ones(2)), beta)
    plain, _ = roll(MixturePolicy, Off(torch.ones(2)), beta)
    driven = round(beta * 16)
    assert gated["actor"].sum(0).tolist() == plain["actor"].sum(0).tolist() == [driven] * STEPS
    assert expert.nfe == (driven + min(8, 16 - driven)) * STEPS * SUBSTEPS, "nobody is asked twice"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -1.0}, "threshold must be at least 0"),
        ({"budget": 1.5}, r"budget must lie in \[0, 1\]; got 1.5"),
        ({"per_chain": True}, "per_chain=True keeps a driver"),
    ],
)
def test_gates_that_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        Gate(Off(torch.zeros(2)), Expert(Teacher(), SCHEDULE), Ddim(SCHEDULE), **options)


@pytest.mark.parametrize("driver", [Dart, Gate, partial(Gate, budget=0.4)])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_drivers_run_on_meta_and_with_labels(driver: Callable[..., MixturePolicy], beta: float) -> None:
    schedule = VPSchedule.linear()
    student, teacher = (Student(MLP(width=8, labels=3), schedule).to("meta") for _ in range(2))
    expert = Expert(teacher, schedule, substeps=2, guidance=2.0)
    env = DenoisingEnv(
        (2,),
        Ddim(schedule, 0.5),
        step_grid(STEPS),
        8,
        conditions=lambda n, generator: torch.zeros(n, dtype=torch.int64, device="meta"),
        device="meta",
    )
    made = driver(StudentPolicy(student), expert, env.transition, False, None, True)
    made.beta = beta
    state = env._reset()
    for _ in range(STEPS):
        state = made(state)
        assert state["action"].is_meta and state["actor"].is_meta
        state = env._step(state)
