"""Noise schedules and step grids: their ends, their fall, diffusers' table, and the refusals."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dagdiff.checks import Refusal, check_times
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, perturb, refine, step_grid

ZERO_SNR = VPSchedule(DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod)
SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear(), "vp-zero-snr": ZERO_SNR}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
variance_preserving = pytest.mark.parametrize("name", ["cosine", "vp", "vp-zero-snr"])


@every_schedule
def test_time_zero_is_clean_data(schedule: Callable) -> None:
    alpha, sigma = schedule(torch.zeros(3))
    assert torch.equal(alpha, torch.ones(3))
    assert torch.equal(sigma, torch.zeros(3))


@every_schedule
def test_noise_rises_and_data_falls_with_time(schedule: Callable) -> None:
    alpha, sigma = schedule(torch.linspace(0, 1, 777))
    assert (alpha[1:] < alpha[:-1]).all()
    assert (sigma[1:] >= sigma[:-1]).all()
    snr = (alpha.double() / sigma.double())[1:]
    assert (snr[1:] < snr[:-1]).all()


@variance_preserving
def test_variance_is_preserved_between_the_entries_too(name: str) -> None:
    alpha, sigma = SCHEDULES[name](torch.linspace(0, 1, 1234))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1234))


def test_the_ends_at_pure_noise() -> None:
    one = torch.ones(1)
    assert float(CosineSchedule(terminal_alpha=0.01)(one)[0]) == pytest.approx(0.01, abs=1e-6)
    assert [float(part) for part in FlowSchedule()(one)] == [0.0, 1.0]
    alpha, sigma = ZERO_SNR(one)
    assert abs(float(alpha)) < 1e-6
    assert float(sigma) == 1.0


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_vp_hits_every_entry_of_diffusers_table(steps: int, zero_snr: bool, betas: str) -> None:
    diffusers = DDIMScheduler(num_train_timesteps=steps, beta_schedule=betas, rescale_betas_zero_snr=zero_snr)
    table = diffusers.alphas_cumprod.double()
    alpha, sigma = VPSchedule(diffusers.alphas_cumprod)((torch.arange(steps) + 1.0) / steps)
    torch.testing.assert_close(alpha.double(), table.sqrt(), atol=2e-6, rtol=0)
    torch.testing.assert_close(sigma.double(), (1 - table).sqrt(), atol=2e-6, rtol=0)


def test_vp_linear_is_the_ddpm_table() -> None:
    torch.testing.assert_close(VPSchedule.linear().alphas_cumprod.float(), DDPMScheduler().alphas_cumprod)


def test_vp_interpolates_the_angle_linearly() -> None:
    schedule = VPSchedule(torch.tensor([0.75, 0.25]))  # angles 30 and 60 degrees, at t = 1/2 and 1
    alpha, sigma = schedule(torch.tensor([0.25, 0.75]))
    angle = torch.atan2(sigma, alpha).rad2deg()
    torch.testing.assert_close(angle, torch.tensor([15.0, 45.0]))


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@every_schedule
def test_perturb_mixes_row_by_row(schedule: Callable, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x0, noise = torch.randn(2, 5, *shape, generator=generator)
    t = torch.rand(5, generator=generator)
    x_t = perturb(x0, noise, t, schedule)
    for row in range(5):
        alpha, sigma = (float(part) for part in schedule(t[row : row + 1]))
        torch.testing.assert_close(x_t[row], alpha * x0[row] + sigma * noise[row])


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_perturb_at_time_zero_is_the_data(shape: tuple[int, ...]) -> None:
    x0 = torch.randn(4, *shape)
    for schedule in SCHEDULES.values():
        assert torch.equal(perturb(x0, torch.randn_like(x0), torch.zeros(4), schedule), x0)


@given(st.integers(1, 200))
def test_step_grid_is_uniform_from_one_to_zero(steps: int) -> None:
    grid = step_grid(steps)
    assert len(grid) == steps + 1
    assert (float(grid[0]), float(grid[-1])) == (1.0, 0.0)
    torch.testing.assert_close(grid.diff(), torch.full((steps,), -1.0 / steps))
    assert check_times(grid) is grid


@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=8, unique=True),
    st.integers(1, 7),
)
def test_refine_keeps_every_old_time_and_splits_evenly(inner: list[int], substeps: int) -> None:
    times = torch.tensor([*sorted(inner, reverse=True), 0]) / 4096
    fine = refine(times, substeps)
    assert len(fine) == (len(times) - 1) * substeps + 1
    assert torch.equal(fine[::substeps], times)
    parts = fine[:-1].reshape(-1, substeps) - fine[1:].reshape(-1, substeps)
    torch.testing.assert_close(
        parts, ((times[:-1] - times[1:]) / substeps)[:, None].expand_as(parts), atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 0.5, 0.7, 0.0], r"got times\[2\]=0.7 after times\[1\]=0.5"),
        ([1.0, 0.5, 0.5, 0.0], r"got times\[2\]=0.5 after times\[1\]=0.5"),
        ([1.0, 0.5], "exactly 0"),
        ([1.5, 0.0], "at most 1"),
        ([1.0, float("nan"), 0.0], "nan"),
        ([1.0, 0.5, -0.5], "exactly 0"),
        ([0.0], r"got shape \(1,\)"),
        ([[1.0, 0.0]], r"got shape \(1, 2\)"),
    ],
)
def test_a_grid_that_does_not_fall_from_one_to_zero_is_refused(times: list, message: str) -> None:
    for use in (check_times, lambda grid: refine(grid, 2)):
        with pytest.raises(Refusal, match=message) as refusal:
            use(torch.tensor(times))
        assert "Pass e.g. torch.linspace(1, 0, 5)" in str(refusal.value)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(Refusal, match=f"steps must be at least 1; got {steps}. Pass e.g. steps=1"):
        step_grid(steps)
    with pytest.raises(Refusal, match=f"substeps must be at least 1; got {steps}"):
        refine(step_grid(4), steps)


@pytest.mark.parametrize("table", [[0.5, 0.9], [1.2, 0.5], [0.5, -0.1], [[0.9, 0.5]], [0.9, float("nan")]])
def test_a_table_that_rises_or_leaves_the_unit_interval_is_refused(table: list) -> None:
    with pytest.raises(Refusal, match=r"alphas_cumprod must be 1-D, fall, and lie in \[0, 1\].*alphas_cumprod\.$"):
        VPSchedule(torch.tensor(table))


def test_the_table_is_kept_once_a_device() -> None:
    schedule = VPSchedule.linear()
    first, second = Tensor.data_ptr(schedule._angles(torch.zeros(1))), Tensor.data_ptr(schedule._angles(torch.zeros(9)))
    assert first == second
    assert schedule(torch.zeros(3, device="meta"))[0].is_meta


@every_schedule
def test_times_of_double_precision_are_welcome(schedule: Callable) -> None:
    t = torch.linspace(0, 1, 9)
    for single, double in zip(schedule(t), schedule(t.double()), strict=True):
        torch.testing.assert_close(double.float(), single)
