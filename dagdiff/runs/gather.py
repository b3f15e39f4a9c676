"""Making the expert's answers ahead of the runs that train on them: shards of records, by many processes.

A shard's content follows from the configuration, the seed and its number, and from nothing else: it is the same however
many processes make the others, and a folder that is gathered again for more runs keeps what it has.
"""

import json
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dagdiff import __version__
from dagdiff.checkpoint import check_writable, content_hash, save_json
from dagdiff.checks import Refusal, check_at_least
from dagdiff.dagger import DAgger
from dagdiff.gathered import FORMAT, MANIFEST, read_manifest, write_shard
from dagdiff.gathering import fresh_records
from dagdiff.jobs.locks import locked
from dagdiff.jobs.shared import Job, Shared
from dagdiff.runs.config import Config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import check_labels, label_identity
from dagdiff.sealed import read_sealed
from dagdiff.versions import versions

SOURCES = ("forward", "expert")
"""The sources whose records do not depend on the student."""


class Piece(NamedTuple):
    """A shard to be made: its source, its number, and at least how many records it holds."""

    source: str
    number: int
    rows: int

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.source}-{self.number:05d}-{self.rows}"


def check_gatherable(config: Config) -> None:
    """Reject a configuration whose records can't be made ahead."""
    if config["stages"]:
        raise Refusal(f"--stages {config['stages']} change the expert on the way. Gather for one number of --steps.")
    if config["gathered"]:
        raise Refusal(f"--gathered {config['gathered']} is for runs that use records. Leave it away.")
    if config["curriculum"]["class"] == "forward-training":
        raise Refusal("--curriculum forward-training trains one step at a time, and records are of all. Take another.")


def pieces(loop: DAgger, runs: int, rows: int) -> list[Piece]:
    """Return the shards that hold what so many runs of a loop need of the sources that can be made ahead.

    Args:
        loop: that was made and not run.
        runs: how many.
        rows: of a shard, at least; those of chains are whole batches.
    """
    batch, needed = loop.learner.learning, dict.fromkeys(SOURCES, 0)
    for number, updates in enumerate(loop.updates_by_round, 1):
        shares = loop.shares.ramped(loop.shares_ramp(loop.progress(number)))
        drawn = updates * (batch.batch_size + loop.objective.critic_updates * batch.rows)
        for source in SOURCES:
            share = getattr(shares, source)
            needed[source] += fresh_records(share, drawn, batch.batch_size, loop.gathering.reuse)
    sizes = {"forward": rows, "expert": -(-rows // loop.sources.size) * loop.sources.size}
    return [
        Piece(source, number, sizes[source])
        for source in SOURCES
        for number in range(-(-runs * needed[source] // sizes[source]))
    ]


def gather(config: Config, out: Path, pool: Executor, workers: int, runs: int = 1, rows: int = 4096) -> dict[str, Any]:
    """Fill ``out`` with the records that so many runs of a configuration need; return what its manifest holds.

    Shards that are there are kept. Several commands may fill one folder.

    Args:
        config: of the runs.
        out: the folder.
        pool: what makes the shards.
        workers: how many are made at once.
        runs: how many runs' worth.
        rows: of a shard.

    Raises:
        Refusal: for a folder that holds something else, or records that these runs would not make.
    """
    check_at_least("runs", runs, 1)
    check_at_least("shard_rows", rows, 1)
    check_gatherable(config)
    _check_folder(config, out)
    loop = _loop(json.dumps(config), config["seed"])
    wanted = pieces(loop, runs, rows)
    if not wanted:
        raise Refusal(f"--shares {config['shares']} are student states alone: nothing can be made ahead. Use others.")
    records = out.absolute() / "records"
    for file in records.glob("*.json"):  # a record without its shard is of no use
        told, shard = read_sealed(file), out / f"{file.stem}.safetensors"
        if not shard.exists() or shard.stat().st_size != told.get("size"):
            file.unlink()
    jobs = {
        piece.name: Job(piece.name, make_shard, (config, piece, out.absolute()), records / f"{piece.name}.json")
        for piece in wanted
    }
    for _ in Shared(pool, workers, out.absolute() / "claims").do("shards", jobs):
        _write_manifest(config, out)
    return _write_manifest(config, out)


def make_shard(config: Config, piece: Piece, out: Path) -> dict[str, Any]:
    """Make a shard; return what the manifest says of it."""
    torch.set_num_threads(1)
    seed = int(content_hash(f"{config['seed']} {piece.source} {piece.number}")[:8], 16)
    loop = _loop(json.dumps(config), seed)
    before, parts, made = loop.expert.nfe, [], 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while made < piece.rows:
            for states in loop.sources.fresh(piece.source, piece.rows - made, 0.0):
                parts.append(loop.objective.annotate(loop.expert, states).exclude("action"))
                made += len(states)
    file = out / f"{piece.name}.safetensors"
    told = {"source": piece.source, "rows": made, "nfe": loop.expert.nfe - before}
    return {**told, "sha256": write_shard(file, torch.cat(parts)), "size": file.stat().st_size}


def _loop(config: str, seed: int) -> DAgger:
    """Return a loop whose draws are those of a seed; its networks are built once a process."""
    it = _experiment(config)
    it.settings.seed = seed
    with torch.random.fork_rng(devices=[]):
        return it.loop(it.expert, it.settings.steps)


@lru_cache(maxsize=1)
def _experiment(config: str) -> Experiment:
    return Experiment.build(json.loads(config))


def _check_folder(config: Config, out: Path) -> None:
    """Reject a folder that holds something else, or records of another configuration or seed."""
    if out.is_file():
        raise Refusal(f"--out {out} is a file. Name a folder.")
    check_writable("--out", out)
    if not (out / MANIFEST).exists():
        if out.exists() and not {file.name for file in out.iterdir()} <= {"claims", "records", "submitit"}:
            raise Refusal(f"--out {out} holds something else than records. Name a new folder, or one to continue.")
        return
    check_labels(config, out)
    seed = read_manifest(out).get("seed")
    if seed != config["seed"]:
        raise Refusal(f"--out {out} was gathered with --seed {seed}; got {config['seed']}. Name a new folder.")


def _write_manifest(config: Config, out: Path) -> dict[str, Any]:
    """Write what is there to the manifest; return it."""
    with locked(out.absolute() / "claims" / "manifest"):
        manifest: dict[str, Any] = {"format": FORMAT, "dagdiff": __version__, "versions": versions(1)}
        if (out / MANIFEST).exists():
            manifest = read_manifest(out)
        manifest |= {**label_identity(config), "seed": config["seed"], "shards": _made(out)}
        save_json(out / MANIFEST, manifest)
    return manifest


def _made(out: Path) -> Mapping[str, Any]:
    """The shards that are there, by their files."""
    files = sorted((out / "records").glob("*.json"))
    return {f"{file.stem}.safetensors": read_sealed(file) for file in files}
