"""How far a long work is: a bar on a terminal; elsewhere (nohup, SLURM, CI) a plain line now and then.

Both say how much is done, the time that is left, and the numbers that matter. They go to the error stream, so that what
a command prints can still be piped.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from dagdiff.launch import rank

FIRST, EVERY = 10.0, 30.0
"""Seconds until the first plain line, and from each to the next: later ones wait for a 50th of the time that passed."""

Item = TypeVar("Item")


class Progress:
    """Shows one work from its begin to its end; a context, which closes it.

    Only the first of several processes shows anything, and no worker of a pool does.

    Args:
        title: what is done.
        total: how many pieces it has.
        unit: of a piece.
        begun: pieces that are done already.
        shown: whether anybody is to see it.
        clock: seconds that pass.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "",
        begun: int = 0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.done, self.unit, self.clock = title, total, begun, unit, clock
        shown = shown and rank() == 0 and multiprocessing.parent_process() is None
        self.bar = tqdm(total=total, desc=title, initial=begun, unit=unit, disable=None if shown else True)
        self._plain = shown and self.bar.disable
        self._begun, self._start, self._told, self._words = begun, clock(), -1.0, ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self._plain and self._told >= 0.0 and kind is None:
            self._say()

    def advance(self, pieces: int = 1, **numbers: float) -> None:
        """So many pieces more are done; ``numbers`` are shown beside, until others are."""
        self.done += pieces
        if numbers:
            self._words = ", ".join(f"{name} {_short(value)}" for name, value in numbers.items())
            self.bar.set_postfix_str(self._words, refresh=False)
        self.bar.update(pieces)
        passed = self.clock() - self._start
        wait = FIRST if self._told < 0.0 else self._told + max(EVERY, passed / 50)
        if self._plain and passed >= wait:
            self._say()

    def skip(self, pieces: int) -> None:
        """So many pieces more turn out to have been done before; they say nothing of the time that is left."""
        self.done += pieces
        self._begun += pieces
        if not self.bar.disable:
            self.bar.initial += pieces
        self.bar.update(pieces)

    def told(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, a piece each."""
        for item in items:
            yield item
            self.advance()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, a piece each, and close at their end."""
        with self:
            yield from self.told(items)

    def _say(self) -> None:
        self._told = passed = self.clock() - self._start
        made = self.done - self._begun
        left = f", about {spelled(passed / made * (self.total - self.done))} left" if 0 < made < self.total else ""
        if self.done >= self.total:
            left = ""
        unit = f" {self.unit}s" if self.unit else ""
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        words = f", {self._words}" if self._words else ""
        line = f"dagdiff: {self.title}: {self.done} of {self.total}{unit}{share}, {spelled(passed)} passed{left}{words}"
        print(line, file=sys.stderr, flush=True)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def spelled(seconds: float) -> str:
    """Return a length of time as it is read: 42 s, 3 min 20 s, 5 h 2 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
