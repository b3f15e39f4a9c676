"""The benchmark suite: each run once, kept as soon as it is there, continued where it stopped, and never mixed up."""

import csv
import dataclasses
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dagdiff.benchmarks.running import executor
from dagdiff.benchmarks.suites import toy2d
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.round import NonFiniteLoss

SETTINGS: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 16},
    "samples": 100,
    "rounds": 2,
    "chains": 8,
    "batch_size": 16,
}
OPTIONS = {
    "tasks": "gaussians8-biased",
    "objectives": "progressive",
    "variants": "published,forward,mixture",
    "seeds": 2,
}
METRICS = ["energy", "w2", "sliced_w2", "mmd", "precision", "recall", "density", "coverage", "on_mode", "mode_kl"]
METRICS += ["spread"]
LOSSES = ["loss_forward", "loss_expert", "loss_own", "data_mismatch", "own_errors", "loss_gap", "end_error"]


class Ran(NamedTuple):
    """A finished command: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def bench(out: Path, settings: dict[str, Any] | None = None, **options: object) -> Ran:
    """Run `dagdiff bench toy2d` in this process, in small."""
    words = [f"--{name} {value}" for name, value in {**OPTIONS, "updates": 4, **options}.items()]
    chosen = shlex.quote(json.dumps({**SETTINGS, **(settings or {})}))
    line = f"bench toy2d {' '.join(words)} --out {out} --settings {chosen}"
    told, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(complained):
        status = main(shlex.split(line))
    return Ran(status, told.getvalue(), complained.getvalue())


def records(out: Path) -> list[dict[str, Any]]:
    content = json.loads((out / "results.json").read_text())
    return list(content["records"])


def named(record: dict[str, Any]) -> tuple[str, str, int, int]:
    return record["objective"], record["variant"], record["seed"], record["updates"]


def named_in(line: dict[str, str]) -> tuple[str, str, str]:
    return line["objective"], line["variant"], line["metric"]


class Inline:
    """An executor that runs its jobs at once, in this process."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[executor.Cell]:
    """Let the suite run in this process; the cells that it runs, as they start."""
    started: list[executor.Cell] = []
    run_cell = executor.run_cell

    def spy(cell: executor.Cell, out: Path) -> dict[str, Any]:
        started.append(cell)
        return run_cell(cell, out)

    monkeypatch.setattr(executor, "Workers", Inline)
    monkeypatch.setattr(executor, "run_cell", spy)
    monkeypatch.setattr(
        "dagdiff.benchmarks.command.write_report", lambda folder: folder / "report.html"
    )  # it takes its time
    return started


# What is run


def test_quick_is_the_main_contrast() -> None:
    cells = list(toy2d.cells(toy2d.QUICK))
    assert {cell.objective for cell in cells} == {"progressive", "consistency", "distribution"}
    assert {cell.variant for cell in cells} == {"forward", "published", "mixture"}
    assert {cell.labels["data"] for cell in cells} == {"matched", "biased"}
    assert {cell.labels["seed"] for cell in cells} == {0, 1, 2}
    assert len(cells) == 3 * 3 * 2 * 3


MIXED = [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    ("objective", "published", "mixture"),
    [
        ("progressive", [1.0, 0.0, 0.0], MIXED),
        ("consistency", [1.0, 0.0, 0.0], MIXED),
        ("distribution", [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]),
        ("dagdiff.objectives.Progressive", [1.0, 0.0, 0.0], MIXED),
    ],
)
def test_variants(objective: str, published: list[float], mixture: list[float]) -> None:
    variants = ["published", "forward", "student", "expert", "mixture", "forward-box", "mixture-box"]
    wanted = toy2d.Suite(["moons-scarce"], [objective], variants, [2], 1, settings=SETTINGS)
    cells = {cell.variant: cell.config for cell in toy2d.cells(wanted)}
    assert {name: config["shares"] for name, config in cells.items()} == {
        "published": published,
        "forward": [1.0, 0.0, 0.0],
        "student": [0.0, 1.0, 0.0],
        "expert": [0.0, 0.0, 1.0],
        "mixture": mixture,
        "forward-box": [1.0, 0.0, 0.0],
        "mixture-box": mixture,
    }
    assert {name: config["threshold"]["class"] for name, config in cells.items()} == {
        **dict.fromkeys(variants, "none"),
        "forward-box": "box",
        "mixture-box": "box",
    }
    options = {"consistency": {"label_end": "step"}, "distribution": {"label_weight": 0.0}}.get(objective, {})
    usual = cells["mixture"]["objective"]
    assert cells["published"]["objective"] == {**usual, **options}
    assert not options or usual != {**usual, **options}, "the published labels are others than the usual ones"
    own = ("shares", "threshold", "objective")
    rest = [{k: v for k, v in config.items() if k not in own} for config in cells.values()]
    assert all(config == rest[0] for config in rest)
    assert all(config["objective"] == usual for name, config in cells.items() if name != "published")
    assert rest[0]["steps"] == 2 and rest[0]["samples"] == 100 and rest[0]["policy"]["width"] == 16


