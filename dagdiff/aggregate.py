"""The aggregate D: the labelled states that the loop may train on, by source, and the batches drawn across them.

Every record is labelled once, on entry, and says where it comes from (``source``, an index into
:data:`dagdiff.mixture.SOURCES`) and when it entered (``round``). Old student records leave first: ``rounds_kept=None``
keeps everything (DAgger's aggregation, Follow-the-Leader), 1 keeps only the newest round (online gradient descent), n a
window of n rounds. The loop keeps the newest :data:`ROUNDS_KEPT` unless it is told otherwise, so that a long run needs
no more memory than a short one. Records of the expert's chains have the same law in every round, so a window of them is
as good as all; and so have forward states, of which a round's replace those of the round before.

Rollouts are drawn at random from all that are kept. Forward states are drawn in passes, each record once a pass, the
first in the order in which they entered: where they need to serve one batch only, every batch is fresh.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from dagdiff.buffers import MakeBuffer, Own, made
from dagdiff.checks import Refusal, check_in
from dagdiff.finite import Finite
from dagdiff.mixture import SOURCES, Shares
from dagdiff.state import load_state, state_of
from dagdiff.window import Window, remove_scratch, rows_of, scratch, storage_for

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
            self.folder, lock = scratch(folder)
            self.close = weakref.finalize(self, remove_scratch, self.folder, lock)
        rounds = {"forward": 1, "student": student_rounds, "expert": expert_rounds}
        storage = partial(storage_for, self.folder)
        self.own = {} if buffer is None else {source: made(buffer, source, generator) for source in SOURCES}
        self.by_priority = any(window.by_priority for window in self.own.values())
        self.usual = {
            source: Window(storage, capacity.get(source, 0), rounds[source], source == "forward", generator)
            for source in SOURCES
        }
        self.windows: Mapping[str, Window | Own] = self.own or self.usual

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
                rows = rows_of(torch.cat(found), _by_batch(part))
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
