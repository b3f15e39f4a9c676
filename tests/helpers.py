"""What tests of several rooms share."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dagdiff.gathering import Gathering
from dagdiff.learner import Learning

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def weights(module: nn.Module) -> torch.Tensor:
    """All parameters and buffers of a module as they are now, in one row."""
    return torch.cat([values.detach().flatten().double() for values in module.state_dict().values()])


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a module as they are now, by name."""
    return copy.deepcopy(module.state_dict())


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def loop_options(**flat: Any) -> dict[str, Any]:
    """Sort options of a loop into those of its constructor, of ``Gathering`` and of ``Learning``."""
    gathering = {each.name: flat.pop(each.name) for each in fields(Gathering) if each.name in flat}
    learning = {each.name: flat.pop(each.name) for each in fields(Learning) if each.name in flat}
    return {"gathering": Gathering(**gathering), "learning": Learning(**learning), **flat}
