"""The per-step Gaussian KL against torch.distributions, and what happens where the variance vanishes."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.objectives.gaussian import GaussianKL, kernel_kl
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.rollout import forward_states
from dagdiff.schedule import CosineSchedule, FlowSchedule, Schedule, VPSchedule, step_grid
from dagdiff.shapes import column
from dagdiff.transition import Ddim

SCHEDULES: dict[str, Schedule] = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}


def setting(shape: tuple[int, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A state, two guesses, and times of a step that does not end at 0, five rows."""
    t = torch.tensor([1.0, 0.75, 0.5, 0.3, 0.9])
    return *(torch.randn(5, *shape, generator=generator) for _ in range(3)), t, 0.6 * t


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_it_is_the_kl_of_the_two_steps(
    schedule: Schedule, shape: tuple[int, ...], eta: float, generator: torch.Generator
) -> None:
    x_t, one, other, t, s = setting(shape, generator)
    law = Ddim(schedule, eta)
    still = torch.zeros_like(x_t)
    deviation = column(law.kernel(t, s)[1], x_t)
    steps = [Independent(Normal(law(x_t, x0, t, s, still), deviation), len(shape)) for x0 in (one, other)]
    found = kernel_kl(one, other, t, s, law).flatten(1).sum(1)
    torch.testing.assert_close(found, kl_divergence(*steps), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_kernels_deviation_is_that_of_the_draws(eta: float, generator: torch.Generator) -> None:
    law, rows = Ddim(CosineSchedule(), eta), 20_000
    t, s = torch.full((rows,), 0.75), torch.full((rows,), 0.5)
    zero = torch.zeros(rows, 1)
    drawn = law(zero, zero, t, s, torch.randn(rows, 1, generator=generator))
    assert float(drawn.std()) == pytest.approx(float(law.kernel(t, s)[1][0]), rel=0.03)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_last_step_counts_as_a_decoder_of_variance_sigma_t(eta: float) -> None:
    schedule, t = CosineSchedule(), torch.tensor([0.25])
    sigma = float(schedule(t)[1])
    found = kernel_kl(torch.ones(1, 2), torch.zeros(1, 2), t, torch.zeros(1), Ddim(schedule, eta))
    assert found[0].tolist() == pytest.approx([1 / (2 * (eta * sigma) ** 2)] * 2, rel=1e-4)


def test_the_loss_is_the_mean_over_states_and_coordinates_and_its_gradient_the_students(
    generator: torch.Generator,
) -> None:
    schedule, objective = CosineSchedule(), GaussianKL()
    torch.manual_seed(0)
    student, teacher = (Student(MLP(width=8), schedule) for _ in range(2))
    expert = Expert(teacher, schedule, 2)
    objective.begin(student, expert, lambda n: (torch.zeros(n, 2), None), generator)

    class Data:
        def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
            return torch.randn(n, 2, generator=generator)

    batch = objective.annotate(expert, forward_states(Data(), schedule, step_grid(4), 12, generator))
    same = Progressive().annotate(expert, batch.clone())
    assert torch.equal(batch["target"], same["target"])
    loss = objective.loss(student, batch)
    guess = student(batch["x_t"], batch["t"])
    law = Ddim(schedule, 1.0)
    torch.testing.assert_close(loss.loss, kernel_kl(guess, batch["target"], batch["t"], batch["s"], law).mean())
    assert torch.isfinite(loss.loss) and set(loss.parts) == {"kl"}
    loss.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    batch["target"] = guess.detach()
    assert objective.loss(student, batch).loss.item() == 0.0


def test_the_student_is_sampled_by_the_same_law() -> None:
    assert GaussianKL(0.5).sampler(CosineSchedule()) == Ddim(CosineSchedule(), 0.5)


@pytest.mark.parametrize("eta", [0.0, -1.0, 1.5, float("nan")])
def test_an_eta_without_variance_is_refused(eta: float) -> None:
    with pytest.raises(Refusal, match=r"eta must lie in \(0, 1\]"):
        GaussianKL(eta)


def test_it_runs_on_meta() -> None:
    t = torch.ones(4, device="meta")
    found = kernel_kl(*(torch.empty(4, 2, device="meta") for _ in range(2)), t, 0.5 * t, Ddim(CosineSchedule(), 1.0))
    assert found.is_meta and found.shape == (4, 2)
