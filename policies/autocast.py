"""Mixed precision: a network that computes in bfloat16 where that is safe, while its states stay in float32.

The precision is switched on around each call of the network and off after it, never around a whole round: autocast
keeps the bfloat16 copies of weights that it has made until it ends, so that a student inside one long context would go
on with the weights of before the update. Schedules, transitions, losses and the optimiser see float32 alone.
"""

from typing import Any

import torch
from torch import Tensor, nn


def in_bfloat16(network: nn.Module) -> nn.Module:
    """Let every call of a module, and of any copy of it, run under autocast to bfloat16; return the module.

    The answer comes in the precision of the first argument, the states. Methods beside the call, such as ``features``,
    keep the weights' precision.
    """
    switch = _Switch()
    network.register_forward_pre_hook(switch.on)
    network.register_forward_hook(switch.off, always_call=True)
    return network


class _Switch:
    """Enters autocast before a call and leaves it after; calls may nest, and a copied module has its own."""

    def __init__(self) -> None:
        self.open: list[Any] = []

    def on(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Before the call."""
        context = torch.autocast(inputs[0].device.type, torch.bfloat16)
        context.__enter__()
        self.open.append(context)

    def off(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None) -> Tensor | None:
        """After the call, even one that failed and has no output."""
        self.open.pop().__exit__(None, None, None)
        return None if output is None else output.to(inputs[0].dtype)
