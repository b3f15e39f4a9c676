"""The moving average: its closed formula, its warm-up, and what a published decay keeps of a short run."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dagdiff.average import Average, Follower, warm_decay
from dagdiff.checks import Refusal


class Noted(nn.Module):
    """One weight, and two buffers: a number and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("number", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


def followed(ema: float, values: list[float]) -> Noted:
    """Let a module take one value after the other; return its average."""
    module = Noted()
    average = Average(module, ema)
    for count, value in enumerate(values, 1):
        with torch.no_grad():
            module.weight.fill_(value)
        module.number.fill_(-value)
        module.count.fill_(count)
        average.update_parameters(module)
    found: Noted = average.module
    return found


def by_hand(ema: float, values: list[float]) -> float:
    mean = values[0]
    for updates, value in enumerate(values[1:], 1):
        decay = min(ema, (1 + updates) / (10 + updates))
        mean = decay * mean + (1 - decay) * value
    return mean


@pytest.mark.parametrize("ema", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_it_is_the_closed_formula(ema: float) -> None:
    values = [float(value) for value in torch.rand(40, generator=torch.Generator().manual_seed(0))]
    average, expected = followed(ema, values), by_hand(ema, values)
    torch.testing.assert_close(average.weight, torch.full((3,), expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(average.number, torch.full((2,), -expected, dtype=torch.float64))
    assert int(average.count) == 40, "a count is copied"


def test_the_decay_warms_up_to_its_own() -> None:
    decays = [warm_decay(0.99, updates) for updates in range(2000)]
    assert decays[:3] == pytest.approx([1 / 10, 2 / 11, 3 / 12])
    assert all(later >= earlier for earlier, later in pairwise(decays))
    assert decays[889] < 0.99 == decays[892] == decays[-1]
    assert warm_decay(0.3, 10_000) == 0.3 and warm_decay(0.0, 5) == 0.0


@pytest.mark.parametrize("ema", [0.999, 0.9999, 1.0])
@pytest.mark.parametrize("updates", [12, 100, 1200])
def test_a_short_run_leaves_its_start_behind(ema: float, updates: int) -> None:
    """A line from 0: without a warm-up the average of 1200 updates with 0.9999 would stand at 6 % of the way."""
    line = [(number + 1) / updates for number in range(updates)]
    reached = followed(ema, line).weight[0].item()
    assert reached > 0.8
    assert by_hand(ema, line) == pytest.approx(reached, abs=1e-4)


def test_a_decay_outside_of_its_range_is_refused() -> None:
    for ema in (-0.1, 1.5, float("nan")):
        with pytest.raises(Refusal, match=r"ema must lie in \[0, 1\]"):
            Average(Noted(), ema)


def test_the_state_goes_on_where_it_was() -> None:
    module = Noted()
    whole, first = Average(module, 0.99), Average(module, 0.99)
    states: list[Tensor] = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]

    def show(average: Average, state: Tensor) -> None:
        with torch.no_grad():
            module.weight.copy_(state)
        average.update_parameters(module)

    for state in states[:4]:
        show(whole, state)
        show(first, state)
    second = Average(module, 0.99)
    second.load_state_dict(first.state_dict())
    for state in states[4:]:
        show(whole, state)
        show(second, state)
    assert torch.equal(whole.module.weight, second.module.weight)


def test_a_follower_moves_what_is_averaged_and_copies_counts() -> None:
    behind, ahead = Noted(), Noted()
    with torch.no_grad():
        ahead.weight.fill_(4.0)
    ahead.number.fill_(8.0)
    ahead.count.fill_(5)
    follower = Follower(behind, ahead, 0.75)
    for expected in (0.25, 0.4375):
        follower.follow()
        torch.testing.assert_close(behind.weight, torch.full((3,), 4.0 * expected))
        torch.testing.assert_close(behind.number, torch.full((2,), 8.0 * expected, dtype=torch.float64))
    assert int(behind.count) == 5
