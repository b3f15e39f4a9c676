"""The ledger: what it counts, and what is free."""

import pytest
import torch
from torch import nn

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.ledger import Ledger
from dagdiff.schedule import CosineSchedule


def test_what_is_free_is_not_charged() -> None:
    ledger = Ledger()
    ledger.charge(3)
    with ledger.free():
        ledger.charge(5)
        with ledger.free():
            ledger.charge(7)
        ledger.charge(11)
    ledger.charge(13)
    assert ledger.nfe == 16


def test_an_error_ends_what_is_free() -> None:
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.free():
        raise KeyError
    ledger.charge(2)
    assert ledger.nfe == 2


def test_a_network_is_counted_while_asked_for() -> None:
    ledger, network = Ledger(), nn.Linear(2, 2)
    with ledger.counting("the student", network):
        network(torch.randn(5, 2))
        with ledger.free():
            network(torch.randn(7, 2))
    network(torch.randn(11, 2))
    assert ledger.nfe == 5 and not network._forward_hooks
    with (
        ledger.counting("the student", nn.Linear(2, 3)) as _,
        pytest.raises(Refusal, match="the student"),
        ledger.counting("the student", wide := nn.Linear(2, 3)),
    ):
        wide(torch.randn(5, 2))


def test_an_experts_evaluations_can_be_read_and_set() -> None:
    expert = Expert(lambda x_t, t, condition: x_t, CosineSchedule(), substeps=3)
    x, t = torch.randn(4, 2), torch.ones(4)
    expert.target(x, t, 0.5 * t)
    with expert.ledger.free():
        expert.target(x, t, 0.5 * t)
    assert expert.nfe == 12
    expert.nfe = 5
    expert(x, t)
    assert expert.nfe == expert.ledger.nfe == 9
