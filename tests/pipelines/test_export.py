"""Students that leave: what diffusers makes of an exported folder, without dagdiff, is what dagdiff samples."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
)
from torch.nn.functional import pixel_unshuffle

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.pipelines.calling import call_arguments, loading_program, model_card
from dagdiff.pipelines.export import build_pipeline
from dagdiff.pipelines.few_step import read_sampler
from dagdiff.pipelines.lora import lora_student
from dagdiff.pipelines.noise_law import read_noise_law
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.schedulers import few_step_scheduler
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import EPSILON, FLOW, X0, Prediction, V
from dagdiff.policies.student import Stepwise, Student
from dagdiff.policies.unet import image_unet
from dagdiff.policy import StudentPolicy
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import save_student
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.threshold import DynamicThreshold, Fold, NoThreshold, StaticThreshold
from dagdiff.transition import Ddim, EpsilonScaling, Renoise, Transition, sample

# A user's program, in a process where dagdiff and the network can't be had. It hands diffusers the noises of our chain.
LOADER = """
import socket, sys
import numpy as np
import torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dagdiff":
            raise ImportError("dagdiff is not here")

sys.meta_path.insert(0, Absent())
def refuse(*arguments, **options):
    raise OSError("no network")
socket.socket.connect = refuse
import diffusers
from diffusers import DiffusionPipeline

folder, arguments = sys.argv[1], eval(sys.argv[2])
noises = iter(torch.from_numpy(each) for each in np.load(sys.argv[3])["noises"])
drawn = lambda *arguments, **options: next(noises)
pipeline = DiffusionPipeline.from_pretrained(folder)
for name, module in list(sys.modules.items()):
    if name.startswith("diffusers.") and "randn_tensor" in vars(module):
        module.randn_tensor = drawn
pipeline.set_progress_bar_config(disable=True)
made = pipeline(output_type="np", **arguments).images
np.savez(sys.argv[4], images=made, dagdiff="dagdiff" in sys.modules)
"""


def abroad(pipeline: Any, arguments: dict[str, Any], drawn: list[torch.Tensor], folder: Path) -> torch.Tensor:
    """What another process makes of a saved pipeline and those noises, ``(B, C, H, W)`` in [0, 1]."""
    pipeline.save_pretrained(folder / "student")
    np.savez(folder / "noises.npz", noises=torch.stack(drawn).numpy())
    (folder / "loader.py").write_text(LOADER)
    words = [sys.executable, "-I", "loader.py", "student", repr(arguments), "noises.npz", "images.npz"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, env=offline)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "images.npz") as found:
        assert not found["dagdiff"]
        return torch.from_numpy(found["images"]).permute(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pixels(prediction: Prediction = V, schedule: Any = None) -> Student:
    """A student of 8 x 8 images with random weights, the last layer's made large enough to matter."""
    network = image_unet((1, 8, 8), channels=(8, 16))
    with torch.no_grad():
        network.unet.conv_out.weight.mul_(8.0)
    return Student(network, schedule or CosineSchedule(), prediction).eval()


def noises(count: int, *shape: int) -> list[torch.Tensor]:
    """The noises of a chain: its start, and what each step draws."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count + 1)]


def states(
    student: Any, transition: Transition, steps: int, threshold: Any, shape: tuple[int, ...], condition: Any = None
) -> torch.Tensor:
    """States by our own sampler from those noises."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    return sample(StudentPolicy(student, threshold), transition, step_grid(steps), start, condition, generator)


def ours(student: Any, transition: Transition, steps: int, threshold: Any, *shape: int) -> torch.Tensor:
    """Images by our own sampler from those noises, in [0, 1]."""
    return (states(student, transition, steps, threshold, shape) / 2 + 0.5).clamp(0, 1)


