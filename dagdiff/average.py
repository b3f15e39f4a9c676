"""The moving average of a network in training: smoother than its last weights, and kept in their place."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dagdiff.checks import check_share

Tensors = tuple[Tensor, ...] | list[Tensor]


def warm_decay(decay: float, updates: int) -> float:
    """Return min(decay, (1 + n) / (10 + n)), the decay after ``updates`` = n updates.

    A decay d remembers about 1 / (1 - d) updates. In a run that is not much longer, the weights at the start would keep
    most of the average; with this bound it never remembers more than about the last ninth of what has been.
    """
    return min(decay, (1.0 + updates) / (10.0 + updates))


def follow(decay: float, averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
    """Move averaged tensors of one kind towards the current ones; whole numbers are copied."""
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
    else:
        torch._foreach_copy_(averaged, current)


class Average(AveragedModel):
    """The exponential moving average of a module's weights and buffers, warmed up by :func:`warm_decay`.

    Whole numbers among the buffers are copied, not averaged.

    Args:
        module: what is averaged; ``update_parameters(module)`` after each of its updates, the first of which is copied.
        ema: decay an update, in [0, 1]; 1 leaves the decay to the warm-up alone.
    """

    def __init__(self, module: nn.Module, ema: float) -> None:
        check_share("ema", ema)
        super().__init__(module, multi_avg_fn=self._follow, use_buffers=True)
        self.ema = ema

    def _follow(self, averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        """Move tensors of one kind; the number of updates is read on the CPU, so that no device is waited for."""
        follow(warm_decay(self.ema, int(self.n_averaged)), averaged, current, updates)
