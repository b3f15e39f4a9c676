"""Files of rows that are made piece by piece: whole or absent, resumed, made by one process, read memory-mapped."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dagdiff.checks import Refusal
from dagdiff.jobs import pieces
from dagdiff.jobs.pieces import Piece, kept_rows, watched


class Work:
    """Makes five pieces of two tables, and remembers from where it was asked to begin."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.begun = fails_at, list[Any]()

    def __call__(self, state: Any) -> Iterator[Piece]:
        self.begun.append(state)
        for number in range(state or 0, 5):
            if number == self.fails_at:
                raise OSError("the disk is gone")
            rows = {"x": torch.full((2, 3, 4), float(number)), "id": torch.tensor([2 * number, 2 * number + 1])}
            yield Piece(rows, number + 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is kept at once."""
    monkeypatch.setattr(pieces, "PIECE", 1)


@pytest.mark.parametrize("size", [1, 100, 1 << 24])
def test_rows_are_joined_in_order_and_made_once(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    file, work = tmp_path / "deep" / "x.safetensors", Work()
    with watched() as made:
        first, second = (kept_rows(file, work, "rows") for _ in range(2))
    assert made == [file] and work.begun == [None]
    assert torch.equal(first["id"], torch.arange(10)) and torch.equal(first["x"][:, 0, 0], torch.arange(10) // 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [each.name for each in file.parent.iterdir()] == [file.name], "nothing is left beside it"
    assert set(load_file(file)) == {"x", "id"}, "others read it"


@pytest.mark.usefixtures("small")
def test_a_work_that_ended_early_resumes_and_is_never_taken_for_whole(tmp_path: Path) -> None:
    file, broken = tmp_path / "x.safetensors", Work(fails_at=3)
    with pytest.raises(OSError, match="the disk is gone"):
        kept_rows(file, broken, "rows")
    assert not file.exists() and len(list((tmp_path / "x.parts").iterdir())) == 3
    (tmp_path / "x.parts" / "000001.safetensors").unlink()
    work = Work()
    assert torch.equal(kept_rows(file, work, "rows")["id"], torch.arange(10))
    assert work.begun == [1], "what follows a missing piece is made again"


@pytest.mark.usefixtures("small")
def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with pytest.raises(OSError, match="gone"):
        kept_rows(file, Work(fails_at=2), "rows")
    (tmp_path / "x.parts" / "000001.safetensors").write_bytes(b"half")
    with pytest.raises(Refusal, match=r"000001\.safetensors is not a state to resume from .*Delete it"):
        kept_rows(file, Work(), "rows")
    (tmp_path / "x.parts" / "000001.safetensors").unlink()
    kept_rows(file, Work(), "rows")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(Refusal, match=r"x\.safetensors can't be read .*Delete it to make it afresh"):
        kept_rows(file, Work(), "rows")


def test_shorter_rows_are_filled_with_zeros(tmp_path: Path) -> None:
    def make(state: Any) -> Iterator[Piece]:
        for length in (2, 3):
            yield Piece({"x": torch.ones(1, length, 2), "mask": torch.ones(1, length, dtype=torch.bool)}, length)

    found = kept_rows(tmp_path / "x.safetensors", make, "rows")
    assert found["x"].shape == (2, 3, 2) and found["x"].sum() == 10
    assert found["mask"].tolist() == [[True, True, False], [True, True, True]]


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there are no rows to keep\. Give some"):
        kept_rows(tmp_path / "x.safetensors", lambda state: iter(()), "rows")


def test_two_at_once_wait_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, begun, found = tmp_path / "x.safetensors", threading.Event(), list[Any]()

    def slowly(state: Any) -> Iterator[Piece]:
        begun.set()
        time.sleep(0.3)
        yield from Work()(state)

    def never(state: Any) -> Iterator[Piece]:
        raise AssertionError("made twice")

    first = threading.Thread(target=lambda: found.append(kept_rows(file, slowly, "rows")))
    first.start()
    assert begun.wait(10)
    assert torch.equal(kept_rows(file, never, "rows")["id"], torch.arange(10))
    first.join()
    assert len(found) == 1 and "is being made by process" in capsys.readouterr().err
