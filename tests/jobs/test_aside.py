"""Folders that are filled beside their place are whole or absent."""

from pathlib import Path

import pytest

from dagdiff.checks import Refusal
from dagdiff.jobs.aside import filled
from dagdiff.jobs.locks import Lock


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Refusal, match=r"out can't be written \(No space left"), filled(out) as place:
        (place / "part").mkdir()
        (place / "part/file").write_text("half")
        assert not out.exists()
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.part").mkdir()  # of a process that was killed
    (tmp_path / ".out.part/half").touch()
    out.mkdir()
    with filled(out) as place:
        (place / "file").write_text("whole")
    assert [each.name for each in tmp_path.iterdir()] == ["out"] and [each.name for each in out.iterdir()] == ["file"]


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    lock = Lock(tmp_path / ".out.lock")
    assert lock.take()
    with pytest.raises(Refusal, match=r"out is being made by process \d+ on"), filled(tmp_path / "out"):
        pass
    lock.release()
    assert not list(tmp_path.iterdir())
