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
        self._seen: dict[str, Tensor | None] = dict.fromkeys(self.names)

    def see(self, name: str, values: Tensor) -> None:
        """Look at a source's values; whole numbers, and tensors without content, are always finite."""
        if values.is_meta or not values.is_floating_point() or not values.numel():
            return
        low, high = torch.aminmax(values.detach())  # both are NaN if any value is
        flag, before = low * 0.0 + high * 0.0, self._seen[name]
        self._seen[name] = flag if before is None else before.to(flag) + flag

    def clear(self) -> None:
        """Forget what was seen."""
        self._seen = dict.fromkeys(self.names)

    def flags(self, device: torch.device | None = None) -> Tensor:
        """Return 0 for each source that was finite so far, else NaN; on the device, so this waits for nothing."""
        nought = torch.zeros((), device=device)
        return torch.stack([nought if flag is None else flag.to(nought) for flag in self._seen.values()])
