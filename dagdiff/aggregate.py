"""The aggregate D: the labelled states that the loop may train on, by source, and the batches drawn across them.

Every record is labelled once, on entry, and says where it comes from (``source``, an index into
:data:`dagdiff.mixture.SOURCES`) and when it entered (``round``). Old student records leave first: ``rounds_kept=None``
keeps everything (DAgger's aggregation, Follow-the-Leader), 1 keeps only the newest round (online gradient descent), n a
window of n rounds. The loop keeps the newest :data:`ROUNDS_KEPT` unless it is told otherwise, so that a long run needs
no more memory than a short one. Records of the expert's chains have the same law in every round, so a window of them is
as good as all. Forward states have the same law in every round,
so a round's replace those of the round before.

Rollouts are drawn at random from all that are kept. Forward states are drawn in passes, each record once a pass, the
first in the order in which they entered: where they need to serve one batch only, every batch is fresh.
"""

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer

from dagdiff.buffers import MakeBuffer, Own, made
from dagdiff.checks import Refusal, check_in
from dagdiff.finite import Finite
from dagdiff.jobs.locks import Lock
from dagdiff.mixture import SOURCES, Shares
from dagdiff.state import Shard, load_state, state_of

if "RL_LOGGING_LEVEL" not in os.environ:
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # at INFO it prints a line for every buffer

READ = 2**26
"""Bytes of the batches that are read from D at once."""


