"""Ledgers: how many network evaluations training has cost, counted in rows.

The expert keeps one of its own, and the loop one for the student. What is only measured is asked inside
``with ledger.free():`` and charged to nobody.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from dagdiff.checks import check_same_shape


class Ledger:
    """Counts the evaluations of one network. ``nfe`` may be read and set at any time."""

    def __init__(self) -> None:
        self.nfe = 0
        self._free = 0

    @property
    def is_free(self) -> bool:
        """Whether evaluations are charged to nobody at present."""
        return self._free > 0

    def state_dict(self) -> dict[str, int]:
        """Return the count."""
        return {"nfe": self.nfe}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take a count back."""
        self.nfe = state["nfe"]

    def charge(self, rows: int) -> None:
        """Add an evaluation of so many rows, unless it is free."""
        if not self._free:
            self.nfe += rows

    @contextmanager
    def free(self) -> Iterator[None]:
        """Charge nothing while this lasts."""
        self._free += 1
        try:
            yield
        finally:
            self._free -= 1

    @contextmanager
    def counting(self, name: str, network: nn.Module) -> Iterator[None]:
        """Charge every row shown to the network while this lasts.

        Raises:
            Refusal: names the network, if it answers with another shape than the states'.
        """

        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.charge(len(check_same_shape(name, output, inputs[0])))

        hook = network.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()
