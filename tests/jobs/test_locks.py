"""Locks: one owner at a time, none after the owner's death."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dagdiff.checks import Refusal
from dagdiff.jobs import locks
from dagdiff.jobs.locks import Lock, locked


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "claims/a"), Lock(tmp_path / "claims/a")
    assert first.take() and not second.take()
    assert str(os.getpid()) in second.owner
    first.release()
    assert second.take()
    second.release()
    assert not list((tmp_path / "claims").iterdir())


def test_who_waits_gets_it_although_the_file_is_removed(tmp_path: Path) -> None:
    """The first owner removes the file that the second waits at: the second must not hold a name that is gone."""
    first, second = Lock(tmp_path / "a"), Lock(tmp_path / "a")
    assert first.take()
    waiter = threading.Thread(target=second.take, args=(True,))
    waiter.start()
    time.sleep(0.2)  # until it waits
    first.release()
    waiter.join(10)
    assert not waiter.is_alive() and (tmp_path / "a").exists()
    assert not Lock(tmp_path / "a").take()
    second.release()


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    hold = "from pathlib import Path; from dagdiff.jobs.locks import Lock; import time\n"
    hold += f"assert Lock(Path({str(tmp_path / 'a')!r})).take(); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        lock = Lock(tmp_path / "a")
        assert not lock.take() and str(owner.pid) in lock.owner
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert lock.take()


def test_locked_is_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        assert not Lock(tmp_path / "a").take()
    assert Lock(tmp_path / "a").take()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"file.a can't be written .* Name another folder"):
        Lock(tmp_path / "file/a").take()


def test_without_flock_every_lock_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    first, second = Lock(tmp_path / "a"), Lock(tmp_path / "a")
    assert first.take() and second.take()
    first.release()
    second.release()
