"""Chains that change hands: the terms of all steps add up to the distance of the ends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dagdiff.expert import Expert
from dagdiff.metrics.handover import Handover, hand_over, spread, step_bounds
from dagdiff.metrics.statistics import bootstrap_means
from dagdiff.policy import ExpertPolicy
from dagdiff.schedule import CosineSchedule, FlowSchedule, step_grid
from dagdiff.transition import Ddim, Renoise, chain

SCHEDULE = CosineSchedule()
LAWS: dict[str, Callable[..., Any]] = {"ddim": Ddim, "ancestral": lambda s: Ddim(s, 1.0), "renoise": Renoise}


def teacher(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    return torch.tanh(2.0 * x_t)


def student(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    return torch.tanh(2.0 * x_t) + 0.2 * torch.sin(3.0 * x_t) * t[:, None]


def changed(law: Any, rows: int = 64, steps: int = 4) -> Handover:
    expert, times = Expert(teacher, SCHEDULE, 2), step_grid(steps)
    noise = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    acting = ExpertPolicy(expert, law, times)
    return hand_over(student, acting, law, times, noise, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAWS)
def test_the_terms_of_the_steps_add_up_to_the_distance_of_the_ends(name: str) -> None:
    found = changed(LAWS[name](SCHEDULE))
    assert len(found.ends) == 5
    assert torch.equal(found.ends[0], found.led[-1].x_s) and torch.equal(found.ends[-1], found.own[-1].x_s)
    errors = [step.x0 - teacher(step.x_t, step.t) for step in found.own]
    rows = step_bounds(found, errors, 0.95, least=1e-6)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert all(row.share_bounds[0] <= row.share <= row.share_bounds[1] for row in rows)
    assert rows[-1].cost == pytest.approx(float((found.ends[-1] - found.ends[-2]).square().mean().sqrt()))


def test_the_fresh_noise_is_that_of_a_plain_chain() -> None:
    law, times = Renoise(SCHEDULE), step_grid(4)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    found = hand_over(student, teacher, law, times, noise, generator=torch.Generator().manual_seed(3))
    plain = list(chain(student, law, times, noise, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(found.own[-1].x_s, plain[-1].x_s)


def test_who_takes_over_starts_from_the_student_s_state_at_that_step() -> None:
    law, times = Ddim(SCHEDULE), step_grid(4)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    found = hand_over(student, teacher, law, times, noise)
    rest = list(chain(teacher, law, times[2:], found.own[2].x_t))
    assert torch.equal(found.ends[2], rest[-1].x_s)


def test_a_step_that_does_no_wrong_has_no_share_and_nothing_displaced_has_no_growth() -> None:
    law, times, expert = Ddim(FlowSchedule()), step_grid(4), Expert(teacher, FlowSchedule())

    def late(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return teacher(x_t, t) + 0.3 * (t[:, None] < 0.6)

    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    found = hand_over(late, ExpertPolicy(expert, law, times), law, times, noise)
    errors = [step.x0 - teacher(step.x_t, step.t) for step in found.own]
    rows = step_bounds(found, errors, 0.95, least=1e-6)
    assert rows[0].share_bounds == rows[1].share_bounds == (0.0, 0.0)
    assert rows[0].step_error == rows[1].step_error == (0.0, 0.0)
    assert rows[2].step_error == pytest.approx((0.3, 0.3), rel=1e-4)
    assert rows[0].growth[0] != rows[0].growth[0] and rows[3].growth[0] > 0.0
    same = step_bounds(found, errors, 0.95, least=10.0)
    assert all(row.share != row.share for row in same), "ends that are hardly apart have no shares"


def test_resampled_means_scatter_as_means_do() -> None:
    values = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = bootstrap_means(values, resamples=2000)
    assert drawn.shape == (2000, 2)
    assert drawn.mean(0).tolist() == pytest.approx(values.mean(0).tolist(), abs=0.01)
    assert drawn.std(0).tolist() == pytest.approx((values.std(0) / 20.0).tolist(), rel=0.1)
    both = bootstrap_means(torch.stack([values[:, 0], values[:, 0]], dim=1), resamples=50)
    assert torch.equal(both[:, 0], both[:, 1]), "the columns of a row stay together"
    assert torch.equal(bootstrap_means(values, resamples=50), bootstrap_means(values, resamples=50))


def test_the_spread_of_one_point_is_no_scale() -> None:
    assert spread(torch.zeros(5, 2)) == 1.0
    assert spread(torch.tensor([[1.0], [-1.0]])) == pytest.approx(1.0)
