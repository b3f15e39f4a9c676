"""The window of one source in the aggregate: the records of its newest rounds, in memory or memory-mapped on a disk."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer

from dagdiff.checks import Refusal
from dagdiff.jobs.locks import Lock
from dagdiff.state import Shard


class Window:
    """The records of one source: those of the newest rounds, in a ring buffer of TorchRL's.

    Args:
        storage: makes a storage for so many records like those given.
        capacity: for how many there is room at first.
        rounds: how many rounds stay; None keeps all.
        passes: whether to draw each record once before one comes again; then a new round's replace all others.
        generator: of the draws.
    """

    def __init__(
        self,
        storage: Callable[[int, TensorDict], LazyTensorStorage],
        capacity: int,
        rounds: int | None,
        passes: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.storage, self.rounds, self.passes, self.generator = storage, rounds, passes, generator
        self.capacity, self.written = capacity, 0
        self.buffer: ReplayBuffer | None = None
        self.sizes: dict[int, int] = {}  # records by round
        self.next = torch.empty(0, dtype=torch.int64)  # what is still to be drawn in this pass

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def clear(self) -> None:
        """Forget all records."""
        self.sizes.clear()

    def add(self, records: TensorDict, number: int) -> None:
        """Let records of a round enter; rounds that are too old leave."""
        while self.rounds is not None and len(self.sizes.keys() | {number}) > self.rounds:
            del self.sizes[next(iter(self.sizes))]
        before, after = len(self), len(self) + len(records)
        if self.buffer is None or after > self.capacity:
            self._make_room(after, records)
        self.buffer.extend(records)  # type: ignore[union-attr]
        self.written += len(records)
        self.sizes[number] = self.sizes.get(number, 0) + len(records)
        if self.passes:
            left = self.next if before else self.next[:0]
            self.next = torch.cat([left, torch.arange(before, after)])

    def choose(self, count: int) -> Tensor:
        """Draw so many records; return their numbers in the window."""
        if not self.passes:
            return torch.randint(len(self) if count else 1, (count,), generator=self.generator)
        while len(self.next) < count:
            self.next = torch.cat([self.next, torch.randperm(len(self), generator=self.generator)])
        chosen, self.next = self.next[:count], self.next[count:]
        return chosen

    def take(self, numbers: Tensor) -> TensorDict:
        """Return copies of records by their number in the window, the oldest being 0."""
        assert self.buffer is not None
        start = self.written - len(self)
        return rows_of(self.buffer.storage[:], (start + numbers) % self.capacity)

    def state_dict(self, source: str) -> dict[str, Any]:
        """Return the records by round."""
        ends = list(accumulate(self.sizes.values(), initial=0))
        shards = [
            Shard(f"{source}-{number:04d}-{size}", partial(self._columns, start, start + size))
            for start, (number, size) in zip(ends, self.sizes.items(), strict=False)
        ]
        return {"rounds": list(self.sizes), "records": shards}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None) -> None:
        """Take records back, to a device."""
        self.buffer, self.written = None, 0
        self.sizes.clear()
        for number, columns in zip(state["rounds"], state["records"], strict=True):
            rows = len(next(iter(columns.values())))
            self.add(TensorDict(columns, [rows]).unflatten_keys(".").to(device or "cpu"), number)

    def load_part(
        self, states: Sequence[Mapping[str, Any]], part: int, parts: int, device: torch.device | None
    ) -> None:
        """Take every so-manyth record of each round, of several windows one after the other."""
        found: dict[int, dict[str, Tensor]] = {}
        for number in sorted({number for state in states for number in state["rounds"]}):
            held = [dict(zip(state["rounds"], state["records"], strict=True)).get(number) for state in states]
            columns = [each for each in held if each is not None]
            mine = {name: torch.cat([each[name] for each in columns])[part::parts] for name in columns[0]}
            if len(next(iter(mine.values()))):
                found[number] = mine
        self.next = self.next[:0]
        self.load_state_dict({"rounds": list(found), "records": list(found.values())}, device)

    def _columns(self, start: int, end: int) -> dict[str, Tensor]:
        """The columns of records by their numbers in the window."""
        return dict(self.take(torch.arange(start, end)).flatten_keys(".").items())

    def _make_room(self, records: int, alike: TensorDict) -> None:
        """Move to a buffer of at least so many records, and of twice the room if there was too little."""
        old = self.take(torch.arange(len(self))) if len(self) else None
        self.capacity = max(records, self.capacity if self.buffer is None else 2 * self.capacity)
        self.buffer, self.written = ReplayBuffer(storage=self.storage(self.capacity, alike)), len(self)
        if old is not None:
            self.buffer.extend(old)


def rows_of(records: TensorDict, numbers: Tensor) -> TensorDict:
    """Copy rows column by column, which is faster than to index the whole."""
    found = records.apply(lambda column: column.index_select(0, numbers.to(column.device)), batch_size=[len(numbers)])
    assert isinstance(found, TensorDict)
    return found


def storage_for(folder: Path | None, size: int, alike: TensorDict) -> LazyTensorStorage:
    """A storage of TorchRL's for so many records, memory-mapped where there is a folder.

    Its files are allocated before anything is written to them: a write to a hole in a file kills the process where the
    disk is full.

    Raises:
        Refusal: if the disk has no room for them.
    """
    if folder is None:
        return LazyTensorStorage(size)
    try:
        place = tempfile.mkdtemp(dir=folder)
        made = LazyMemmapStorage(size, scratch_dir=place)
        made._init(alike[0])
        for file in Path(place).rglob("*.memmap"):
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        raise Refusal(
            f"memmap {folder.parent} has no room for {size} records ({error.strerror or error}). Free some, lower "
            "--rounds_kept, or name another folder."
        ) from None
    return made


def scratch(folder: Path) -> tuple[Path, Lock]:
    """A place of its own in the folder, and the lock that says that it is in use; reject one that can't be written.

    Places of processes that were killed are swept away first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("aggregate-*/.lock"):
            old = Lock(left)
            if old.take():
                remove_scratch(left.parent, old)
        place = Path(tempfile.mkdtemp(prefix="aggregate-", dir=folder))
    except OSError as error:
        raise Refusal(f"memmap {folder} can't be written ({error.strerror}). Name another folder.") from None
    lock = Lock(place / ".lock")
    lock.take()
    return place, lock


def remove_scratch(place: Path, lock: Lock) -> None:
    """Delete a place and let go of its lock."""
    shutil.rmtree(place, ignore_errors=True)
    lock.release()
