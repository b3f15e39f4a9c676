"""Roll-ins: who drives, what is recorded, what it costs, and that nothing leaks out of them."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from dagdiff.checks import Refusal
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policy import StudentPolicy
from dagdiff.rollout import MixturePolicy, Rollout, draw, forward_states
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, perturb, step_grid
from dagdiff.transition import Ddim, Renoise, chain

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_shape = pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)


class Net(nn.Module):
    """A student of any shape with dropout, counting its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.dropout, self.rows = nn.Parameter(torch.tensor(0.3)), nn.Dropout(0.5), 0

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.rows += len(x_t)
        return self.dropout(torch.tanh(self.gain * x_t))


class Teacher:
    """A denoiser of any shape, counting its rows."""

    rows = 0

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.rows += len(x_t)
        return torch.sin(2 * x_t) + 1


def setting(
    schedule: Callable = SCHEDULES["cosine"],
    shape: tuple[int, ...] = (2,),
    rows: int = 8,
    steps: int = 4,
    substeps: int = 3,
    per_chain: bool = False,
    law: Callable = Ddim,
) -> tuple[Rollout, StudentPolicy, Expert, Net]:
    net, expert = Net(), Expert(Teacher(), schedule, substeps)
    env = DenoisingEnv(shape, law(schedule), step_grid(steps), rows, generator=torch.Generator().manual_seed(3))
    policy = StudentPolicy(net)
    driver = MixturePolicy(policy, expert, env.transition, per_chain, torch.Generator().manual_seed(4))
    return Rollout(env, driver), policy, expert, net


def by_chain(records: TensorDict, rows: int) -> TensorDict:
    return records.reshape(rows, -1)


@every_shape
@every_schedule
def test_beta_zero_is_the_students_own_chain(schedule: Callable, shape: tuple[int, ...]) -> None:
    roll, policy, _, _ = setting(schedule, shape)
    for _ in range(2):
        records = by_chain(roll(0.0), 8)
        steps = list(chain(policy, Ddim(schedule), step_grid(4), records["x_t"][:, 0]))
        for number, step in enumerate(steps):
            torch.testing.assert_close(records["x_t"][:, number], step.x_t)
            torch.testing.assert_close(records["action"][:, number], step.x0)
            assert torch.equal(records["t"][:, number], step.t)
            assert torch.equal(records["s"][:, number], step.s)
    assert (records["actor"] == 0).all()


@every_shape
@every_schedule
def test_beta_one_is_the_experts_own_chain(schedule: Callable, shape: tuple[int, ...]) -> None:
    roll, _, expert, net = setting(schedule, shape)
    net.rows = 0
    records = by_chain(roll(1.0), 8)
    walked = expert.walk(records["x_t"][:, 0], step_grid(4))
    for number in range(4):
        torch.testing.assert_close(records["x_t"][:, number], walked[number], atol=1e-4, rtol=1e-4)
    assert (records["actor"] == 1).all()
    assert net.rows == 0, "the student is not asked where the expert drives"


@pytest.mark.parametrize("per_chain", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 0.5, 0.97, 1.0])
def test_the_expert_drives_exactly_its_part_of_every_step(beta: float, per_chain: bool) -> None:
    roll, _, _, _ = setting(rows=32, per_chain=per_chain)
    for _ in range(3):
        actor = by_chain(roll(beta), 32)["actor"]
        assert actor.sum(0).tolist() == [round(beta * 32)] * 4


def test_a_coin_a_step_changes_drivers_and_a_coin_a_chain_does_not() -> None:
    roll, _, _, _ = setting(rows=32)
    actor = by_chain(roll(0.5), 32)["actor"]
    assert (actor != actor[:, :1]).any()
    roll, _, _, _ = setting(rows=32, per_chain=True)
    first, second = (by_chain(roll(0.5), 32)["actor"] for _ in range(2))
    for actor in (first, second):
        assert torch.equal(actor, actor[:, :1].expand(-1, 4))
    assert not torch.equal(first, second), "the next chains toss anew"


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_whoever_acts_acts_as_itself(law: Callable) -> None:
    roll, policy, expert, _ = setting(rows=32, law=law)
    records = roll(0.5)
    horizon = law(SCHEDULES["cosine"]).horizon(records["s"])
    theirs = expert.target(records["x_t"], records["t"], horizon)
    own = policy(records["x_t"], records["t"])
    expected = torch.where((records["actor"] == 1)[:, None], theirs, own)
    torch.testing.assert_close(records["action"], expected, atol=1e-5, rtol=1e-5)
    assert 0 < int((records["actor"] == 1).sum()) < len(records)