def test_a_key_is_the_content_of_the_configuration() -> None:
    def keys(**changes: Any) -> set[str]:
        chosen = toy2d.Suite(["moons-scarce"], ["progressive"], ["forward"], seeds=1, settings=SETTINGS)
        return {cell.key for cell in toy2d.cells(dataclasses.replace(chosen, **changes))}

    first = keys()
    assert len(first) == 1
    assert keys() == first == keys(variants=["published"])
    assert len(keys(seeds=2) - first) == 1
    others = ({"updates": 7}, {"steps": [3]}, {"variants": ["mixture"]}, {"settings": {**SETTINGS, "lr": 1.0}})
    assert all(not keys(**change) & first for change in others)


@pytest.mark.parametrize("setting", ["task", "objective", "steps", "seed", "shares", "threshold", "updates"])
def test_settings_may_not_contradict_the_suite(setting: str) -> None:
    """What a run's labels say is the suite's to set: a setting that is overruled, or overrules it, is refused."""
    value = {"task": "moons-scarce", "objective": "consistency", "shares": [0, 1, 0], "threshold": "static"}
    chosen = toy2d.Suite(["rings-scarce"], ["progressive"], ["forward"], seeds=1)
    with pytest.raises(Refusal, match=setting):
        list(toy2d.cells(dataclasses.replace(chosen, settings={setting: value.get(setting, 7)})))


# What is kept


def test_bench(place: Path, inline: list[executor.Cell]) -> None:
    status, told, complained = bench(place / "out", objectives="progressive,distribution")
    assert (status, complained) == (0, "")
    content = json.loads((place / "out/results.json").read_text())
    assert content["suite"] == "toy2d"
    assert content["versions"]["threads"] == "1" and content["versions"]["torch"] == torch.__version__
    assert len(content["records"]) == 2 * 3 * 2
    copied = {"task", "data", "objective", "variant", "shares", "seed", "steps", "updates", "metrics"}
    for record in content["records"]:
        assert copied | {"nfe_student", "nfe_expert", "seconds"} <= set(record)
        assert set(record["metrics"]) == {*METRICS, *LOSSES}
        assert record["task"] == "gaussians8-biased" and record["data"] == "biased"
        assert record["steps"] == 4 and record["updates"] == 4 and record["nfe_student"] > 0 < record["nfe_expert"]
        kept = np.load(place / "out" / record["samples"])
        assert kept["x"].shape == (100, 2) and kept["chains"].shape[1:] == (5, 2)
    reference = content["references"]["gaussians8-biased"]
    assert set(reference["floor"]) == set(reference["expert"]) == set(METRICS)
    assert reference["expert"]["energy"] < min(record["metrics"]["energy"] for record in content["records"])
    rows = list(csv.DictReader((place / "out/summary.csv").read_text().splitlines()))
    assert list(dict.fromkeys((row["objective"], row["variant"]) for row in rows)) == [
        (objective, variant)
        for objective in ("progressive", "distribution")
        for variant in ("published", "forward", "mixture")
    ]
    (mixture,) = (row for row in rows if named_in(row) == ("progressive", "mixture", "energy"))
    assert float(mixture["minus_published_low"]) <= float(mixture["minus_published_mean"])
    assert "gaussians8-biased" in told and str(place / "out/report.html") in told


