"""The moving average of a network in training: smoother than its last weights, and kept in their place."""

from functools import cached_property

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
    if hasattr(averaged[0], "to_local"):  # sharded weights, beside buffers that are not: each process moves its part
        averaged, current = _local(averaged), _local(current)
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
    else:
        torch._foreach_copy_(averaged, current)


def _local(tensors: Tensors) -> list[Tensor]:
    return [each.to_local() if hasattr(each, "to_local") else each for each in tensors]


class Follower:
    """Moves a copy of a module towards it, weights and buffers, with a decay; whole numbers are copied.

    The pairs of tensors are found at the first move: from then on both modules must keep theirs. Of sharded weights
    each process moves its part.
    """

    def __init__(self, behind: nn.Module, ahead: nn.Module, decay: float) -> None:
        self.behind, self.ahead, self.decay = behind, ahead, decay

    @torch.no_grad()
    def follow(self) -> None:
        """Make one move."""
        for kind in self._pairs:
            follow(self.decay, *kind, 0)

    @cached_property
    def _pairs(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """The tensors behind and ahead: those that move, and those that are copied."""
        pairs = list(zip(_tensors(self.behind), _tensors(self.ahead), strict=True))
        kinds = [[pair for pair in pairs if pair[0].is_floating_point() is moves] for moves in (True, False)]
        return [([a for a, _ in kind], [b for _, b in kind]) for kind in kinds if kind]


def _tensors(module: nn.Module) -> list[Tensor]:
    return _local([*module.parameters(), *module.buffers()])


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
