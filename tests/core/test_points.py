"""What a loop takes for data and for a ramp: tensors, arrays and numbers beside objects of one's own."""

from typing import Any

import numpy as np
import pytest
import torch

from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.mixture import Constant, LinearRamp, Shares, as_ramp
from dagdiff.objectives.progressive import Progressive
from dagdiff.points import Points, as_data
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.transition import Ddim

TABLE = np.array([[0.5, 1.0], [2.0, 3.0]])


@pytest.mark.parametrize(
    "table",
    [torch.tensor(TABLE, dtype=torch.float32), TABLE, TABLE.astype(">f8")[::-1]],
    ids=["tensor", "array", "odd"],
)
def test_a_table_is_data(table: Any) -> None:
    drawn = as_data(table).sample(50, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    assert {tuple(row) for row in drawn.tolist()} == {(0.5, 1.0), (2.0, 3.0)}


def test_whole_numbers_become_floats() -> None:
    assert as_data(torch.tensor([[1, 2]])).sample(1).tolist() == [[1.0, 2.0]]


def test_what_can_be_drawn_from_stays_itself() -> None:
    ring, points = world("gaussians8"), Points(torch.zeros(3, 2))
    assert as_data(ring) is ring and as_data(points) is points


@pytest.mark.parametrize("data", [[[0.0, 1.0]], "mine", None, 3.0], ids=str)
def test_other_things_are_no_data(data: Any) -> None:
    with pytest.raises(Refusal, match=r"the data must have sample\(n, generator\), or be a tensor"):
        as_data(data)


def test_data_that_are_not_finite() -> None:
    with pytest.raises(Refusal, match="points holds 1 values that are NaN"):
        as_data(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25)])
def test_a_number_is_a_ramp(value: Any) -> None:
    assert as_ramp("beta", value) == Constant(float(value))


def test_a_ramp_stays_itself() -> None:
    ramp = LinearRamp()
    assert as_ramp("beta", ramp) is ramp


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"beta must lie in \[0, 1\]; got 1.5"),
        ("0.5", "beta must be a number in .* got '0.5'"),
        (None, "got None"),
    ],
)
def test_other_things_are_no_ramp(value: Any, message: str) -> None:
    for make in (as_ramp, lambda name, value: Gathering(**{name: value})):
        with pytest.raises(Refusal, match=message):
            make("beta", value)
    with pytest.raises(Refusal, match="lr_ramp must be a number"):
        Learning(lr_ramp="slow")  # type: ignore[arg-type]


def test_a_loop_takes_a_number_and_a_table() -> None:
    schedule = CosineSchedule()
    expert = Expert(Student(MLP(width=8), schedule), schedule)
    loop = DAgger(
        Student(MLP(width=8), schedule),
        expert,
        Progressive(),
        DenoisingEnv((2,), Ddim(schedule), step_grid(2), 8),
        torch.randn(20, 2),
        shares=Shares(0.5, 0.5, 0.0),
        rounds=2,
        updates_per_round=1,
        gathering=Gathering(beta=0.5, shares_ramp=0.5),
        learning=Learning(batch_size=8, lr_ramp=0.1),
    )
    for round in loop:
        assert round.beta == 0.5 and round.shares == Shares(0.75, 0.25, 0.0)
        assert loop.learner.rates.get_last_lr() == [pytest.approx(1e-4)]
    assert loop.aggregate.records("student")["actor"].float().mean() == 0.5
