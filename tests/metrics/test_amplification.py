"""Error amplification against closed forms, and what it costs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.metrics.amplification import (
    StepAmplification,
    format_amplification,
    measure_amplification,
)
from dagdiff.report.shift import amplification_figure
from dagdiff.schedule import CosineSchedule, FlowSchedule, step_grid
from dagdiff.transition import Ddim, Renoise

LAWS: dict[str, Callable[..., Any]] = {"ddim": Ddim, "ancestral": lambda s: Ddim(s, 1.0), "renoise": Renoise}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
SCHEDULE = CosineSchedule()


class Linear:
    """The exact denoiser of a Gaussian of the given width, a gain of the state; counts rows."""

    def __init__(self, width: float = 0.7, schedule: Any = SCHEDULE) -> None:
        self.width, self.schedule, self.rows = width, schedule, 0

    def gain(self, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        return alpha * self.width**2 / (alpha**2 * self.width**2 + sigma**2)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        return self.gain(t).reshape(-1, *[1] * (x_t.ndim - 1)) * x_t


def wrong(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    return torch.cos(x_t)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
@every_law
def test_at_the_last_step_an_error_is_its_cost(law: Callable[..., Any], shape: tuple[int, ...]) -> None:
    noise = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    expert = Expert(Linear(), SCHEDULE, 2)
    rows = measure_amplification(wrong, expert, law(SCHEDULE), step_grid(4), noise, None, torch.Generator())
    assert [row.step for row in rows] == [0, 1, 2, 3]
    assert [row.t for row in rows] == [1.0, 0.75, 0.5, 0.25]
    assert rows[-1].amplification == pytest.approx(1.0, rel=1e-4)
    assert all(row.error > 0 and row.cost > 0 for row in rows)


@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule()], ids=["cosine", "flow"])
def test_a_linear_expert_amplifies_by_the_product_of_its_steps(schedule: Any) -> None:
    """A guess e off moves x_s by (alpha_s - r alpha_t) e, r = sigma_s / sigma_t; each later step multiplies it."""
    teacher, times = Linear(schedule=schedule), step_grid(5)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    rows = measure_amplification(wrong, Expert(teacher, schedule), Ddim(schedule), times, noise)
    alpha, sigma = schedule(times)
    ratio = sigma[1:] / sigma[:-1]
    enters = alpha[1:] - ratio * alpha[:-1]
    carries = enters * teacher.gain(times[:-1]) + ratio
    for row in rows:
        expected = float(enters[row.step] * carries[row.step + 1 :].prod())
        assert row.amplification == pytest.approx(abs(expected), rel=1e-3)


def test_renoising_forgets_the_state_but_for_the_guess() -> None:
    """With fresh noise in both chains alike, only alpha_s e is left of an error; the expert's gain carries it on."""
    teacher, times = Linear(), step_grid(3)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    rows = measure_amplification(
        wrong, Expert(teacher, SCHEDULE), Renoise(SCHEDULE), times, noise, None, torch.Generator().manual_seed(1)
    )
    alpha, _ = SCHEDULE(times)
    gain = teacher.gain(times[:-1])
    expected = [float(alpha[1] * gain[1] * alpha[2] * gain[2]), float(alpha[2] * gain[2]), 1.0]
    assert [row.amplification for row in rows] == pytest.approx(expected, rel=1e-3)


@every_law
def test_the_expert_makes_no_error(law: Callable[..., Any]) -> None:
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    expert = Expert(Linear(), SCHEDULE)
    rows = measure_amplification(expert, expert, law(SCHEDULE), step_grid(3), noise, None, torch.Generator())
    assert all(row.error == row.cost == 0.0 and math.isnan(row.amplification) for row in rows)


@pytest.mark.parametrize("substeps", [1, 3])
def test_it_charges_the_expert_it_is_given(substeps: int) -> None:
    noise, asked = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), []

    def student(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        asked.append(len(x_t))
        return wrong(x_t, t)

    teacher = Linear()
    expert = Expert(teacher, SCHEDULE, substeps)
    measure_amplification(student, expert, Ddim(SCHEDULE), step_grid(4), noise)
    assert expert.nfe == teacher.rows == 4**2 * 5 * substeps
    assert sum(asked) == 4 * 5
    with expert.ledger.free():
        measure_amplification(student, expert, Ddim(SCHEDULE), step_grid(4), noise)
    assert expert.nfe == 4**2 * 5 * substeps


def test_conditions_are_passed_on() -> None:
    labels = torch.arange(4)

    def told(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is labels
        return x_t * 0.5

    noise = torch.randn(4, 2)
    measure_amplification(told, Expert(told, SCHEDULE, 2), Ddim(SCHEDULE), step_grid(2), noise, labels)


def test_a_grid_that_rises_is_refused() -> None:
    with pytest.raises(Refusal, match="times must fall"):
        measure_amplification(wrong, Expert(wrong, SCHEDULE), Ddim(SCHEDULE), torch.arange(2.0), torch.zeros(2, 2))


ROWS = [StepAmplification(0, 1.0, 0.5, 0.25), StepAmplification(1, 0.5, 0.0, 0.0)]


def test_the_table_has_a_line_a_step() -> None:
    lines = format_amplification(ROWS).split("\n")
    assert len(lines) == 3 and len(set(map(len, lines))) == 1
    assert lines[1].split() == ["0", "1.00", "0.5", "0.25", "0.5"]
    assert lines[2].split()[-1] == "nan"


def test_a_row_has_every_field_and_the_factor() -> None:
    first, second = (row.as_row() for row in ROWS[:2])
    assert first == {"step": 0, "t": 1.0, "error": 0.5, "cost": 0.25, "amplification": 0.5}
    assert math.isnan(second["amplification"])


def test_the_figure_shows_error_cost_and_their_factor_beside_one() -> None:
    sizes, factor = amplification_figure([*ROWS, StepAmplification(2, 0.25, 0.1, 0.3)]).axes
    assert [line.get_ydata().tolist() for line in sizes.lines] == [[0.5, 0.0, 0.1], [0.25, 0.0, 0.3]]
    assert [line.get_label() for line in sizes.lines] == ["error at the step", "its cost at the end"]
    ratios, one = factor.lines
    assert ratios.get_xdata().tolist() == [1.0, 0.5, 0.25]
    assert ratios.get_ydata().tolist() == pytest.approx([0.5, math.nan, 3.0], nan_ok=True)
    assert set(one.get_ydata()) == {1.0}
    assert factor.get_xlim()[0] > factor.get_xlim()[1], "noise on the left"
    assert factor.get_ylim()[0] == 0.0 and factor.get_ylim()[1] > 3.0
