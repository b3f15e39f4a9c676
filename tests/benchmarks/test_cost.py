"""The measurement of cost: what it runs, what it keeps, and the pages that show it."""

from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from dagdiff.benchmarks.measure import compute, cost
from dagdiff.benchmarks.measure.cost import AXES, KNOWN, Options, Run
from dagdiff.benchmarks.running.nfe import predict_nfe
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.runs.config import configure

TASK = "gaussians8-biased"


def settings(objective: str, axis: str, value: str) -> dict[str, Any]:
    return configure({"task": TASK, "objective": objective, **cost.changed(Run(TASK, objective, axis, value, 0, 40))})


@pytest.mark.parametrize("objective", KNOWN)
def test_each_run_changes_one_thing(objective: str) -> None:
    usual = settings(objective, "usual", "")
    for axis in AXES:
        if axis in ("states", "peer"):
            continue
        for value in AXES[axis].get(objective, ()):
            made = settings(objective, axis, value)
            name = "objective" if axis.startswith("label") else axis
            assert {each for each in usual if usual[each] != made[each]} == {name}, (axis, value)


def test_published_is_the_published_method() -> None:
    for objective in ("progressive", "consistency"):
        made = settings(objective, "states", "published")
        assert made["shares"] == [1.0, 0.0, 0.0] and made["reuse"] == 1.0
        assert made["objective"]["label_end"] == "step"
    made = settings("distribution", "states", "published")
    assert made["shares"] == [0.0, 1.0, 0.0] and made["reuse"] == 1.0
    assert made["objective"]["critic_updates"] == 5 and made["objective"]["tell_origin"] is False
    assert made["objective"]["label_weight"] == 0.0


def test_the_command_keeps_what_is_there_and_tells_costs_that_were_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = f"bench cost --tasks {TASK} --objectives progressive --axes states --seeds 1 --updates 40".split()
    made: list[Run] = []

    def faked(run: Run) -> dict[str, Any]:
        made.append(run)
        config = configure({"task": TASK, "objective": run.objective, "updates": 40, **cost.changed(run)})
        asked = predict_nfe(config)
        told = {"nfe_student": int(asked.student), "nfe_expert": int(asked.expert), "milliseconds": "2.0"}
        return {**run._asdict(), **told, **dict.fromkeys(cost.QUALITY, "0.001")}

    monkeypatch.setattr(cost, "made", faked)
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert [(run.axis, run.value) for run in made[1:]] == [
        ("usual", ""), ("states", "forward"), ("states", "published"),
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| PD | the usual mixture | 2.00 | 1.00 | 31 k |") and len(lines) == 5
    assert cost.table(cost.read(tmp_path)).splitlines() == lines and (tmp_path / "machine.json").exists()
    count = len(made)
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert len(made) == count, "all is there"


def test_a_run_is_really_made() -> None:
    found = cost.made(Run(TASK, "consistency", "label_end", "step", 0, 40))
    assert float(found["milliseconds"]) > 0.0 and float(found["energy"]) < 1.0
    usual = predict_nfe(configure({"task": TASK, "objective": "consistency", "updates": 40}))
    assert found["nfe_student"] == usual.student and found["nfe_expert"] < usual.expert, "longer labels cost more"


def test_without_the_peer_its_row_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Run] = []

    def faked(run: Run) -> dict[str, Any]:
        made.append(run)
        told = {"nfe_student": 1000, "nfe_expert": 1000, "milliseconds": "2.0"}
        return {**run._asdict(), **told, **dict.fromkeys(cost.QUALITY, "0.001")}

    monkeypatch.setattr(cost, "made", faked)
    monkeypatch.setattr(cost, "installed", lambda: False)
    told = cost.measure(Options([TASK], ["distribution"], ["peer"], 1, 40), tmp_path)
    assert told.endswith(cost.ABSENT) and not any("modelopt" in run.value for run in made)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("cost --axes reuze --out out", "unknown axes 'reuze'. Did you mean 'reuse'"),
        ("cost --tasks digits-biased --out out", "tasks must be unlabelled ones of the plane"),
        ("cost --updates 1 --out out", "updates must be at least 40; got 1"),
        ("cost", "--out is missing"),
        ("compute --sides 15 --out out", "unknown sides '15'"),
        ("compute --ways fast --out out", "unknown ways 'fast'"),
    ],
)
def test_refusals(words: str, match: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *words.split()]) == 2
    told = capsys.readouterr().err
    assert match in told and told.count("\n") == 1


def test_networks_are_compared_with_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(part: Any, backend: str) -> Any:
        asked.append(backend)
        return part

    monkeypatch.setattr(compute, "compiled", recorded)
    options = compute.Options([14], ["bf16", "compiled"], batch=2, repeats=1, backend="eager")
    told = compute.measure(options, tmp_path)
    plain, half, same = compute.read(tmp_path)
    assert [row["way"] for row in (plain, half, same)] == ["plain", "bf16", "compiled"] and asked == ["eager"]
    assert told == compute.table([plain, half, same])
    assert float(plain["answer_off"]) == 0.0 and 1e-4 < float(half["answer_off"]) < 0.05
    assert float(same["answer_off"]) < 1e-5 and float(same["gradient_off"]) < 1e-4


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(Refusal, match="unknown objectives 'pd'"):
        Options(objectives=["pd"])


def test_the_page_holds_the_tables_of_what_is_kept() -> None:
    page = (ROOT / cost.PAGE).read_text(encoding="utf-8")
    kept = [(cost, cost.KEPT), *((compute, folder) for folder in compute.KEPT)]
    for module, folder in kept:
        assert module.table(module.read(ROOT / folder)) in page, f"run: python -m {module.__name__}"
