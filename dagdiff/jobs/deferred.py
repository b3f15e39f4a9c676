"""Signals that wait: work that can save itself is told that it should stop, and stops where it is whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dagdiff.jobs.stops import Stopped


class Wish:
    """Whether INT or TERM has come: its number, or 0."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def deferred() -> Iterator[Wish]:
    """Keep the first signal as a wish; a second one raises :class:`Stopped` at once. One that is ignored stays so."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def hold(number: int, frame: FrameType | None) -> None:
        if wish.signal:
            raise Stopped("stopped at once; what was saved before stands", 128 + number)
        wish.signal = number

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, hold)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
