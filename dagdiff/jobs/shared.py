"""Jobs that commands share through a folder: on one machine or many, none is done twice.

A job has a file for its record. Who is at a job holds a lock by its name (:mod:`dagdiff.jobs.locks`); who finds the
lock taken goes on to the next job, and looks again later: then the record is there, or its owner has died and the job
is free again. A job that failed leaves a note beside its record, so that commands that run at the same time don't try
it too; a later command does.
"""

import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import save_json
from dagdiff.checks import Refusal, first_line
from dagdiff.jobs.locks import Lock
from dagdiff.progress import Progress
from dagdiff.reading import read_json
from dagdiff.round import NonFiniteLoss
from dagdiff.sealed import read_sealed, save_sealed

POLL = 1.0
"""Seconds between two looks at what other commands do."""

_TRIES = 3  # of a job without which nothing goes on, where its worker dies


@dataclass(frozen=True)
class Job:
    """A call whose answer is kept.

    Args:
        name: in messages.
        function: the call, and
        arguments: its arguments; both must be picklable.
        record: the file of its answer, a JSON object; None for a job that leaves none, which every command does.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    record: Path | None = None

    @property
    def note(self) -> Path | None:
        """The file that says how the job failed."""
        return self.record and self.record.with_suffix(".failed")

    def answer(self) -> dict[str, Any] | None:
        """Return the record, if it is there."""
        return read_sealed(self.record) if self.record and self.record.exists() else None


class Shared:
    """Jobs under way in a folder.

    Args:
        pool: does them.
        at_once: how many of this command are under way at a time.
        claims: the folder of locks.
    """

    def __init__(self, pool: Executor, at_once: int, claims: Path) -> None:
        self.pool, self.at_once, self.claims = pool, at_once, claims

    def do(
        self, title: str, jobs: Mapping[str, Job], failures: dict[str, str] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Do all jobs, or wait for those that other commands are at; yield each key and answer as it comes.

        Where there are ``failures``, a loss that is not finite and a worker that dies are noted there, and the other
        jobs go on; else the first is rejected, and the second tried again.

        Raises:
            Refusal: what a job raises, by its name; or a pool that is broken.
        """
        run = _Run(self, title, jobs, failures)
        with Progress(title, len(jobs)) as bar:
            try:
                while run.waiting or run.running:
                    for step in (run.begin, run.finish):
                        for key, answer in step():
                            bar.advance()
                            if answer is not _FAILED:
                                yield key, answer
            finally:
                run.stop()


_FAILED = object()


class _Run:
    """Jobs of one kind on their way: those that wait, and those that this command is at, each under its lock."""

    def __init__(
        self, shared: Shared, title: str, jobs: Mapping[str, Job], failures: dict[str, str] | None = None
    ) -> None:
        self.shared, self.title, self.jobs, self.failures = shared, title, jobs, failures
        self.waiting, self.running = dict(jobs), dict[Future[Any], tuple[str, Lock]]()
        self.old = {key: _noted(job) for key, job in jobs.items()}
        self.tries = dict.fromkeys(jobs, 0)

    def begin(self) -> Iterator[tuple[str, Any]]:
        """Begin as many jobs as may be; yield those that another command has finished."""
        for key in list(self.waiting):
            if len(self.running) >= self.shared.at_once:
                return
            lock = Lock(self.shared.claims / f"{self.title}-{key}")
            free, job = lock.take(), self.waiting[key]
            try:
                settled = self._settled(key, job)
                if free and settled is None:
                    self.running[self._submit(job)] = key, lock
            except BaseException:
                lock.release()
                raise
            if settled is not None:
                lock.release()
                yield key, settled
            if free or settled is not None:
                del self.waiting[key]

    def finish(self) -> Iterator[tuple[str, Any]]:
        """Wait a little; yield the jobs that are finished."""
        if not self.running:
            time.sleep(POLL)
            return
        for future in wait(self.running, timeout=POLL, return_when=FIRST_COMPLETED).done:
            key, lock = self.running.pop(future)
            try:
                answer = self._answer(key, future)
            finally:
                lock.release()
            if key not in self.waiting:
                yield key, answer

    def stop(self) -> None:
        """Let go of all that is under way."""
        for future, (_, lock) in self.running.items():
            future.cancel()
            lock.release()

    def _settled(self, key: str, job: Job) -> Any:
        """What another command has made of a job; None if nothing."""
        kept = job.answer()
        if kept is not None:
            return kept
        note = _noted(job)
        if self.failures is None or note is None or note == self.old[key]:
            return None
        self.failures[key] = str(note["reason"])
        return _FAILED

    def _submit(self, job: Job) -> "Future[Any]":
        try:
            return self.shared.pool.submit(_attempt, job)
        except (BrokenExecutor, RuntimeError) as error:
            raise Refusal(
                f"{self.title}, {job.name}: the executor takes no more jobs ({first_line(error)}). Run the command "
                "again."
            ) from None

    def _answer(self, key: str, future: "Future[Any]") -> Any:
        """What a finished job came to; one without which nothing goes on waits again if its worker died."""
        job = self.jobs[key]
        try:
            return _answer(self.title, job, future)
        except WorkerLost as lost:
            self.tries[key] += 1
            if self.failures is None and self.tries[key] < _TRIES:
                self.waiting[key] = job
                return _FAILED
            reason = f"its worker died ({lost})"
        except NonFiniteLoss as error:
            reason = str(error)
        if self.failures is None:
            raise Refusal(f"{self.title}, {job.name}: {reason}")
        self.failures[key] = f"{job.name}: {reason}"
        if job.note is not None:
            save_json(job.note, {"reason": self.failures[key], "time": time.time()})
        return _FAILED


class WorkerLost(RuntimeError):
    """A job's process ended before the job did."""


@contextmanager
def opened(pool: Executor) -> Iterator[Executor]:
    """Shut a pool down at the end; where that is an error or a call to stop, without waiting for its jobs."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _attempt(job: Job) -> tuple[Any, Exception | None, str]:
    """Do a job where the pool does it; keep its answer; return it, or what it raised, which must cross processes."""
    try:
        answer = job.function(*job.arguments)
        if job.record is not None:
            save_sealed(job.record, answer)
    except Exception as error:
        told = traceback.format_exc()
        try:
            return None, pickle.loads(pickle.dumps(error)), told
        except Exception:  # one that can't be pickled
            return None, RuntimeError(f"{type(error).__name__}: {error}"), told
    return answer, None, ""


def _answer(title: str, job: Job, future: "Future[Any]") -> Any:
    """Return a finished job's answer, as its record holds it; raise what it raised."""
    try:
        answer, error, told = future.result()
    except Exception as lost:
        raise WorkerLost(first_line(lost)) from None
    if isinstance(error, Refusal):
        raise Refusal(f"{title}, {job.name}: {error}") from None
    if isinstance(error, NonFiniteLoss):
        raise error
    if error is not None:
        raise error from RuntimeError(told)
    if job.note is not None:
        job.note.unlink(missing_ok=True)
    kept = job.answer()
    return answer if kept is None else kept


def _noted(job: Job) -> dict[str, Any] | None:
    """How and when a job failed, if it did."""
    return read_json(job.note) if job.note is not None and job.note.exists() else None
