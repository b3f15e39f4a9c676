"""The exact expert: its posterior mean by brute force, Tweedie's formula, and chains of known mean and covariance."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.transition import Ddim, sample

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
MEANS = torch.tensor([[0.0, 1.0], [-1.2, -0.3], [0.8, -0.9]])
STDS, WEIGHTS = torch.tensor([0.2, 0.5, 0.35]), torch.tensor([0.2, 0.5, 0.3])


def exact(schedule: Callable) -> GaussianMixtureExpert:
    return GaussianMixtureExpert(MEANS, STDS, WEIGHTS, schedule)


def law(means: Tensor, stds: Tensor) -> MixtureSameFamily:
    parts = Independent(Normal(means.double(), stds.double()[:, None].expand_as(means)), 1)
    return MixtureSameFamily(Categorical(WEIGHTS.double()), parts)


@every_schedule
@pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
def test_equals_the_integral_over_all_clean_points(schedule: Callable, t: float, generator: torch.Generator) -> None:
    line = torch.linspace(-5, 5, 501, dtype=torch.float64)
    x0 = torch.cartesian_prod(line, line)
    prior = law(MEANS, STDS).log_prob(x0)
    alpha, sigma = (float(part) for part in schedule(torch.tensor([t])))
    x_t = torch.randn(4, 2, generator=generator)
    apart = torch.cdist(x_t.double(), alpha * x0).square()
    posterior = torch.softmax(prior - apart / (2 * sigma**2), dim=1)
    guess = exact(schedule)(x_t, torch.full((4,), t))
    torch.testing.assert_close(guess.double(), posterior @ x0, atol=2e-4, rtol=1e-4)


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.97])
def test_is_tweedies_formula(schedule: Callable, t: float, generator: torch.Generator) -> None:
    alpha, sigma = (float(part) for part in schedule(torch.tensor([t])))
    noisy = law(alpha * MEANS, (alpha**2 * STDS**2 + sigma**2).sqrt())
    x_t = torch.randn(50, 2, generator=generator).double().requires_grad_()
    (score,) = torch.autograd.grad(noisy.log_prob(x_t).sum(), x_t)
    expected = (x_t + sigma**2 * score) / alpha
    guess = exact(schedule)(x_t.detach().float(), torch.full((50,), t))
    torch.testing.assert_close(guess.double(), expected.detach(), atol=2e-4 / alpha, rtol=1e-3)


@every_schedule
def test_ends_are_the_state_itself_and_the_mean_of_the_law(schedule: Callable, generator: torch.Generator) -> None:
    x = torch.randn(6, 2, generator=generator)
    torch.testing.assert_close(exact(schedule)(x, torch.zeros(6)), x, atol=1e-5, rtol=1e-5)
    mean = (WEIGHTS[:, None] * MEANS).sum(0).expand(6, 2)
    torch.testing.assert_close(exact(FlowSchedule())(x, torch.ones(6)), mean)


@every_schedule
def test_a_label_leaves_its_component_alone(schedule: Callable, generator: torch.Generator) -> None:
    x, t = torch.randn(6, 2, generator=generator), torch.rand(6, generator=generator)
    for label in range(3):
        one = GaussianMixtureExpert(MEANS[label : label + 1], STDS[label : label + 1], torch.ones(1), schedule)
        torch.testing.assert_close(exact(schedule)(x, t, torch.full((6,), label)), one(x, t), atol=1e-5, rtol=1e-5)


def test_no_label_is_unconditional_row_by_row(generator: torch.Generator) -> None:
    expert = exact(CosineSchedule())
    x, t = torch.randn(6, 2, generator=generator), torch.rand(6, generator=generator)
    free, first = expert(x, t), expert(x, t, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(expert(x, t, torch.full((6,), -1)), free)
    mixed = expert(x, t, torch.tensor([-1, 0, -1, 0, 0, -1]))
    torch.testing.assert_close(
        mixed, torch.where(torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)[:, None], free, first)
    )
    assert not torch.allclose(free, first)


def predicted(schedule: Callable, mean: Tensor, std: float, steps: int) -> tuple[Tensor, float]:
    """The affine map noise -> end of the single Gaussian's DDIM chain, x_0 = shift + scale noise, in Python floats."""
    shift, scale = torch.zeros_like(mean, dtype=torch.float64), 1.0
    for step in range(steps):
        (a_t, s_t), (a_s, s_s) = (
            [float(part) for part in schedule(torch.tensor(1 - (step + i) / steps))] for i in (0, 1)
        )
        gain = a_t * std**2 / (a_t**2 * std**2 + s_t**2)
        slope = a_s * gain + s_s / s_t * (1 - a_t * gain)
        shift = a_s * mean.double() + slope * (shift - a_t * mean.double())
        scale *= slope
    return shift, scale


