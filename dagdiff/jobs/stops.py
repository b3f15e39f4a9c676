"""Stopping a command: TERM is answered like INT, and the command says in one line how to resume."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(KeyboardInterrupt):
    """A command was told to stop. The message says what is kept and how to resume.

    Args:
        message: one line.
        status: the command's exit status: 128 and the number of the signal.
    """

    def __init__(self, message: str = "stopped", status: int = 128 + signal.SIGINT) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` in the main thread where INT or TERM comes; a signal that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def block_stops() -> None:
    """Let this thread, and the processes that it starts, not see INT and TERM: whoever starts them ends them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _stop(number: int, _: Any) -> None:
    raise Stopped(status=128 + number)
