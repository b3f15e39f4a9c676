"""Runs made again: equal here, and elsewhere within what seeds do."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagdiff.benchmarks import suite, toy2d
from dagdiff.benchmarks.suite import Cell
from dagdiff.benchmarks.verify import compare, verify
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.results import Record, Results

SMALL: dict[str, Any] = {"policy": {"class": "fresh", "width": 8}, "rounds": 2, "chains": 8, "batch_size": 16}
SMALL |= {"samples": 50}
WANTED = toy2d.Suite(["gaussians8-biased"], ["progressive"], ["forward", "base", "ddil"], seeds=2, updates=4)
WANTED = dataclasses.replace(WANTED, settings=SMALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, made in this process and without figures."""
    out = tmp_path_factory.mktemp("verify")
    cells = list(toy2d.cells(WANTED))
    records = [{**suite.run_cell(cell, out), **cell.labels} for cell in cells]
    content = {"suite": "toy2d", "dagdiff": "0", "settings": dataclasses.asdict(WANTED), "records": records}
    yardstick = suite.refer(cells[0], out)
    (out / "results.json").write_text(json.dumps({**content, "references": {"gaussians8-biased": yardstick}}))
    return out


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield


def record(seed: int, energy: float, **changes: Any) -> Record:
    plain = {"task": "t", "objective": "o", "variant": "ddil", "steps": 4, "shares": [0.0, 1.0, 0.0], "updates": 4}
    costs = {"nfe_student": 1, "nfe_expert": 1, "seconds": 1.0, "setup": "", "config": f"{seed}", "samples": ""}
    return Record(**{**plain, **costs, "seed": seed, "metrics": {"energy": energy}, "by_step": {}, **changes})


CELL = Cell("o", "ddil", {"task": "t", "steps": 4, "seed": 0})
ROW = [record(0, 1.0), record(1, 1.1), record(2, 0.9), record(0, 50.0, variant="forward"), record(0, 9.0, setup="x")]


@pytest.mark.parametrize(
    ("energy", "told"),
    [
        (1.0, "equal"),
        (1.000004, "equal"),  # committed results are rounded
        (1.29, "within the spread of 3 seeds, not equal in 1 metrics"),
        (1.31, "DISAGREES in energy 1.31 (kept 1; 1 +- 0.1 over 3 seeds)"),
        (float("nan"), "DISAGREES in energy nan"),
    ],
)
def test_the_rule(energy: float, told: str) -> None:
    assert told in str(compare(CELL, {"energy": energy}, ROW[0], ROW))


def test_without_a_spread_only_a_thousandth_is_allowed() -> None:
    assert not compare(CELL, {"energy": 1.0009}, ROW[0], ROW[:1]).wrong
    assert compare(CELL, {"energy": 1.002}, ROW[0], ROW[:1]).wrong


def test_on_this_machine_runs_are_equal(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in made.rglob("*"))
    assert main(["bench", "toy2d", "--out", str(made), "--verify", "3", "--verify_seed", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(set(told)) == 3 and all(line.endswith(": equal") for line in told)
    assert sorted(path.name for path in made.rglob("*")) == before


def test_a_run_that_disagrees_is_told_and_the_status_is_2(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((made / "results.json").read_text())
    for kept in content["records"]:
        kept["metrics"]["energy"] += 1.0
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main(["bench", "toy2d", "--out", str(tmp_path), "--verify", "9"]) == 2
    told, complained = capsys.readouterr()
    assert len(told.splitlines()) == 4 and "DISAGREES in energy" in told  # 6 records, 4 runs
    assert "4 of 4 runs disagree" in complained


def test_refusals(made: Path) -> None:
    results = Results.load(made)
    with pytest.raises(Refusal, match="holds no run of this configuration"):
        verify(list(toy2d.cells(dataclasses.replace(WANTED, updates=6))), results, 1)
    with pytest.raises(Refusal, match="verify must be at least 1"):
        verify([], results, -1)
