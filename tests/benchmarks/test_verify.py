"""Runs made again: equal here, and elsewhere within what seeds do."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from dagdiff.benchmarks.running import executor, folder
from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.verify import Compared, Verified, compare, conclude, correct, verify
from dagdiff.benchmarks.suites import toy2d
from dagdiff.checkpoint import save_json
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.metrics.statistics import chance_of_draw
from dagdiff.report.records import Record
from dagdiff.report.results import Results

SMALL: dict[str, Any] = {"policy": {"class": "fresh", "width": 8}, "rounds": 2, "chains": 8, "batch_size": 16}
SMALL |= {"samples": 50}
WANTED = toy2d.Suite(["gaussians8-biased"], ["progressive"], ["forward", "published", "mixture"], seeds=2, updates=4)
WANTED = dataclasses.replace(WANTED, settings=SMALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, made in this process and without figures."""
    out = tmp_path_factory.mktemp("verify")
    content, cells = folder.open_results(out, "toy2d"), list(toy2d.cells(WANTED))
    content["settings"] = dataclasses.asdict(WANTED)
    content["records"] = [{**executor.run_cell(cell, out), **cell.labels} for cell in cells]
    content["references"] = {"gaussians8-biased": executor.refer(cells[0], out)}
    save_json(out / "results.json", content)
    return out


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield


def record(seed: int, energy: float, **changes: Any) -> Record:
    plain = {"task": "t", "objective": "o", "variant": "mixture", "steps": 4, "shares": [0.0, 1.0, 0.0], "updates": 4}
    costs = {"nfe_student": 1, "nfe_expert": 1, "seconds": 1.0, "setup": "", "config": f"{seed}", "samples": ""}
    return Record(**{**plain, **costs, "seed": seed, "metrics": {"energy": energy}, "by_step": {}, **changes})


CELL = Cell("o", "mixture", {"task": "t", "steps": 4, "seed": 0})
ROW = [record(0, 1.0), record(1, 1.1), record(2, 0.9), record(0, 50.0, variant="forward"), record(0, 9.0, setup="x")]


def again(energy: float, row: list[Record] = ROW) -> Verified:
    """The row's first run made again, with another energy, in a call of its own."""
    (found,) = correct([Verified(CELL, compare({"energy": energy}, row[0], row))])
    return found


@pytest.mark.parametrize(
    ("energy", "told"),
    [
        (1.0, "equal"),
        (1.000004, "equal"),  # committed results are rounded
        (
            1.5,
            "within chance, not equal in 1 of 1 metrics; farthest: energy 1.5, kept 1 (+0.5); 1 +- 0.1 over 3 seeds, "
            "by chance 0.049 (0.049 alone)",
        ),
        (2.5, "DISAGREES in energy 2.5, kept 1 (+1.5); 1 +- 0.1 over 3 seeds, by chance 0.0059"),
        (float("nan"), "DISAGREES in energy nan"),
    ],
)
def test_the_rule(energy: float, told: str) -> None:
    assert told in str(again(energy))


def test_one_seed_tells_equality_alone() -> None:
    assert str(again(1.0, ROW[:1])).endswith(": equal")
    assert "DISAGREES in energy nan" in str(again(float("nan"), ROW[:1]))
    moved = again(70.0, ROW[:1])
    assert not moved.wrong and "not tested, not equal in 1 of 1 metrics; farthest: energy 70, kept 1 (+69)" in str(
        moved
    )
    assert "nothing can be tested but equality" in conclude([moved])


def test_seeds_that_agree_have_the_least_spread() -> None:
    """A share that is 1 in every row, or a count that is 0, may change by what a sample more or less makes."""
    for constant in (1.0, 0.0):
        row = [record(seed, constant) for seed in range(5)]
        assert not again(constant + 0.002, row).wrong
        assert again(constant + 0.1, row).wrong


def test_metrics_without_a_kept_number_are_left_out() -> None:
    row = [record(seed, float("nan")) for seed in range(3)]
    assert compare({"energy": 1.0}, row[0], row) == ()


