"""The aggregate D: the labelled states that the loop may train on, by source, and the batches drawn across them.

On-policy records wait in one TorchRL replay buffer a source. Forward-diffused states cost no roll-in, so they are made
fresh for every batch, as the base methods do. Old student records leave first: ``rounds_kept=None`` keeps everything
(DAgger's aggregation, Follow-the-Leader), 1 keeps only the newest round (online gradient descent), n a window of n
rounds. Records of the expert's chains never age, and are never dropped.
"""

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer

from dagdiff.checks import Refusal
from dagdiff.mixture import SOURCES, Shares

if "RL_LOGGING_LEVEL" not in os.environ:
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # at INFO it prints a line for every buffer

ForwardSource = Callable[[int], TensorDict]
"""``n -> n`` fresh, annotated forward-diffused records."""


class Aggregate:
    """States of three sources, drawn in exact shares.

    Args:
        forward: makes forward-diffused records.
        capacity: how many records the buffers of the student's and of the expert's chains hold; the oldest give way.
        generator: a CPU generator for the rounding of shares.
        folder: keeps the buffers there, memory-mapped, so that they may exceed memory, and removes them at the end;
            None keeps them in memory, on the device of the records.
    """

    def __init__(
        self,
        forward: ForwardSource,
        capacity: dict[str, int],
        generator: torch.Generator | None = None,
        folder: Path | None = None,
    ) -> None:
        self.forward, self.generator, self.folder = forward, generator, _scratch(folder)
        self.device: torch.device | None = None
        if self.folder is not None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.buffers = {source: ReplayBuffer(storage=self._storage(source, n)) for source, n in capacity.items()}
        for buffer in self.buffers.values():
            buffer.set_rng(generator)

    def __len__(self) -> int:
        return sum(len(buffer) for buffer in self.buffers.values())

    def add(self, source: str, records: TensorDict, round_number: int) -> None:
        """Store annotated records of one round's roll-ins."""
        self.device = records["x_t"].device
        records = records.set("round", torch.full(records.batch_size, round_number, device=self.device))
        self.buffers[source].extend(records if self.folder is None else records.cpu())

    def draw(self, rows: int, shares: Shares) -> TensorDict:
        """Return ``rows`` records, split exactly by ``shares``, with ``source`` (index into ``SOURCES``) and ``round``.

        A source without records drops out; the others share its part.
        """
        parts = []
        for index, (source, count) in enumerate(
            zip(SOURCES, self._available(shares).counts(rows, self.generator), strict=True)
        ):
            if count:
                records = self._take(source, count)
                parts.append(records.set("source", torch.full(records.batch_size, index, device=records.device)))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _take(self, source: str, count: int) -> TensorDict:
        if source in self.buffers:
            records: TensorDict = self.buffers[source].sample(count)
            return records if self.folder is None else records.to(self.device)
        records = self.forward(count)
        return records.set("round", torch.full(records.batch_size, -1, device=records.device))

    def _storage(self, source: str, size: int) -> LazyTensorStorage:
        if self.folder is None:
            return LazyTensorStorage(size)
        return LazyMemmapStorage(size, scratch_dir=self.folder / source)

    def _available(self, shares: Shares) -> Shares:
        kept = [
            share if len(self.buffers.get(source, (0,))) else 0.0 for source, share in zip(SOURCES, shares, strict=True)
        ]
        return Shares(*(share / sum(kept) for share in kept)) if any(kept) else Shares(1.0, 0.0, 0.0)


def rounds_to_keep(updates: Sequence[int], rounds_kept: int | None, max_age: int | None) -> int:
    """Return how many rounds of records fit both limits: a number of rounds and an age in updates. None is no limit.

    ``updates`` are those of each round. The newest round always fits; a record that is kept for n rounds is as old as
    their updates together, so n rounds fit if no n in a row make more than ``max_age``.
    """
    rounds = len(updates)
    fits = [kept for kept in range(1, rounds + 1) if rounds_kept is None or kept <= rounds_kept]
    if max_age is not None:
        ends = list(accumulate(updates, initial=0))
        fits = [kept for kept in fits if max(ends[i + kept] - ends[i] for i in range(rounds + 1 - kept)) <= max_age]
    return max(fits, default=1)


def _scratch(folder: Path | None) -> Path | None:
    """A place of its own in the folder; refuse a folder that can't be written."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="aggregate-", dir=folder))
    except OSError as error:
        raise Refusal(f"memmap {folder} can't be written ({error.strerror}). Name another folder.") from None
