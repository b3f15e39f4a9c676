"""The usual executor: fresh processes on this machine.

A process that is killed fails the job that it was at, and a fresh one takes its place. Processes end with the one that
started them, even if that is killed. INT and TERM reach the starter alone; it ends its processes.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from dagdiff.checks import check_at_least
from dagdiff.jobs.stops import block_stops

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
_SPAWN = multiprocessing.get_context("spawn")


class WorkerDied(RuntimeError):
    """A process ended in the middle of a job."""


class Workers(Executor):
    """Processes on this machine, each started when it is first needed.

    Args:
        workers: their number.
    """

    def __init__(self, workers: int) -> None:
        check_at_least("workers", workers, 1)
        self._jobs: queue.SimpleQueue[tuple[Future[Any], _Call] | None] = queue.SimpleQueue()
        self._guard, self._ended, self._killed = threading.Lock(), False, False
        self._alive: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Let the next free process call ``fn``."""
        if self._ended:
            raise RuntimeError("no job can be submitted after shutdown")
        future: Future[Any] = Future()
        self._jobs.put((future, (fn, args, kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all processes: when their jobs are done, or with ``cancel_futures`` now."""
        self._ended = True
        if cancel_futures:
            self._forget()
            with self._guard:
                self._killed = True
                for worker in self._alive:
                    worker.process.kill()
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    @property
    def processes(self) -> list[int]:
        """The numbers of the processes that are alive."""
        with self._guard:
            return [pid for worker in self._alive if (pid := worker.process.pid) is not None]

    def _forget(self) -> None:
        """Cancel the jobs that no process is at."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job[0].cancel()

    def _serve(self) -> None:
        """Let one process after another work, until there is nothing left to do."""
        block_stops()
        worker = None
        while (job := self._jobs.get()) is not None:
            future, call = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._start()
                worker.pipe.send(call)
                value, error = worker.pipe.recv()
            except (EOFError, OSError):
                future.set_exception(WorkerDied(self._end(worker)))
                worker = None
            except Exception as unsent:  # what can't be pickled
                future.set_exception(unsent)
            else:
                future.set_result(value) if error is None else future.set_exception(error)
        self._end(worker)

    def _start(self) -> "_Worker":
        with self._guard:
            if self._killed:
                raise EOFError
            worker = _Worker()
            self._alive.add(worker)
        return worker

    def _end(self, worker: "_Worker | None") -> str:
        """End a process, if it has not ended; say how it ended."""
        if worker is None:
            return "it could not be started"
        worker.pipe.close()
        worker.process.join()
        with self._guard:
            self._alive.discard(worker)
        return _reason(worker.process.exitcode or 0)


class _Worker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        self.pipe, there = _SPAWN.Pipe()
        self.process: SpawnProcess = _SPAWN.Process(target=_work, args=(there,))
        self.process.start()
        there.close()


def _work(pipe: Connection) -> None:
    """Answer calls until the other end of the pipe is closed."""
    threading.Thread(target=_follow, daemon=True).start()
    while True:
        try:
            fn, args, kwargs = pipe.recv()
            answer: tuple[Any, Exception | None] = fn(*args, **kwargs), None
        except EOFError:
            return
        except Exception as error:
            answer = None, error
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
        except Exception as unsent:
            pipe.send((None, RuntimeError(f"an answer can't be sent: {unsent!r}")))


def _follow() -> None:
    """End this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _reason(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
