"""Looks at a run while it trains: pictures and numbers at chosen rounds, in the folder and in the logger."""

import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pipelines
import pytest
import torch
from helpers import same, state
from PIL import Image

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.jobs.stops import Stopped
from dagdiff.metrics.classifier import kept_classifier
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil
from dagdiff.runs.keeping import Keeper
from dagdiff.runs.looks import Look, glance, log_look

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 8, "depth": 2}, "updates": 10, "rounds": 5, "chains": 4, "batch_size": 8,
    "heldout": 4, "samples": 20, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def experiment(**changes: Any) -> Experiment:
    return Experiment.build(configure({**SMALL, **changes}))


def looked(out: Path) -> list[tuple[str, str]]:
    return [(line["round"], line["updates"]) for line in csv.DictReader((out / "looks.csv").read_text().splitlines())]


def test_a_look_leaves_pictures_and_numbers_and_the_run_as_it_was(tmp_path: Path) -> None:
    seen, plain = experiment(), experiment()
    distil(plain, tmp_path / "plain", progress=False)
    report = distil(seen, tmp_path / "seen", progress=False, look_every=2)
    out = tmp_path / "seen"
    assert looked(out) == [("2", "4"), ("4", "8"), ("5", "10")]
    for number in (2, 4, 5):
        with Image.open(out / "looks" / f"round-{number:04d}.png") as picture:
            assert picture.width > 100
    assert same(state(seen.student), state(plain.student))
    assert (out / "log" / "scalars" / "look_energy.csv").read_text().splitlines()[0].startswith("4,")
    last = list(csv.DictReader((out / "looks.csv").read_text().splitlines()))[-1]
    assert float(last["energy"]) == pytest.approx(report["metrics"]["energy"])
    lines = [(tmp_path / name / "rounds.csv").read_text().splitlines() for name in ("plain", "seen")]
    costs = [[dict(zip(each[0].split(","), line.split(","), strict=True)) for line in each[1:]] for each in lines]
    for one, two in zip(*costs, strict=True):
        assert {**one, "seconds": ""} == {**two, "seconds": ""}


def test_images_are_looked_at_by_distance_and_diversity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagdiff.tasks.images.kept_classifier", partial(kept_classifier, updates=2))
    policy = {"class": "fresh-unet", "channels": (8,)}
    made = experiment(task="digits-biased", policy=policy, expert={"class": "unet", "channels": (8,), "updates": 2})
    clouds, numbers = glance(made)
    assert set(numbers) == {"energy", "fd", "diversity"}
    assert clouds["student"].shape[1:] == made.task.shape and made.expert.nfe == 0


def test_latents_are_looked_at_as_pictures(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "teacher")
    told = {"path": str(path), "prompts": str(tmp_path / "prompts.txt"), "own_samples": 20, "own_steps": 1}
    settings = {"updates": 2, "rounds": 1, "chains": 2, "batch_size": 2, "heldout": 0, "samples": 10, "device": "cpu"}
    made = Experiment.build(configure({"task": "pipeline", "pipeline": told, "steps": 2, **settings}))
    clouds, numbers = glance(made)
    assert set(numbers) == {"energy"} and clouds["student"].shape[1] == 3


def test_a_stopped_run_looks_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, watch = 0, Keeper.watch

    def stop(keeper: Keeper) -> None:
        nonlocal seen
        seen += 1
        if seen > 8:  # within round 3
            keeper.save()
            raise Stopped("here")
        watch(keeper)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "watch", stop)
        with pytest.raises(Stopped):
            distil(experiment(), tmp_path, progress=False, look_every=1)
    assert looked(tmp_path) == [("1", "2"), ("2", "4")]
    distil(experiment(), tmp_path, progress=False, look_every=1)
    assert looked(tmp_path) == [(str(number), str(2 * number)) for number in range(1, 6)]
    logged = (tmp_path / "log" / "scalars" / "look_energy.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in logged] == ["2", "4", "6", "8", "10"]


def test_a_folder_starts_over_without_old_looks(tmp_path: Path) -> None:
    distil(experiment(), tmp_path, progress=False, look_every=1)
    distil(experiment(lr=1e-3), tmp_path, progress=False, fresh=True)
    assert not (tmp_path / "looks").exists() and not (tmp_path / "looks.csv").exists()


def test_stages_are_looked_at_in_one_count(tmp_path: Path) -> None:
    distil(
        experiment(stages=[4, 2], rounds=2, updates=4, objective="progressive"), tmp_path, progress=False, look_every=2
    )
    assert looked(tmp_path) == [("2", "4"), ("4", "8")]


@pytest.mark.parametrize("told", ["-1", "often", "2.5"])
def test_what_is_no_number_of_rounds(told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--look_every", told, "--out", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err.strip().splitlines()[-1].count(f"--look_every must be a number of rounds; got '{told}'")
    )
    with pytest.raises(Refusal, match="look_every must be at least 0"):
        distil(experiment(), tmp_path / "out", progress=False, look_every=-1)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGBA", (6, 4), (255, 0, 0, 255)).save(tmp_path / "look.png")
    return tmp_path / "look.png"


class Told:
    """What a logger was told, by its name and step."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, Any, int]] = []

    def log_scalar(self, name: str, value: Any, step: int) -> None:
        self.scalars.append((name, value, step))


def test_wandb_is_given_the_image_at_the_same_step(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the package stands what the call meets: a class that wraps an image."""
    package: Any = ModuleType("wandb")
    package.Image = lambda image: ("image", image.size)
    monkeypatch.setitem(sys.modules, "wandb", package)
    logger = type("WandbLogger", (Told,), {})()
    log_look(logger, Look(5, 40, {"energy": 0.5}), picture)
    assert logger.scalars == [("look_energy", 0.5, 40), ("samples", ("image", (6, 4)), 40)]


def test_mlflow_is_given_the_image_at_the_same_step(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = ModuleType("mlflow")
    images: list[Any] = []
    package.log_image = lambda image, key, step: images.append((image.size, key, step))
    monkeypatch.setitem(sys.modules, "mlflow", package)
    log_look(type("MLFlowLogger", (Told,), {})(), Look(5, 40, {}), picture)
    assert images == [((6, 4), "samples", 40)]


def test_tensorboard_holds_images_and_scalars_by_update(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    distil(experiment(), tmp_path, progress=False, logger="tensorboard", look_every=2)
    found = EventAccumulator(str(next((tmp_path / "log").rglob("events.out.*")).parent))
    found.Reload()
    assert [each.step for each in found.Images("samples")] == [4, 8, 10]
    assert [each.step for each in found.Scalars("look_energy")] == [4, 8, 10]
    assert [each.step for each in found.Scalars("train_loss")] == [2, 4, 6, 8, 10]
    assert torch.isfinite(torch.tensor([each.value for each in found.Scalars("look_energy")])).all()