def test_equal_configurations_are_one_run_under_each_name(place: Path, inline: list[executor.Cell]) -> None:
    """What PD publishes is forward-only; what DMD2 publishes is not."""
    told = bench(place / "out", objectives="progressive,distribution", seeds=1).out
    assert len(inline) == 5
    found = {named(record)[:2]: record for record in records(place / "out")}
    assert len(found) == 6
    published, forward = found["progressive", "published"], found["progressive", "forward"]
    assert {**published, "variant": "forward"} == forward
    assert found["distribution", "published"]["config"] != found["distribution", "forward"]["config"]
    assert re.search(r"gaussians8-biased  PD  .* = forward  ", told)


def test_a_second_call_runs_nothing(place: Path, inline: list[executor.Cell]) -> None:
    bench(place / "out")
    first = (place / "out/results.json").read_bytes()
    samples = {path: path.stat().st_mtime_ns for path in (place / "out/samples").iterdir()}
    inline.clear()
    assert bench(place / "out").status == 0
    assert not inline
    assert (place / "out/results.json").read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in (place / "out/samples").iterdir()} == samples


@pytest.mark.parametrize(
    ("change", "added"),
    [({"seeds": 3}, 2), ({"objectives": "progressive,consistency"}, 6), ({"updates": 6}, 4)],
    ids=str,
)
def test_a_changed_option_adds_runs(
    change: dict[str, Any], added: int, place: Path, inline: list[executor.Cell]
) -> None:
    bench(place / "out")
    before = records(place / "out")
    inline.clear()
    assert bench(place / "out", **change).status == 0
    assert len(inline) == added
    after = records(place / "out")
    assert all(record in after for record in before)
    assert len({named(record) for record in after}) == len(after)


def test_asking_for_less_drops_nothing(place: Path, inline: list[executor.Cell]) -> None:
    bench(place / "out")
    before = sorted(map(named, records(place / "out")))
    assert bench(place / "out", variants="published", seeds=1).status == 0
    assert sorted(map(named, records(place / "out"))) == before


def test_runs_of_other_updates_are_not_averaged_with_these(place: Path, inline: list[executor.Cell]) -> None:
    bench(place / "out", variants="forward")
    bench(place / "out", variants="forward", updates=6)
    rows = list(csv.DictReader((place / "out/summary.csv").read_text().splitlines()))
    energies = [row for row in rows if row["metric"] == "energy"]
    assert sorted((row["updates"], row["seeds"]) for row in energies) == [("4", "2"), ("6", "2")]


def test_runs_of_other_settings_are_not_averaged_with_these(place: Path, inline: list[executor.Cell]) -> None:
    bench(place / "out", variants="forward")
    bench(place / "out", {"lr": 1e-5}, variants="forward")
    rows = list(csv.DictReader((place / "out/summary.csv").read_text().splitlines()))
    assert [row["seeds"] for row in rows if row["metric"] == "energy"] == ["2", "2"]


def test_the_yardsticks_follow_the_settings(place: Path, inline: list[executor.Cell]) -> None:
    """A floor of 100 points is no yardstick for students scored on 300."""
    bench(place / "out", variants="forward", seeds=1)
    bench(place / "out", {"samples": 300}, variants="forward", seeds=1)
    bench(place / "alone", {"samples": 300}, variants="forward", seeds=1)
    kept, wanted = (json.loads((place / name / "results.json").read_text())["references"] for name in ("out", "alone"))
    assert json.dumps(wanted["gaussians8-biased"]["floor"]) in json.dumps(kept)