def called(pipeline: Any, arguments: dict[str, Any], drawn: list[torch.Tensor]) -> Any:
    """What a pipeline makes here of those noises, whoever of its parts draws them."""
    pipeline.set_progress_bar_config(disable=True)
    left = iter(drawn)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.") and "randn_tensor" in vars(module):
                patch.setattr(module, "randn_tensor", lambda *a, **k: next(left))
        return pipeline(**arguments).images


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("entries", [1000, 2000, 40])
def test_the_scheduler_s_own_timesteps_are_the_student_s_grid(law: Any, steps: int, entries: int) -> None:
    schedule = VPSchedule(DDIMScheduler(entries).alphas_cumprod)
    scheduler = few_step_scheduler(law(schedule), step_grid(steps), schedule, V, NoThreshold(), entries)
    scheduler.set_timesteps(steps)
    assert isinstance(scheduler, DDIMScheduler if law is Ddim else LCMScheduler)
    torch.testing.assert_close((scheduler.timesteps + 1) / entries, step_grid(steps)[:-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_on_rectified_flow_the_scheduler_is_the_student_s_chain(law: Any, steps: int) -> None:
    """``read_sampler`` also tries each step against the law's; pipelines may name the noise levels themselves."""
    scheduler = few_step_scheduler(law(FlowSchedule()), step_grid(steps), FlowSchedule(), FLOW, NoThreshold())
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler if law is Ddim else FlowMatchLCMScheduler)
    found = read_sampler(scheduler, read_noise_law(scheduler, latent=True), steps)
    assert type(found.transition) is law
    torch.testing.assert_close(found.times, step_grid(steps), atol=1e-6, rtol=0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    torch.testing.assert_close(scheduler.sigmas, step_grid(steps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prediction", [V, EPSILON, X0], ids=lambda each: each.name)
@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("threshold", [NoThreshold(), StaticThreshold(), DynamicThreshold(0.9)], ids=str)
def test_a_chain_by_the_scheduler_is_ours(law: Any, prediction: Prediction, threshold: Any) -> None:
    """Step by step, with the same network and the same fresh noise."""
    schedule, steps, shape = VPSchedule.linear(), 4, (2, 1, 8, 8)
    student = pixels(prediction, schedule)
    scheduler = few_step_scheduler(law(schedule), step_grid(steps), schedule, prediction, threshold)
    scheduler.set_timesteps(steps)
    x, *fresh = noises(steps, *shape)
    for t, noise in zip(scheduler.timesteps, fresh, strict=True):
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *a, noise=noise, **k: noise)
            output = student.network.unet(x, t).sample
            x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(
        (x / 2 + 0.5).clamp(0, 1), ours(student, law(schedule), steps, threshold, *shape), atol=1e-4, rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("steps", [1, 4])
def test_an_exported_folder_needs_no_dagdiff(law: Any, steps: int, tmp_path: Path) -> None:
    student, shape, boxed = pixels(), (3, 1, 8, 8), StaticThreshold()
    pipeline = build_pipeline(student, law(student.schedule), step_grid(steps), boxed)
    arguments = {"batch_size": 3, **call_arguments(pipeline, steps)}
    made = abroad(pipeline, arguments, noises(steps, *shape), tmp_path)
    torch.testing.assert_close(made, ours(student, law(student.schedule), steps, boxed, *shape), atol=1e-4, rtol=0)


def adapted(make: Any, folder: Path, size: int | None = None) -> tuple[str, DiffusersExpert, Any]:
    """A small pipeline, its teacher, and a student whose answers are not the teacher's."""
    base = pipelines.save(pipelines.seeded(make), folder / "teacher")
    teacher = DiffusersExpert.from_pretrained(base, prompts=["a cat"], sample_size=size)
    student = teacher.student().eval()
    with torch.no_grad():
        getattr(student.network.body, "conv_out", getattr(student.network.body, "proj_out", None)).weight.mul_(4.0)
    return base, teacher, student


@pytest.mark.slow
@pytest.mark.parametrize("make", [pipelines.stable_diffusion, pipelines.sdxl], ids=lambda make: make.__name__)
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_an_exported_text_pipeline_needs_no_dagdiff(make: Any, law: Any, tmp_path: Path) -> None:
    """From the prompt to the picture, in another process."""
    base, teacher, student = adapted(make, tmp_path)
    pipeline = build_pipeline(student, law(student.schedule), step_grid(4), NoThreshold(), base)
    arguments = {"prompt": "a cat", **call_arguments(pipeline, 4)}
    made = abroad(pipeline, arguments, noises(4, 1, *teacher.shape), tmp_path)
    label = torch.zeros(1, dtype=torch.int64)
    x = states(student, law(student.schedule), 4, NoThreshold(), (1, *teacher.shape), label)
    wanted = (teacher.autoencoder.decode(x) / 2 + 0.5).clamp(0, 1)
    assert float(made.std()) > 0.01, "a picture, and not one colour"
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("make", "law"), [(pipelines.stable_diffusion, Renoise), (pipelines.sdxl, Ddim)])
def test_a_text_pipeline_keeps_all_but_network_and_scheduler(make: Any, law: Any, tmp_path: Path) -> None:
    """Latents of the exported pipeline, from the noises of our chain, are our student's."""
    base, teacher, student = adapted(make, tmp_path)
    pipeline = build_pipeline(student, law(student.schedule), step_grid(4), NoThreshold(), base)
    assert pipeline.text_encoder is not None and pipeline.vae is not None
    arguments = call_arguments(pipeline, 4)
    assert arguments == {"num_inference_steps": 4, "guidance_scale": 1.0}
    arguments |= {"prompt": "a cat", "output_type": "latent"}
    found = called(pipeline, arguments, noises(4, 1, *teacher.shape))
    label = torch.zeros(1, dtype=torch.int64)
    wanted = states(student, law(student.schedule), 4, NoThreshold(), (1, *teacher.shape), label)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("make", "weight", "law"), [(pipelines.sd3, 1.0, Ddim), (pipelines.flux, 3.5, Renoise)])
def test_students_on_rectified_flow_leave_too(make: Any, weight: float, law: Any, tmp_path: Path) -> None:
    """FLUX's pipeline is told the size, which its network's configuration does not tell, and the usual weight."""
    flux = make is pipelines.flux
    size = (8, 8) if flux else None
    base, teacher, student = adapted(make, tmp_path, 8 if flux else None)
    pipeline = build_pipeline(student, law(FlowSchedule()), step_grid(4), NoThreshold(), base, size=size)
    arguments = call_arguments(pipeline, 4, size)
    told = {"height": 16, "width": 16} if flux else {}
    assert arguments == {"num_inference_steps": 4, "guidance_scale": weight, **told}
    pipeline.save_pretrained(tmp_path / "student")
    program = loading_program(pipeline, arguments).replace("path/to/this/folder", str(tmp_path / "student"))
    assert ("text_encoder_3=None, tokenizer_3=None" in program) == (not flux)
    made: dict[str, Any] = {}
    exec(program.rsplit("image = ", 1)[0], made)
    pipeline = made["pipeline"]
    arguments |= {"prompt": "a cat", "output_type": "latent"}
    packed = [_packed(each) if flux else each for each in noises(4, 1, *teacher.shape)]
    if flux:
        arguments["latents"] = packed.pop(0)
    label = torch.zeros(1, dtype=torch.int64)
    wanted = states(student, law(FlowSchedule()), 4, NoThreshold(), (1, *teacher.shape), label)
    torch.testing.assert_close(
        called(pipeline, arguments, packed), _packed(wanted) if flux else wanted, atol=1e-4, rtol=1e-4
    )


def _packed(x: torch.Tensor) -> torch.Tensor:
    return pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_a_network_with_classes_leaves_in_the_pipeline_that_tells_them(law: Any, tmp_path: Path) -> None:
    network = image_unet((1, 8, 8), labels=3, channels=(8, 16))
    with torch.no_grad():
        network.unet.conv_out.weight.mul_(8.0)
    student = Student(network, CosineSchedule()).eval()
    boxed = NoThreshold() if law is Ddim else StaticThreshold()
    pipeline = build_pipeline(student, law(student.schedule), step_grid(4), boxed)
    assert network.unet.config.sample_size == (8, 8), "the student itself stays as it is"
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, ConsistencyModelPipeline)
    assert "pipeline(class_labels=[0], num_inference_steps=4)" in loading_program(again, call_arguments(again, 4))
    arguments = {"batch_size": 2, "class_labels": [2, 0], "output_type": "pt", **call_arguments(again, 4)}
    found = called(again, arguments, noises(4, 2, 1, 8, 8))
    wanted = states(student, law(student.schedule), 4, boxed, (2, 1, 8, 8), torch.tensor([2, 0]))
    torch.testing.assert_close(found, (wanted / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    other = states(student, law(student.schedule), 4, boxed, (2, 1, 8, 8), torch.tensor([1, 1]))
    assert not torch.allclose(wanted, other, atol=1e-2), "classes matter"


def test_adapters_leave_inside_the_weights(tmp_path: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "teacher")
    teacher = DiffusersExpert.from_pretrained(base, prompts=["a cat"])
    student = lora_student(teacher, rank=2)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.normal_()
    pipeline = build_pipeline(student, Renoise(student.schedule), step_grid(2), NoThreshold(), base)
    assert not any("lora" in name for name, _ in pipeline.unet.named_parameters())
    pipeline.save_pretrained(tmp_path / "student")
    again = DiffusersExpert.from_pretrained(str(tmp_path / "student"), prompts=["a cat"])
    x, t, prompt = torch.randn(2, *teacher.shape), torch.tensor([0.9, 0.3]), torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(again(x, t, prompt), student(x, t, prompt), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(again(x, t, prompt), teacher(x, t, prompt), atol=1e-2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"transition": Ddim(VPSchedule.linear(), eta=0.5)}, r"no scheduler of diffusers moves by Ddim"),
        ({"times": torch.tensor([1.0, 0.3, 0.0])}, r"got times \[1.0, 0.3, 0.0\]"),
        ({"times": torch.tensor([1.0, 0.3, 0.0])}, r"must be told: {'timesteps': \[999, 299\]}"),
        ({"transition": EpsilonScaling(Ddim(VPSchedule.linear()), 1.3)}, r"moves by EpsilonScaling .*epsilon_scale 1"),
        ({"schedule": FlowSchedule()}, "flow schedulers read velocities alone; got v"),
        ({"schedule": FlowSchedule(), "prediction": FLOW, "threshold": Fold()}, "no flow scheduler .* told Fold"),
        ({"prediction": FLOW}, "no few-step scheduler reads the prediction"),
        ({"threshold": Fold()}, r"can be told Fold"),
        ({"threshold": StaticThreshold(-1.0, 2.0)}, r"can be told StaticThreshold"),
    ],
)
def test_what_no_scheduler_can_be_told_is_refused(change: dict[str, Any], match: str) -> None:
    usual = {
        "transition": Ddim(VPSchedule.linear()),
        "times": step_grid(2),
        "schedule": VPSchedule.linear(),
        "prediction": V,
        "threshold": NoThreshold(),
    }
    with pytest.raises(Refusal, match=match):
        few_step_scheduler(**{**usual, **change})


def test_networks_without_a_pipeline_are_refused() -> None:
    schedule, times, none = CosineSchedule(), step_grid(2), NoThreshold()
    with pytest.raises(Refusal, match="no diffusers pipeline holds a MLP"):
        build_pipeline(Student(MLP(), schedule), Ddim(schedule), times, none)
    with pytest.raises(Refusal, match="a Stepwise is not one network"):
        build_pipeline(Stepwise(pixels(), times), Ddim(schedule), times, none)
    wide = Student(image_unet((1, 8, 16), labels=3, channels=(8, 16)), schedule)
    with pytest.raises(Refusal, match=r"makes squares; got \(8, 16\)"):
        build_pipeline(wide, Ddim(schedule), times, none)
    labelled = Student(image_unet((1, 8, 8), labels=3, channels=(8, 16)), schedule)
    with pytest.raises(Refusal, match="let DDIM keep the noise of the guess before its threshold"):
        build_pipeline(labelled, Ddim(schedule), times, StaticThreshold(-2.0, 2.0))
    with pytest.raises(Refusal, match="no pipeline of pixels on rectified flow"):
        build_pipeline(pixels(FLOW, FlowSchedule()), Ddim(FlowSchedule()), times, none)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_the_betas_of_a_long_table_rebuild_its_noise(steps: int) -> None:
    """With T = 4,000 linear betas the signal underflows to 0 before the end of the table."""
    schedule = VPSchedule.linear(steps=steps)
    scheduler = few_step_scheduler(Ddim(schedule), step_grid(4), schedule, V, NoThreshold())
    alpha = schedule(torch.arange(1, 1001) / 1000)[0]
    assert torch.isfinite(scheduler.betas).all()
    torch.testing.assert_close(scheduler.alphas_cumprod.sqrt(), alpha, atol=1e-3, rtol=0)
    scheduler.set_timesteps(4)
    noise = torch.randn(2, 1, 4, 4)
    assert torch.isfinite(scheduler.step(noise, scheduler.timesteps[0], noise).prev_sample).all()


def test_a_network_that_tells_a_variance_is_refused(tmp_path: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.ddpm, None, out_channels=2), tmp_path / "teacher")
    student = DiffusersExpert.from_pretrained(base).student()
    with pytest.raises(Refusal, match=r"tells a variance too \(2 channels for 1\)"):
        build_pipeline(student, Renoise(student.schedule), step_grid(2), NoThreshold(), base)


