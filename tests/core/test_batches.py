"""Batches: memory follows the size of a batch, and results do not."""

import math

import pytest
import torch
from helpers import seeded
from torch import Tensor

from dagdiff.batches import InParts, rows_at_once, sample_in_batches
from dagdiff.checks import Refusal
from dagdiff.schedule import CosineSchedule, FlowSchedule, step_grid
from dagdiff.transition import Ddim, EpsilonScaling, Renoise, Transition, sample

LAWS = {
    "ddim": Ddim(CosineSchedule()),
    "ancestral": Ddim(CosineSchedule(), eta=1.0),
    "renoise": Renoise(FlowSchedule()),
    "scaled": EpsilonScaling(Ddim(CosineSchedule(), eta=0.5), 1.05),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


class Rowwise:
    """A denoiser whose rows depend on nothing else; it remembers how many it was shown."""

    def __init__(self) -> None:
        self.seen = list[int]()

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.seen.append(len(x_t))
        pull = t if condition is None else t + condition
        return torch.tanh(x_t) * pull.reshape(-1, *[1] * (x_t.ndim - 1))


@every_law
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 10, 64])
def test_samples_do_not_depend_on_the_batch(law: Transition, shape: tuple[int, ...], labelled: bool, rows: int) -> None:
    noise, times = torch.randn(10, *shape, generator=seeded()), step_grid(3)
    condition = torch.arange(10) % 4 if labelled else None
    expected = sample(Rowwise(), law, times, noise, condition, seeded(1))
    policy, told = Rowwise(), list[int]()
    found = sample_in_batches(policy, law, times, noise, condition, seeded(1), rows, told.append)
    assert torch.equal(found, expected)
    assert max(policy.seen) == min(rows, 10) and sum(policy.seen) == 30
    assert sum(told) == 10 and len(told) == math.ceil(10 / rows)


def test_the_generator_is_left_where_samples_leave_it() -> None:
    noise, generators = torch.randn(5, 2, generator=seeded()), (seeded(1), seeded(1))
    sample(Rowwise(), LAWS["renoise"], step_grid(4), noise, None, generators[0])
    sample_in_batches(Rowwise(), LAWS["renoise"], step_grid(4), noise, None, generators[1], 2)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 64, 64), (4, 128, 128), (3, 1024, 1024), (2,), (64,)])
def test_a_batch_holds_no_more_numbers_where_samples_are_larger(shape: tuple[int, ...]) -> None:
    rows = rows_at_once(shape)
    assert rows >= 1 and (rows == 1 or rows * math.prod(shape) <= 2**19)
    assert len(shape) != 3 or rows <= 2048


@pytest.mark.parametrize("rows", [0, -1])
def test_a_batch_has_rows(rows: int) -> None:
    with pytest.raises(Refusal, match=f"batch_size must be at least 1; got {rows}"):
        InParts(Rowwise(), rows)
    with pytest.raises(Refusal, match=f"batch_size must be at least 1; got {rows}"):
        sample_in_batches(Rowwise(), LAWS["ddim"], step_grid(1), torch.zeros(2, 2), rows=rows)