@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_stored_label_is_the_experts_whoever_acted(beta: float, law: Callable) -> None:
    roll, _, expert, _ = setting(law=law)
    records = roll(beta)
    labelled = Progressive().annotate(expert, records.clone())
    expected = expert.target(records["x_t"], records["t"], records["s"])
    torch.testing.assert_close(labelled["target"], expected)
    torch.testing.assert_close(labelled["actor"], records["actor"])


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_a_roll_in_costs_each_driver_its_own_rows_only(beta: float) -> None:
    roll, _, expert, net = setting(rows=8, substeps=3)
    before = (net.rows, expert.nfe, expert.denoiser.rows)
    roll(beta)
    driven = round(beta * 8) * 4
    assert expert.nfe - before[1] == expert.denoiser.rows - before[2] == driven * 3
    assert net.rows - before[0] == (0 if beta == 1.0 else 8 * 4)


def test_roll_ins_carry_no_gradient_and_no_dropout_and_leave_the_mode() -> None:
    roll, _, _, net = setting()
    net.train()
    records = by_chain(roll(0.0), 8)
    assert net.training and net.dropout.training
    assert not any(value.requires_grad for value in records.values())
    torch.testing.assert_close(records["action"], torch.tanh(net.gain * records["x_t"]).detach())
    assert net.gain.grad is None


def test_the_roll_in_follows_the_training_student() -> None:
    roll, _, _, net = setting()
    roll(0.0)
    with torch.no_grad():
        net.gain.fill_(2.0)
    records = roll(0.0)
    torch.testing.assert_close(records["action"], torch.tanh(2.0 * records["x_t"]))


def test_each_call_brings_whole_fresh_chains() -> None:
    roll, _, _, _ = setting()
    first, second = (by_chain(roll(0.0), 8) for _ in range(2))
    for records in (first, second):
        assert records.batch_size == torch.Size([8, 4])
        assert torch.equal(records["t"], step_grid(4)[:-1].expand(8, 4))
        assert torch.equal(records["s"], step_grid(4)[1:].expand(8, 4))
    assert not torch.isclose(first["x_t"], second["x_t"]).any()
    kept = first["x_t"].clone()
    roll(0.0)
    assert torch.equal(first["x_t"], kept), "records are the caller's, not the collector's"


def test_one_step_chains_make_all_sources_alike() -> None:
    """K = 1: every source is the state at t = 1, pure noise up to the terminal SNR."""
    schedule, rows = CosineSchedule(), 4000
    for beta in (0.0, 1.0):
        roll, _, _, _ = setting(schedule, rows=rows, steps=1)
        records = roll(beta)
        assert (records["t"] == 1).all() and (records["s"] == 0).all()
        torch.testing.assert_close(records["x_t"].std(0), torch.ones(2), atol=0.05, rtol=0)
    data = world("gaussians8")
    forward = forward_states(data, schedule, step_grid(1), rows, torch.Generator().manual_seed(0))
    assert (forward["t"] == 1).all() and (forward["s"] == 0).all()
    torch.testing.assert_close(forward["x_t"].std(0), torch.ones(2), atol=0.05, rtol=0)
    assert float(schedule(torch.ones(1))[0]) < 2e-3


@every_schedule
def test_forward_states_are_data_perturbed_on_the_grid(schedule: Callable) -> None:
    data, grid = world("gaussians8"), torch.tensor([0.9, 0.5, 0.1, 0.0])
    found = forward_states(data, schedule, grid, 3000, torch.Generator().manual_seed(0))
    again = torch.Generator().manual_seed(0)
    x0 = data.sample(3000, again)
    place = torch.randint(3, (3000,), generator=again)
    noise = torch.randn(x0.shape, generator=again)
    assert torch.equal(found["x_t"], perturb(x0, noise, grid[place], schedule))
    assert torch.equal(found["t"], grid[place])
    assert torch.equal(found["s"], grid[place + 1])
    assert (found["actor"] == -1).all()
    assert torch.bincount(place, minlength=3).min() > 900, "every time but 0"
    assert "action" not in found.keys(), "a target never sees the x0 that made a forward state"  # noqa: SIM118


