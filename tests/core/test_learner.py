"""A learner: one update is the optimiser's, clipped, at the ramp's rate; and its last good state."""

import copy
import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.learner import Learner, Learning, Loss
from dagdiff.mixture import LinearRamp
from dagdiff.round import NonFiniteLoss

SGD = partial(torch.optim.SGD, lr=1.0)


def network() -> nn.Linear:
    made = nn.Linear(3, 1)
    nn.init.constant_(made.weight, 0.5)
    nn.init.zeros_(made.bias)
    return made


def error(made: nn.Module, x: Tensor) -> Tensor:
    return made(x).square().mean()


def test_an_update_is_the_optimisers() -> None:
    mine, plain, x = network(), network(), torch.randn(8, 3)
    learner, adam = Learner(mine, Learning(clip=math.inf)), torch.optim.Adam(plain.parameters())
    for _ in range(3):
        norm = learner.update(error(mine, x))
        adam.zero_grad()
        error(plain, x).backward()
        expected = torch.cat([each.grad.flatten() for each in plain.parameters() if each.grad is not None]).norm()
        torch.testing.assert_close(norm, expected)
        adam.step()
    assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), plain.parameters(), strict=True))


def test_the_ramp_runs_over_all_updates() -> None:
    mine, rates = network(), []
    learner = Learner(mine, Learning(SGD, LinearRamp(1.0, 0.0, until=1.0)), updates=4)
    for _ in range(4):
        rates.append(learner.optimiser.param_groups[0]["lr"])
        learner.update(error(mine, torch.randn(8, 3)))
    assert rates == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("accumulate", [1, 3, 8])
def test_a_batch_in_parts_is_the_whole(accumulate: int) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    mine, plain, sizes = network(), network(), []

    def loss(part: TensorDict) -> Loss:
        sizes.append(len(part))
        value = error(mine, part["x"])
        return Loss(value, {"twice": 2.0 * value.detach()})

    learner = Learner(mine, Learning(SGD, batch_size=8, accumulate=accumulate))
    found = learner.learn(TensorDict({"x": x}, [8]), loss)
    before = error(plain, x)
    Learner(plain, Learning(SGD)).update(before)
    assert len(sizes) == accumulate if accumulate != 3 else sizes == [3, 3, 2]
    assert set(found) == {"loss", "twice", "gradient_norm"}
    torch.testing.assert_close(found["loss"], before.detach())
    torch.testing.assert_close(found["twice"], 2.0 * before.detach())
    torch.testing.assert_close(mine.weight, plain.weight)


def test_the_last_good_state_comes_back() -> None:
    mine = network()
    learner = Learner(mine, Learning(SGD))
    learner.remember()
    assert learner.close({"loss": torch.tensor([1.0, 3.0])}) == {"loss": 2.0} and learner.updates == 2
    good = copy.deepcopy(mine.state_dict())
    learner.update(error(mine, torch.randn(8, 3)))
    with pytest.raises(NonFiniteLoss, match="not finite at update 4; the student is back at update 2"):
        learner.close({"loss": torch.tensor([1.0, math.nan])})
    assert all(torch.equal(value, good[name]) for name, value in mine.state_dict().items())


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("ema", 2.0, r"ema must lie in \[0, 1\]; got 2"),
        ("clip", 0.0, "clip must be above 0.0; got 0"),
        ("batch_size", 0, "batch_size must be at least 1; got 0"),
        ("accumulate", 0, "accumulate must be at least 1; got 0"),
    ],
)
def test_refusals(option: str, value: float, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        Learning(**{option: value})  # type: ignore[arg-type]


def test_no_update_looks_at_the_device() -> None:
    """On the meta device there is nothing to look at."""
    learner = Learner(network().to("meta"), Learning(batch_size=8, accumulate=2))
    batch = TensorDict({"x": torch.empty(8, 3, device="meta")}, [8])
    for part in (batch, batch[:4]):
        found = learner.learn(part, lambda rows: Loss(error(learner.network, rows["x"]), {}))
        assert all(value.is_meta for value in found.values())
