"""A file of many rows that is made piece by piece: memory holds one piece, and a work that was stopped resumes.

Rows are written to a folder of pieces, each whole or absent. When all are there they are joined to one safetensors
file, which moves to its place in one step and is read memory-mapped: rows come from the disk when they are asked for.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from dagdiff.checkpoint import read_state, save_state, write_atomically
from dagdiff.checks import Refusal, first_line
from dagdiff.jobs.awaited import awaited
from dagdiff.jobs.deferred import deferred
from dagdiff.jobs.stops import Stopped

Rows = dict[str, Tensor]
"""Tables by their names, a row an item: ``(n, *D)``."""


class Piece(NamedTuple):
    """Some rows more."""

    rows: Rows
    """What is appended to each table."""
    state: Any
    """From which the work resumes after them: numbers and tensors."""


def kept_rows(path: Path, make: Callable[[Any], Iterator[Piece]], what: str) -> Rows:
    """Return the tables that a file holds, memory-mapped; where there is none they are made, by one process alone.

    Of rows that differ in their second size the shorter ones are filled with zeros.

    Args:
        path: of the file.
        make: yields the pieces that follow a state, in order; the state is None at the start.
        what: the rows, in words.

    Raises:
        Refusal: if the file or a piece can't be read or written.
        Stopped: after INT or TERM, when the rows made so far are kept.
    """
    if not path.exists():
        with awaited(path):
            if not path.exists():
                _make(path, make, what)
                noted(path)
    return mapped(path)


def mapped(path: Path) -> Rows:
    """Return the tables of a safetensors file, memory-mapped.

    Raises:
        Refusal: if it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{path} can't be read ({first_line(error)}). Delete it to make it afresh.") from None


@contextmanager
def watched() -> Iterator[list[Path]]:
    """Give the files that are made meanwhile."""
    made: list[Path] = []
    _WATCHERS.append(made)
    try:
        yield made
    finally:
        _WATCHERS[:] = [each for each in _WATCHERS if each is not made]


def noted(path: Path) -> None:
    """Tell those who watch that a file of the cache was made."""
    for made in _WATCHERS:
        made.append(path)


_WATCHERS: list[list[Path]] = []


def _make(path: Path, make: Callable[[Any], Iterator[Piece]], what: str) -> None:
    """Write the pieces that are missing, then join all."""
    place = path.with_suffix(".parts")
    files: list[Path] = []
    while (file := place / f"{len(files):06d}.safetensors").exists():
        files.append(file)
    state = read_state(files[-1])["state"] if files else None
    waiting: list[Piece] = []
    saved = time.monotonic()

    def keep() -> None:
        names = dict.fromkeys(name for piece in waiting for name in piece.rows)
        rows = {name: stacked([piece.rows[name] for piece in waiting if name in piece.rows]) for name in names}
        file = place / f"{len(files):06d}.safetensors"
        save_state(file, {"rows": rows, "state": waiting[-1].state})
        files.append(file)
        waiting.clear()

    with deferred() as wish:
        for piece in make(state):
            waiting.append(piece)
            size = sum(values.nbytes for each in waiting for values in each.rows.values())
            if size >= PIECE or wish.signal or time.monotonic() - saved >= EVERY:
                keep()
                saved = time.monotonic()
            if wish.signal:
                raise Stopped(f"stopped while making {what}; the same command resumes", 128 + wish.signal)
        if waiting:
            keep()
    if not files:
        raise Refusal(f"there are no {what} to keep. Give some.")
    write_atomically(path, lambda partial: _join(files, partial))
    shutil.rmtree(place)


def _join(files: list[Path], out: Path) -> None:
    """Write the tables of all pieces to one safetensors file, a piece in memory at a time."""
    shapes: dict[str, list[int]] = {}
    kinds: dict[str, torch.dtype] = {}
    for file in files:
        for name, values in _rows(file).items():
            shape = shapes.setdefault(name, [0, *values.shape[1:]])
            shape[0] += len(values)
            if len(shape) > 1:
                shape[1] = max(shape[1], values.shape[1])
            kinds[name] = values.dtype
    order = sorted(shapes, key=lambda name: (-kinds[name].itemsize, name))  # so that each table is aligned
    with out.open("wb") as written:
        _write_header(written, [(name, kinds[name], shapes[name]) for name in order])
        for name in order:
            for values in (found[name] for file in files if name in (found := _rows(file))):
                raw = _padded(values, shapes[name][1:]).contiguous().reshape(-1).view(torch.uint8)
                written.write(raw.numpy().data)


def _write_header(file: IO[bytes], tables: list[tuple[str, torch.dtype, list[int]]]) -> None:
    """Write the header of a safetensors file: https://huggingface.co/docs/safetensors."""
    told: dict[str, dict[str, Any]] = {}
    at = 0
    for name, kind, shape in tables:
        size = torch.Size(shape).numel() * kind.itemsize
        told[name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _rows(file: Path) -> Rows:
    rows: Rows = read_state(file)["rows"]
    return rows


def _padded(values: Tensor, shape: list[int]) -> Tensor:
    """Rows whose second size is that of the table, filled with zeros."""
    if not shape or values.shape[1] == shape[0]:
        return values
    whole = values.new_zeros((len(values), *shape))
    whole[:, : values.shape[1]] = values
    return whole


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return rows one below the other; of those that differ in their second size the shorter are filled with zeros."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([_padded(part, [longest, *part.shape[2:]]) for part in parts])


PIECE = 1 << 22
"""Bytes of a piece, at least, unless it took long."""
EVERY = 30.0
"""Seconds after which a piece is written, however small: what a work loses at most where it ends without warning."""

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls the types of numbers."""
