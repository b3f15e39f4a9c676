"""Whether what enters training is finite: a flag for each source, kept on the device and read once a round.

A loss that is NaN does not say whose NaN it is. So data, labels and states are looked at where they enter, at the price
of one reduction each, and nothing waits for the device until a round closes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Finite:
    """Remembers which of some sources have ever held NaN or infinity.

    Args:
        names: of the sources; their order is that of :meth:`flags`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._seen: Tensor | None = None

    def see(self, name: str, values: Tensor) -> None:
        """Look at a source's values; whole numbers, and tensors without content, are always finite."""
        if values.is_meta or not values.is_floating_point() or not values.numel():
            return
        if self._seen is None:
            with torch.inference_mode(False):
                self._seen = torch.zeros(len(self.names), device=values.device)
        low, high = torch.aminmax(values.detach())  # both are NaN if any value is
        self._seen[self.names.index(name)] += (low * 0.0 + high * 0.0).to(self._seen.device, self._seen.dtype)

    def clear(self) -> None:
        """Forget what was seen."""
        self._seen = None

    def flags(self, device: torch.device | None = None) -> Tensor:
        """Return 0 for each source that was finite so far, else NaN; on the device, so this waits for nothing."""
        return torch.zeros(len(self.names), device=device) if self._seen is None else self._seen.to(device)
