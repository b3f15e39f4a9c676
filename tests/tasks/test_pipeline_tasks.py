"""Distilling a pipeline: teacher, states, conditions and data are its own; what can't be is refused in one line."""

import copy
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from helpers import ROOT
from safetensors.torch import load_file

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.envs.image_files import image_arrays
from dagdiff.metrics.base import score
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.pipelines.few_step import read_sampler
from dagdiff.pipelines.fingerprint import fingerprint
from dagdiff.pipelines.noise_law import read_noise_law
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run, save_student
from dagdiff.runs.outside import keep_outside
from dagdiff.schedule import step_grid
from dagdiff.tasks import pipeline_data, pipeline_images
from dagdiff.threshold import NoThreshold, StaticThreshold

pytestmark = pytest.mark.usefixtures("offline")

CONFIGS = ROOT / "benchmarks" / "configs"
PROMPTS = ["a cat", "two dogs", "a red house"]
SMALL: dict[str, Any] = {
    "task": "pipeline", "steps": 2, "updates": 2, "rounds": 1, "chains": 2, "batch_size": 4, "heldout": 2,
    "samples": 10, "substeps": 1, "device": "cpu",
}  # fmt: skip
FEW = {"own_samples": 20, "own_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pipelines, prompts and the cache of this module are."""
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def pixels(folder: Path) -> str:
    """A pipeline without conditions, whose states are pixels."""
    return pipelines.save(pipelines.seeded(pipelines.ddpm), folder / "ddpm")


@pytest.fixture(scope="module")
def latents(folder: Path) -> str:
    """A text-to-image pipeline, whose states are latents."""
    return pipelines.save(pipelines.seeded(pipelines.stable_diffusion), folder / "sd")


@pytest.fixture
def of_text(latents: str, folder: Path) -> dict[str, Any]:
    """Settings of a small run of the text-to-image pipeline."""
    pipeline = {"path": latents, "prompts": str(folder / "prompts.txt"), **FEW}
    return {**SMALL, "guidance": 2.0, "pipeline": pipeline}


def changed(settings: dict[str, Any], **pipeline: Any) -> dict[str, Any]:
    """The same settings with other options of the pipeline."""
    return {**settings, "pipeline": {**settings["pipeline"], **pipeline}}


def build(settings: dict[str, Any], **more: Any) -> Experiment:
    return Experiment.build(configure({**settings, **more}))


def dagdiff(line: str) -> tuple[int, str, str]:
    """Run a command line in this process; return its status and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(shlex.split(line))
    return status, out.getvalue(), err.getvalue()


def fill(root: Path, *kinds: str, each: int) -> None:
    """Write folders of pictures, black ones into the first and white ones into the others."""
    from PIL import Image

    for place, kind in enumerate(kinds):
        (root / kind).mkdir()
        for number in range(each):
            Image.new("RGB", (16, 16), (255,) * 3 if place else (0,) * 3).save(root / kind / f"{number}.png")


# -- the task -------------------------------------------------------------------------------------------------------


def test_schedule_threshold_shape_and_conditions_are_the_teachers(of_text: dict[str, Any], pixels: str) -> None:
    it = build(of_text)
    teacher: Any = it.task.teacher  # type: ignore[attr-defined]
    assert it.task.shape == teacher.shape == (4, 8, 8)
    assert it.expert.schedule is it.task.schedule is teacher.schedule
    assert isinstance(it.threshold, NoThreshold), "latents are not clipped"
    asked = it.start(64, seed=0)[1]
    assert asked is not None and set(asked.tolist()) == {0, 1, 2}
    plain = build(SMALL, pipeline={"path": pixels, **FEW})
    assert plain.task.conditions is None and plain.start(4, seed=0)[1] is None
    assert plain.threshold == StaticThreshold(-1.0, 1.0), "as clip_sample says"


def test_the_student_starts_as_the_expert_and_has_weights_of_its_own(of_text: dict[str, Any]) -> None:
    it = build(of_text)
    noise, condition, _ = it.start(4, seed=0)
    t = torch.full((4,), 0.7)
    torch.testing.assert_close(it.policy(noise, t, condition), it.expert.denoiser(noise, t, condition))
    before = fingerprint(it.expert.denoiser)  # type: ignore[arg-type]
    *_, (_, last) = it.rounds()
    assert fingerprint(it.expert.denoiser) == before, "the teacher never changes"  # type: ignore[arg-type]
    assert not torch.equal(it.policy(noise, t, condition), it.expert.denoiser(noise, t, condition))
    assert last.updates == 2 and last.nfe_expert > 0 and set(last.losses) >= {"loss", "gradient_norm"}


def test_a_pipeline_is_read_once_in_a_process(of_text: dict[str, Any]) -> None:
    one, two = build(of_text), build(of_text, seed=1)
    assert one.task.teacher is two.task.teacher  # type: ignore[attr-defined]
    assert one.student is not two.student


def test_own_samples_are_the_ends_of_the_teachers_guided_chains_and_are_kept(
    of_text: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world: Any = build(of_text, heldout=0).task.world
    shown, held = world.splits
    assert len(shown.points) == 16 and len(held.points) == 4 and shown.labels.shape == (16,)
    it = build(of_text)
    start = torch.Generator().manual_seed(0)
    noise = torch.randn((20, 4, 8, 8), generator=start)
    asked = it.task.conditions(20, start)  # type: ignore[misc]
    assert torch.equal(asked, torch.cat([shown.labels, held.labels])), "each with the prompt that it shows"
    one = copy.copy(it.expert)
    one.substeps = 1
    want = one.walk(noise, step_grid(2), asked)[-1]
    torch.testing.assert_close(torch.cat([shown.points, held.points]), want, rtol=1e-4, atol=1e-4)

    def never(*arguments: Any) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(pipeline_data, "_drawn", never)
    again: Any = build(of_text, heldout=0, seed=5).task.world
    assert torch.equal(again.splits[0].points, shown.points)
    with pytest.raises(AssertionError, match="drawn again"):
        build(changed(of_text, own_steps=3))


def test_a_broken_file_of_samples_is_refused(of_text: dict[str, Any], folder: Path) -> None:
    it: Any = build(changed(of_text, own_samples=11))
    (file,) = [f for f in (folder / "cache" / "pipelines").iterdir() if len(load_file(f)["points"]) == 11]
    file.write_bytes(b"half")
    with pytest.raises(Refusal, match=r"safetensors can't be read .*Delete it"):
        build(changed(of_text, own_samples=11, null_class=None))
    assert len(it.task.world.splits[0].points) == 9


def test_images_are_encoded_once_and_a_fifth_is_held_out(of_text: dict[str, Any], folder: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8)
    np.savez(folder / "grey.npz", images=grey)
    task: Any = build(changed(of_text, images=str(folder / "grey.npz"))).task
    shown, held = task.world.splits
    assert shown.points.shape == (8, 4, 8, 8) and held.points.shape == (2, 4, 8, 8)
    points, condition = task.data.sample_labelled(50, torch.Generator().manual_seed(0))
    assert points.shape == (50, 4, 8, 8) and set(condition.tolist()) == {0, 1, 2}, "prompts are drawn at random"
    assert len(list((folder / "cache" / "latents").iterdir())) == 1
    seen = task.pictures(points[:2])
    assert seen.shape == (2, 3, 16, 16), "latents are decoded"
    with pytest.raises(Refusal, match=r"holds out 2 points; asked for 3 .*--num"):
        task.world.reference(3)


def test_pictures_of_a_folder_are_cropped_to_the_pipelines_size(pixels: str, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(10):
        Image.new("L", (20, 12), number * 20).save(tmp_path / f"{number}.png")
    task = build(SMALL, pipeline={"path": pixels, "images": str(tmp_path)}).task
    points = task.data.sample(30, torch.Generator().manual_seed(0))
    assert points.shape == (30, 1, 8, 8) and len(points.unique()) == 8


def test_pictures_of_another_shape_and_broken_ones(pixels: str, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(10):
        Image.new("L", (20, 12), number * 20).save(tmp_path / f"{number}.webp")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    settings = {"path": pixels, "images": str(tmp_path)}
    with pytest.raises(Refusal, match=r"broken\.png can't be read as a picture .*--skip_broken true"):
        build(SMALL, pipeline=settings)
    task: Any = build(SMALL, pipeline=settings, skip_broken=True).task
    assert [len(part.points) for part in task.world.splits] == [8, 2]
    with pytest.raises(Refusal, match=r"--size is not for a pipeline"):
        build(SMALL, pipeline=settings, size=8)


def test_captions_beside_pictures_are_their_prompts(
    of_text: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number in range(10):
        Image.new("L", (16, 16), number * 20).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a cat" if number % 2 else "an old ship")
    prompts = {"images": str(tmp_path), "prompts": None}
    alone: Any = build(changed(of_text, **prompts)).task
    assert alone.teacher.network.conditions.prompts == ("an old ship", "a cat")
    shown = alone.world.splits[0]
    assert "10 pictures, 2 captions, 0 skipped; 8 to train on, 2 held out" in capsys.readouterr().err
    both: Any = build(changed(of_text, images=str(tmp_path))).task
    assert both.teacher.network.conditions.prompts == (*PROMPTS, "an old ship"), "captions join the prompts, once"
    assert torch.equal(torch.where(both.world.splits[0].labels == 3, 0, 1), shown.labels)
    points, condition = alone.data.sample_labelled(40, torch.Generator().manual_seed(0))
    bright = [float(shown.points[row].sum()) for row in range(8)]
    where = [bright.index(float(point.sum())) for point in points]
    assert torch.equal(condition, shown.labels[where]), "each picture is shown with its own caption"
    bank = tmp_path / "bank.safetensors"
    both.teacher.network.conditions.save(bank)
    assert torch.equal(build(changed(of_text, images=str(tmp_path), prompts=str(bank))).task.world.splits[1].labels,
                       both.world.splits[1].labels)  # fmt: skip
    (tmp_path / "0.txt").write_text("an old boat")
    with pytest.raises(Refusal, match=r"1 captions in .* are not among the prompts, such as 'an old boat'"):
        build(changed(of_text, images=str(tmp_path), prompts=str(bank)))


@pytest.mark.parametrize("given", [False, True], ids=["no prompts", "the classes among others"])
def test_classes_of_folders_are_prompts(
    given: bool, of_text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_images, "_encoded", lambda teacher, images, generator: images[:, [0] * 4, :8, :8])
    fill(tmp_path, "red_house", "two_dogs", each=5)
    told = {} if given else {"prompts": None}
    task: Any = build(changed(of_text, images=str(tmp_path), **told)).task
    prompts = task.teacher.network.conditions.prompts
    assert prompts == (tuple(PROMPTS) if given else ("red house", "two dogs"))
    shown, held = task.world.splits
    if given:  # "red house" is none of them: nothing is known of the pictures
        assert shown.labels is None
        return
    for part in (shown, held):
        assert torch.equal(part.points[:, 0, 0, 0], 2.0 * part.labels - 1), "each picture with its own class"


@pytest.fixture(scope="module")
def labelled(folder: Path) -> str:
    """A class-conditional pipeline of a thousand classes, two of which have names."""
    path = pipelines.save(pipelines.seeded(pipelines.dit), folder / "dit")
    index = Path(path) / "model_index.json"
    names = {"id2label": {str(number): f"class {number}, kind {number}" for number in range(1000)}}
    index.write_text(json.dumps(json.loads(index.read_text()) | names))
    return path


@pytest.mark.parametrize(
    ("kinds", "numbers"),
    [
        (("7", "031"), (7, 31)),
        (("kind_9", "class 2"), (9, 2)),
        (tuple(f"n{number:08d}" for number in range(3, 1003)), (0, 1)),
    ],
    ids=["numbers", "names", "as many as the network has"],
)
@pytest.mark.parametrize("form", ["folders", "arrays"])
def test_classes_of_images_are_the_networks(
    kinds: tuple[str, ...], numbers: tuple[int, ...], form: str, labelled: str, tmp_path: Path
) -> None:
    names = [kind for kind in kinds for _ in range(5 if len(kinds) == 2 else 1)]
    if form == "arrays":
        grey = np.where(np.array(names) == kinds[0], 0, 255).astype(np.uint8)
        images = tmp_path / "x.npz"
        np.savez(images, images=np.broadcast_to(grey[:, None, None], (len(names), 16, 16)), labels=np.array(names))
    else:
        images = tmp_path
        fill(images, *kinds, each=len(names) // len(kinds))
    told = {"path": labelled, "images": str(images), "null_class": 1000}
    shown, held = build(SMALL, pipeline=told).task.world.splits  # type: ignore[union-attr]
    both = torch.cat([shown.labels, held.labels])
    assert int((both == numbers[0]).sum()) == len(names) // len(kinds)
    assert set(both.tolist()) == (set(numbers) if len(kinds) == 2 else set(range(1000)))


def test_classes_that_the_network_does_not_know_are_refused(labelled: str, tmp_path: Path) -> None:
    fill(tmp_path, "cat", "class 2", each=5)
    told = {"path": labelled, "images": str(tmp_path)}
    with pytest.raises(Refusal, match=r"2 classes, such as 'cat', and the network 1000: which is which\? Name the"):
        build(SMALL, pipeline=told).task.world.splits  # type: ignore[union-attr]  # noqa: B018


@pytest.mark.parametrize("column", ["text", "what"])
def test_a_data_set_gives_images_and_captions(
    column: str, of_text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_images, "_encoded", lambda teacher, images, generator: images[:, [0] * 4, :8, :8])
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = [Image.new("RGB", (20, 16), (255,) * 3 if row % 2 else (0,) * 3) for row in range(10)]
    captions = [("a white field", "the_night")[row % 2 == 0] for row in range(10)]
    columns = datasets.Features({"image": datasets.Image(), column: datasets.Value("string")})
    datasets.Dataset.from_dict({"image": images, column: captions}, features=columns).save_to_disk(str(tmp_path))
    told = {"images": str(tmp_path), "prompts": None, "prompt_column": None if column == "text" else column}
    task: Any = build(changed(of_text, **told)).task
    assert sorted(task.teacher.network.conditions.prompts) == ["a white field", "the_night"]
    shown = task.world.splits[0]
    assert len(shown.points) == 8 and len(shown.labels.unique()) == 2
    white = shown.labels == task.teacher.network.conditions.prompts.index("a white field")
    assert torch.equal(shown.points[:, 0, 0, 0], torch.where(white, 1.0, -1.0)), "each with its own caption"
    with pytest.raises(Refusal, match=r"column 'image' of .* holds no text; such are "):
        build(changed(of_text, **told | {"prompt_column": "image"}))


def test_prompts_come_from_the_column_of_a_table(of_text: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("id\twhat\n1\ta cat\n2\ta dog\n")
    told = {"prompts": str(tmp_path / "p.tsv")}
    task: Any = build(changed(of_text, **told, prompt_column="what")).task
    assert task.teacher.network.conditions.prompts == ("a cat", "a dog")
    with pytest.raises(Refusal, match=r"no column called prompt.*--pipeline\.prompt_column"):
        build(changed(of_text, **told))


def test_samples_are_scored_by_the_teachers(pixels: str) -> None:
    it = build(SMALL, pipeline={"path": pixels, **FEW})
    metrics, by_step = it.measure(it.sample(10, seed=0))
    assert set(metrics) == {
        "energy",
        "state_gap",
        "loss_forward",
        "loss_expert",
        "loss_own",
        "data_mismatch",
        "own_errors",
        "end_error",
        "loss_gap",
    }
    noise, asked, _ = it.start(10, 0)
    perfect = it.task.pair(it.expert, noise, it.times, asked)
    assert perfect is not None
    truth = it.task.truth(10, it.generator(4), it.generator(5), asked, perfect[:5])
    assert score(it.task.metrics, perfect, truth)["state_gap"] == 0.0
    assert score(it.task.metrics, perfect + 1.0, truth)["state_gap"] == pytest.approx(1.0)
    assert len(by_step["t"]) == 2
    paired = it.pair(10)
    found = it.stand(it.sample(10, seed=0), paired=paired)
    assert paired is not None and len(paired) == 5
    assert found.metric == "energy" and found.student == metrics["energy"] and not found.behind


# -- students -------------------------------------------------------------------------------------------------------


def test_a_student_of_a_half_precision_teacher_trains_in_float32(of_text: dict[str, Any]) -> None:
    it = build(changed(of_text, dtype="bfloat16"), heldout=0, rounds=1, updates=1)
    assert {weight.dtype for weight in it.student.parameters()} == {torch.float32}
    assert {weight.dtype for weight in it.expert.denoiser.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    *_, (_, last) = it.rounds()
    assert np.isfinite(last.losses["loss"])


def test_gradient_checkpointing_changes_no_gradient(of_text: dict[str, Any]) -> None:
    found = []
    for wanted in (False, True):
        it = build(of_text, policy={"class": "pipeline", "gradient_checkpointing": wanted})
        noise, condition, _ = it.start(2, seed=0)
        it.student.train()
        it.student(noise, torch.full((2,), 0.7), condition).square().mean().backward()
        found.append(
            torch.cat([weight.grad.flatten() for weight in it.student.parameters() if weight.grad is not None])
        )
        assert it.student.network.body.is_gradient_checkpointing == wanted  # type: ignore[union-attr]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["distribution", "dagdiff.objectives.DistributionMatching"])
def test_distribution_matching_takes_the_options_that_suit_a_pipeline(name: str, pixels: str) -> None:
    settings = {**SMALL, "pipeline": {"path": pixels, **FEW}}
    it = build(settings, objective={"class": name, "critic_updates": 1})
    assert isinstance(it.objective, DistributionMatching)
    assert (it.objective.critic_lr, it.objective.tell_origin, it.objective.critic_updates) == (1e-4, False, 1)
    *_, (_, last) = it.rounds()
    assert set(last.losses) >= {"matching", "fake"}


def test_a_quantile_box_of_latents_is_estimated_on_few_points(of_text: dict[str, Any]) -> None:
    config = configure({**of_text, "threshold": "quantile"})
    assert config["threshold"]["points"] == 256
    box: Any = Experiment.build(config).threshold
    assert box.low.shape == (4,)


def test_a_student_with_adapters_shares_the_experts_weights_and_keeps_only_its_own(
    of_text: dict[str, Any], tmp_path: Path
) -> None:
    it = build(changed(of_text, dtype="bfloat16"), policy={"class": "lora", "rank": 2}, lr=1e-2, ema=0.5)
    noise, condition, _ = it.start(2, seed=0)
    t = torch.full((2,), 0.7)
    expert: Any = it.expert.denoiser
    torch.testing.assert_close(it.policy(noise, t, condition), expert(noise, t, condition), atol=1e-2, rtol=1e-2)
    before, size = (
        fingerprint(expert),
        sum(weight.numel() for weight in it.student.parameters() if weight.requires_grad),
    )
    *_, (loop, _) = it.rounds()
    assert fingerprint(expert) == before, "the teacher never changes"
    mine, its = ({weight.data_ptr() for weight in net.parameters()} for net in (it.student, expert))
    assert its < mine, "weights of the expert are there once"
    assert loop.best is not None and loop.learner.averaged is not None
    for state in (loop.learner.last_good, loop.best[2], loop.learner.averaged.module.state_dict()):
        assert sum(values.numel() for values in state.values()) == size
    assert not torch.equal(it.policy(noise, t, condition), expert(noise, t, condition))
    save_student(it, tmp_path)
    again = open_run(tmp_path, "cpu")
    assert torch.equal(again.policy(noise, t, condition), it.policy(noise, t, condition))


# -- commands -------------------------------------------------------------------------------------------------------


def spelled(settings: dict[str, Any], **pipeline: Any) -> str:
    """Settings as words of the command line."""
    named = {f"pipeline.{name}": value for name, value in pipeline.items()}
    return " ".join(f"--{name} {value}" for name, value in {**settings, **named}.items())


@pytest.fixture(scope="module")
def finished(pixels: str, folder: Path) -> tuple[Path, str]:
    """The folder of a finished run, and what its command told."""
    status, told, err = dagdiff(
        f"distill {spelled(SMALL, path=pixels, own_samples=60, own_steps=2)} --out {folder / 'run'}"
    )
    assert status == 0, err
    return folder / "run", told


def test_from_the_command_line_to_a_run(finished: tuple[Path, str], pixels: str) -> None:
    out, told = finished
    assert "energy distance" in told and (out / "samples.png").exists()
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["pipeline"]["path"] == pixels and kept["schedule"] == {"class": None}
    assert open_run(out, "cpu").sample(3, seed=0).shape == (3, 1, 8, 8)


@pytest.mark.slow
def test_samples_and_shift_of_a_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = finished[0]
    points = open_run(out, "cpu").sample(10, seed=3)
    status, _, err = dagdiff(f"sample {out} --num 10 --seed 3 --out {tmp_path / 'x.npz'} --device cpu")
    assert status == 0, err
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["x"], points.numpy())
    status, told, err = dagdiff(f"shift {out} --num 10 --device cpu")
    assert status == 0, err
    assert "imitation loss" in told and (out / "shift.csv").exists()


def test_samples_of_a_pipeline_are_pictures_of_the_prompts_asked_for(
    of_text: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "x.npz"
    it = build(of_text)
    out.mkdir()
    save_student(it, out)
    keep_outside(it.task, it.config, out)

    def drawn(words: str) -> dict[str, np.ndarray]:
        status, _, err = dagdiff(f"sample {out} --num 5 --out {file} --device cpu {words}")
        assert status == 0, err
        with np.load(file) as arrays:
            return dict(arrays)

    own = drawn("")
    assert own["x"].shape == (5, 3, 16, 16) and own["latents"].shape == (5, 4, 8, 8)
    again = open_run(out, "cpu")
    torch.testing.assert_close(torch.from_numpy(own["x"]), again.task.pictures(again.sample(5, seed=0)))
    assert [PROMPTS[number] for number in own["condition"]] == own["prompt"].tolist()
    assert image_arrays(file).shape == (3, 16, 16), "dagdiff reads what it writes"

    cat, ship = drawn("--prompt 'a cat' --batch_size 2"), drawn("--prompt 'an old ship, at sea'")
    assert np.array_equal(cat["noise"], own["noise"]) and np.array_equal(ship["noise"], own["noise"])
    assert set(cat["prompt"]) == {"a cat"} and set(ship["prompt"]) == {"an old ship, at sea"}
    same = own["prompt"] == "a cat"
    assert not np.allclose(cat["latents"], ship["latents"], atol=1e-4)
    if same.any():
        np.testing.assert_allclose(cat["latents"][same], own["latents"][same], atol=1e-4)

    (tmp_path / "p.tsv").write_text("id\twhat\n1\ttwo dogs\n2\tan old ship, at sea\n")
    turns = drawn(f"--prompts {tmp_path / 'p.tsv'} --prompt_column what")
    assert turns["prompt"].tolist() == ["two dogs", "an old ship, at sea"] * 2 + ["two dogs"]
    np.testing.assert_allclose(turns["latents"][1], ship["latents"][1], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--prompt ' '", "--prompt is ' ', and shows nothing. Write what to show."),
        ("--prompt a --prompts b.txt", "--prompt and --prompts both say what to show. Leave one away."),
        ("--prompt 'a cat'", "it takes no text: leave the prompts out."),
        ("--batch_size 0", "batch_size must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_asked_of_samples(words: str, told: str, pixels: str, tmp_path: Path) -> None:
    it = build(SMALL, pipeline={"path": pixels, **FEW})
    save_student(it, tmp_path)
    status, _, err = dagdiff(f"sample {tmp_path} --num 2 --out {tmp_path / 'x.npz'} {words}")
    assert status == 2 and told in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15-ddil-lora", "ssd1b-dmd2"])
def test_the_recipes_run_from_the_command_to_a_picture(
    name: str, latents: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very files, on small stand-ins: only the place of the pipeline and sizes are changed."""
    monkeypatch.chdir(CONFIGS.parents[1])
    path = latents if name.startswith("sd15") else pipelines.save(pipelines.seeded(pipelines.sdxl), folder / "sdxl")
    sizes = "--pipeline.own_samples 20 --pipeline.own_steps 2 --updates 2 --rounds 1 --batch_size 4 --accumulate 2"
    sizes += " --chains 2 --samples 10 --device cpu --pipeline.variant null"
    rank = "--policy.rank 2" if name.startswith("sd15") else ""
    out = tmp_path / "run"
    status, told, err = dagdiff(
        f"distill --config {CONFIGS / name}.yaml --pipeline.path {path} {sizes} {rank} --out {out}"
    )
    assert status == 0, err
    assert "energy distance" in told and (out / "samples.png").exists()
    again = open_run(out, "cpu")
    assert again.settings.bf16 and again.settings.guidance == 7.5
    status, _, err = dagdiff(f"sample {out} --num 2 --out {tmp_path / 'x.npz'} --device cpu")
    assert status == 0, err
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["x"].shape == (2, 3, 16, 16) and arrays["latents"].shape == (2, 4, 8, 8)
    assert (tmp_path / "x.png").exists()
    status, _, err = dagdiff(f"export {out} --out {tmp_path / 'student'}")
    assert status == 0, err
    student: Any = DiffusionPipeline.from_pretrained(tmp_path / "student")
    image = student("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (16, 16, 3) and np.isfinite(image).all()
    law = read_noise_law(student.scheduler, latent=True)
    sampler = read_sampler(student.scheduler, law, 4)
    torch.testing.assert_close(sampler.times, again.times)
    assert type(sampler.transition) is type(again.transition)


# -- what can't be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", r"no pipeline is named\. Pass --pipeline\.path"),
        ("--pipeline.path {latents}", r"sd' is asked with prompts\. Give a file of them: --pipeline\.prompts"),
        ("--pipeline.path {latents} --pipeline.prompts {folder}/empty.txt", r"empty\.txt holds no prompt\. Write one"),
        ("--pipeline.path {latents} --pipeline.prompts {folder}/none.txt", r"none\.txt can't be read"),
        (
            "--pipeline.path {pixels} --pipeline.prompts {folder}/prompts.txt",
            r"it takes no text: leave the prompts out",
        ),
        ("--pipeline.path {pixels} --guidance 2", r"takes no condition, so guidance has nothing to weigh"),
        ("--pipeline.path {pixels} --schedule cosine", r"--schedule is not for a pipeline: .* its own\. Leave it away"),
        ("--pipeline.path {pixels} --samples 2000", r"samples of a pipeline .* 1000 at most; got 2000"),
        ("--pipeline.path {pixels} --pipeline.own_samples 3", r"own_samples must be at least 10; got 3"),
        ("--pipeline.path {pixels} --pipeline.images {folder}/none", r"no images at .*none\. Name a folder"),
        ("--pipeline.path {pixels} --pipeline.images {folder}/wide.npz", r"images must be \(B, 1, 8, 8\)"),
        ("--pipeline.path {pixels} --pipeline.dtype int8", r"unknown dtype 'int8'"),
        ("--pipeline.path {pixels} --policy.dtype int8", r"unknown dtype 'int8'\. .*Known: bfloat16, float32"),
        ("--pipeline.path {latents} --pipeline.prompts {folder}/prompts.txt --threshold box", r"latents lie in no box"),
        ("--pipeline.path {half}", r"half/unet/.*\.safetensors is cut off: .*Download or save it again, whole"),
        ("--pipeline.path who/knows", r"no pipeline at 'who/knows': .* the hub does not give it .*Check the name"),
        (
            "--pipeline.path {pixels} --policy teacher",
            r"'pipeline' is of images, an MLP is for points\. Leave --policy",
        ),
    ],
)
def test_what_cannot_be_distilled_is_refused_in_one_line(
    words: str, told: str, latents: str, pixels: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "empty.txt").write_text("\n")
    np.savez(folder / "wide.npz", images=np.zeros((10, 8, 9), dtype=np.uint8))
    half = folder / "half"
    if not half.exists():
        shutil.copytree(pixels, half)
        (half / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    words = words.format(latents=latents, pixels=pixels, folder=folder, half=half)
    status, out, err = dagdiff(f"distill {spelled(SMALL)} {words} --out {tmp_path / 'run'}")
    lines = [line for line in err.splitlines() if line.startswith("dagdiff: error:")]
    assert status == 2 and out == "" and len(lines) == 1 and not (tmp_path / "run").exists()
    assert re.search(told, lines[0]), lines[0]


@pytest.mark.parametrize("part", ["expert", "policy", "threshold"])
def test_parts_of_pipelines_are_for_pipelines(part: str, tmp_path: Path) -> None:
    name = "teacher" if part == "threshold" else "pipeline"
    status, _, err = dagdiff(f"distill --policy fresh --{part} {name} --device cpu --out {tmp_path / 'run'}")
    assert status == 2 and "'gaussians8-biased' is no pipeline. Pass --task pipeline" in err


def test_a_pipeline_has_no_teacher_to_train() -> None:
    status, _, err = dagdiff("teacher --task pipeline")
    assert status == 2 and "a pipeline is its own teacher: there is none to train. Use dagdiff distill" in err
