"""A run that is stopped and resumed is the run that was never stopped, bit for bit; and it is refused otherwise."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same, state

from dagdiff.checks import Refusal
from dagdiff.jobs.stops import Stopped
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run
from dagdiff.runs.keeping import Keeper

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 8, "depth": 2}, "updates": 6, "rounds": 3, "chains": 4, "batch_size": 8,
    "heldout": 4, "samples": 20, "device": "cpu", "substeps": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def experiment(**changes: Any) -> Experiment:
    return Experiment.build(configure({**SMALL, **changes}))


def stopped(made: Experiment, out: Path, place: int) -> None:
    """Run until the state is asked about for that time, counted from 0: before a round, or after an update."""
    seen = 0

    def watch(keeper: Keeper) -> None:
        nonlocal seen
        seen += 1
        if seen > place:
            keeper.save()
            raise Stopped("here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "watch", watch)
        with pytest.raises(Stopped, match="here"):
            distil(made, out, progress=False)


def kept(out: Path) -> dict[str, Any]:
    """What a finished run has kept, but for times of the clock."""
    rows = list(csv.DictReader((out / "rounds.csv").read_text().splitlines()))
    report = json.loads((out / "metrics.json").read_text())
    files = sorted(str(each.relative_to(out)) for each in out.rglob("*"))
    weights = {each.name: each.read_bytes() for each in out.glob("*.safetensors")}
    scalars = {each.name: each.read_text() for each in out.glob("log/scalars/*.csv") if each.name != "seconds.csv"}
    return {
        "rounds": [{**row, "seconds": None} for row in rows],
        "report": {**report, "seconds": None},
        "student": (out / "student.json").read_text(),
        "samples": (out / "samples.png").read_bytes(),
        "files": files,
        **weights,
        **scalars,
    }


CASES: dict[str, dict[str, Any]] = {
    "progressive": {},
    "consistency": {"objective": "consistency"},
    "distribution": {"objective": "distribution"},
    "with a head": {"objective": {"class": "distribution", "gan_weight": 1e-3}, "accumulate": 2},
    "gaussian": {"objective": "gaussian-kl", "lr_ramp": "cosine"},
    "dart": {"driver": "dart", "shares": [0.25, 0.0, 0.75]},
    "gate": {"driver": {"class": "gate", "budget": 0.5}},
    "per chain": {"per_chain": True, "beta": {"class": "constant", "value": 0.5}},
    "coaching": {"curriculum": "coaching"},
    "cost to go": {"curriculum": {"class": "cost-to-go", "chains": 4}},
    "adaptive": {"curriculum": "adaptive"},
    "forward training": {"curriculum": "forward-training", "stepwise": True, "steps": 3, "shares": [0.0, 1.0, 0.0]},
    "stages": {"stages": [4, 2], "updates": 4, "rounds": 2},
    "average": {"ema": 0.9, "rounds_kept": 1},
    "labelled": {"task": "gaussians8-biased-labelled", "guidance": 2.0},
    "nothing held out": {"heldout": 0, "max_age": 2},
    "rollback": {"on_nonfinite": "rollback"},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(case: str, tmp_path: Path) -> None:
    """Stopped within the second round, and again where another one begins."""
    changes = CASES[case]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    distil(experiment(**changes), whole, progress=False)
    for place in (4, 2):
        stopped(experiment(**changes), parted, place)
    made = experiment(**changes)
    distil(made, parted, progress=False)
    first, second = kept(whole), kept(parted)
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert content == second[name], name
    assert same(state(made.student), state(open_run(parted, "cpu").student))