def test_the_student_keeps_its_precision_and_the_pipeline_the_base_s(tmp_path: Path) -> None:
    base, _, student = adapted(pipelines.stable_diffusion, tmp_path)
    student.to(torch.bfloat16)
    pipeline = build_pipeline(student, Renoise(student.schedule), step_grid(2), NoThreshold(), base)
    assert pipeline.unet.dtype == torch.float32 and student.network.body.dtype == torch.bfloat16


@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("entries", [1100, 40])
def test_the_pipeline_asks_the_network_at_the_student_s_timesteps(law: Any, entries: int, tmp_path: Path) -> None:
    """Whatever the length of the teacher's clock."""
    clock = DDPMScheduler(entries, clip_sample=False)
    base = pipelines.save(pipelines.seeded(pipelines.ddpm, clock), tmp_path / "teacher")
    teacher = DiffusersExpert.from_pretrained(base)
    student = teacher.student()
    move = law(student.schedule)
    pipeline = build_pipeline(student, move, step_grid(4), NoThreshold(), base)
    asked = list[float]()
    pipeline.unet.register_forward_pre_hook(lambda _, given: asked.append(float(torch.as_tensor(given[1]).max())))
    called(pipeline, call_arguments(pipeline, 4) | {"output_type": "np"}, noises(4, 1, *teacher.shape))
    assert (
        asked == student.network.law.timestep(step_grid(4)[:-1]).tolist() == [entries * k / 4 - 1 for k in (4, 3, 2, 1)]
    )


