"""How far a long work is: a bar on a terminal, plain lines elsewhere, nothing where nobody looks."""

import io
import multiprocessing
import sys

import pytest

from dagdiff.progress import EVERY, Progress, spelled

FIRST = 10.0


@pytest.fixture(autouse=True)
def plain_lines(no_plain_lines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they come as they do for users."""
    monkeypatch.setattr("dagdiff.progress.FIRST", FIRST)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def worked(pieces: int, seconds: float, begun: int = 0) -> None:
    """A work of 100 pieces, of which some are done, so many seconds each."""
    clock = Clock()
    with Progress("training", 100, "update", begun, clock=clock) as bar:
        for piece in range(pieces):
            clock.now += seconds
            bar.advance(loss=1.0 / (piece + 1))  # whole numbers are told whole, others to three digits


def test_off_a_terminal_a_line_now_and_then_tells_what_is_done_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    worked(50, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "dagdiff: training: 10 of 100 updates (10 %), 10 s passed, about 1 min 30 s left, loss 0.1",
        "dagdiff: training: 40 of 100 updates (40 %), 40 s passed, about 1 min 0 s left, loss 0.025",
        "dagdiff: training: 50 of 100 updates (50 %), 50 s passed, about 50 s left, loss 0.02",
    ]


def test_the_time_that_is_left_counts_what_this_process_did(capsys: pytest.CaptureFixture[str]) -> None:
    worked(10, 1.0, begun=80)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("dagdiff: training: 90 of 100 updates (90 %), 10 s passed, about 10 s left")


def test_what_was_done_before_says_nothing_of_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds that a resumed run replays."""
    clock = Clock()
    with Progress("training", 100, clock=clock) as bar:
        bar.skip(80)
        clock.now += 20.0
        bar.advance(10, round=12345)
    told = capsys.readouterr().err
    assert told.startswith("dagdiff: training: 90 of 100 (90 %), 20 s passed, about 20 s left, round 12345\n")


def test_lines_of_a_long_work_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    """100 hours in 100 pieces; then an hour in seconds."""
    worked(100, 3600.0)
    assert len(capsys.readouterr().err.splitlines()) <= 101
    clock = Clock()
    with Progress("rounds", 3600, clock=clock) as bar:
        for _ in range(3600):
            clock.now += 1.0
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert 3600 / 72 <= len(lines) <= 3600 / EVERY
    assert lines[-1] == "dagdiff: rounds: 3600 of 3600 (100 %), 1 h 0 min passed"


def test_a_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    worked(100, FIRST / 101)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_with_the_number_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    worked(100, 1.0)
    seen = screen.getvalue()
    assert "training: 100%" in seen and "100/100" in seen and "loss 0.01" in seen and "dagdiff:" not in seen


@pytest.mark.parametrize("where", ["hidden", "a worker", "another process"])
def test_nobody_is_told_twice(where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if where == "a worker" else None)
    monkeypatch.setattr("dagdiff.progress.rank", lambda: 1 if where == "another process" else 0)
    clock = Clock()
    with Progress("training", 2, shown=where != "hidden", clock=clock) as bar:
        clock.now += 60.0
        bar.advance()
    assert capsys.readouterr().err == ""


def test_items_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    clock, seen = Clock(), []
    for item in Progress("decoding", 3, clock=clock).over("abc"):
        clock.now += 20.0
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[-1] == "dagdiff: decoding: 3 of 3 (100 %), 1 min 0 s passed"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (18120, "5 h 2 min")]
)
def test_times_are_spelled(seconds: float, words: str) -> None:
    assert spelled(seconds) == words
