"""The three objectives: their limits, their plain loops number for number, and gradients that never mix."""

import copy
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from helpers import loop_options, same, seeded, state
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import softplus

from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.objectives.base import Objective, denoising_loss
from dagdiff.objectives.consistency import Consistency, boundary, pseudo_huber
from dagdiff.objectives.distribution import DistributionMatching, score_difference
from dagdiff.objectives.progressive import Progressive, snr, truncated_snr, v_space
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.rollout import draw
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, perturb, step_grid
from dagdiff.shapes import column
from dagdiff.threshold import StaticThreshold
from dagdiff.transition import ddim

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
OBJECTIVES = {
    "pd": Progressive,
    "lcm": Consistency,
    "dmd2": DistributionMatching,
    "dmd2+gan": lambda: DistributionMatching(gan_weight=0.1),
}
every_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
DATA = world("gaussians8")


def mlp(seed: int, schedule: Any = SCHEDULES["cosine"], labels: int = 0, width: int = 16) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(MLP(width=width, labels=labels), schedule)


def exact(schedule: Any) -> GaussianMixtureExpert:
    assert DATA.mixture is not None
    return GaussianMixtureExpert(DATA.mixture.means, DATA.mixture.stds, DATA.mixture.weights, schedule)


def states(n: int = 32, grid: Tensor | None = None, labels: int = 0) -> TensorDict:
    grid, generator = step_grid(4) if grid is None else grid, seeded(5)
    place = torch.randint(len(grid) - 1, (n,), generator=generator)
    columns = {"x_t": torch.randn(n, 2, generator=generator), "t": grid[place], "s": grid[place + 1]}
    columns["source"] = torch.arange(n) % 3
    if labels:
        columns["condition"] = torch.randint(labels, (n,), generator=generator)
    return TensorDict(columns, [n])


def begun(
    objective: Any, student: nn.Module, expert: Expert, data: Any = DATA, seed: int = 0, conditional: bool = False
) -> Any:
    generator = seeded(seed)
    objective.begin(student, expert, lambda n: draw(data, n, generator, conditional), generator)
    return objective


# --- progressive distillation -----------------------------------------------------------------------------------------


class KStepTeacher(nn.Module):
    """The student that does in one step what the expert does in k: it looks up where its step lands."""

    def __init__(self, expert: Expert, grid: Tensor) -> None:
        super().__init__()
        self.expert, self.grid = expert, grid

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        place = (self.grid[None] - t[:, None]).abs().argmin(1)
        return self.expert.target(x_t, t, self.grid[place + 1], condition)


@every_schedule
@pytest.mark.parametrize("substeps", [1, 2, 4])
@pytest.mark.parametrize("weight", [truncated_snr, v_space])
def test_pd_is_zero_for_a_student_equal_to_the_k_step_teacher(schedule: Any, substeps: int, weight: Any) -> None:
    expert = Expert(exact(schedule), schedule, substeps)
    objective = begun(Progressive(weight), mlp(0), expert)
    batch = objective.annotate(expert, states())
    assert objective.loss(KStepTeacher(expert, step_grid(4)), batch).loss.item() == 0.0
    assert float(objective.loss(mlp(0, schedule), batch).loss.detach()) > 1e-2


@every_schedule
def test_the_weight_snr_makes_pds_error_one_in_epsilon(schedule: Any) -> None:
    t = torch.tensor([0.1, 0.5, 0.9, 0.98])
    alpha, sigma = schedule(t)
    x_t, guess, target = (torch.randn(4, generator=seeded(seed)) for seed in range(3))
    in_epsilon = ((x_t - alpha * guess) / sigma - (x_t - alpha * target) / sigma).square()
    torch.testing.assert_close(snr(alpha, sigma) * (guess - target).square(), in_epsilon, rtol=1e-3, atol=1e-5)


