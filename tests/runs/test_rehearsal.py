"""The end of a run is tried before its beginning: what would stop it is refused, what comes later is told."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from helpers import weights
from PIL import Image
from torch import nn

from dagdiff.checks import Refusal
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil
from dagdiff.runs.rehearsal import check_folder, check_logger, check_run

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 16}, "updates": 2, "rounds": 1, "chains": 8, "batch_size": 8, "heldout": 8,
    "samples": 20, "device": "cpu",
}  # fmt: skip
IMAGES = {"task": "digits-matched", "policy": "fresh-unet", "expert": {"class": "unet", "updates": 2}}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def experiment(**changes: Any) -> Experiment:
    return Experiment.build(configure({**SMALL, **changes}))


# What ends a run ends it before it trains


@pytest.mark.parametrize("name", ["file", "file/out", "x" * 300, "/proc/out"])
def test_folders_that_cannot_be_filled(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    it = experiment()
    before = weights(it.student)
    with pytest.raises(Refusal, match=r"^--out \S+ (is a file|can't be written|is no usable path).*\. Name a"):
        distil(it, tmp_path / name, progress=False)
    assert torch.equal(weights(it.student), before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_can_be_filled_is_left_as_it_was(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "a/b"):
        check_folder(out)
    assert not list(tmp_path.iterdir())


def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagdiff.runs.rehearsal.find_spec", lambda name: None)
    check_logger("csv")
    it = experiment()
    before = weights(it.student)
    with pytest.raises(Refusal, match=r"--logger wandb needs the package wandb, .* pip install 'dagdiff\[loggers\]'"):
        distil(it, tmp_path / "out", progress=False, logger="wandb")
    assert torch.equal(weights(it.student), before) and not (tmp_path / "out").exists()


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for place in range(count):
        grey = np.random.default_rng(place).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"{place}.png")
    return folder


def test_pictures_too_few_to_be_scored(tmp_path: Path) -> None:
    """Of 20 unlabelled ones 4 are held out."""
    with pytest.raises(Refusal, match=r"few shows 16 images and holds out 4; samples are scored against at least 10"):
        experiment(**{**IMAGES, "task": f"{pictures(tmp_path / 'few', 20)}-matched"})


def test_pictures_just_enough_to_be_scored(tmp_path: Path) -> None:
    it = experiment(**{**IMAGES, "task": f"{pictures(tmp_path / 'some', 60)}-matched"})
    assert distil(it, tmp_path / "out", progress=False)["metrics"]["energy"] > 0
    assert (tmp_path / "out/samples.png").exists()


def test_states_of_four_channels_are_drawn(tmp_path: Path) -> None:
    path = pipelines.save(pipelines.seeded(pipelines.ddpm, None, in_channels=4, out_channels=4), tmp_path / "teacher")
    it = experiment(
        task="pipeline", policy="pipeline", pipeline={"path": path, "own_samples": 20, "own_steps": 2}, steps=2
    )
    distil(it, tmp_path / "out", progress=False)
    assert it.task.shape[0] == 4 and (tmp_path / "out/samples.png").exists()


# What only a later command can't do is told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"objective": "consistency"}, None),
        ({"threshold": "static"}, None),
        ({"stepwise": True}, "a Stepwise is not one network"),
        ({"epsilon_scale": 1.01}, "moves by EpsilonScaling"),
        ({"objective": "gaussian-kl"}, "moves by Ddim"),
        ({"threshold": "fold"}, "can be told Fold"),
        ({"schedule": "flow"}, "flow schedulers read velocities alone"),
        ({"steps": 3}, None),
    ],
    ids=str,
)
def test_students_that_could_not_be_exported(changes: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    told = check_run(experiment(**IMAGES, **changes), "csv")
    assert len(told) == (reason is not None) and not any("\n" in line for line in told)
    if reason:
        assert told[0].startswith("dagdiff export will refuse this student: ") and reason in told[0]


def test_a_student_of_a_teacher_that_tells_a_variance(tmp_path: Path) -> None:
    path = pipelines.save(pipelines.seeded(pipelines.ddpm, None, out_channels=2), tmp_path / "teacher")
    it = experiment(
        task="pipeline", policy="pipeline", pipeline={"path": path, "own_samples": 40, "own_steps": 1}, steps=2
    )
    (told,) = check_run(it, "csv")
    assert "tells a variance too (2 channels for 1)" in told


def test_points_of_the_plane_are_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distil(experiment(stepwise=True), tmp_path / "out", progress=False)
    assert capsys.readouterr().err == ""


def test_the_warning_stands_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distil(experiment(**IMAGES, stepwise=True), tmp_path / "out", progress=False)
    told = capsys.readouterr().err
    assert told.startswith("dagdiff: warning: dagdiff export will refuse this student: ") and told.count("\n") == 1


def test_the_rehearsal_changes_no_result_and_costs_nothing(tmp_path: Path) -> None:
    plain, tried = experiment(**IMAGES), experiment(**IMAGES)
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    check_run(tried, "csv")
    assert torch.equal(torch.get_rng_state(), drawn) and tried.expert.nfe == 0
    ends = [[*it.rounds()][-1][1] for it in (plain, tried)]
    assert torch.equal(weights(plain.student), weights(tried.student))
    assert ends[0].nfe_student == ends[1].nfe_student and ends[0].nfe_expert == ends[1].nfe_expert


# The check builds no second loop


@pytest.mark.parametrize("objective", ["progressive", "consistency", "distribution"])
@pytest.mark.parametrize("more", [{}, {"ema": 0.9, "steps": 2}], ids=str)
def test_a_build_holds_the_students_weights_once(objective: str, more: dict[str, Any]) -> None:
    """The expert is a closed form here. Cyclic garbage is not collected, so that it would be seen."""
    gc.collect()
    before = {id(each) for each in gc.get_objects() if isinstance(each, torch.Tensor)}
    gc.disable()
    try:
        it = experiment(objective=objective, **more)
        fresh = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and id(each) not in before]
    finally:
        gc.enable()
    count = sum(each.numel() for each in it.student.parameters())
    assert sum(each.numel() for each in fresh if isinstance(each, nn.Parameter)) == count
    large = max(each.numel() for each in it.student.parameters())
    assert sum(each.numel() >= large for each in fresh) == 2, "the two hidden layers, and no optimiser's moments"
    _, (loop, _) = it, next(it.rounds())
    assert loop.student is it.student
