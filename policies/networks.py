"""Networks for points in 2-D (or in any few dimensions): an MLP that knows the time and the label."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dagdiff.checks import check_at_least, check_at_most
from dagdiff.shapes import Condition, States, Times


class MLP(nn.Module):
    """Raw network for flat states: ``(x_t, t, condition) -> output`` of x_t's shape, whatever it is read as.

    Time enters as sines and cosines of ``frequencies`` octaves, a label as an embedding (the last row is "no label").

    Args:
        size: D, the dimension of a state.
        width, depth: of the hidden layers.
        labels: the number of classes; 0 for an unconditional network.
        frequencies: of the time's embedding.
    """

    octaves: Tensor
    origin: nn.Linear | None  # reads the origin's time, in networks that are told of it

    def __init__(self, size: int = 2, width: int = 128, depth: int = 3, labels: int = 0, frequencies: int = 6) -> None:
        super().__init__()
        for name, value in {"size": size, "width": width, "depth": depth}.items():
            check_at_least(name, value, 1)
            check_at_most(name, value, 100_000)
        self.labels, self.feature_size = labels, width
        self.register_buffer("octaves", math.pi / 2 * 2.0 ** torch.arange(frequencies), persistent=False)
        self.label = nn.Embedding(labels + 1, width) if labels else None
        self.first = nn.Linear(size + 2 * frequencies, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, size)
        self.origin = None

    def forward(self, x_t: States, t: Times, condition: Condition = None, origin: Times | None = None) -> Tensor:
        """Return the raw output, ``(B, D)``."""
        output: Tensor = self.last(self.features(x_t, t, condition, origin))
        return output

    def features(self, x_t: States, t: Times, condition: Condition = None, origin: Times | None = None) -> Tensor:
        """Return the last hidden layer, ``(B, width)``."""
        hidden = self.first(torch.cat([x_t, self._waves(t)], dim=-1))
        if self.origin is not None and origin is not None:
            hidden = hidden + self.origin(self._waves(origin))
        if self.label is not None:
            row = torch.full(t.shape, -1, device=t.device) if condition is None else condition
            hidden = hidden + self.label(torch.where(row < 0, self.labels, row))
        hidden = silu(hidden)
        for layer in self.hidden:
            hidden = silu(layer(hidden))
        return hidden

    def with_origin(self) -> "MLP":
        """Return a copy that can also be told an origin, the time ``(B,)`` at which the point it sees was predicted.

        At first it answers as this network does, whatever it is told.
        """
        twin = copy.deepcopy(self)
        last = self.last.weight
        twin.origin = nn.utils.skip_init(  # no draw from the global stream for weights that are zero
            nn.Linear, 2 * len(self.octaves), self.feature_size, device=last.device, dtype=last.dtype
        )
        nn.init.zeros_(twin.origin.weight)
        nn.init.zeros_(twin.origin.bias)
        return twin

    def _waves(self, t: Times) -> Tensor:
        """Sines and cosines of a time, ``(B, 2 * frequencies)``."""
        angles = t.unsqueeze(-1) * self.octaves
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