@every_schedule
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_single_gaussians_chain_is_the_known_affine_map(
    schedule: Callable, steps: int, generator: torch.Generator
) -> None:
    mean, std = torch.tensor([0.7, -0.4]), 0.5
    expert = GaussianMixtureExpert(mean[None], torch.tensor([std]), torch.ones(1), schedule)
    noise = torch.randn(100, 2, generator=generator)
    shift, scale = predicted(schedule, mean, std, steps)
    ended = sample(expert, Ddim(schedule), step_grid(steps), noise)
    torch.testing.assert_close(ended.double(), shift + scale * noise.double(), atol=1e-4, rtol=1e-3)
    walked = Expert(expert, schedule, substeps=steps).walk(noise, step_grid(1))[-1]
    torch.testing.assert_close(walked, ended, atol=1e-4, rtol=1e-3)
    assert Expert(expert, schedule).nfe == 0


@every_schedule
def test_the_fine_chain_has_the_mean_and_covariance_of_the_data(schedule: Callable, generator: torch.Generator) -> None:
    mean, std = torch.tensor([0.7, -0.4]), 0.5
    expert = GaussianMixtureExpert(mean[None], torch.tensor([std]), torch.ones(1), schedule)
    ended = sample(expert, Ddim(schedule), step_grid(200), torch.randn(20_000, 2, generator=generator))
    torch.testing.assert_close(ended.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(ended.T), std**2 * torch.eye(2), atol=0.015, rtol=0)


def test_any_dimension() -> None:
    expert = GaussianMixtureExpert(torch.randn(4, 7), torch.full((4,), 0.3), torch.full((4,), 0.25), CosineSchedule())
    assert expert(torch.randn(5, 7), torch.rand(5)).shape == (5, 7)


def test_to_meta() -> None:
    """The meta device stands in for a GPU: a move must not look at values."""
    moved = exact(CosineSchedule()).to("meta")
    assert moved(torch.empty(3, 2, device="meta"), torch.empty(3, device="meta")).is_meta


@pytest.mark.parametrize(
    ("means", "stds", "weights", "message"),
    [
        (3, 2, [0.5, 0.25, 0.25], "3 means, 2 stds"),
        (2, 2, [0.5, 0.6], r"weights \[0.5, 0.60"),
        (2, 2, [1.0, 0.0], r"weights \[1.0, 0.0\]"),
        (2, 2, [1.0], "2 means"),
    ],
)
def test_refusals(means: int, stds: int, weights: list[float], message: str) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        GaussianMixtureExpert(torch.randn(means, 2), torch.ones(stds), torch.tensor(weights), CosineSchedule())
    assert "Normalise the weights" in str(refusal.value)


def test_stds_below_zero_or_zero_are_refused() -> None:
    for std in (0.0, -0.5, math.nan):
        with pytest.raises(Refusal, match="std"):
            GaussianMixtureExpert(torch.zeros(1, 2), torch.tensor([std]), torch.ones(1), CosineSchedule())
