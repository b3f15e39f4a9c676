"""The checkpoints of a run: folders from which its training is resumed, written whole or not at all.

::

    checkpoints/
      round-0006/                     training as it was after six rounds
      round-0007-update-0013/         and thirteen updates into the eighth
        shared.safetensors            what all processes share: networks, optimisers, rounds so far
        process-0.safetensors         what each has of its own: generators, chains, counts
        manifest.json                 the SHA-256 of every file, and of the shards; written last
      shards/                         what never changes: a round's records of D, the best weights; written once

A checkpoint is written beside its place and moved there in one step. The newest two are kept, with the shards that they
name. One that is damaged is told and left aside for the one before.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dagdiff import engine
from dagdiff.checkpoint import file_hash, read_state, save_json, save_state, write_atomically
from dagdiff.checks import Refusal
from dagdiff.reading import read_json
from dagdiff.state import Shard

State = dict[str, Any]
"""``shared``, what all processes share; ``own``, by rank what each has of its own; other names are shared too."""

KEPT = 2
"""Checkpoints that stay."""


class Checkpoints:
    """The checkpoints in the folder of a run.

    Args:
        run: the folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"
        self.shards = self.folder / "shards"
        self._known: dict[str, str] = {}  # shards that are written whole, and their hashes

    @property
    def names(self) -> list[str]:
        """The checkpoints that there are, the oldest first."""
        return sorted(each.parent.name for each in self.folder.glob("[!.]*/manifest.json"))

    def save(self, name: str, stage: int, state: State, made: Mapping[str, str]) -> None:
        """Write a checkpoint, unless it is there; all processes call this at once.

        Args:
            name: sorts after those of earlier ones.
            stage: within which shards have names of their own.
            state: of the training in this process.
            made: versions of what the run is made with.

        Raises:
            Refusal: if it can't be written; the ones before stand.
        """
        place, aside = self.folder / name, self.folder / f".{name}"
        if name in self.names:
            return
        if engine.rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            _made(aside)
            _made(self.shards)
        _meet()
        named: dict[str, str] = {}
        for rank, own in state["own"].items():
            keep = partial(self._keep, named, f"{stage}-process-{rank}-")
            save_state(aside / f"process-{rank}.safetensors", own, keep)
        if engine.rank() == 0:
            shared = {each: state[each] for each in state if each != "own"}
            save_state(aside / "shared.safetensors", shared, partial(self._keep, named, f"{stage}-"))
        save_json(aside / f"shards-{engine.rank()}.json", named)
        _meet()
        if engine.rank() == 0:
            files = {each.name: file_hash(each) for each in sorted(aside.iterdir())}
            content = {"processes": engine.world_size(), "files": files, "made": dict(made)}
            save_json(aside / "manifest.json", content)
            _moved(aside, place)
            self._drop_old()
        _meet()

    def load(self) -> tuple[State, Mapping[str, str]] | None:
        """Return the newest checkpoint that is whole, with what it was made with; None if there is none at all.

        Raises:
            Refusal: if there are some and all are damaged.
        """
        names = self.names
        for name in reversed(names):
            place = self.folder / name
            try:
                return self._read(place)
            except Refusal as error:
                print(f"dagdiff: warning: {error} The checkpoint before it is taken.", file=sys.stderr)
        if names:
            raise Refusal(f"no checkpoint in {self.folder} is whole. Pass --fresh to start over.")
        return None

    def clear(self) -> None:
        """Delete all of them: the run is finished, or starts over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, place: Path) -> tuple[State, Mapping[str, str]]:
        """Return a checkpoint; reject one that is not as it was written."""
        manifest = read_json(place / "manifest.json")
        files, made = manifest.get("files"), manifest.get("made")
        if not isinstance(files, dict) or not isinstance(made, dict):
            raise Refusal(f"{place / 'manifest.json'} is not what a run writes.")
        count, rank = manifest.get("processes"), engine.rank()
        ranks = [rank] if count == engine.world_size() else range(int(count or 0))
        for name, digest in files.items():
            _check(place / name, digest)
        known: dict[str, str] = {}
        for each in {0, *ranks}:
            known |= read_json(place / f"shards-{each}.json")
        for name, digest in known.items():
            _check(self.shards / name, digest)
        own = {str(each): read_state(place / f"process-{each}.safetensors", self._shard) for each in ranks}
        self._known = known
        return {**read_state(place / "shared.safetensors", self._shard), "own": own}, made

    def _keep(self, named: dict[str, str], prefix: str, shard: Shard) -> str:
        """Write a shard, unless it is written; return and note the name of its file."""
        name = f"{prefix}{shard.name}.safetensors"
        if name not in self._known or not (self.shards / name).exists():
            tensors = {each: _plain(values) for each, values in shard.make().items()}
            write_atomically(self.shards / name, lambda path: save_file(tensors, str(path)))
            self._known[name] = file_hash(self.shards / name)
        named[name] = self._known[name]
        return name

    def _shard(self, name: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = load_file(str(self.shards / name))
        return found

    def _drop_old(self) -> None:
        """Delete all but the newest checkpoints, and the shards that none of these names."""
        for name in self.names[:-KEPT]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        named = {each for listed in self.folder.glob("[!.]*/shards-*.json") for each in read_json(listed)}
        for file in self.shards.iterdir():
            if file.name not in named:
                file.unlink(missing_ok=True)


def _check(file: Path, digest: str) -> None:
    """Reject a file that is not as it was written."""
    if not file.is_file() or file_hash(file) != digest:
        raise Refusal(f"{file} is damaged: its SHA-256 is not the one that was noted when it was written.")


def _plain(values: Tensor) -> Tensor:
    """A tensor as a file can hold it: whole, on the CPU, and with memory of its own."""
    return values.detach().cpu().clone().contiguous()


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} can't be written ({error.strerror or error}). Make room there.") from None


def _moved(folder: Path, place: Path) -> None:
    """Move a folder to its place, to stay there whatever happens."""
    try:
        os.replace(folder, place)
        handle = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise Refusal(f"{place} can't be written ({error.strerror or error}). Make room there.") from None


def _meet() -> None:
    """Wait until all processes are here."""
    engine.totals([0], engine.find_device("cpu"))
