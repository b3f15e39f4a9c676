"""Expert answers made ahead: labelled records in shards on disk, memory-mapped, that any later run may train on.

What does not depend on the student can be made once for a whole study: forward states and the expert's own chains, each
with its label. A folder holds shards, a safetensors file each, and ``manifest.json``: what the records depend on, and
of each shard its source, its rows, the expert's evaluations, and the SHA-256 of the file.

A run takes records in a random order of its own, each once; where there are no more, it makes its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from dagdiff.checkpoint import file_hash, write_atomically
from dagdiff.checks import Refusal, check_in, first_line
from dagdiff.mixture import SOURCES
from dagdiff.reading import read_json

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """A file of records.

    Args:
        name: of the file.
        source: of the records.
        rows: how many there are.
        nfe: the expert's evaluations that they cost.
        sha256: of the file.
    """

    name: str
    source: str
    rows: int
    nfe: int
    sha256: str


def write_shard(file: Path, records: TensorDict) -> str:
    """Write records to a file; return its SHA-256."""
    columns = {name: values.detach().cpu().contiguous() for name, values in records.items()}
    write_atomically(file, lambda partial: save_file(columns, str(partial)))
    return file_hash(file)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what ``manifest.json`` holds; reject a folder without it, or one that is not what ``gather`` writes."""
    file = folder / MANIFEST
    if not file.exists():
        raise Refusal(f"{folder} holds no {MANIFEST}. Name the --out folder of a finished `dagdiff gather`.")
    content: dict[str, Any] = read_json(file)
    if content.get("format") != FORMAT:
        raise Refusal(f"{file} has the format {content.get('format')!r}, not {FORMAT}. Run `dagdiff gather` again.")
    if not all(isinstance(content.get(name), dict) for name in ("settings", "code", "shards")):
        raise Refusal(f"{file} is not what `dagdiff gather` writes. Run it again.")
    shards_of(folder, content)
    return content


def shards_of(folder: Path, manifest: Mapping[str, Any]) -> list[Shard]:
    """Return the shards that a manifest names, in their order; reject names and numbers that can't be."""
    found = []
    for name, told in sorted(manifest["shards"].items()):
        try:
            shard = Shard(name, told["source"], told["rows"], told["nfe"], told["sha256"])
            fits = shard.source in SOURCES and type(shard.rows) is type(shard.nfe) is int and shard.rows > 0
        except (TypeError, LookupError):
            fits = False
        if not fits or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise Refusal(f"{folder / MANIFEST} names a shard {name[:40]!r} that can't be. Run `dagdiff gather` again.")
        found.append(shard)
    return found


class Gathered:
    """Records made ahead, as a source of a run's.

    Args:
        folder: that ``dagdiff gather`` has filled.
        seed: of the order in which they are taken.
        device: where they are needed.
        rank: which of the run's processes this is; each takes other records.
        world_size: how many there are.

    Raises:
        Refusal: if a shard is missing, or is not the file that was written.
    """

    def __init__(
        self, folder: Path, seed: int = 0, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.seed, self.device, self.rank, self.world_size = folder, seed, device, rank, world_size
        shards = shards_of(folder, read_manifest(folder))
        for shard in shards:
            _check(folder / shard.name, shard.sha256)
        order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(seed)).tolist()
        self.shards = {source: [shards[i] for i in order if shards[i].source == source] for source in SOURCES}
        self.taken = dict.fromkeys(SOURCES, 0)
        self._open: dict[str, tuple[Shard, dict[str, Tensor], Tensor]] = {}

    def take(self, source: str, rows: int) -> Iterator[TensorDict]:
        """Yield so many records of a source that have not been taken yet, or as many as there are."""
        check_in("source", source, SOURCES)
        while rows > 0 and (place := self._place(source)):
            shard, start = place
            columns, order = self._opened(source, shard)
            chosen = order[start : start + rows]
            self.taken[source] += len(chosen)
            rows -= len(chosen)
            yield TensorDict({name: values[chosen] for name, values in columns.items()}, [len(chosen)]).to(self.device)

    @property
    def saved(self) -> int:
        """How many evaluations of the expert the records that were taken have saved the run."""
        total = 0.0
        for source, left in self.taken.items():
            for shard in self.shards[source]:
                mine = self._part(shard)
                total += shard.nfe * min(left, mine) / shard.rows
                left -= min(left, mine)
        return round(total)

    def state_dict(self) -> dict[str, int]:
        """Return how many records of each source have been taken: all that a resumed run needs."""
        return dict(self.taken)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume there."""
        self.taken = {source: int(state[source]) for source in SOURCES}

    def _part(self, shard: Shard) -> int:
        """Rows of a shard that are this process's."""
        return len(range(self.rank, shard.rows, self.world_size))

    def _place(self, source: str) -> tuple[Shard, int] | None:
        """Return the shard of the next record, and its place there; None if all have been taken."""
        left = self.taken[source]
        for shard in self.shards[source]:
            if left < self._part(shard):
                return shard, left
            left -= self._part(shard)
        return None

    def _opened(self, source: str, shard: Shard) -> tuple[dict[str, Tensor], Tensor]:
        """Return a shard's columns, memory-mapped, and the order in which this process takes its rows."""
        opened = self._open.get(source)
        if opened is None or opened[0] != shard:
            draws = torch.Generator().manual_seed(self.seed + 1_000_003 * self.shards[source].index(shard))
            order = torch.randperm(shard.rows, generator=draws)[self.rank :: self.world_size]
            self._open[source] = opened = shard, _columns(self.folder / shard.name, shard.rows), order
        return opened[1:]


def _columns(file: Path, rows: int) -> dict[str, Tensor]:
    """Map a shard's columns into memory."""
    try:
        with safe_open(str(file), framework="pt") as kept:
            columns = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise Refusal(
            f"{file} can't be read ({first_line(error)}). Delete it, and run `dagdiff gather` again."
        ) from None
    if any(len(values) != rows for values in columns.values()):
        raise Refusal(f"{file} does not hold {rows} records. Delete it, and run `dagdiff gather` again.")
    return columns


def _check(file: Path, sha256: str) -> None:
    """Reject a shard that is missing, or is not what was written."""
    try:
        status = file.stat()
        found = _hashed(file, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise Refusal(f"{file} can't be read ({error.strerror}). Run `dagdiff gather` again to make it.") from None
    if found != sha256:
        raise Refusal(f"{file} is not the file that was written: its SHA-256 differs. Delete it, and gather again.")


@lru_cache(maxsize=4096)
def _hashed(file: Path, changed: int, size: int) -> str:
    """The SHA-256 of a file of that age and size, computed once a process."""
    return file_hash(file)