@every_schedule
@pytest.mark.parametrize("name", ["truncated", "v"])
def test_pd_weighs_the_squared_error(schedule: Any, name: str) -> None:
    expert, student = Expert(exact(schedule), schedule, 2), mlp(0, schedule)
    objective = begun(Progressive({"truncated": truncated_snr, "v": v_space}[name]), student, expert)
    batch = objective.annotate(expert, states())
    alpha, sigma = (part[:, None] for part in schedule(batch["t"]))
    error = student(batch["x_t"], batch["t"]) - expert.target(batch["x_t"], batch["t"], batch["s"])
    if name == "truncated":
        expected = ((alpha / sigma) ** 2).clamp(min=1) * error**2
    else:
        norm = alpha**2 + sigma**2
        expected = (norm / sigma * error) ** 2  # v* - v, because x0 = (a x - s v) / norm
    torch.testing.assert_close(objective.loss(student, batch).loss, expected.mean())


def loop(objective: Objective, student: nn.Module, expert: Expert, **more: Any) -> DAgger:
    law = objective.sampler(expert.schedule)
    env = DenoisingEnv((2,), law, step_grid(4), 16, generator=seeded(8))
    arguments = {"rounds": 3, "updates_per_round": 4, "batch_size": 24, "generator": seeded(9), "reuse": 1.0, **more}
    return DAgger(student, expert, objective, env, DATA, **loop_options(**arguments))