def test_the_card_tells_how_to_load_it() -> None:
    student = pixels()
    pipeline = build_pipeline(student, Ddim(student.schedule), step_grid(4), StaticThreshold())
    program = loading_program(pipeline, call_arguments(pipeline, 4))
    text = model_card("mine", "a teacher", 4, program, {"energy": "0.1"})
    assert "pipeline(num_inference_steps=4)" in text and "| energy | 0.1 |" in text
    assert "A student of 4 steps, distilled from a teacher" in text


# -- the command ----------------------------------------------------------------------------------------------------


def finished(out: Path, **settings: Any) -> Experiment:
    """A run's folder with a student as it starts, saved as a finished run saves it."""
    small = {"updates": 2, "rounds": 1, "steps": 2, "device": "cpu", "heldout": 0, "samples": 10}
    it = Experiment.build(configure({**small, **settings}), training=False)
    with torch.no_grad():
        for weight in it.student.parameters():
            weight.add_(0.05 * torch.randn_like(weight) if weight.requires_grad else 0.0)
    out.mkdir()
    save_student(it, out)
    return it


def of_pipeline(make: Any, **options: Any) -> dict[str, Any]:
    """Settings that distil a small pipeline, saved in the folder of work."""
    Path("prompts.txt").write_text("a cat\n")
    told = {} if make is pipelines.ddpm else {"prompts": "prompts.txt"}
    pipelines.seeded(make).save_pretrained("teacher", variant=options.get("variant"))
    return {"task": "pipeline", "pipeline": {"path": "teacher", "own_samples": 10, "own_steps": 1, **told, **options}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path


def program_of(folder: Path) -> str:
    """The program in a card, which is to run where the folders are."""
    text = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    return text.replace("path/to/this/folder", str(folder)).replace("path/to/teacher", "teacher")


@pytest.mark.parametrize(("form", "variant"), [("diffusers", "fp16"), ("lora", None), ("lora", "fp16")])
def test_the_program_of_the_card_makes_the_student_s_images(form: str, variant: str | None, here: Path) -> None:
    """A student of adapters leaves whole, or as adapters; a base that is there in one variant alone is read as such."""
    told = of_pipeline(pipelines.stable_diffusion, variant=variant)
    it = finished(Path("run"), **told, policy={"class": "lora", "rank": 2}, objective="consistency")
    assert main(["export", "run", "--out", "out", "--format", form]) == 0
    assert (here / "out" / "pytorch_lora_weights.safetensors").exists() == (form == "lora")
    program = program_of(Path("out"))
    assert "=None" not in program, "what may be missing need not be named"
    program, call = program.rsplit("image = ", 1)
    made: dict[str, Any] = {}
    exec(program, made)
    assert call.strip() == 'pipeline("a prompt", num_inference_steps=2, guidance_scale=1.0).images[0]'
    arguments = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    found = called(made["pipeline"], arguments, noises(2, 1, 4, 8, 8))
    label = torch.zeros(1, dtype=torch.int64)
    wanted = states(it.student, it.sampler, 2, it.threshold, (1, 4, 8, 8), label)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words", "match"),
    [
        ({"epsilon_scale": 1.3}, "", "no scheduler of diffusers moves by EpsilonScaling"),
        ({}, "--format lora", "this student has no adapters"),
        ({"policy": {"class": "lora", "rank": 2}}, "--format lora", "a DDPMPipeline reads no adapters"),
    ],
)
def test_runs_that_cannot_leave_are_refused_and_leave_nothing(
    settings: dict[str, Any], words: str, match: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(Path("run"), **of_pipeline(pipelines.ddpm), **settings)
    assert main(["export", "run", "--out", "out", *words.split()]) == 2
    assert match in capsys.readouterr().err and not (here / "out").exists()


def test_our_own_networks_have_no_adapters(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("images.npz", images=np.zeros((60, 8, 8), dtype=np.uint8))
    finished(Path("run"), task=f"{here / 'images.npz'}-matched", policy="fresh-unet", expert="unet")
    assert main(["export", "run", "--out", "out", "--format", "lora"]) == 2
    assert "this student has no adapters" in capsys.readouterr().err


def test_a_size_of_its_own_leaves_with_the_student(here: Path) -> None:
    it = finished(Path("run"), **of_pipeline(pipelines.ddpm, sample_size=16), objective="consistency")
    assert main(["export", "run", "--out", "out"]) == 0
    pipeline: Any = DiffusionPipeline.from_pretrained("out")
    assert pipeline(num_inference_steps=2, output_type="pt").images.shape == (1, 1, 16, 16)
    found = called(pipeline, {"num_inference_steps": 2, "output_type": "pt"}, noises(2, 1, 1, 16, 16))
    wanted = ours(it.student, it.sampler, 2, it.threshold, 1, 1, 16, 16)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_a_pipeline_that_is_no_longer_whole_is_refused_in_one_line(tmp_path: Path) -> None:
    base, _, student = adapted(pipelines.stable_diffusion, tmp_path)
    (Path(base) / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Refusal, match=r"teacher' can't be read whole .* Download or save it again, whole"):
        build_pipeline(student, Renoise(student.schedule), step_grid(2), NoThreshold(), base)
