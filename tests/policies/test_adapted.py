"""An adapted student: its copies and its state hold what is trained, once more; the frozen rest is there once."""

import copy
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dagdiff.checkpoint import load_weights, save_weights
from dagdiff.checks import Refusal
from dagdiff.policies.adapted import Adapted
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import V
from dagdiff.schedule import CosineSchedule


def adapted(seed: int = 0) -> Adapted:
    """A student of which only the last two tensors are trained; the seed draws those, the rest is always the same."""
    torch.manual_seed(0)
    network = MLP(width=8, depth=2)
    *frozen, weight, bias = network.parameters()
    for each in frozen:
        each.requires_grad_(False)
    torch.manual_seed(seed)
    torch.nn.init.normal_(weight)
    torch.nn.init.normal_(bias)
    return Adapted(network, CosineSchedule(), V)


def test_state_holds_what_is_trained_and_loads_into_another(tmp_path: Path) -> None:
    one, other = adapted(1), adapted(2)
    assert set(one.state_dict()) == one.trained and len(one.trained) == 2
    x, t = torch.randn(4, 2), torch.rand(4)
    assert not torch.equal(one(x, t), other(x, t))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert torch.equal(one(x, t), other(x, t))
    save_weights(tmp_path / "student.safetensors", one)
    third = adapted(3)
    load_weights(tmp_path / "student.safetensors", third)
    assert torch.equal(one(x, t), third(x, t))


def test_a_trained_weight_may_not_miss() -> None:
    one = adapted()
    state = dict(one.state_dict())
    del state[next(iter(state))]
    with pytest.raises(RuntimeError, match="Missing key"):
        one.load_state_dict(state)


def test_weights_of_another_build_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "mlp.safetensors", MLP(width=4))
    with pytest.raises(Refusal, match="does not hold the weights of this network"):
        load_weights(tmp_path / "mlp.safetensors", adapted())


def test_copies_share_the_frozen_weights_alone() -> None:
    one = adapted()
    twin = copy.deepcopy(one)
    for (name, mine), (_, its) in zip(one.named_parameters(), twin.named_parameters(), strict=True):
        assert (mine is its) == (name not in one.trained)
        assert its.requires_grad == mine.requires_grad
    twin.requires_grad_(False)
    assert not any(weight.requires_grad for weight in twin.parameters())
    one.requires_grad_(True)
    assert {name for name, weight in one.named_parameters() if weight.requires_grad} == one.trained


def test_an_average_moves_only_what_is_trained() -> None:
    one = adapted()
    frozen = {name: weight.clone() for name, weight in one.named_parameters() if name not in one.trained}
    average = AveragedModel(one, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(one)
    with torch.no_grad():
        for weight in one.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
    average.update_parameters(one)
    for name, weight in average.module.named_parameters():
        its = dict(one.named_parameters())[name]
        if name in one.trained:
            torch.testing.assert_close(weight, its - 0.5)
        else:
            assert torch.equal(weight, frozen[name])
    assert set(average.module.state_dict()) == one.trained
