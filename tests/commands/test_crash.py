"""An error that nobody foresaw: one line with a file that holds the traceback, and a status of its own."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dagdiff import cli
from dagdiff.cli import FAULT, main
from dagdiff.commands import distill


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: Sequence[str]) -> None:
        raise error

    monkeypatch.setattr(distill, "distill", fail)


def said(words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == status
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("dagdiff: error: ") and len(err) <= 501
    return err


def test_an_error_becomes_one_line_and_a_log(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(ZeroDivisionError("first\nsecond"), monkeypatch)
    told = said(["distill", "--task", "a b", "--out", "nowhere"], FAULT, capsys)
    (log,) = (cache / "crashes").iterdir()
    assert "ZeroDivisionError: first." in told and str(log) in told and not Path("nowhere").exists()
    text = log.read_text()
    assert text.startswith("dagdiff distill --task 'a b' --out nowhere\n")
    assert "torch " in text and "Python 3" in text and "in fail" in text and text.endswith("first\nsecond\n")


@pytest.mark.parametrize("spelled", [["--out", "run"], ["--out=run"]])
def test_the_log_lies_with_a_run_that_has_begun(
    spelled: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    fail_with(KeyError("x"), monkeypatch)
    assert str(cache) in said(["distill", *spelled], FAULT, capsys), "an empty folder stays so"
    assert not list(Path("run").iterdir())
    Path("run/rounds.csv").touch()
    assert " run/crash-" in said(["distill", *spelled], FAULT, capsys)
    assert len(list(Path("run").glob("crash-*.log"))) == 1


def test_without_a_place_for_the_log_the_line_holds_the_end_of_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no")

    fail_with(ZeroDivisionError("why"), monkeypatch)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert "No crash log could be written: " in said(["distill"], FAULT, capsys)


_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: x")


@pytest.mark.parametrize("error", [MemoryError(), _FULL])
def test_too_little_memory_is_a_mistake_with_a_cure(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert "Lower batch_size" in said(["distill"], 2, capsys) and not cache.exists()


def test_a_message_is_printable_and_short(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a file holds can neither move the terminal's cursor nor fill it."""
    from dagdiff.checks import Refusal

    fail_with(Refusal("\x1b[2J\udcff\u202e" + "x" * 10_000 + " the cure."), monkeypatch)
    told = said(["distill"], 2, capsys)
    assert told.startswith("dagdiff: error: \\x1b[2J\\udcff\\u202exxx") and told.endswith("xx the cure.\n")


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
def test_what_is_no_error_passes(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(error, monkeypatch)
    with pytest.raises(type(error)):
        main(["distill"])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Posix")
def test_a_reader_that_leaves_is_no_fault() -> None:
    """As `dagdiff list tasks | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dagdiff", "list", "objectives"]
    with os.fdopen(writing, "wb") as pipe:
        ran = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=300)
    assert ran.returncode in (0, 141) and not ran.stderr


def test_the_terminal_shows_names_that_it_can_not(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def show(words: Sequence[str]) -> None:
        print(words[0])

    find: Callable[[str], Callable[[Sequence[str]], None]] = lambda command: show  # noqa: E731
    monkeypatch.setattr(cli, "find", find)
    assert main(["distill", "run\udcff"]) == 0


@pytest.mark.parametrize("deep", [False, True])
def test_what_a_disk_says_is_no_fault_of_the_program(
    deep: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library that wraps the system's error hides nothing."""
    error: Exception = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/rounds.csv")
    if deep:
        cause, error = error, RuntimeError("could not serialise")
        error.__cause__ = cause
    fail_with(error, monkeypatch)
    told = said(["distill"], 2, capsys)
    assert "runs/a/rounds.csv: No space left on device. Make room" in told


@pytest.mark.parametrize("metric", ["os.getcwd", "math.sqrt"])
def test_what_can_not_be_called_as_a_metric_is_told_before_training(
    metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said(["distill", "--metric", metric, "--policy", "fresh", "--device", "cpu", "--out", "run"], 2, capsys)
    assert "the metric must be a callable (samples, truth)" in told and metric.partition(".")[2] in told
    assert not Path("run").exists()
