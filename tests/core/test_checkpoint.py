"""Files are whole or absent, and weights come back bit for bit."""

import json
import math
import os
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

from dagdiff.checkpoint import (
    content_hash,
    kept_tensors,
    load_weights,
    save_arrays,
    save_csv,
    save_json,
    save_state,
    save_text,
    save_weights,
    write_atomically,
)
from dagdiff.checks import Refusal
from dagdiff.report import figures
from dagdiff.report.curves import rounds_figure


def test_a_write_makes_the_folder_and_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "note.txt"
    save_text(path, "αβ\n")
    assert path.read_bytes() == "αβ\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failing_writer_leaves_neither_file_nor_temporary(before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    if before:
        path.write_text(before)

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(Refusal, match="disk full"):
        write_atomically(path, fail)
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    seen = []

    def write(partial: Path) -> None:
        partial.write_text("new")
        seen.append((path.read_text(), partial.parent == path.parent))

    write_atomically(path, write)
    assert seen == [("old", True)]
    assert path.read_text() == "new"


def test_writers_of_one_path_are_not_in_each_others_way(tmp_path: Path) -> None:
    """Threads of one process, as an executor may have them: each has begun before any is done."""
    path, begun = tmp_path / "note.txt", Barrier(4)

    def writer(text: str) -> None:
        def write(partial: Path) -> None:
            partial.write_text(text)
            begun.wait(timeout=30)
            assert partial.read_text() == text

        write_atomically(path, write)

    texts = [str(number) * 1000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, texts))
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_a_failing_move_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Refusal, match="can't be written"):
        save_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    content = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, 2)}], "d": "nan", "e": None, "f": True}
    save_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text and "Infinity" not in text and text.endswith("}\n")
    assert json.loads(text) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "nan", "e": None, "f": True}


def test_json_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"kept": 1})
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", {"tensor": torch.zeros(1)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"kept": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_arrays(tmp_path: Path) -> None:
    x = torch.randn(3, 2, requires_grad=True)
    save_arrays(tmp_path / "a.npz", x=x, label=torch.arange(3))
    kept = np.load(tmp_path / "a.npz")
    assert set(kept) == {"x", "label"}
    assert np.array_equal(kept["x"], x.detach().numpy()) and kept["label"].dtype == np.int64
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    first(torch.randn(8, 2))
    save_weights(tmp_path / "w.safetensors", first)
    load_weights(tmp_path / "w.safetensors", second)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert len(list(tmp_path.iterdir())) == 1


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        return net

    first, second = tied(), tied()
    save_weights(tmp_path / "w.safetensors", first)
    load_weights(tmp_path / "w.safetensors", second)
    assert torch.equal(second[1].weight, first[0].weight)


def test_weights_that_are_missing_broken_or_another_s(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(Refusal, match="no weights at"):
        load_weights(path, nn.Linear(2, 3))
    path.write_text("{")
    with pytest.raises(Refusal, match="does not hold the weights of this network"):
        load_weights(path, nn.Linear(2, 3))
    for other in (nn.Linear(2, 4), nn.Linear(2, 3, bias=False), nn.Sequential(nn.Linear(2, 3))):
        save_weights(path, other)
        with pytest.raises(Refusal, match="does not hold the weights of this network") as refusal:
            load_weights(path, nn.Linear(2, 3))
        assert "\n" not in str(refusal.value)


def test_a_content_hash_sees_type_shape_and_every_value() -> None:
    values = torch.arange(4)
    others = [values.reshape(2, 2), values.int(), torch.tensor([0, 1, 2, 4])]
    assert len({content_hash(values), *(content_hash(other) for other in others)}) == 4
    assert content_hash(values) == content_hash(values.clone())


def test_kept_tensors_are_made_once(tmp_path: Path) -> None:
    file, made = tmp_path / "new" / "points.safetensors", []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"points": torch.arange(6.0).reshape(2, 3).T}

    first, second = (kept_tensors(file, make)["points"] for _ in range(2))
    assert torch.equal(first, second) and first.shape == (3, 2) and made == [1]
    file.write_bytes(b"half")
    with pytest.raises(Refusal, match=r"points.safetensors can't be read .*Delete it"):
        kept_tensors(file, make)


def test_rows_are_written_with_every_column(tmp_path: Path) -> None:
    """A column for each name that any row holds; no rows make an empty file, so that a run's files are all there."""
    save_csv(tmp_path / "new" / "rows.csv", [{"a": 1, "b": "x,y"}, {"a": None, "c": 0.5}])
    assert (tmp_path / "new" / "rows.csv").read_bytes() == b'a,b,c\n1,"x,y",\n,,0.5\n'
    save_csv(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_bytes() == b""


_BIG = torch.randn(4096, generator=torch.Generator().manual_seed(0))
_WRITERS: dict[str, Callable[[Path], object]] = {
    "json": lambda path: save_json(path, _BIG.tolist()),
    "rows": lambda path: save_csv(path, [{"value": value} for value in _BIG.tolist()]),
    "arrays": lambda path: save_arrays(path, values=_BIG),
    "weights": lambda path: save_weights(path, nn.Linear(64, 64)),
    "state": lambda path: save_state(path, {"values": _BIG}),
    "kept tensors": lambda path: kept_tensors(path, lambda: {"values": _BIG}),
    "figure": lambda path: figures.save(rounds_figure([]), path),
}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files")
@pytest.mark.parametrize("kind", _WRITERS)
def test_a_disk_that_is_full_is_one_line_whoever_writes(kind: str, tmp_path: Path) -> None:
    """Here a file may hold 4 KiB; the system's words are another's, the way they come is the same."""
    import resource

    before, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "file.png"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(Refusal, match=r"file.png can't be written \(.*[Ff]ile too large.*\)") as refused:
            _WRITERS[kind](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_file_and_folder_reach_the_disk_before_a_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name: a computer that stops shows the old file or the new one, never an empty one."""
    path, done = tmp_path / "note.txt", list[object]()
    sync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else os.fstat(file).st_size)
        sync(file)

    def replaced(old: Path, new: Path) -> None:
        done.append("moved")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_text(path, "abc")
    assert done == [3, "moved", "folder"]
