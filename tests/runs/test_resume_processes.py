"""A run resumed by another number of processes: weights, optimisers and averages are exact, D is shared out evenly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, same, state

from dagdiff import engine
from dagdiff.checkpoint import read_state, save_state
from dagdiff.dagger import DAgger
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.standing import flat

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 8, "depth": 2}, "updates": 8, "rounds": 4, "chains": 4, "batch_size": 8,
    "heldout": 4, "samples": 20, "device": "cpu", "substeps": 2, "ema": 0.9,
}  # fmt: skip


class Here(Exception):
    """The place is reached."""


def told(seed: int, place: Path, updates: int = 5) -> dict[str, Any]:
    """The state of a run after so many updates, the fifth being the first of the third round, as a file tells it."""
    training = Experiment.build(configure({**SMALL, "seed": seed})).training()

    def watch() -> None:
        loop = training.loop
        assert loop is not None
        if loop.learner.updates + len(loop.logs) == updates and loop.logs:
            raise Here

    training.watch = watch
    with pytest.raises(Here):
        list(training)
    shards: dict[str, Any] = {}
    save_state(place, training.state_dict(), lambda shard: shards.setdefault(shard.name, shard.make()) and shard.name)
    found: dict[str, Any] = read_state(place, shards.__getitem__)
    return found


def resumed(found: dict[str, Any], rank: int, size: int, monkeypatch: pytest.MonkeyPatch) -> DAgger:
    """The loop of one of so many processes, as it is after taking the state."""
    training = Experiment.build(configure(SMALL)).training()
    training.load_state_dict(found)
    loop = training.make(training.expert, 4)
    loop.load_state_dict(found)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "rank", lambda: rank)
        patch.setattr(engine, "world_size", lambda: size)
        list(loop._replay())
    return loop


def records(loop: DAgger, source: str) -> set[tuple[float, ...]]:
    return {tuple(row) for row in loop.aggregate.records(source)["x_t"].tolist()}


@pytest.mark.parametrize("size", [1, 3, 4])
def test_two_become_another_number(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = told(0, tmp_path / "a"), told(1, tmp_path / "b")
    both = {**first, "own": {"0": first["own"]["0"], "1": second["own"]["0"]}}
    both["shared"] = {**first["shared"], "processes": 2}
    loops = [resumed(both, rank, size, monkeypatch) for rank in range(size)]
    weights = first["shared"]["learner"]
    for loop in loops:
        assert same(state(loop.student), weights["network"])
        assert same(state(loop.learner.averaged), weights["averaged"])  # type: ignore[arg-type]
        now, then = flat({"": loop.learner.optimiser.state_dict()["state"]}), flat({"": weights["optimiser"]["state"]})
        assert all(torch.equal(torch.as_tensor(now[name]), torch.as_tensor(then[name])) for name in now)
        assert len(loop.made) == 2 and len(loop.logs) == 1
    for source in ("forward", "student", "expert"):
        parts = [records(loop, source) for loop in loops]
        whole = set.union(*parts)
        assert len(whole) == sum(map(len, parts)), "no record is in two parts"
        assert max(map(len, parts)) - min(map(len, parts)) <= 3, "a round is split to the record"
        held = [each["own"]["0"]["aggregate"]["windows"][source]["records"] for each in (first, second)]
        assert whole == {tuple(row) for columns in (*held[0], *held[1]) for row in columns["x_t"].tolist()}
    spent = [sum(each["own"]["0"]["evaluations"][kind] for each in (first, second)) for kind in (0, 1)]
    assert sum(loop.ledger.nfe for loop in loops) == spent[0]
    assert sum(loop.expert.nfe - loop._nfe_before for loop in loops) == spent[1]
    drawn = [torch.rand(3, generator=loop.generator).tolist() for loop in loops]
    assert len({str(each) for each in drawn}) == size, "each draws on its own"
    again = resumed(both, 0, size, monkeypatch)
    assert torch.rand(3, generator=again.generator).tolist() == drawn[0], "and as the seed says"


PROGRAM = """
import sys
from pathlib import Path
import torch
from dagdiff import engine
from dagdiff.checkpoint import read_state
from dagdiff.jobs.stops import Stopped
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil
from dagdiff.runs.keeping import Keeper

out, place, seen = Path(sys.argv[1]), int(sys.argv[2]), 0
newest = sorted(out.glob("checkpoints/*/shared.safetensors"))

def watch(keeper):
    global seen
    if seen == 0 and newest:
        before = read_state(newest[-1], lambda name: {})["shared"]["learner"]["network"]
        now = keeper.training.loop.student.state_dict()
        assert all(torch.equal(now[name], before[name]) for name in before)
    if seen == place:
        keeper.save()
        raise Stopped("here")
    seen += 1

Keeper.watch = watch
chosen = configure(SETTINGS)
with engine.joined(chosen, lambda: Experiment.build(chosen)):
    try:
        distil(Experiment.build(chosen), out, progress=False)
    except Stopped:
        pass
"""


@pytest.mark.slow
def test_two_then_one_then_four(tmp_path: Path) -> None:
    """Real processes: stopped in two between rounds, resumed and stopped in one, finished in four."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("SETTINGS", repr(SMALL)))
    environment = {**os.environ, "DAGDIFF_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for size, place in ((2, 3), (1, 3), (4, 1000)):
        words = [str(program), str(tmp_path / "out"), str(place)]
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
        done = subprocess.run(
            [sys.executable, *start, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / "out/manifest.json").exists() == (size == 4)
    assert len((tmp_path / "out/rounds.csv").read_text().splitlines()) == 5
