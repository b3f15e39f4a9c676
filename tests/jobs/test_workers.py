"""Processes of our own: one that dies fails one job, all die with their starter, and none outlives a shutdown."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dagdiff.checks import Refusal
from dagdiff.jobs.shared import opened
from dagdiff.jobs.workers import WorkerDied, Workers


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether processes that are not our children end within that time."""
    end = time.monotonic() + seconds
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_jobs_are_answered_elsewhere() -> None:
    with Workers(2) as pool:
        assert list(pool.map(pow, [2, 3, 4], [5, 5, 5])) == [32, 243, 1024]
        assert pool.submit(os.getpid).result() not in (os.getpid(), None)
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(RuntimeError, match="can't be sent"):
            pool.submit(threading.Lock).result()
        with pytest.raises((TypeError, AttributeError)):
            pool.submit(lambda: 1).result()
        assert pool.submit(abs, -1).result() == 1
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(abs, -1)


@pytest.mark.parametrize(
    ("job", "match"),
    [((signal.raise_signal, signal.SIGKILL), "killed by SIGKILL"), ((os._exit, 3), "exit status 3")],
    ids=["killed", "exits"],
)
def test_a_process_that_dies_fails_its_job_and_is_replaced(job: tuple[object, ...], match: str) -> None:
    with Workers(1) as pool:
        first = pool.submit(os.getpid).result()
        bad, good = pool.submit(*job), pool.submit(os.getpid)  # type: ignore[arg-type]
        with pytest.raises(WorkerDied, match=match):
            bad.result()
        assert good.result() != first


def test_a_call_to_stop_reaches_the_starter_alone() -> None:
    """Ctrl-C goes to all processes of a terminal: workers don't answer it with a traceback each."""
    with Workers(1) as pool:
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert pool.submit(os.getpid).result() == pid


def test_an_error_ends_the_processes_at_once() -> None:
    pool = Workers(2)
    with pytest.raises(KeyboardInterrupt), opened(pool):
        under_way = [pool.submit(time.sleep, 600) for _ in range(4)]
        pids = [pool.submit(os.getpid)]
        while len(pool.processes) < 2:
            time.sleep(0.05)
        pids = pool.processes
        raise KeyboardInterrupt
    assert gone(pids)
    assert all(future.cancelled() or future.exception(10) for future in under_way)


def test_processes_die_with_their_starter() -> None:
    script = (
        "import time\nfrom dagdiff.jobs.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    pool = Workers(2)\n"
        "    jobs = [pool.submit(time.sleep, 600) for _ in range(2)]\n"
        "    while len(pool.processes) < 2: time.sleep(0.05)\n"
        "    print(*pool.processes, flush=True)\n"
        "    jobs[0].result()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        starter.kill()
    assert gone(pids)


def test_no_workers_are_refused() -> None:
    with pytest.raises(Refusal, match="workers must be at least 1"):
        Workers(0)
