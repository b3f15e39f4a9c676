"""Solvers: what is exact, their orders, sub-steps by length, and schedules they can't walk."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule
from dagdiff.shapes import column
from dagdiff.solvers import DdimSolver, DpmSolver, HeunSolver

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
SOLVERS = {"ddim": DdimSolver(), "heun": HeunSolver(), "dpm": DpmSolver()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def normal(schedule: Callable, std: float = 0.5) -> Callable:
    """The exact denoiser of N(0, std^2), whose path keeps x_t / sqrt(alpha^2 std^2 + sigma^2)."""

    def denoise(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = (column(values, x_t) for values in schedule(t))
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t

    return denoise


def landing(schedule: Callable, x_t: Tensor, t: Tensor, s: Tensor, std: float = 0.5) -> Tensor:
    """Where the exact path of N(0, std^2) leads."""
    (a, b), (c, d) = schedule(t), schedule(s)
    return column(((c**2 * std**2 + d**2) / (a**2 * std**2 + b**2)).sqrt(), x_t) * x_t


def error(solver: Callable, schedule: Callable, substeps: int, t: float = 0.8, s: float = 0.2) -> float:
    x_t = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, end = (torch.full((64,), time, dtype=torch.float64) for time in (t, s))
    found = Expert(normal(schedule), schedule, substeps, solver=solver).advance(x_t, start, end)
    return float((found - landing(schedule, x_t, start, end)).abs().max())


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule()], ids=["cosine", "flow"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpm", 2)])
def test_halving_the_substeps_divides_the_error_by_two_to_the_order(schedule: Callable, name: str, order: int) -> None:
    coarse, fine = (error(SOLVERS[name], schedule, substeps) for substeps in (128, 256))
    assert coarse / fine == pytest.approx(2**order, rel=0.15)


@every_solver
@every_schedule
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
def test_a_constant_answer_is_reached_at_data_exactly(solver: Callable, schedule: Callable, shape: tuple) -> None:
    answer = torch.randn(3, *shape)
    expert = Expert(lambda x_t, t, condition: answer[: len(x_t)], schedule, 4, solver=solver)
    landed = expert.advance(torch.randn(3, *shape), torch.tensor([1.0, 0.6, 0.1]), torch.zeros(3))
    torch.testing.assert_close(landed, answer, atol=1e-5, rtol=1e-5)


@every_solver
def test_no_signal_at_the_start_and_no_noise_at_the_end_give_finite_states(solver: Callable) -> None:
    schedule = FlowSchedule()
    assert schedule(torch.ones(1))[0] == 0.0
    landed = Expert(normal(schedule), schedule, 5, solver=solver).advance(
        torch.randn(4, 2), torch.ones(4), torch.zeros(4)
    )
    assert landed.isfinite().all()


@every_solver
def test_with_a_span_each_row_walks_as_if_alone_in_its_part_of_the_substeps(solver: Callable) -> None:
    schedule = CosineSchedule()
    asked: list[int] = []

    def denoise(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        asked.append(len(x_t))
        return normal(schedule)(x_t, t) + 0.1 * column(condition, x_t)

    expert = Expert(denoise, schedule, 8, solver=solver, span=1.0)
    t, s = torch.tensor([0.25, 1.0, 0.5, 0.126]), torch.tensor([0.0, 0.0, 0.25, 0.125])
    x_t, condition = torch.randn(4, 2), torch.arange(4)
    together = expert.advance(x_t, t, s, condition)
    alone = Expert(denoise, schedule, 1, solver=solver)
    for row, substeps in enumerate((2, 8, 2, 1)):
        alone.substeps = substeps
        only = alone.advance(*(values[row : row + 1] for values in (x_t, t, s, condition)))
        torch.testing.assert_close(together[row : row + 1], only)
    questions = 2 if isinstance(solver, HeunSolver) else 1
    assert expert.nfe == questions * (2 + 8 + 2 + 1)
    assert asked[0] == 4, "rows of all lengths are asked about together"


def test_a_schedule_whose_signal_falls_is_refused_but_by_ddim() -> None:
    def wavy(t: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - t * (1.0 - t), t * (1.0 - t)

    for solver in (HeunSolver(), DpmSolver()):
        with pytest.raises(Refusal, match=rf"{type(solver).__name__} walks by .* --solver ddim"):
            Expert(normal(wavy), wavy, solver=solver)
    Expert(normal(wavy), wavy)


def test_a_span_must_be_positive() -> None:
    with pytest.raises(Refusal, match="span must be above 0"):
        Expert(normal(CosineSchedule()), CosineSchedule(), span=0.0)