def null(random: np.random.Generator, runs: int, seeds: int, metrics: int) -> list[Verified]:
    """Runs of the law of their rows: metrics that hang together, some of them much, at scales of their own."""
    found = []
    for number in range(runs):
        mixing = random.normal(size=(metrics, metrics)) * 10.0 ** random.integers(-4, 2, size=(metrics, 1))
        values = 1.0 + random.normal(size=(seeds + 1, metrics)) @ mixing.T
        names = [f"m{place}" for place in range(metrics)]
        drawn = [dict(zip(names, row, strict=True)) for row in values.tolist()]
        row = [record(seed, 0.0, variant=f"{number}", metrics=drawn[seed]) for seed in range(seeds)]
        found.append(Verified(CELL, compare(drawn[-1], row[0], row)))
    return found


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_call_errs_as_seldom_as_it_says(seeds: int) -> None:
    """Of 200 calls of 12 runs and 14 metrics 2 should give a false alarm; 8 would be one chance in a thousand."""
    random = np.random.default_rng(seeds)
    alarms = sum(any(run.wrong for run in correct(null(random, 12, seeds, 14))) for _ in range(200))
    single = [metric.alone < 0.01 for run in null(random, 200, seeds, 14) for metric in run.metrics]
    assert alarms <= 7
    assert 0.003 < sum(single) / len(single) < 0.02  # one by one they err at the level: the correction is what helps


def test_a_gross_difference_is_found_among_many() -> None:
    runs = null(np.random.default_rng(0), 12, 5, 14)
    far = [replace_new(metric, metric.mean + 60 * metric.spread) for metric in runs[3].metrics[:1]]
    runs[3] = dataclasses.replace(runs[3], metrics=(*far, *runs[3].metrics[1:]))
    found = correct(runs)
    assert [bool(run.wrong) for run in found] == [place == 3 for place in range(12)]
    assert [metric.name for metric in found[3].wrong] == ["m0"]
    told = conclude(found)
    assert told.startswith("12 runs: 11 within chance, 1 DISAGREES. 168 metrics tested together")
    assert "a false alarm has a chance of 1% at most" in told
    assert "With 5 seeds, less than 19 standard deviations can't be told from chance." in told


def replace_new(metric: Compared, new: float) -> Compared:
    chance = chance_of_draw(new, metric.mean, metric.spread, metric.seeds)
    return dataclasses.replace(metric, new=new, alone=chance)


def test_seeds_of_the_study_are_draws_of_one_law() -> None:
    """The rule holds for what runs give: each seed against the others of its row errs about as often as it should."""
    results = Results.load(ROOT / "benchmarks/results/study")
    chances = []
    for row in results.rows:
        if len(row.records) == results.settings["seeds"] and row.variant != "published":
            for one in row.records:
                rest = [other for other in row.records if other is not one]
                chances += [metric.alone for metric in compare(one.metrics, rest[0], rest)]
    assert len(chances) > 3000
    assert 0.003 < sum(chance < 0.01 for chance in chances) / len(chances) < 0.02


def test_on_this_machine_runs_are_equal(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in made.rglob("*"))
    assert main(["bench", "toy2d", "--out", str(made), "--verify", "3", "--verify_seed", "1"]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    assert len(told) == len(set(told)) == 3 and all(line.endswith(": equal") for line in told)
    assert last.startswith("3 runs: 3 equal. ")
    assert sorted(path.name for path in made.rglob("*")) == before


def test_a_run_that_disagrees_is_told_and_the_status_is_2(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((made / "results.json").read_text())
    more = [
        {**kept, "seed": kept["seed"] + 2 * number, "config": f"{kept['config']}-{number}"}
        for number in range(1, 4)
        for kept in content["records"]
    ]
    content["records"] = [{**kept, "metrics": {**kept["metrics"], "energy": 9.0}} for kept in content["records"] + more]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main(["bench", "toy2d", "--out", str(tmp_path), "--verify", "9"]) == 2
    told, complained = capsys.readouterr()
    assert len(told.splitlines()) == 5 and told.count("DISAGREES in energy") == 4  # 6 of 24 records, 4 runs
    assert "4 runs: 4 DISAGREES. " in told
    assert "4 of 4 runs disagree" in complained


def test_refusals(made: Path) -> None:
    results = Results.load(made)
    with pytest.raises(Refusal, match="holds no run of this suite's settings"):
        verify(list(toy2d.cells(dataclasses.replace(WANTED, updates=6))), results, 1)
    with pytest.raises(Refusal, match="was made by another version of dagdiff"):
        verify(list(toy2d.cells(WANTED)), dataclasses.replace(results, identity=1), 1)
    with pytest.raises(Refusal, match="verify must be at least 1"):
        verify([], results, -1)