@every_schedule
@pytest.mark.parametrize("substeps", [1, 3])
def test_forward_shares_alone_are_plain_pd_number_for_number(schedule: Any, substeps: int) -> None:
    student, plain = mlp(1, schedule), mlp(1, schedule)
    for _ in loop(Progressive(), student, Expert(exact(schedule), schedule, substeps), shares=(1, 0, 0)):
        pass

    grid, generator, teacher = step_grid(4), seeded(9), exact(schedule)
    optimiser = torch.optim.Adam(plain.parameters())
    for _ in range(12):
        x0 = DATA.sample(24, generator)
        place = torch.randint(4, (24,), generator=generator)
        t, s = grid[place], grid[place + 1]
        (a_t, s_t), (a_s, s_s) = ([part[:, None] for part in schedule(time)] for time in (t, s))
        x_t = a_t * x0 + s_t * torch.randn(x0.shape, generator=generator)
        if substeps == 1:
            target = teacher(x_t, t)
        else:
            x, here = x_t, t
            for i in range(1, substeps + 1):
                there = torch.lerp(t, s, i / substeps)
                x, here = ddim(x, teacher(x, here), here, there, schedule), there
            target = (x - s_s / s_t * x_t) / (a_s - s_s / s_t * a_t)
        loss = ((a_t / s_t).square().clamp(min=1) * (plain(x_t, t) - target).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(student.state_dict()[key], value, atol=1e-6, rtol=1e-5)
    assert not same(state(student), state(mlp(1, schedule)))


# --- consistency distillation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
def test_lcm_is_the_identity_at_time_zero(shape: tuple[int, ...]) -> None:
    x, x0 = torch.randn(2, 5, *shape)
    assert torch.equal(boundary(x, x0, torch.zeros(5)), x)
    torch.testing.assert_close(boundary(x, x0, torch.ones(5)), x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("timestep", [0, 1, 7, 999])
def test_lcms_boundary_is_diffusers(timestep: int) -> None:
    c_skip, c_out = LCMScheduler().get_scalings_for_boundary_condition_discrete(timestep)
    one, zero, t = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([timestep / 1000])
    assert float(boundary(one, zero, t)) == pytest.approx(float(c_skip), rel=1e-4, abs=1e-9)
    assert float(boundary(zero, one, t)) == pytest.approx(float(c_out), rel=1e-4, abs=1e-9)


def test_the_pseudo_huber_distance() -> None:
    a, b = torch.tensor([0.0, 3.0]), torch.tensor([0.0, -1.0])
    expected = ((16 + 0.25) ** 0.5 - 0.5) / 2
    assert float(pseudo_huber(a, b, 0.5)) == pytest.approx(expected)
    assert float(pseudo_huber(a, a, 0.5)) == 0.0


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_lcms_target_is_the_closed_formula_of_the_average(decay: float) -> None:
    student = mlp(0)
    objective = begun(Consistency(ema=decay), student, Expert(exact(student.schedule), student.schedule))
    history = [state(student)]
    for _ in range(6):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        objective.follow(student)
        history.append(state(student))
    for key, value in objective.target.state_dict().items():
        expected = decay**6 * history[0][key]
        for i in range(1, 7):
            expected = expected + (1 - decay) * decay ** (6 - i) * history[i][key]
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)


def test_lcms_target_network_starts_as_the_student_and_takes_no_gradient() -> None:
    student, schedule = mlp(0), CosineSchedule()
    expert = Expert(exact(schedule), schedule)
    objective = begun(Consistency(), student, expert)
    assert same(state(objective.target), state(student))
    objective.loss(student, objective.annotate(expert, states())).loss.backward()
    assert all(parameter.grad is None for parameter in objective.target.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


@every_schedule
def test_forward_shares_alone_are_plain_lcm_number_for_number(schedule: Any) -> None:
    student, plain = mlp(1, schedule), mlp(1, schedule)
    expert = Expert(exact(schedule), schedule)
    for _ in loop(Consistency(solver_steps=20, ema=0.8), student, expert, shares=(1, 0, 0)):
        pass

    grid, generator, teacher, follower = step_grid(20), seeded(9), exact(schedule), copy.deepcopy(plain)
    optimiser = torch.optim.Adam(plain.parameters())

    def f(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        scaled = 10_000 * t[:, None]
        return 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25).sqrt() * network(x, t)

    for _ in range(12):
        x0 = DATA.sample(24, generator)
        t = grid[torch.randint(20, (24,), generator=generator)]
        x_t = perturb(x0, torch.randn(x0.shape, generator=generator), t, schedule)
        t_next = (t - 1 / 20).clamp(min=0)
        x_next = ddim(x_t, teacher(x_t, t), t, t_next, schedule)
        with torch.no_grad():
            goal = f(follower, x_next, t_next)
        loss = (((f(plain, x_t, t) - goal) ** 2 + 1e-6).sqrt() - 1e-3).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
        for behind, ahead in zip(follower.parameters(), plain.parameters(), strict=True):
            behind.data.mul_(0.8).add_(0.2 * ahead.data)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(student.state_dict()[key], value, atol=1e-6, rtol=1e-5)


def test_lcm_steps_once_along_the_experts_path() -> None:
    schedule = CosineSchedule()
    expert, objective = Expert(exact(schedule), schedule), Consistency(solver_steps=20)
    batch = objective.annotate(expert, states(grid=step_grid(20)))
    torch.testing.assert_close(batch["end"], batch["t"] - 0.05, atol=1e-6, rtol=0)
    assert batch["end"].min() >= 0
    landed = ddim(batch["x_t"], exact(schedule)(batch["x_t"], batch["t"]), batch["t"], batch["end"], schedule)
    torch.testing.assert_close(batch["x_next"], landed)
    assert expert.nfe == len(batch)


@every_schedule
def test_lcm_settles_roll_in_guesses_at_drawn_solver_times(schedule: Any) -> None:
    student, guess = mlp(0), torch.full((4000, 2), 3.0)
    objective = begun(Consistency(solver_steps=20), student, Expert(exact(schedule), schedule))
    records = states(4000).set("action", guess)
    settled = objective.settle(records.clone(), seeded(3))
    place = (settled["t"] * 20).round()
    torch.testing.assert_close(settled["t"], place / 20)
    assert (settled["t"] <= records["t"] + 1e-6).all() and (settled["t"] >= records["s"] - 1e-6).all()
    assert place.long().unique().tolist() == list(range(1, 21)), "every solver time but 0"
    alpha, sigma = (part[:, None] for part in schedule(settled["t"]))
    noise = (settled["x_t"] - alpha * guess) / sigma
    assert abs(float(noise.mean())) < 0.05 and float(noise.std()) == pytest.approx(1.0, abs=0.05)
    stayed = Consistency(renoise=False).settle(records.clone(), seeded(3))
    assert torch.equal(stayed["x_t"], records["x_t"]) and torch.equal(stayed["t"], records["t"])


def test_lcm_thresholds_the_target_but_never_the_online_student() -> None:
    schedule, student = CosineSchedule(), mlp(0)
    expert = Expert(exact(schedule), schedule, threshold=lambda x0: torch.full_like(x0, 0.5))
    objective = begun(Consistency(), student, expert)
    batch = objective.annotate(expert, states())
    goal = boundary(batch["x_next"], torch.full_like(batch["x_next"], 0.5), batch["end"])
    answer = boundary(batch["x_t"], student(batch["x_t"], batch["t"]), batch["t"])
    torch.testing.assert_close(objective.loss(student, batch).loss, pseudo_huber(answer, goal, 1e-3))


# --- distribution matching --------------------------------------------------------------------------------------------


class Same(nn.Module):
    """A network equal to the exact expert, to put in the fake score's place."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, *told: Tensor) -> Tensor:
        return self.denoiser(x_t, t, condition)


@every_schedule
@pytest.mark.parametrize("bound", [None, StaticThreshold(-0.5, 0.5)], ids=["plain", "reflected"])
def test_dmd2s_gradient_is_exactly_zero_where_fake_is_real(schedule: Any, bound: Any) -> None:
    student, teacher = mlp(0, schedule), exact(schedule)
    objective = begun(DistributionMatching(), student, Expert(teacher, schedule, threshold=bound))
    objective.loss(student, states()).loss.backward()
    assert max(float(parameter.grad.abs().max()) for parameter in student.parameters()) > 0
    student.zero_grad()
    objective.critic.fake = Same(teacher)
    loss = objective.loss(student, states()).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all((parameter.grad == 0).all() for parameter in student.parameters())


def test_dmd2s_gradient_is_the_normalised_score_difference() -> None:
    schedule, teacher = CosineSchedule(), exact(CosineSchedule())
    answer = nn.Parameter(torch.randn(16, 2, generator=seeded()))

    class Answer(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return answer

    objective = begun(DistributionMatching(), mlp(0), Expert(teacher, schedule))
    objective.generator = seeded(4)
    objective.loss(Answer(), states(16)).loss.backward()
    generator = seeded(4)
    tau = 0.02 + 0.96 * torch.rand(16, generator=generator)
    x_tau = perturb(answer.detach(), torch.randn(16, 2, generator=generator), tau, schedule)
    real, fake = teacher(x_tau, tau), objective.fake(x_tau, tau, None, states(16)["t"]).detach()
    g = (fake - real) / (answer.detach() - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(answer.grad, g / g.numel(), atol=1e-6, rtol=1e-4)


def test_a_row_without_scale_gets_no_gradient() -> None:
    answer = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    found = score_difference(answer, torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([[3.0, 2.0], [2.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [2.0, 4.0]]))


def test_the_score_difference_in_image_shape() -> None:
    answer, real, fake = torch.randn(3, 5, 3, 4, 4, generator=seeded())
    scale = (answer - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(score_difference(answer, real, fake), (fake - real) / scale)


def critic(objective: DistributionMatching) -> list[nn.Parameter]:
    return list(objective.learner.optimiser.param_groups[0]["params"])


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_the_generators_loss_leaves_no_gradient_on_the_critic(gan: float) -> None:
    student, teacher = mlp(0), mlp(7)
    objective = begun(DistributionMatching(gan_weight=gan), student, Expert(teacher, student.schedule))
    objective.loss(student, states()).loss.backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in critic(objective))


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_the_generators_loss_does_not_leak_into_the_critics_update(gan: float) -> None:
    """Whatever the generator's backward left behind, the critic's next step is the one it would have made without."""
    after = []
    for generator_first in (False, True):
        student = mlp(0)
        objective = begun(DistributionMatching(gan_weight=gan), student, Expert(mlp(7), student.schedule))
        if generator_first:
            objective.loss(student, states()).loss.backward()
        objective.generator.manual_seed(3)
        objective.improve_critic(student, states())
        after.append([parameter.detach().clone() for parameter in critic(objective)])
    assert all(torch.equal(one, two) for one, two in zip(*after, strict=True))


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_the_critics_update_changes_the_critic_alone(gan: float) -> None:
    student, teacher = mlp(0), mlp(7)
    objective = begun(DistributionMatching(gan_weight=gan), student, Expert(teacher, student.schedule))
    before = state(student), state(teacher), [parameter.detach().clone() for parameter in critic(objective)]
    parts = objective.improve_critic(student, states())
    assert set(parts) == ({"fake", "head"} if gan else {"fake"})
    assert same(before[0], state(student)) and same(before[1], state(teacher))
    assert all(parameter.grad is None for parameter in [*student.parameters(), *teacher.parameters()])
    assert len(critic(objective)) == len(list(objective.fake.parameters())) + (4 if gan else 0)
    moved = [not torch.equal(one, two) for one, two in zip(before[2], critic(objective), strict=True)]
    assert all(moved)


def test_the_fake_score_starts_as_the_student_and_learns_its_answers() -> None:
    student, made = mlp(0), torch.tensor([0.5, -1.0])
    objective = begun(DistributionMatching(critic_lr=5e-3), student, Expert(exact(student.schedule), student.schedule))
    assert same({name: state(objective.fake)[name] for name in state(student)}, state(student))
    batch = states()
    x_t, t = batch["x_t"], batch["t"]
    assert torch.equal(objective.fake(x_t, t, None, t), student(x_t, t))
    assert not {id(p) for p in objective.fake.parameters()} & {id(p) for p in student.parameters()}

    class Certain(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return made.expand_as(x_t)

    losses = [float(objective.improve_critic(Certain(), states(128))["fake"]) for _ in range(200)]
    assert sum(losses[-50:]) < 0.4 * sum(losses[:50])
    x_tau = perturb(
        made.expand(64, 2), torch.randn(64, 2, generator=seeded()), torch.full((64,), 0.5), student.schedule
    )
    guess = objective.fake(x_tau, torch.full((64,), 0.5), None, states(64)["t"]).detach()
    torch.testing.assert_close(guess.mean(0), made, atol=0.2, rtol=0)


@pytest.mark.parametrize("tell", [True, False])
def test_the_fake_score_tells_times_apart_if_it_is_told(tell: bool) -> None:
    """A student that answers with another point at each time: one fake score for all can only name their middle."""
    student = mlp(0)

    class ByTime(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return (4.0 * t[:, None] - 2.5).expand_as(x_t)

    expert = Expert(exact(student.schedule), student.schedule)
    objective = begun(DistributionMatching(critic_lr=1e-2, tell_origin=tell, tau=(0.8, 0.98)), student, expert)
    for _ in range(150):
        objective.improve_critic(ByTime(), states(128))
    x_tau, tau = torch.randn(256, 2, generator=seeded()), torch.full((256,), 0.9)
    for t in (1.0, 0.75, 0.5, 0.25):
        told = (torch.full((256,), t),) if tell else ()
        middle = float(objective.fake(x_tau, tau, None, *told).detach().mean())
        assert abs(middle - (4.0 * t - 2.5 if tell else 0.0)) < 0.35


def test_told_of_origins_needs_a_network_that_can_be() -> None:
    class Bare(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return x_t

    schedule = CosineSchedule()
    for student in (Bare(), Student(Bare(), schedule)):
        with pytest.raises(Refusal, match=rf"with_origin\(\); {type(student).__name__} has none. Set tell_origin"):
            begun(DistributionMatching(), student, Expert(exact(schedule), schedule))


def test_the_gan_moves_the_student_by_its_softplus() -> None:
    student = mlp(0)
    objective = begun(DistributionMatching(gan_weight=0.3), student, Expert(mlp(7), student.schedule))
    objective.generator = seeded(4)
    found = objective.loss(student, states())
    objective.generator = seeded(4)
    answer = student(states()["x_t"], states()["t"])
    objective._perturb(answer, states())  # the draw of the matching part
    gan = softplus(-objective._logit(answer, None, (states()["t"],), states())).mean()
    torch.testing.assert_close(found.parts["gan"], gan.detach())
    torch.testing.assert_close(found.loss.detach(), found.parts["matching"] + 0.3 * gan.detach())


def test_the_head_learns_to_tell_real_from_fake() -> None:
    student = mlp(0)
    expert = Expert(exact(student.schedule), student.schedule)
    objective = begun(
        DistributionMatching(gan_weight=1, gan_critic_weight=1, critic_lr=3e-3, tau=(0.02, 0.2)), student, expert
    )
    heads = [float(objective.improve_critic(student, states(128))["head"]) for _ in range(150)]
    assert sum(heads[-10:]) / 10 < 0.8 * heads[0]


def test_a_gan_needs_features() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return self.layer(x_t)

    schedule = CosineSchedule()
    for student in (Bare(), Student(Bare(), schedule)):
        expert = Expert(exact(schedule), schedule)
        with pytest.raises(
            Refusal, match=rf"features.*feature_size; {type(student).__name__} has none. Set gan_weight=0"
        ):
            begun(DistributionMatching(gan_weight=0.1, tell_origin=False), student, expert)
        objective = begun(DistributionMatching(tell_origin=False), student, expert)
        objective.loss(student, states()).loss.backward()


def test_the_heads_first_weights_come_from_the_generator() -> None:
    """No global seed decides: the same generator makes the same head."""
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        student, objective = mlp(0), DistributionMatching(gan_weight=0.1)
        begun(objective, student, Expert(exact(student.schedule), student.schedule))
        heads.append(state(objective.head))
    assert same(*heads)


def test_the_head_sees_real_points_with_their_own_labels() -> None:
    """A real point beside another point's label would teach the head that labels mean nothing."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Telling:
        """The label is the place: x = 100 label + 100."""

        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            return self.sample_labelled(n, generator)[0]

        def sample_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
            labels = torch.randint(5, (n,), generator=generator)
            return 100.0 * (labels[:, None] + 1).expand(n, 2), labels

    student = mlp(0, labels=5)
    expert = Expert(mlp(7, labels=5), student.schedule)
    objective = begun(DistributionMatching(gan_weight=0.1), student, expert, Telling(), conditional=True)
    shown = objective._shown

    def watched(x0: Tensor, condition: Tensor, origin: tuple[Tensor, ...], batch: TensorDict) -> Any:
        seen.append((x0, condition))
        return shown(x0, condition, origin, batch)

    objective._shown = watched
    objective.improve_critic(student, states(labels=5))
    real = [(x0, condition) for x0, condition in seen if x0.min() >= 50]
    assert len(real) == 1
    assert torch.equal(real[0][0][:, 0] / 100 - 1, real[0][1].float())


def test_dmd2_refusals() -> None:
    with pytest.raises(
        Refusal, match=r"tau must be a range inside \(0, 1\]; got \(0.5, 0.2\). Pass e.g. tau=\(0.02, 0.98\)"
    ):
        DistributionMatching(tau=(0.5, 0.2))
    with pytest.raises(Refusal, match="tau must be a range"):
        DistributionMatching(tau=(0.0, 0.5))
    with pytest.raises(Refusal, match="critic_updates must be at least 1; got 0"):
        DistributionMatching(critic_updates=0)
    with pytest.raises(Refusal, match=r"gan_weight must be at least 0\.0; got -1"):
        DistributionMatching(gan_weight=-1)
    with pytest.raises(Refusal, match="solver_steps must be at least 1; got 0"):
        Consistency(solver_steps=0)
    with pytest.raises(Refusal, match=r"ema must lie in \[0, 1\]; got 1.5"):
        Consistency(ema=1.5)


# --- what all share ---------------------------------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize("labels", [0, 8])
def test_no_loss_looks_at_the_source(make: Any, labels: int) -> None:
    """One loss, three input laws: the source column, and any other bookkeeping, may say what it likes."""
    student = mlp(0, labels=labels)
    expert = Expert(exact(student.schedule), student.schedule, substeps=2)
    objective = begun(make(), student, expert)
    batch = objective.annotate(expert, states(labels=labels))
    batch["round"], batch["actor"] = torch.zeros(len(batch)), torch.zeros(len(batch), dtype=torch.int64)
    changed = batch.clone()
    changed["source"] = changed["source"].flip(0)
    changed["round"], changed["actor"] = torch.full((len(batch),), 7.0), torch.ones(len(batch), dtype=torch.int64)
    found = []
    for one in (batch, changed, batch.exclude("source", "round", "actor")):
        objective.generator = seeded(2)
        found.append(objective.loss(student, one).loss.detach())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@every_objective
@pytest.mark.parametrize("labels", [0, 8])
def test_a_condition_reaches_student_and_expert(make: Any, labels: int) -> None:
    student = mlp(0, labels=8)
    expert = Expert(exact(student.schedule), student.schedule)
    objective = begun(make(), student, expert)
    found = []
    for shift in (0, 3):
        batch = states(labels=labels)
        if labels:
            batch["condition"] = (batch["condition"] + shift) % 8
        objective.generator = seeded(2)
        found.append(float(objective.loss(student, objective.annotate(expert, batch)).loss.detach()))
    assert (found[0] != found[1]) == bool(labels)


@every_objective
def test_a_loss_has_parts_without_gradient(make: Any) -> None:
    student = mlp(0)
    expert = Expert(exact(student.schedule), student.schedule)
    objective = begun(make(), student, expert)
    loss, parts = objective.loss(student, objective.annotate(expert, states()))
    assert loss.ndim == 0 and loss.requires_grad
    assert parts and not any(part.requires_grad for part in parts.values())


@every_objective
@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.4, 0.3, 0.3)])
def test_the_teacher_never_changes(make: Any, shares: tuple[float, float, float]) -> None:
    student, teacher = mlp(1), mlp(7)
    before, start = state(teacher), state(student)
    run = loop(make(), student, Expert(teacher, student.schedule, 2), shares=shares, heldout=16)
    for _ in run:
        pass
    assert same(before, state(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not same(start, state(student))


@every_schedule
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
def test_the_denoising_loss_is_the_squared_error_in_v(schedule: Any, shape: tuple[int, ...]) -> None:
    x0, noise = torch.randn(2, 6, *shape, generator=seeded())
    t = torch.linspace(0.1, 0.9, 6)
    alpha, sigma = (column(part, x0) for part in schedule(t))
    v_found = torch.tanh(perturb(x0, noise, t, schedule))

    def denoiser(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return (alpha * x_t - sigma * v_found) / (alpha**2 + sigma**2)

    expected = (v_found - (alpha * noise - sigma * x0)).square().mean()
    torch.testing.assert_close(denoising_loss(denoiser, x0, noise, t, schedule), expected, rtol=1e-4, atol=1e-5)


def test_an_objective_without_a_loss_says_so() -> None:
    class Empty(Objective):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define loss\(student, batch\)"):
        Empty().loss(mlp(0), states())


@every_objective
@pytest.mark.parametrize("labels", [0, 8])
@every_schedule
def test_annotate_settle_loss_and_follow_run_on_meta(make: Any, labels: int, schedule: Any) -> None:
    student, teacher = mlp(0, schedule, labels).to("meta"), mlp(1, schedule, labels).to("meta")
    expert = Expert(teacher, schedule, substeps=2, guidance=2.0, threshold=StaticThreshold())
    objective = make()
    objective.begin(student, expert, lambda n: (torch.empty(n, 2, device="meta"), None), None)
    batch = states(labels=labels).to("meta").set("action", torch.empty(32, 2, device="meta"))
    batch = objective.annotate(expert, objective.settle(batch, None).exclude("action"))
    assert all(value.is_meta for value in batch.values())
    loss, parts = objective.loss(student, batch)
    assert loss.is_meta and all(part.is_meta for part in parts.values())
    loss.backward()
    objective.follow(student)
    assert objective.grid(torch.empty(3, device="meta")).is_meta


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_the_critic_runs_on_meta(gan: float) -> None:
    student = mlp(0).to("meta")
    objective = DistributionMatching(gan_weight=gan)
    expert = Expert(mlp(1).to("meta"), student.schedule)
    objective.begin(student, expert, lambda n: (torch.empty(n, 2, device="meta"), None), None)
    parts = objective.improve_critic(student, states().to("meta"))
    assert all(part.is_meta for part in parts.values())
