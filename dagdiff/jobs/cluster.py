"""Executors on clusters: dask.distributed, and SLURM by submitit. Both need the extra ``dagdiff[cluster]``.

The machines must see the output folder under the same path, and hold the same dagdiff.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal, first_line

_CURE = "which is not installed. Run pip install 'dagdiff[cluster]'."


def dask(address: str | None = None, scheduler_file: str | None = None, timeout: float = 30.0) -> Executor:
    """Processes of a dask cluster, started with `dask scheduler` and `dask worker --nthreads 1`.

    Args:
        address: of the scheduler, e.g. tcp://head:8786.
        scheduler_file: what `dask scheduler --scheduler-file` writes, instead of the address.
        timeout: seconds to wait for the scheduler, and then for its first worker.
    """
    if (address is None) == (scheduler_file is None):
        raise Refusal(
            "--executor dask needs one of --executor.address and --executor.scheduler_file. Start `dask scheduler`, "
            "and pass the address that it prints."
        )
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise Refusal(f"--executor dask needs the package distributed, {_CURE}") from None
    try:
        where = {"address": address} if address else {"scheduler_file": scheduler_file}
        client = Client(**where, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"--executor dask can't reach the scheduler at {address or scheduler_file} ({first_line(error)}). Start "
            "`dask scheduler`, and pass the address that it prints."
        ) from None
    try:
        client.wait_for_workers(1, timeout=timeout)
        threads = max(client.nthreads().values())
        if threads > 1:
            raise Refusal(
                f"--executor dask has workers with {threads} threads, and a run needs a process of its own. Start them "
                "with dask worker --nthreads 1."
            )
    except BaseException as error:
        client.close()
        if isinstance(error, TimeoutError):
            raise Refusal(
                f"--executor dask: no worker has joined {address or scheduler_file} for {timeout:g} s. Start some with "
                "dask worker --nthreads 1."
            ) from None
        raise
    return _Dask(client)


class _Dask(Executor):
    """A client's executor that closes its client, and takes each call for another one, whatever it is told."""

    def __init__(self, client: Any) -> None:
        self.client, self.inner = client, client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Let a worker call ``fn``."""
        future: Future[Any] = self.inner.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; with ``cancel_futures`` without waiting for what it does."""
        self.inner.shutdown(wait=wait and not cancel_futures)
        self.client.close(timeout=2)


def submitit(
    out: Path, cluster: str | None = None, folder: str | None = None, parameters: dict[str, Any] | None = None
) -> Executor:
    """Jobs of SLURM, one a run, by submitit.

    Args:
        out: the folder of results.
        cluster: slurm, or local for processes here; by default slurm where it is installed.
        folder: of logs, which all machines must see; by default submitit in the output folder.
        parameters: of the jobs, e.g. {"timeout_min": 60, "slurm_partition": "short"}.
    """
    try:
        from submitit import AutoExecutor
    except ModuleNotFoundError:
        raise Refusal(f"--executor submitit needs the package submitit, {_CURE}") from None
    logs = Path(folder) if folder else out / "submitit"
    try:
        inner = AutoExecutor(folder=logs.absolute(), cluster=cluster)
        inner.update_parameters(**parameters or {})
    except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
        raise Refusal(
            f"--executor submitit can't be had ({first_line(error)}). Check --executor.cluster and "
            "--executor.parameters, and that SLURM's commands are there."
        ) from None
    return _Submitit(inner)


class _Submitit(Executor):
    """Submitit's executor as one of ``concurrent.futures``: a thread looks after its jobs."""

    def __init__(self, inner: Any, every: float = 0.5) -> None:
        self.inner, self.every, self.stopped = inner, every, threading.Event()
        self.jobs: dict[Future[Any], Any] = {}
        self.guard = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Submit a job that calls ``fn``."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self.guard:
            self.jobs[future] = self.inner.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop watching: when all jobs have ended, or with ``cancel_futures`` after cancelling them."""
        with self.guard:
            left = dict(self.jobs)
        for future, job in left.items():
            if cancel_futures:
                job.cancel(check=False)
            elif wait:
                future.exception()
        self.stopped.set()

    def _watch(self) -> None:
        while not self.stopped.wait(self.every):
            with self.guard:
                under_way = list(self.jobs.items())
            for future, job in under_way:
                try:
                    if not job.done():
                        continue
                    future.set_result(job.result())
                except Exception as error:
                    future.set_exception(error)
                with self.guard:
                    del self.jobs[future]