@every_schedule
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_perturbed_inputs_hold_more_noise(schedule: Callable, gamma: float) -> None:
    """Ning et al. 2023: x_t = alpha x0 + sigma (eps + gamma xi), whose noise has variance sigma^2 (1 + gamma^2)."""
    data, grid, rows = Origin(), torch.tensor([0.6, 0.0]), 40_000
    plain, more = (
        forward_states(data, schedule, grid, rows, torch.Generator().manual_seed(0), input_perturbation=g)
        for g in (0.0, gamma)
    )
    sigma = float(schedule(grid[:1])[1])
    assert float(plain["x_t"].std()) == pytest.approx(sigma, rel=0.02)
    assert float(more["x_t"].std()) == pytest.approx(sigma * (1 + gamma**2) ** 0.5, rel=0.02)
    added = more["x_t"] - plain["x_t"]
    assert float(added.std()) == pytest.approx(sigma * gamma, rel=0.02), "the same eps, and a second draw"
    assert abs(float((added * plain["x_t"]).mean())) < 0.02
    assert torch.equal(more["t"], plain["t"])


def test_without_input_perturbation_nothing_more_is_drawn() -> None:
    drawn = [torch.Generator().manual_seed(0) for _ in range(2)]
    one = forward_states(Origin(), CosineSchedule(), step_grid(4), 50, drawn[0])
    two = forward_states(Origin(), CosineSchedule(), step_grid(4), 50, drawn[1], input_perturbation=0.0)
    assert torch.equal(one["x_t"], two["x_t"]) and torch.equal(drawn[0].get_state(), drawn[1].get_state())


class Origin:
    """All data lie at 0."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.zeros(n, 2)


def test_labelled_chains_keep_their_labels_and_ask_with_them() -> None:
    schedule, asked = CosineSchedule(), []

    def denoise(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        assert condition is not None
        asked.append(condition)
        return condition[:, None].expand_as(x_t).float()

    class Labelled(nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return -condition[:, None].expand_as(x_t).float()

    env = DenoisingEnv(
        (2,),
        Ddim(schedule),
        step_grid(4),
        16,
        conditions=lambda n, generator: torch.randint(1, 9, (n,), generator=generator),
        generator=torch.Generator().manual_seed(0),
    )
    driver = MixturePolicy(StudentPolicy(Labelled()), Expert(denoise, schedule), env.transition, conditional=True)
    roll = Rollout(env, driver)
    first, second = (by_chain(roll(0.5), 16) for _ in range(2))
    for records in (first, second):
        labels = records["condition"]
        assert torch.equal(labels, labels[:, :1].expand(16, 4)), "a chain keeps its label"
        signed = torch.where(records["actor"] == 1, labels, -labels).float()
        assert torch.equal(records["action"], signed[..., None].expand(16, 4, 2))
    assert not torch.equal(first["condition"][:, 0], second["condition"][:, 0])


def test_draw() -> None:
    data = world("gaussians8")
    x0, condition = draw(data, 5, torch.Generator().manual_seed(0), conditional=True)
    assert condition is not None and condition.shape == (5,) and x0.shape == (5, 2)
    assert draw(data, 5)[1] is None

    class Bare:
        def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
            return torch.zeros(n, 2)

    with pytest.raises(
        Refusal, match=r"conditional chains need data with sample_labelled\(n, generator\); Bare has none"
    ):
        draw(Bare(), 5, conditional=True)


def test_forward_states_of_labelled_data_carry_their_own_labels() -> None:
    class Telling:
        def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
            raise AssertionError("labelled chains need labelled data")

        def sample_labelled(
            self, n: int, generator: torch.Generator | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            labels = torch.arange(n) % 5
            return 1000.0 * labels[:, None].expand(n, 2), labels

    found = forward_states(Telling(), FlowSchedule(), torch.tensor([0.5, 0.0]), 40, conditional=True)
    assert torch.equal((found["x_t"][:, 0] / 500).round().long(), found["condition"])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("per_chain", [False, True])
def test_the_mixture_runs_on_meta(beta: float, per_chain: bool) -> None:
    schedule = VPSchedule.linear()
    student = Student(MLP(width=8, labels=3), schedule).to("meta")
    teacher = Student(MLP(width=8, labels=3), schedule).to("meta")
    expert = Expert(teacher, schedule, substeps=2, guidance=2.0)
    env = DenoisingEnv(
        (2,),
        Ddim(schedule, 0.5),
        step_grid(4),
        8,
        conditions=lambda n, generator: torch.zeros(n, dtype=torch.int64, device="meta"),
        device="meta",
    )
    driver = MixturePolicy(StudentPolicy(student), expert, env.transition, per_chain, conditional=True)
    driver.beta = beta
    state = env._reset()
    for _ in range(4):
        state = driver(state)
        assert state["action"].is_meta and state["actor"].is_meta
        state = env._step(state).set("actor", state["actor"])
