"""Tasks of images: their names, what the student is shown, how samples are scored, and the teacher that is learned."""

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import weights
from PIL import Image

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.expert import Expert
from dagdiff.metrics.base import score
from dagdiff.metrics.classifier import kept_classifier
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.tasks.base import Task
from dagdiff.tasks.images import ImageTask, Teacher, fresh_unet, image_world, unet_expert, unet_student
from dagdiff.tasks.names import IMAGES, make_task, read_name, task_names
from dagdiff.tasks.plane import fresh_student

TINY = {"channels": (8, 16), "updates": 3, "batch_size": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dagdiff.tasks.images.kept_classifier", partial(kept_classifier, updates=60))
    image_world.cache_clear()
    yield tmp_path / "cache"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Sixty pictures of four bars, each class a place of the bar, as an .npz file in the working folder."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    images = rng.integers(0, 40, (60, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 200
    np.savez(tmp_path / "bars.npz", images=images, labels=labels)
    return "bars.npz"


def scores(
    task: Task, points: torch.Tensor, generator: torch.Generator, paired: torch.Tensor | None = None
) -> dict[str, float]:
    return score(task.metrics, points, task.truth(len(points), generator, paired=paired))


def test_digits_come_in_three_sets_and_labelled(generator: torch.Generator) -> None:
    assert {"digits-matched", "digits-scarce", "digits-biased", "digits-biased-labelled"} <= set(task_names())
    task = make_task("digits-biased")
    assert isinstance(task, ImageTask) and task.shape == (1, 8, 8) and task.labels == 0
    assert task.missing == [5, 6, 7, 8, 9] and make_task("digits-matched").missing == []
    assert task.data.sample(5, generator).shape == (5, 1, 8, 8)
    labelled = make_task("digits-biased-labelled")
    assert labelled.labels == 10 and labelled.conditions is not None
    assert set(labelled.conditions(300, generator).tolist()) == set(range(10))


def test_own_pictures_are_named_by_their_path(own: str, tmp_path: Path) -> None:
    assert read_name(f"{own}-biased-labelled")[1:] == (IMAGES, own, "biased", True)
    task = make_task(f"{own}-biased")
    assert isinstance(task, ImageTask) and task.missing == [2, 3]
    with pytest.raises(Refusal, match=r"unknown set 'biasd'\. Did you mean 'biased'"):
        read_name(f"{own}-biasd")
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(Refusal, match=r"plain.npz has no labels, so there is no task 'plain.npz-matched-labelled'"):
        make_task("plain.npz-matched-labelled")


def test_own_pictures_of_every_size_and_broken_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(60):
        Image.new("RGB", (8 + number % 3, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    words = ["distill", "--task", f"{tmp_path}-matched", "--steps", "2", "--updates", "2", "--rounds", "1"]
    words += [
        "--expert.updates",
        "2",
        "--expert.channels",
        "8,16",
        "--chains",
        "2",
        "--batch_size",
        "4",
        "--heldout",
        "0",
    ]
    words += ["--samples", "10", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "pictures must have one size" in (told := capsys.readouterr().err) and "--size 32" in told
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main([*words, "--size", "8"]) == 2
    told = capsys.readouterr().err
    assert "broken.png can't be read as a picture" in told and "--skip_broken true" in told and "\n" not in told[:-1]
    assert main([*words, "--size", "8", "--skip_broken", "true"]) == 0
    told = capsys.readouterr().err
    assert (
        f"{tmp_path}: 60 pictures, 0 classes, 1 skipped (1 broken); 48 to train on, 12 held out; scaled to 8 x 8"
        in told
    )
    assert open_run(tmp_path / "run", "cpu").task.shape == (3, 8, 8)


def test_too_few_pictures_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(Refusal, match=r"few\.npz shows 16 images and holds out 4; .* at least 10\. Give 50 images"):
        Experiment.build(configure({"task": "few.npz-matched"}))
    with pytest.raises(Refusal, match=r"size=8 is for pictures in a folder or data set; few\.npz has its own"):
        image_world("few.npz", 8)


def test_networks_of_the_wrong_kind_are_refused(own: str) -> None:
    with pytest.raises(Refusal, match="'digits-biased' is of images, an MLP is for points"):
        fresh_student(make_task("digits-biased"))
    with pytest.raises(Refusal, match="'moons-biased' is of points, and a U-Net is for images"):
        fresh_unet(make_task("moons-biased"))  # type: ignore[arg-type]


def test_scores_know_real_images_from_noise_and_counts_missing_classes(own: str) -> None:
    task = make_task(f"{own}-biased")
    assert isinstance(task, ImageTask)
    streams = [torch.Generator().manual_seed(seed) for seed in range(4)]
    real = scores(task, task.real(24, streams[0]), streams[1])
    noise = scores(task, torch.randn(24, 1, 8, 8, generator=streams[3]).clamp(-1, 1), streams[1])
    assert real["fd"] < 0.6 * noise["fd"] and real["energy"] < noise["energy"]
    assert real["missing"] == pytest.approx(0.5, abs=0.15)
    shown = scores(task, task.data.sample(24, streams[0]), streams[1])
    assert shown["missing"] == 0.0


def test_scores_are_means_over_parts_of_the_held_out_size(own: str) -> None:
    """Twelve images are held out, so 24 samples are two parts: order within a part does not matter."""
    task = make_task(f"{own}-matched")
    assert isinstance(task, ImageTask) and len(task.world.test.points) == 12
    x = task.real(24, torch.Generator().manual_seed(0))
    whole, *halves = (scores(task, points, torch.Generator().manual_seed(1))["fd"] for points in (x, x[:12], x[12:]))
    assert whole == pytest.approx(sum(halves) / 2)


def test_a_paired_gap_is_zero_for_the_expert_itself(own: str) -> None:
    task = make_task(f"{own}-matched")
    network = fresh_unet(task, channels=(8, 16))  # type: ignore[arg-type]
    expert = Expert(network.eval(), task.schedule, substeps=2)
    noise, times = torch.randn(12, 1, 8, 8), step_grid(2)
    paired = task.pair(expert, noise, times, None)
    assert paired is not None and expert.nfe == 0
    found = scores(task, paired, torch.Generator(), paired=paired)
    assert found["pixel_gap"] == found["feature_gap"] == 0.0


def test_real_images_come_once_before_any_comes_twice() -> None:
    task = make_task("digits-matched")
    drawn = task.real(len(task.world.train.points), torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    train = task.world.train.points  # type: ignore[union-attr]
    assert torch.equal(drawn.flatten(1).sum(0), train.flatten(1).sum(0)) and not torch.equal(drawn, train)


# Teachers


def test_a_teacher_is_trained_once_and_serves_every_set(own: str, cache: Path) -> None:
    task = make_task(f"{own}-biased")
    first = unet_expert(task, **TINY)  # type: ignore[arg-type]
    (file,) = (cache / "teachers").iterdir()
    kept = file.stat().st_mtime_ns
    student = unet_student(make_task(f"{own}-matched"), **TINY)  # type: ignore[arg-type]
    assert torch.equal(weights(student), weights(first)) and file.stat().st_mtime_ns == kept
    assert all(part.requires_grad for part in student.parameters())
    assert not any(part.requires_grad for part in first.parameters())


def test_a_stopped_teacher_goes_on_bit_for_bit(own: str, cache: Path) -> None:
    options = {**TINY, "updates": 101}
    task = make_task(f"{own}-matched-labelled")
    straight = Teacher(task, **options)  # type: ignore[arg-type]
    losses = list(straight.train())
    wanted = weights(straight.load())
    straight.path.unlink()

    stopped = Teacher(task, **options)  # type: ignore[arg-type]
    assert list(itertools.islice(stopped.train(), 1)) == losses[:1]
    assert stopped.path.with_suffix(".part").exists() and not stopped.path.exists()
    assert list(Teacher(task, **options).train()) == losses[1:]  # type: ignore[arg-type]
    assert torch.equal(weights(stopped.load()), wanted)
    assert [file.suffix for file in (cache / "teachers").iterdir()] == [".safetensors"]


def test_a_broken_part_is_refused_with_its_path(own: str) -> None:
    teacher = Teacher(make_task(f"{own}-matched"), **TINY)  # type: ignore[arg-type]
    part = teacher.path.with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half a file")
    with pytest.raises(Refusal, match=rf"{part.name} is not a state to resume from.*Delete it to start over"):
        teacher.load()


@pytest.mark.parametrize(
    "change", [{"channels": (8, 24)}, {"updates": 4}, {"batch_size": 5}, {"seed": 1}, {"layers": 2}]
)
def test_the_cache_key_holds_all_that_matters(change: dict[str, object], own: str, tmp_path: Path) -> None:
    task = make_task(f"{own}-matched")
    usual = Teacher(task, **TINY).path  # type: ignore[arg-type]
    assert Teacher(task, **{**TINY, **change}).path != usual  # type: ignore[arg-type]
    with np.load(own) as arrays:
        np.savez(own, images=arrays["images"] + 1, labels=arrays["labels"])
    image_world.cache_clear()
    assert Teacher(make_task(f"{own}-matched"), **TINY).path != usual  # type: ignore[arg-type]


# From the command line


def test_distill_sample_and_load_images(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {"channels": "[8,16]", "updates": 2, "batch_size": 4}
    learned = [f"--{option}={value}" for option, value in tiny.items()]
    assert main(["teacher", "--task", f"{own}-biased", "--device", "cpu", *learned]) == 0
    small = {"rounds": 2, "chains": 4, "updates": 2}
    parts = [f"--expert.{option}={value}" for option, value in tiny.items()]
    sizes = [f"--{name}={n}" for name, n in {**small, "heldout": 4, "samples": 12, "steps": 2, "substeps": 2}.items()]
    words = [
        "distill",
        "--task",
        f"{own}-biased",
        "--expert",
        "unet",
        *parts,
        *sizes,
        "--device",
        "cpu",
        "--out",
        "run",
    ]
    assert main(words) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "FD-cnn" in told and "W2" not in told
    assert {"samples.png", "metrics.json", "student.safetensors"} <= {file.name for file in Path("run").iterdir()}
    kept = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))
    assert kept["teacher"]["metric"] == "fd"
    assert kept["teacher"]["student"] == pytest.approx(kept["metrics"]["fd"], rel=1e-3)
    again = open_run(Path("run"), "cpu")
    assert isinstance(again, Experiment) and again.sample(3, seed=0).shape == (3, 1, 8, 8)
    assert main(["sample", "run", "--num", "5", "--device", "cpu"]) == 0
    with np.load("samples.npz") as arrays:
        assert arrays["x"].shape == (5, 1, 8, 8)
        usual = arrays["x"]
    assert main(["sample", "run", "--num", "5", "--batch_size", "2", "--grid", "--device", "cpu"]) == 0
    assert "5 pictures in samples.npz, all drawn in samples.png" in capsys.readouterr().out
    with np.load("samples.npz") as arrays, Image.open("samples.png") as grid:
        np.testing.assert_allclose(arrays["x"], usual, atol=1e-5)
        assert (grid.size, grid.mode) == ((26, 17), "L"), "3 by 2, a pixel apart"
        first = (arrays["x"][0, 0].clip(-1, 1) + 1) * 127.5
        assert abs(np.asarray(grid)[:8, :8] - first).max() <= 0.5001
    assert main(["export", "run", "--out", "student"]) == 0, capsys.readouterr().err
    assert "DDIMPipeline in student; call it with num_inference_steps=2" in capsys.readouterr().out
    assert main(["export", "run", "--out", "student"]) == 0
    assert "the export in student is finished" in capsys.readouterr().out
    assert main(["export", "run", "--out", "student", "--dtype", "float16"]) == 2
    assert "is not empty" in capsys.readouterr().err
    pipeline = DiffusionPipeline.from_pretrained("student")
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    torch.testing.assert_close(pipeline.unet(x, 1000 * t - 1).sample, again.student.network(x, t))
    card = Path("student/README.md").read_text(encoding="utf-8")
    assert "pipeline(num_inference_steps=2)" in card and "| fd | " in card and "a teacher of bars" in card


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("run --out full", "full is not empty"),
        ("run", "--out is missing"),
        ("run --out new --format tiff", "unknown format 'tiff'"),
        ("nothing --out new", "nothing holds no run"),
        ("run --out new", "no diffusers pipeline holds a MLP"),
    ],
)
def test_what_cannot_be_exported(words: str, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    tiny = "--updates 2 --rounds 1 --chains 4 --batch_size 4 --heldout 0 --samples 10 --policy fresh --policy.width 8"
    assert main(f"distill --task gaussians8-matched {tiny} --device cpu --out run".split()) == 0
    capsys.readouterr()
    assert main(["export", *words.split()]) == 2
    assert match in capsys.readouterr().err


def test_an_unknown_task_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--task", "digit-biased", "--out", "run"]) == 2
    assert "unknown task 'digit-biased'. Did you mean 'digits-biased'" in capsys.readouterr().err


def test_images_come_from_the_schedule_of_the_task() -> None:
    assert isinstance(make_task("digits-matched").schedule, CosineSchedule)


def test_the_channels_of_a_teacher_are_told_with_commas(capsys: pytest.CaptureFixture[str]) -> None:
    words = "teacher --task digits-matched --channels 8,16 --updates 1 --batch_size 8 --device cpu"
    assert main(words.split()) == 0, capsys.readouterr().err
    assert "trained for 1 updates" in capsys.readouterr().out
    assert main(words.replace("8,16", "[8,16]").split()) == 0 and "already trained" in capsys.readouterr().out
