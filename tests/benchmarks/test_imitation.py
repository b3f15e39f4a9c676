"""The imitation suite: each variant differs from its baseline in what it names, and every cell can be run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dagdiff.benchmarks.running import executor
from dagdiff.benchmarks.running.executor import run_suite
from dagdiff.benchmarks.suites import imitation
from dagdiff.benchmarks.suites.imitation import QUICK, VARIANTS, Suite
from dagdiff.benchmarks.tables import at_equal_evaluations
from dagdiff.checks import Refusal
from dagdiff.report.page import write_report
from dagdiff.report.results import Results
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run

TINY: dict[str, Any] = {"samples": 50, "rounds": 4, "chains": 8, "batch_size": 16}


def tiny(**changes: Any) -> Suite:
    return dataclasses.replace(QUICK, updates=4, settings=TINY, **changes)


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def test_variants_differ_from_their_baseline_in_what_they_are_alone() -> None:
    found = {cell.variant: cell for cell in imitation.cells(tiny())}
    assert list(found) == list(VARIANTS)
    forward, mixture = found["forward"].config, found["mixture"].config
    assert differing(forward, mixture) == {"shares"}
    for variant, cell in found.items():
        base = forward if cell.config["shares"] == forward["shares"] else mixture
        assert differing(cell.config, base) == set(VARIANTS[variant]) - ({"shares"} if base is forward else set()) or (
            differing(cell.config, mixture) == set(VARIANTS[variant]) - {"shares"}
        )


def test_plain_variants_are_runs_of_the_default_configuration() -> None:
    cell = next(cell for cell in imitation.cells(tiny(variants=["mixture"])))
    chosen = {
        "shares": [0.25, 0.5, 0.25],
        "task": QUICK.tasks[0],
        "policy": "fresh",
        "heldout": 0,
        "device": "cpu",
        "updates": 4,
        **TINY,
    }
    assert cell.config == configure(chosen)


def test_variants_of_one_student_are_compared_and_those_of_another_are_not() -> None:
    found = list(imitation.cells(tiny(students=["teacher", "fresh"], variants=["forward", "gate", "gaussian-kl"])))
    assert {cell.about for cell in found} == {"teacher student", "fresh student"}
    for about in ("teacher student", "fresh student"):
        assert len({cell.setup for cell in found if cell.about == about}) == 1
    assert len({cell.setup for cell in found}) == 2
    assert len({cell.key for cell in found}) == len(found)


def test_other_objectives_leave_out_what_progressive_distillation_needs() -> None:
    found = [cell.variant for cell in imitation.cells(tiny(objectives=["consistency"]))]
    assert found == ["forward", "mixture", "bc", "dagger", "dart", "gate", "input-perturbation", "adaptive"]


def test_the_number_of_runs() -> None:
    chosen = tiny(tasks=["gaussians8-biased", "grid25-biased"], variants=["mixture", "dart"], seeds=3)
    assert len(list(imitation.cells(chosen))) == 2 * 2 * 3
    assert QUICK.variants == Suite().variants == list(VARIANTS)


QUICKLY = ("forward-training", "gate", "adaptive")


@pytest.mark.parametrize(
    "variant", [name if name in QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_every_variant_runs(variant: str, tmp_path: Path) -> None:
    (cell,) = imitation.cells(tiny(variants=[variant]))
    record = executor.run_cell(cell, tmp_path)
    assert record["variant"] == variant and record["metrics"]["energy"] > 0
    assert record["nfe_student"] > 0 < record["nfe_expert"]
    spent = record["course"]["nfe_expert"]
    assert len(record["course"]["energy"]) == len(spent) == TINY["rounds"]
    assert spent == sorted(spent) and spent[-1] == record["nfe_expert"]
    json.dumps(record)


def test_looks_change_no_run(tmp_path: Path) -> None:
    (cell,) = imitation.cells(tiny(variants=["mixture"]))
    looked, blind = (executor.run_cell(dataclasses.replace(cell, looks=n), tmp_path / str(n)) for n in (2, 0))
    assert "course" not in blind and len(looked["course"]["energy"]) == 2
    assert looked["metrics"] == pytest.approx(blind["metrics"], rel=0, abs=0, nan_ok=True)
    assert looked["nfe_expert"] == blind["nfe_expert"]


def test_variants_are_compared_at_equal_evaluations_of_the_expert(tmp_path: Path) -> None:
    run_suite(imitation, tiny(variants=["forward", "mixture", "dagger"]), tmp_path / "out")
    write_report(tmp_path / "out")
    rows = {row.variant: row for row in Results.load(tmp_path / "out").rows}
    budget = rows["dagger"].course[-1].evaluations
    for row in rows.values():
        affordable = [look for look in row.course if look.evaluations <= budget]
        assert len(row.course) == TINY["rounds"]
        assert row.at(budget) == (affordable[-1].distance if affordable else None)
    lines = at_equal_evaluations(list(rows.values())).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| forward", "| mixture", "| dagger"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Quality against the expert&#39;s evaluations" in page or "Quality against the expert's evaluations" in page


def test_epsilon_scaling_trains_the_same_student_and_samples_another_way() -> None:
    plain, scaled = (
        Experiment.build(cell.config) for cell in imitation.cells(tiny(variants=["forward", "epsilon-scaling"]))
    )
    for it in (plain, scaled):
        list(it.rounds())
    for one, other in zip(plain.student.parameters(), scaled.student.parameters(), strict=True):
        assert torch.equal(one, other)
    assert plain.sampler is plain.transition
    assert not torch.allclose(plain.sample(9, 0), scaled.sample(9, 0))
    assert torch.equal(scaled.sample(9, 0), scaled.chains(9, 0)[:, -1])


def test_a_student_a_step_is_kept_and_loaded(tmp_path: Path) -> None:
    config = configure(
        {"policy": {"class": "fresh", "width": 8}, "updates": 4, "heldout": 8, "device": "cpu"}
        | TINY
        | {"stepwise": True, "curriculum": "forward-training", "shares": [0, 1, 0]}
    )
    it = Experiment.build(config)
    distil(it, tmp_path / "out", progress=False)
    loaded = open_run(tmp_path / "out", "cpu")
    assert torch.equal(loaded.sample(9, 0), it.sample(9, 0))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": [0]}, "steps must be at least 1"),
        ({"variants": []}, "--variants is empty"),
        ({"variants": ["daggers"]}, "unknown variant 'daggers'. Did you mean 'dagger'"),
        ({"tasks": ["gaussian8-biased"]}, "Did you mean 'gaussians8-biased'"),
        ({"students": ["techer"]}, "Did you mean 'teacher'"),
        ({"settings": {"driver": "gate"}}, "driver.*Use --variants"),
        ({"settings": {"heldout": 5}}, "heldout.*Use --variants"),
        ({"settings": {"policy": "fresh"}}, "policy.*Use --students"),
    ],
)
def test_suites_that_cannot_be(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        list(imitation.cells(dataclasses.replace(QUICK, **changes)))


def test_a_folder_of_another_suite_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"suite": "toy2d", "records": [], "references": {}}))
    with pytest.raises(Refusal, match="results of the suite 'toy2d', not 'imitation'"):
        run_suite(imitation, QUICK, tmp_path)