class Aggregate:
    """Records of three sources, drawn in exact shares.

    Args:
        capacity: how many records each source is expected to hold; more are made room for when they come.
        student_rounds: how many rounds of student records stay; None keeps all.
        generator: a CPU generator of the draws and of the rounding of shares.
        folder: keeps the buffers there, memory-mapped, so that they may exceed memory, and removes them at the end, or
            at ``close()``; None keeps them in memory, on the device of the records.
        expert_rounds: how many rounds of the expert's records stay; None keeps all.
        buffer: makes the TorchRL buffer of a source (:mod:`dagdiff.buffers`), which then says by itself what stays and
            what is drawn, batch by batch; capacity, rounds and folder are not for it. None for the usual ones.
    """

    def __init__(
        self,
        capacity: Mapping[str, int],
        student_rounds: int | None = None,
        generator: torch.Generator | None = None,
        folder: Path | None = None,
        expert_rounds: int | None = None,
        buffer: MakeBuffer | None = None,
    ) -> None:
        self.generator, self.folder = generator, None
        self.device: torch.device | None = None
        self.row_bytes = 1
        self.finite = Finite([f"{what} {source}" for what in ("states", "labels") for source in SOURCES])
        self._before: dict[str, Any] = {}
        self.close: Callable[[], object] = _nothing
        if folder is not None:
            self.folder, lock = _scratch(folder)
            self.close = weakref.finalize(self, _remove, self.folder, lock)
        rounds = {"forward": 1, "student": student_rounds, "expert": expert_rounds}
        storage = partial(_storage, self.folder)
        self.own = {} if buffer is None else {source: made(buffer, source, generator) for source in SOURCES}
        self.by_priority = any(window.by_priority for window in self.own.values())
        self.usual = {
            source: _Window(storage, capacity.get(source, 0), rounds[source], source == "forward", generator)
            for source in SOURCES
        }
        self.windows: Mapping[str, _Window | Own] = self.own or self.usual

    def __len__(self) -> int:
        return sum(len(window) for window in self.windows.values())

    def add(self, source: str, records: TensorDict, round_number: int) -> None:
        """Store annotated records of one round."""
        window = self.windows[check_in("source", source, SOURCES)]
        self.device = records["x_t"].device
        for name, values in records.items():
            self.finite.see(f"{'states' if name in _ASKED else 'labels'} {source}", values)
        columns = {"source": SOURCES.index(source), "round": round_number}
        records = records.copy()
        for name, value in columns.items():
            records[name] = torch.full(records.batch_size, value, device=self.device)
        self.row_bytes = sum(each.element_size() * each[0].numel() for each in records.values())
        window.add(records if self.folder is None else records.cpu(), round_number)

    def records(self, source: str) -> TensorDict:
        """Return all records of a source that are in D, the oldest first."""
        window = self.windows[check_in("source", source, SOURCES)]
        if not len(window):
            raise Refusal(f"the aggregate has no records of the source {source!r}. Gather first.")
        return window.take(torch.arange(len(window)))

    def everything(self) -> TensorDict:
        """Return all records that are in D, source by source, with their ``source`` and ``round``."""
        return torch.cat([self.records(source) for source, window in self.windows.items() if len(window)])

    def fill(self, records: TensorDict) -> None:
        """Take records in that another aggregate held, each to its source and round."""
        for place, source in enumerate(SOURCES):
            mine = records[records["source"] == place]
            for number in mine["round"].unique().tolist():
                rows = mine[mine["round"] == number].exclude("source", "round")
                self.add(source, rows, number)

    def clear(self) -> None:
        """Forget all records."""
        for window in self.windows.values():
            window.clear()

    def draw(self, rows: int, shares: Shares) -> TensorDict:
        """Return ``rows`` records, split exactly by ``shares``.

        A source without records drops out; the others share its part.

        Raises:
            Refusal: if no source of which there is a share has records.
        """
        return next(self.draws([rows], shares))

    def draws(self, sizes: Sequence[int], shares: Shares, skip: int = 0) -> Iterator[TensorDict]:
        """Return batches of these sizes, each split as by :meth:`draw`; D must not change until the last is taken.

        All rows are chosen now, so that it does not matter how many batches are read at once: as many as ``READ`` bytes
        hold. Buffers of one's own are drawn from as batches are taken.

        Args:
            sizes: of the batches.
            shares: of the sources.
            skip: how many of the first were taken before the state that this resumes from.
        """
        if self.own:
            return (self._sampled(size, shares) for size in sizes[skip:])
        self._before = self._draws()
        counts = self._available(shares).counts_of(sizes, self.generator)
        chosen = [
            self.usual[source].choose(total) for source, total in zip(SOURCES, counts.sum(0).tolist(), strict=True)
        ]
        return islice(self._read(sizes, counts, chosen), skip, None)

    def _sampled(self, size: int, shares: Shares) -> TensorDict:
        """A batch that the samplers of one's own draw."""
        counts = self._available(shares).counts(size, self.generator)
        found = [
            window.draw(count, self.by_priority)
            for window, count in zip(self.own.values(), counts, strict=True)
            if count
        ]
        return torch.cat(found).to(self.device)

    def weigh(self, batch: TensorDict, losses: Tensor) -> None:
        """Tell samplers by priority the loss of each row, ``(B,)``, of a batch that was drawn."""
        for number, window in enumerate(self.own.values()):
            mine = batch["source"] == number
            if window.by_priority and bool(mine.any()):
                window.buffer.update_priority(batch["index"][mine].cpu(), losses[mine].cpu())

    def _read(self, sizes: Sequence[int], counts: Tensor, chosen: Sequence[Tensor]) -> Iterator[TensorDict]:
        """Read the chosen rows, ``counts`` of each source a batch, some batches at once, and yield them one by one."""
        several = max(1, READ // (self.row_bytes * max(sizes)))
        rest = list(chosen)
        for start in range(0, len(sizes), several):
            part = counts[start : start + several]
            taken = part.sum(0).tolist()
            found = [
                self.windows[source].take(numbers[:count])
                for source, numbers, count in zip(SOURCES, rest, taken, strict=True)
                if count
            ]
            rest = [numbers[count:] for numbers, count in zip(rest, taken, strict=True)]
            rows: TensorDict = found[0]
            if len(found) > 1:  # they come by source, and go by batch
                rows = _rows(torch.cat(found), _by_batch(part))
            if self.folder is not None:
                rows = rows.to(self.device)
            yield from rows.split(list(sizes[start : start + several]))

    def state_dict(self, drawn: bool = False) -> dict[str, Any]:
        """Return the records, a shard a source and round, and what decides the next draws.

        Args:
            drawn: whether batches of :meth:`draws` are still being taken; then the state is that before they were
                chosen, and who resumes from it chooses them again.
        """
        windows = {source: window.state_dict(source) for source, window in self.windows.items()}
        return {"windows": windows, "draws": self._before if drawn and not self.own else self._draws()}

    def _draws(self) -> dict[str, Any]:
        """What decides the next draws."""
        next_ = {source: window.next.clone() for source, window in self.windows.items()}
        return {"generator": state_of(self.generator), "next": next_}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take records and draws back."""
        for source, window in self.windows.items():
            window.load_state_dict(state["windows"][source], None if self.folder else self.device)
            window.next = state["draws"]["next"][source]
        if self.generator is not None:
            load_state(self.generator, state["draws"]["generator"])

    def load_part(self, states: Sequence[Mapping[str, Any]], part: int, parts: int) -> None:
        """Take one of so many equal parts of the records of several processes; the generator stays as it is."""
        for source, window in self.windows.items():
            windows = [state["windows"][source] for state in states]
            window.load_part(windows, part, parts, None if self.folder else self.device)

    def _available(self, shares: Shares) -> Shares:
        left = [share if len(self.windows[source]) else 0.0 for source, share in zip(SOURCES, shares, strict=True)]
        if not any(left):
            raise Refusal(f"the aggregate has no records to draw by the shares {tuple(shares)}. Gather first.")
        return Shares(*(share / sum(left) for share in left))


_ASKED = ("x_t", "t", "s", "condition")  # columns of a record before it is labelled


class _Window:
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
        return _rows(self.buffer.storage[:], (start + numbers) % self.capacity)

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


def _rows(records: TensorDict, numbers: Tensor) -> TensorDict:
    """Copy rows column by column, which is faster than to index the whole."""
    found = records.apply(lambda column: column.index_select(0, numbers.to(column.device)), batch_size=[len(numbers)])
    assert isinstance(found, TensorDict)
    return found


def _by_batch(counts: Tensor) -> Tensor:
    """Return the order that brings rows from source by source to batch by batch; ``counts`` are (batches, sources)."""
    before = counts.T.flatten().cumsum(0).reshape(counts.T.shape).T - counts  # rows of other batches, by source
    size = counts.flatten()
    start = size.cumsum(0) - size
    return torch.arange(int(size.sum())) + (before.flatten() - start).repeat_interleave(size)


def _nothing() -> None:
    """What closing does where nothing is kept on a disk."""


ROUNDS_KEPT = 20
"""Rounds of records that stay where nobody says how many."""


def rounds_to_keep(updates: Sequence[int], rounds_kept: int | None, max_age: int | None) -> int:
    """Return how many rounds of records fit both limits: a number of rounds and an age in updates.

    No number of rounds means :data:`ROUNDS_KEPT`, no age any age.

    ``updates`` are those of each round. The newest round always fits; a record that is kept for n rounds is as old as
    their updates together, so n rounds fit if no n in a row make more than ``max_age``.
    """
    rounds, most = len(updates), ROUNDS_KEPT if rounds_kept is None else rounds_kept
    fits = [kept for kept in range(1, rounds + 1) if kept <= most]
    if max_age is not None:
        ends = list(accumulate(updates, initial=0))
        fits = [kept for kept in fits if max(ends[i + kept] - ends[i] for i in range(rounds + 1 - kept)) <= max_age]
    return max(fits, default=1)


def _storage(folder: Path | None, size: int, alike: TensorDict) -> LazyTensorStorage:
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


def _scratch(folder: Path) -> tuple[Path, Lock]:
    """A place of its own in the folder, and the lock that says that it is in use; reject one that can't be written.

    Places of processes that were killed are swept away first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("aggregate-*/.lock"):
            old = Lock(left)
            if old.take():
                _remove(left.parent, old)
        place = Path(tempfile.mkdtemp(prefix="aggregate-", dir=folder))
    except OSError as error:
        raise Refusal(f"memmap {folder} can't be written ({error.strerror}). Name another folder.") from None
    lock = Lock(place / ".lock")
    lock.take()
    return place, lock


def _remove(place: Path, lock: Lock) -> None:
    """Delete a place and let go of its lock."""
    shutil.rmtree(place, ignore_errors=True)
    lock.release()
