"""A run: from a configuration to its objects, to a folder, and back."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import weights
from safetensors.torch import load_file

from dagdiff.checks import Refusal
from dagdiff.engine import find_device
from dagdiff.metrics.samples import energy_distance
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run
from dagdiff.runs.parts import PARTS
from dagdiff.runs.rehearsal import check_folder
from dagdiff.schedule import step_grid
from dagdiff.threshold import NoThreshold, StaticThreshold
from dagdiff.transition import fresh_noise, sample

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 16},
    "updates": 4,
    "rounds": 2,
    "chains": 8,
    "batch_size": 16,
    "heldout": 8,
    "samples": 50,
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DAGDIFF_CACHE", str(folder))
        yield folder


def experiment(**changes: Any) -> Experiment:
    return Experiment.build(configure({**SMALL, **changes}))


def distilled(out: Path, **changes: Any) -> tuple[Experiment, dict[str, Any]]:
    made = experiment(**changes)
    return made, distil(made, out, progress=False)


# Every part by name runs two rounds, and its run can be loaded


def test_a_run_tells_its_threads(tmp_path: Path) -> None:
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            distilled(tmp_path / str(threads))
            kept = json.loads((tmp_path / str(threads) / "metrics.json").read_text())
            assert kept["versions"]["threads"] == str(threads)
    finally:
        torch.set_num_threads(1)


def runs(out: Path, **changes: Any) -> Experiment:
    made, report = distilled(out, **changes)
    rows = list(csv.DictReader((out / "rounds.csv").read_text().splitlines()))
    assert [row["number"] for row in rows] == ["1", "2"]
    assert all(float(value) == float(value) for value in rows[-1].values())
    kept = json.loads((out / "metrics.json").read_text())
    assert kept["metrics"]["energy"] == report["metrics"]["energy"]
    assert torch.equal(open_run(out, "cpu").sample(9, seed=2), made.sample(9, seed=2))
    return made


@pytest.mark.parametrize("name", [name for name in PARTS["threshold"] if name != "teacher"])
@pytest.mark.parametrize("objective", PARTS["objective"])
def test_every_threshold_with_every_objective(name: str, objective: str, tmp_path: Path) -> None:
    made = runs(tmp_path / "out", threshold=name, objective=objective)
    assert made.expert.threshold is made.policy.threshold is made.threshold
    assert isinstance(made.threshold, NoThreshold) == (name == "none")
    if name in ("static", "fold"):
        assert made.sample(50, seed=0).abs().max() <= 1.0 + 1e-5


@pytest.mark.parametrize("name", PARTS["schedule"])
def test_every_schedule(name: str, tmp_path: Path) -> None:
    made = runs(tmp_path / "out", schedule=name)
    assert made.task.schedule is made.expert.schedule is made.transition.schedule


@pytest.mark.parametrize("part", ["beta", "shares_ramp", "lr_ramp"])
@pytest.mark.parametrize("name", PARTS["beta"])
def test_every_ramp(part: str, name: str, tmp_path: Path) -> None:
    runs(tmp_path / "out", **{part: name})


LEARNED = {"class": "learned", "width": 16, "depth": 2, "updates": 5}


@pytest.mark.parametrize(
    ("task", "expert", "policy"),
    [
        ("gaussians8-scarce", "exact", {**LEARNED, "class": "teacher"}),
        ("gaussians8-scarce", "exact", {"class": "fresh", "width": 16, "depth": 2}),
        ("moons-biased", LEARNED, {"class": "expert"}),
        ("moons-biased", LEARNED, {"class": "fresh", "width": 16, "depth": 2}),
    ],
)
def test_every_policy_and_expert(task: str, expert: Any, policy: dict[str, Any], tmp_path: Path) -> None:
    runs(tmp_path / "out", policy=policy, task=task, expert=expert)


@pytest.mark.parametrize("objective", PARTS["objective"])
def test_labelled_chains_with_guidance(objective: str, tmp_path: Path) -> None:
    made = runs(tmp_path / "out", task="gaussians8-biased-labelled", guidance=2.0, objective=objective)
    noise, condition, _ = made.start(50, seed=0)
    assert condition is not None and condition.unique().numel() == 8
    t = torch.full((50,), 0.9)
    plain = experiment(task="gaussians8-biased-labelled", guidance=1.0, objective=objective).expert
    assert not torch.allclose(made.expert(noise, t, condition), plain(noise, t, condition))


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": [1.0, 0.0, 0.0]},
        {"shares": [0.0, 1.0, 0.0]},
        {"shares": [0.0, 0.0, 1.0]},
        {"per_chain": True, "beta": {"class": "constant", "value": 0.5}},
        {"rounds_kept": 1},
        {"max_age": 3},
        {"ema": 0.9},
        {"heldout": 0},
        {"steps": 1},
        {"objective": {"class": "distribution", "gan_weight": 1e-3}},
        {"stages": None, "lr": 1e-3, "clip": 0.5},
    ],
    ids=str,
)
def test_every_setting(changes: dict[str, Any], tmp_path: Path) -> None:
    made, report = distilled(tmp_path / "out", **changes)
    assert made.sample(9, seed=0).isfinite().all()
    assert (tmp_path / "out/best.safetensors").exists() == (changes.get("heldout") != 0)
    assert (report["best"] is None) == (changes.get("heldout") == 0)


# What a run keeps


def test_the_seed_fixes_everything(tmp_path: Path) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    (_, first), (_, same), (_, other) = (distilled(tmp_path / name, seed=seed) for name, seed in seeds.items())
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert str(first["metrics"]) == str(same["metrics"]) != str(other["metrics"])


def test_the_averaged_student_is_the_one_that_is_kept(tmp_path: Path) -> None:
    made = experiment(ema=0.9)
    loops = [loop for loop, _ in made.rounds()]
    averaged = weights(loops[-1].learner.averaged.module)
    assert not torch.equal(averaged, weights(made.student))
    again, _ = distilled(tmp_path / "out", ema=0.9)
    assert torch.equal(weights(again.student), averaged)
    assert torch.equal(weights(open_run(tmp_path / "out", "cpu").student), averaged)


def test_the_best_round_is_kept_beside_the_last(tmp_path: Path) -> None:
    """A huge learning rate after a first round without one: the best round is the first, the untouched student."""
    ramp = {"class": "indicator", "first": 0.0, "then": 1.0}
    start = experiment().student
    _, report = distilled(tmp_path / "out", lr=0.5, lr_ramp=ramp, rounds=4, updates=4)
    assert report["best"]["round"] == 1
    best = open_run(tmp_path / "out", "cpu", "best")
    assert torch.equal(weights(best.student), weights(start))
    assert not torch.equal(weights(open_run(tmp_path / "out", "cpu").student), weights(start))


def test_training_starts_from_the_teacher(tmp_path: Path) -> None:
    policy = {"class": "teacher", "width": 16, "depth": 2, "updates": 5}
    made = experiment(policy=policy, lr_ramp={"class": "constant", "value": 0.0})
    before = weights(made.student).clone()
    list(made.rounds())
    assert torch.equal(weights(made.student), before)


def test_chains_and_samples_agree() -> None:
    made = experiment(objective="consistency")
    chains = made.chains(6, seed=3)
    assert chains.shape == (6, 5, 2)
    assert torch.equal(chains[:, 0], made.start(6, seed=3)[0])
    assert torch.equal(chains[:, -1], made.sample(6, seed=3))


def test_measuring_changes_nothing_and_repeats(tmp_path: Path) -> None:
    made = experiment()
    before = weights(made.student).clone()
    first, again, other = (made.measure(made.sample(made.settings.samples, seed), seed) for seed in (0, 0, 1))
    assert str(first) == str(again) != str(other)
    assert torch.equal(weights(made.student), before)
    assert first[1]["t"] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("objective", ["progressive", "consistency"])
def test_the_teacher_of_a_run_is_its_expert_in_the_students_place(objective: str, tmp_path: Path) -> None:
    made, report = distilled(tmp_path / "out", substeps=4, threshold="box", samples=300, objective=objective)
    own, _, generator = made.start(300, seed=0)
    for t, s in itertools.pairwise(made.times.expand(300, -1).T):
        advice = made.expert.target(own, t, made.transition.horizon(s))
        own = made.transition(own, advice, t, s, fresh_noise(made.transition, own, generator))
    reference = made.task.reference(300, made.generator(4, 0))
    found = report["teacher"]
    assert found["metric"] == "energy"
    assert found["teacher"] == pytest.approx(energy_distance(own, reference), rel=1e-4)
    assert found["student"] == report["metrics"]["energy"]
    assert found["behind"] is True, "a fresh network after 4 updates"
    assert json.loads((tmp_path / "out/metrics.json").read_text())["teacher"] == found


def test_a_student_that_is_its_teacher_is_not_behind() -> None:
    made = experiment(task="moons-biased", policy="expert", expert=LEARNED, substeps=1)
    before = made.expert.nfe
    found = made.stand(made.sample(50, seed=0))
    assert found.student == found.teacher and not found.behind
    assert made.expert.nfe == before, "a yardstick is not charged"


def test_a_student_is_sampled_on_its_own_grid(tmp_path: Path) -> None:
    distilled(tmp_path / "out")
    kept = json.loads((tmp_path / "out/student.json").read_text())
    kept["times"] = [1.0, 0.3, 0.0]
    (tmp_path / "out/student.json").write_text(json.dumps(kept))
    (tmp_path / "out/manifest.json").unlink()
    assert open_run(tmp_path / "out", "cpu").chains(3, seed=0).shape == (3, 3, 2)


def test_a_student_whose_answers_are_data_is_asked_in_any_number_of_steps(tmp_path: Path) -> None:
    distilled(tmp_path / "whole", objective="consistency")
    run = open_run(tmp_path / "whole", "cpu")
    for steps in (1, 3, 8):
        points = run.in_steps(steps).sample(5, seed=0)
        times = step_grid(steps)
        noise, _, generator = run.start(5, 0)
        assert torch.equal(points, sample(run.policy, run.sampler, times, noise, generator=generator))
    assert torch.equal(run.in_steps(len(run.times) - 1).sample(5, 0), run.sample(5, 0))
    with pytest.raises(Refusal, match="steps must be at least 1; got 0"):
        run.in_steps(0)


def test_a_student_of_its_own_steps_is_asked_in_no_others(tmp_path: Path) -> None:
    distilled(tmp_path / "pd", objective="progressive")
    with pytest.raises(Refusal, match="steps=8: this student answers for the 4 steps"):
        open_run(tmp_path / "pd", "cpu").in_steps(8)


def test_the_kept_threshold_is_applied_again(tmp_path: Path) -> None:
    distilled(tmp_path / "out", threshold={"class": "static", "low": -0.1, "high": 0.1})
    loaded = open_run(tmp_path / "out", "cpu")
    assert loaded.threshold == StaticThreshold(-0.1, 0.1)
    assert loaded.sample(50, seed=0).abs().max() <= 0.1 + 1e-6


def test_loading_a_run_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder carried to another machine has the student's weights; its teacher is not needed to sample."""
    policy = {"class": "teacher", "width": 16, "depth": 2, "updates": 6}
    made, _ = distilled(tmp_path / "out", policy=policy)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "other machine"))

    def no_training(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr("dagdiff.tasks.teachers.train_teacher", no_training)
    assert torch.equal(open_run(tmp_path / "out", "cpu").sample(5, seed=0), made.sample(5, seed=0))


# Refusals


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"shares": [0.5, 0.2, 0.2]}, "shares must sum to 1"),
        ({"stages": [8, 3]}, "stages must fall"),
        ({"updates": 1}, "updates must be at least 2"),
        ({"samples": 9}, "samples must be at least 10"),
        ({"task": "grid25-biasd"}, "Did you mean 'grid25-biased'"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not there"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        experiment(**changes)


def test_folders(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(Refusal, match="is not empty"):
        check_folder(tmp_path)
    with pytest.raises(Refusal, match="holds no run"):
        open_run(tmp_path)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:77", "gpu", ""):
        with pytest.raises(Refusal, match=f"device '{name}' is not there .*Pass --device cpu or auto"):
            find_device(name)


def test_an_occupied_folder_costs_no_training(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    made = experiment()
    before = weights(made.student).clone()
    with pytest.raises(Refusal, match="is not empty"):
        distil(made, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert torch.equal(weights(made.student), before)


def test_the_kept_configuration_builds_the_run_again(tmp_path: Path) -> None:
    made, _ = distilled(tmp_path / "out", objective={"class": "consistency", "ema": 0.5}, threshold="box")
    kept = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert kept == made.config
    distilled(tmp_path / "again", **kept)
    first, second = (load_file(tmp_path / name / "student.safetensors") for name in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", PARTS["objective"])
def test_a_run_on_the_gpu_loads_on_the_cpu(objective: str, tmp_path: Path) -> None:
    distilled(tmp_path / "out", device="cuda", objective=objective)
    assert open_run(tmp_path / "out", "cpu").sample(9, seed=0).isfinite().all()
    assert open_run(tmp_path / "out", "cuda").sample(9, seed=0).isfinite().all()
