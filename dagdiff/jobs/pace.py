"""How often to save: so seldom that saving takes a twentieth of the time at most."""

import time
from collections.abc import Callable

RARELY = 20.0
"""How many times as long as one writing takes the next one waits."""


class Pace:
    """Says when something that takes a while is due again.

    Args:
        cost: what it takes, in seconds, until that is measured.
    """

    def __init__(self, cost: float) -> None:
        self.cost, self._last = cost, time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since the last time."""
        return time.monotonic() - self._last

    @property
    def due(self) -> bool:
        """Whether enough time has passed."""
        return self.waited >= RARELY * self.cost

    def __call__(self, work: Callable[[], object]) -> None:
        """Do it, and take its time."""
        begun = time.monotonic()
        work()
        self._last = time.monotonic()
        self.cost = self._last - begun
