"""The study: its blocks and their order, the keys of its runs, and NFE that are predicted before a run."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT

from dagdiff.benchmarks import compounding
from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.executor import run_suite
from dagdiff.benchmarks.running.nfe import predict_nfe, updates_for
from dagdiff.benchmarks.running.variants import labelled
from dagdiff.benchmarks.suites import study, toy2d
from dagdiff.benchmarks.tables import plain
from dagdiff.checks import Refusal
from dagdiff.report.glossary import OBJECTIVES
from dagdiff.report.results import IDENTITY, Results
from dagdiff.runs.config import Config, configure
from dagdiff.runs.experiment import Experiment

RESULTS = ROOT / "benchmarks" / "results"
SMALL: dict[str, Any] = {"policy": {"class": "fresh", "width": 8}, "rounds": 4, "chains": 16, "batch_size": 64}
SMALL |= {"samples": 50}


def cells(*blocks: str, **changes: Any) -> list[Cell]:
    return list(study.cells(study.Suite(blocks=list(blocks), **{"seeds": 1, "few_seeds": 1, **changes})))


def numbers(config: Config) -> tuple[float, float]:
    *_, (_, last) = Experiment.build(config).rounds()
    return last.nfe_student, last.nfe_expert


# The key of a run


@pytest.mark.parametrize(("name", "module"), [("toy2d-quick", toy2d), ("study", study)])
def test_the_committed_runs_are_still_found(name: str, module: ModuleType) -> None:
    """A changed default gives them other keys: then make them again. Those of an older version are marked instead."""
    content = json.loads((RESULTS / name / "results.json").read_text())
    if content.get("identity", 1) < IDENTITY:
        pytest.skip("made by an older version; the pages say so")
    made = {cell.entry for cell in module.cells(module.Suite(**content["settings"]))}
    assert made == {(record["config"], record["variant"], record["setup"]) for record in content["records"]}


def test_a_study_s_configuration_is_that_of_toy2d() -> None:
    """Equal runs in both suites have equal keys, though the study resolves each part only once."""
    small = toy2d.Suite(["moons-biased"], ["distribution"], ["published", "mixture"], seeds=1)
    ours = {cell.variant: cell for cell in cells("headline") if (cell.config["task"], cell.objective) == WHERE}
    theirs = {cell.variant: cell.key for cell in toy2d.cells(small)}
    assert theirs == {name: ours[name].key for name in ("published", "mixture")}


WHERE = ("moons-biased", "distribution")


# The blocks


def test_every_cell_comes_once_and_the_headline_first() -> None:
    found = list(study.cells(study.Suite()))
    assert len({cell.entry for cell in found}) == len(found) == 1296
    assert len({cell.key for cell in found}) == 1076
    assert {cell.variant for cell in found[:600]} == {"forward", "published", "mixture"}
    assert [cell.config["seed"] for cell in found[:600:120]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("block", "tasks", "variants", "steps"),
    [
        ("sources", 1, {"forward", "student", "expert", "mixture", "forward-box", "mixture-box"}, {4}),
        ("steps", 1, {"forward", "published", "mixture"}, {1, 2, 4, 8}),
        ("equal-nfe", 5, {"forward", "published", "mixture"}, {4}),
        ("teachers", 1, {"forward", "mixture"}, {4}),
        ("thresholds", 1, {"mixture", "mixture-box", "mixture-dynamic", "mixture-quantile", "mixture-fold"}, {4}),
        ("shares", 1, {"forward", "student", "expert", "mixture", *study.MIXES}, {4}),
    ],
)
def test_blocks(block: str, tasks: int, variants: set[str], steps: set[int]) -> None:
    found = cells(block)
    assert {cell.variant for cell in found} == variants and {cell.config["steps"] for cell in found} == steps
    assert len({cell.config["task"] for cell in found}) == tasks
    assert len(found) == 3 * tasks * len(variants) * len(steps)


def test_dmd2_is_not_shown_scarce_sets_that_it_never_looks_at() -> None:
    found = cells("headline")
    assert len({cell.config["task"] for cell in found}) == 15
    assert {cell.config["task"].split("-")[1] for cell in found if cell.objective == "distribution"} == {
        "matched",
        "biased",
    }
    assert len(found) == 3 * (2 * 15 + 10)


def test_critics_differ_in_the_objective_alone() -> None:
    found = [cell for cell in cells("critic") if cell.config["task"] == "grid25-matched"]
    assert [cell.about for cell in found] == ["", *study.CRITICS]
    plain, *others = (cell.config for cell in found)
    for config, own in zip(others, study.CRITICS.values(), strict=True):
        assert config == {**plain, "objective": {**plain["objective"], **own}} != plain


def test_schedules_are_the_default_and_what_is_named_beside_it() -> None:
    found = [
        cell for cell in cells("schedules") if (cell.config["task"], cell.objective) == ("grid25-biased", "progressive")
    ]
    plain, *others = found
    assert plain.key in {cell.key for cell in cells("headline")} and len({cell.setup for cell in found}) == 1
    assert [cell.variant for cell in others] == [name for name, own in study.SCHEDULES.items() if own]
    for cell in others:
        ((part, told),) = study.SCHEDULES[cell.variant].items()
        assert cell.config == {**plain.config, part: told} == {**plain.config, part: configure({part: told})[part]}


def test_what_a_block_changes_is_in_the_configuration() -> None:
    thresholds = {cell.variant: cell.config["threshold"] for cell in cells("thresholds")}
    names = ["none", "box", "dynamic-box", "quantile", "fold-box"]
    assert [each["class"] for each in thresholds.values()] == names
    assert not any("bound" in each or "high" in each for each in thresholds.values())  # the task tells its scale
    assert {cell.config["expert"]["class"] for cell in cells("teachers")} == {"learned"}
    shares = {tuple(cell.config["shares"]) for cell in cells("shares")}
    assert len(shares) == 10 and {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)} < shares


def test_comparisons_are_kept_apart_and_their_variants_together() -> None:
    found = [cell for cell in cells("headline", "teachers", "equal-nfe") if cell.config["task"] == "imbalanced-biased"]
    for objective in study.OBJECTIVES:
        setups = {(cell.about, cell.setup) for cell in found if cell.objective == objective}
        assert sorted(about for about, _ in setups) == ["", "equal NFE", "learned expert"]
        assert len({setup for _, setup in setups}) == 3
    equal = {cell.variant: cell.config["updates"] for cell in found if cell.about == "equal NFE"}
    assert equal["forward"] == 1200 and len(set(equal.values())) > 1


def test_refusals() -> None:
    with pytest.raises(Refusal, match=r"unknown block 'header'\. Did you mean 'headline'"):
        cells("header")
    with pytest.raises(Refusal, match="--blocks is empty"):
        cells()
    with pytest.raises(Refusal, match="few_seeds must be at least 1"):
        cells("steps", few_seeds=0)
    for name, cure in {"expert": "--blocks", "updates": "--updates", "seed": "--few_seeds"}.items():
        with pytest.raises(Refusal, match=f"may not hold '{name}'.*{cure}"):
            cells("steps", settings={name: 3})


# Network evaluations


@pytest.mark.parametrize("objective", study.OBJECTIVES)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shares": [1, 0, 0]},
        {"reuse": 1.0},
        {"reuse": 2.5, "chains": 8},
        {"shares": [0, 1, 0]},
        {"shares": [0, 0, 1], "substeps": 1},
        {"beta": {"class": "linear", "start": 1.0, "end": 0.0}, "shares_ramp": "linear"},
        {"task": "gaussians8-matched-labelled", "guidance": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("updates", [8, 11])
def test_predicted_nfe_are_the_ledgers(objective: str, change: dict[str, Any], updates: int) -> None:
    config = configure({**SMALL, "objective": objective, "updates": updates, "heldout": 0, "device": "cpu", **change})
    config = labelled(config, "published")
    assert numbers(config) == predict_nfe(config)[:2]


@pytest.mark.parametrize("objective", ["consistency", "distribution"])
@pytest.mark.parametrize("change", [{}, {"shares": [1, 0, 0]}, {"beta": 1.0, "substeps": 5}], ids=str)
def test_labels_whose_length_is_drawn_are_predicted_on_average(objective: str, change: dict[str, Any]) -> None:
    many = {**SMALL, "batch_size": 256, "chains": 64, "updates": 8, "heldout": 0, "device": "cpu"}
    config = configure({**many, "objective": objective, **change})
    student, expert = numbers(config)
    predicted = predict_nfe(config)
    assert student == predicted.student and expert == pytest.approx(predicted.expert, rel=0.05)


def test_equal_nfe_are_equal_where_it_counts() -> None:
    found = cells("equal-nfe", settings=SMALL, updates=400)
    totals: dict[tuple[str, str], list[float]] = {}
    for cell in found:
        totals.setdefault((cell.config["task"], cell.objective), []).append(predict_nfe(cell.config).total)
    assert all(max(each) / min(each) < 1.02 for each in totals.values())


def test_nfe_that_cannot_be_known() -> None:
    mine = configure({**SMALL, "objective": "dagdiff.objectives.Objective"})
    with pytest.raises(Refusal, match=r"what objective .* will ask of the expert is not known"):
        predict_nfe(mine)
    with pytest.raises(Refusal, match=r"stages \[8, 4\] change the expert"):
        predict_nfe(configure({**SMALL, "stages": [8, 4]}))
    with pytest.raises(Refusal, match=r"what curriculum 'adaptive' will ask is not known"):
        predict_nfe(configure({**SMALL, "curriculum": "adaptive"}))
    with pytest.raises(Refusal, match=r"more than 10\. Take fewer rounds"):
        updates_for(configure(SMALL), 10.0)


# A run


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "out"


@pytest.mark.slow
def test_the_study_runs_block_by_block(quick: Path) -> None:
    """A block more adds its runs; a run that two blocks share is made once."""
    wanted = study.Suite(blocks=["thresholds"], seeds=1, few_seeds=1, updates=4, settings=SMALL)
    first = run_suite(study, wanted, quick)
    assert len(first["records"]) == 15 and not first["failures"]
    second = run_suite(study, dataclasses.replace(wanted, blocks=["thresholds", "sources"]), quick)
    assert len(second["records"]) == 15 + 18 - 6
    before, after = (
        {(record["config"], record["seconds"]) for record in found["records"]} for found in (first, second)
    )
    assert before <= after, "what was there was not run again"


def test_the_table_of_causes_takes_the_kept_gaps_apart() -> None:
    """Loss on student states = loss on forward states + data mismatch + own errors."""
    rows = Results.load(ROOT / "benchmarks/results/study").rows
    lines = [line.split("|")[1:-1] for line in compounding.by_cause(rows).splitlines()[2:]]
    assert len(lines) == 15
    found = {(row.task, OBJECTIVES[row.objective]): row for row in plain(rows).values() if row.variant == "forward"}
    for task, objective, *cells in lines:
        parts = [float(cell.split("[")[0]) for cell in cells]
        own = found[f"{task.strip()}-biased", objective.strip()].metrics["loss_own"]
        assert own and sum(parts) == pytest.approx(1e3 * own.mean, abs=0.02)
