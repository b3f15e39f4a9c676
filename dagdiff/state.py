"""State: what an object remembers between two updates, so that training that was stopped can be resumed exactly.

An object that remembers something has ``state_dict()`` and ``load_state_dict(state)``, as torch's have. A state is made
of dicts, lists and tuples of tensors, numbers and text. Objects made of others compose theirs from those of their
parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Tensors that never change: they are written once, and every later state names them.

    Args:
        name: tells them from all others of the run.
        make: returns them by name; asked for only where they are written.
    """

    name: str
    make: Callable[[], Mapping[str, Tensor]]


def state_of(part: Any) -> Any:
    """Return the state of anything: a generator's, what ``state_dict()`` returns, a tensor or number; else None."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, Tensor | bool | int | float):
        return part
    told = getattr(part, "state_dict", None)
    return told() if callable(told) and not isinstance(part, type) else None


def load_state(part: Any, state: Any) -> None:
    """Give a part its state back; a generator of another kind of device stays as it is."""
    if isinstance(part, torch.Generator):
        if part.get_state().shape == state.shape:
            part.set_state(state.cpu())
    elif state is not None:
        part.load_state_dict(state)


def attributes(owner: Any) -> dict[str, Any]:
    """Return the states of an object's attributes, as far as they have one."""
    found = {name: state_of(value) for name, value in vars(owner).items()}
    return {name: state for name, state in found.items() if state is not None}


def load_attributes(owner: Any, state: Mapping[str, Any]) -> None:
    """Give an object's attributes back what :func:`attributes` returned."""
    for name, each in state.items():
        before = getattr(owner, name, None)
        if isinstance(before, Tensor) and isinstance(each, Tensor):
            setattr(owner, name, each.to(before.device))
        elif isinstance(each, Tensor | bool | int | float) and not isinstance(before, torch.Generator):
            setattr(owner, name, each)
        else:
            load_state(before, each)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's own generators: the CPU's, and that of a GPU where the device is one."""
    own = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **own}


def set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Set torch's own generators."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