# What is continued


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the suite break off at the run after ``count``."""
    run_cell, done = executor.run_cell, []

    def breaking(cell: executor.Cell, out: Path) -> dict[str, Any]:
        if len(done) == count:
            raise error
        done.append(cell)
        return run_cell(cell, out)

    monkeypatch.setattr(executor, "run_cell", breaking)


@pytest.mark.parametrize("count", [0, 2])
def test_an_interrupted_suite_is_continued(
    count: int, place: Path, inline: list[executor.Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(count, patch, KeyboardInterrupt())
        assert bench(place / "out").status == 130
    done = {cell.key for cell in inline}
    assert len(done) == count
    assert not count or {record["config"] for record in records(place / "out")} == done
    inline.clear()
    ran = bench(place / "out")
    assert ran.status == 0, ran.err
    assert len(inline) == 4 - count and not done & {cell.key for cell in inline}
    assert len(records(place / "out")) == 6


def test_a_run_that_fails_is_named(place: Path, inline: list[executor.Cell]) -> None:
    ran = bench(place / "out", {"lr": 1e30}, updates=40)
    assert ran.status == 3
    assert ran.err.count("\n") == 1 and ran.err.startswith("dagdiff: error: ")
    assert "not finite at update" in ran.err
    assert "progressive" in ran.err and "gaussians8-biased" in ran.err  # which of the runs?


def test_a_run_that_fails_does_not_lose_the_others(
    place: Path, inline: list[executor.Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told after what the others brought, kept by name, and tried again the next time."""
    with monkeypatch.context() as patch:
        stop_after(2, patch, NonFiniteLoss("the loss is not finite at update 3"))
        ran = bench(place / "out")
    assert ran.status == 3 and "2 runs failed (4 records are kept)" in ran.err and ran.err.count("\n") == 1
    assert "gaussians8-biased progressive mixture, 4 steps, seed" in ran.err and "report:" in ran.out
    content = json.loads((place / "out/results.json").read_text())
    assert len(content["failures"]) == 2 and all("at update 3" in told for told in content["failures"].values())
    inline.clear()
    assert bench(place / "out").status == 0
    assert len(inline) == 2 and len(records(place / "out")) == 6
    assert not json.loads((place / "out/results.json").read_text())["failures"]


def test_after_a_failed_run_the_folder_can_be_used_again(place: Path, inline: list[executor.Cell]) -> None:
    assert bench(place / "out", {"lr": 1e30}, updates=40).status == 3
    ran = bench(place / "out")
    assert ran.status == 0, ran.err


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("[]", "results.json"),
        ('{"suite": "toy2d"}', "results.json"),
        ('{"suite": "toy2d", "records": [{}], "references": {}}', "results.json"),
        ('{"suite": "other", "records": [], "references": {}}', "results of the suite 'other'"),
        (None, "holds something else than results"),
    ],
)
def test_folders_that_hold_something_else(content: str | None, match: str, place: Path) -> None:
    (place / "out").mkdir()
    (place / "out/file").write_text("mine")
    if content:
        (place / "out/results.json").write_text(content)
    before = {path.name: path.read_text() for path in (place / "out").iterdir()}
    status, _, err = bench(place / "out", seeds=1, variants="forward")
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("dagdiff: error: ") and match in err
    assert {path.name: path.read_text() for path in (place / "out").iterdir()} == before


def test_nothing_is_written_for_a_suite_that_cannot_be(place: Path, inline: list[executor.Cell]) -> None:
    for options in ({"updates": 1}, {"steps": 0}, {"seeds": 0}, {"tasks": "grid25-biasd"}, {"workers": 0}):
        ran = bench(place / "out", **options)
        assert ran.status == 2 and ran.err.count("\n") == 1
    assert bench(place / "out", {"device": "cuda:77"}).status == 2
    assert not inline
    assert not (place / "out").exists()


def test_an_occupied_folder_is_refused_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before hundreds of configurations are resolved, which takes seconds."""
    (place / "mine").touch()
    resolved: list[object] = []
    configure = toy2d.configure
    monkeypatch.setattr(toy2d, "configure", lambda settings: resolved.append(settings) or configure(settings))
    status, _, err = bench(place, seeds=5)
    assert status == 2 and "holds something else than results" in err
    assert len(resolved) <= 1


# In processes of their own


def test_bench_in_processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh processes give what this one gives."""
    assert bench(place / "out", variants="forward", seeds=1).status == 0
    monkeypatch.setattr(executor, "Workers", Inline)
    assert bench(place / "inline", variants="forward", seeds=1).status == 0
    assert "<html" in (place / "out/report.html").read_text()
    (theirs,), (ours,) = records(place / "out"), records(place / "inline")
    assert {**theirs, "seconds": 0} == {**ours, "seconds": 0}


@pytest.mark.slow
def test_bench_with_two_workers_and_teachers(place: Path) -> None:
    """Two runs that start from the same teacher do not both train it, nor trip over its file."""
    policy = {"class": "teacher", "width": 8, "depth": 2, "updates": 20}
    ran = bench(
        place / "out",
        {"policy": policy, "expert": {"class": "learned", "width": 8, "depth": 2, "updates": 20}},
        tasks="moons-scarce,moons-biased",
        workers=2,
    )
    assert ran.status == 0, ran.err
    assert len(records(place / "out")) == 12
    assert len(list((place / "cache/teachers").iterdir())) == 1
