"""The label suite: its cells, its refusals, and the tables made from a small run of it."""

import dataclasses
from pathlib import Path

import pytest

from dagdiff.benchmarks import compounding
from dagdiff.benchmarks.running.nfe import predict_nfe
from dagdiff.benchmarks.suites.labels import ENDS, QUICK, SOURCES, Suite, cells
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.report.results import Results
from dagdiff.report.verdict import level


def test_labels_differ_in_the_walk_alone() -> None:
    walk = ("objective", "substeps", "solver")
    for objective in ENDS:
        chosen = [cell for cell in cells(Suite(blocks=["ends"], seeds=1)) if cell.objective == objective]
        for task in {cell.config["task"] for cell in chosen}:
            rest = [
                {name: value for name, value in cell.config.items() if name not in walk}
                for cell in chosen
                if cell.config["task"] == task
            ]
            assert len(rest) == len(ENDS[objective]) and all(each == rest[0] for each in rest)
            assert len({cell.setup for cell in chosen if cell.config["task"] == task}) == 1, "they are compared"


def test_sources_differ_in_their_states_alone() -> None:
    found = [cell for cell in cells(Suite(blocks=["sources"], tasks=["digits-biased"], seeds=1))]
    assert [cell.variant for cell in found] == list(SOURCES)
    rest = [{name: value for name, value in cell.config.items() if name != "shares"} for cell in found]
    assert all(each == rest[0] for each in rest) and len({tuple(cell.config["shares"]) for cell in found}) == 5
    assert rest[0]["objective"]["label_end"] == "data" and rest[0]["samples"] == 1796


def test_long_runs_are_as_long_as_they_say() -> None:
    found = list(cells(Suite(blocks=["long"], tasks=["gaussians8-matched"], seeds=1, updates=100)))
    assert [cell.config["updates"] for cell in found] == [100, 100, 400, 400, 1600, 1600]
    assert {cell.about for cell in found} == {"100 updates", "400 updates", "1,600 updates"}


def test_priced_runs_cost_the_same_at_their_price() -> None:
    for price in (1, 10):
        found = [cell for cell in cells(Suite(blocks=["price"], seeds=1)) if cell.about == f"price {price}"]
        costs = [predict_nfe(cell.config).at(price) for cell in found]
        assert max(costs) < 1.1 * min(costs)
        tasks = {cell.config["task"] for cell in found}
        assert len({(cell.config["task"], cell.setup) for cell in found}) == len(tasks), "compared with each other"
    updates = {cell.variant: cell.config["updates"] for cell in found}
    assert updates["one step"] > updates["data, 8"] > updates["data, 16"] == 400


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blocks": []}, "--blocks is empty"),
        ({"blocks": ["end"]}, "ends"),
        ({"objectives": ["pd"]}, "progressive"),
        ({"seeds": 0}, "seeds"),
        ({"settings": {"solver": "heun"}}, "--blocks"),
    ],
)
def test_what_can_not_be_is_refused(change: dict, told: str) -> None:
    with pytest.raises(Refusal, match=told):
        list(cells(dataclasses.replace(QUICK, **change)))


def test_a_small_run_fills_both_tables(tmp_path: Path) -> None:
    small = '{"samples":40,"chains":8,"batch_size":8,"rounds":1,"policy":"fresh"}'
    of = "--blocks ends,sources --tasks gaussians8-biased --objectives consistency --seeds 1 --updates 2"
    words = f"bench labels {of} --settings {small}"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    rows = Results.load(tmp_path).rows
    labels, sources = (make(rows).splitlines() for make in (compounding.by_label, compounding.by_source))
    assert labels[0] == sources[0] == "|  | gaussians8, biased | expert evaluations |"
    assert [line.split("|")[1].strip() for line in labels[2:]] == [f"LCM, {name}" for name in ENDS["consistency"]]
    assert len(sources) == 2 + len(SOURCES)
    whole = {line.split("|")[1].strip(): line.split("|")[2:] for line in [*labels, *sources]}
    assert whole["LCM, data, 16"] == whole["mixture 25/50/25"], "the same runs"


def test_a_table_of_lengths_shows_what_each_cost(tmp_path: Path) -> None:
    small = '{"samples":40,"chains":8,"batch_size":8,"rounds":1,"policy":"fresh"}'
    words = f"bench labels --blocks long --tasks gaussians8-biased --seeds 1 --updates 2 --settings {small}"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    found = Results.load(tmp_path)
    lines = compounding.by_drift(found.rows).splitlines()[2:]
    assert lines[0] == "| label | 2 updates | 8 updates | 32 updates | the expert in its place |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["one step", "data, 16"]
    last = found.records[-1]
    shown = [level(scores["energy"], "energy") for scores in (last.metrics, last.expert)]
    assert f"| {shown[0]}; {last.nfe_expert / 1e3:,.0f} k; {last.seconds:.0f} s |" in lines[3]
    assert lines[3].endswith(f"| {shown[1]} |")
