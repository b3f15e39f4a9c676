"""Students that leave: what diffusers makes of an exported folder, without dagdiff, is what dagdiff samples."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from dagdiff.checks import Refusal
from dagdiff.policies.export import build_pipeline, call_arguments, few_step_scheduler, model_card
from dagdiff.policies.lora import lora_student
from dagdiff.policies.networks import MLP
from dagdiff.policies.pretrained import DiffusersExpert
from dagdiff.policies.student import Stepwise, Student
from dagdiff.policies.unet import image_unet
from dagdiff.policy import StudentPolicy
from dagdiff.prediction import EPSILON, FLOW, X0, Prediction, V
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.threshold import DynamicThreshold, Fold, NoThreshold, StaticThreshold
from dagdiff.transition import Ddim, Renoise, Transition, sample
from tests import pipelines

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
made = pipeline(batch_size=len(np.load(sys.argv[3])["noises"][0]), output_type="np", **arguments).images
np.savez(sys.argv[4], images=made, dagdiff="dagdiff" in sys.modules)
"""


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


def ours(student: Any, transition: Transition, steps: int, threshold: Any, *shape: int) -> torch.Tensor:
    """Images by our own sampler from those noises, in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    x = sample(StudentPolicy(student, threshold), transition, step_grid(steps), start, None, generator)
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_the_scheduler_s_own_timesteps_are_the_student_s_grid(law: Any, steps: int) -> None:
    schedule = VPSchedule.linear()
    scheduler = few_step_scheduler(law(schedule), step_grid(steps), schedule, V, NoThreshold())
    scheduler.set_timesteps(steps)
    assert isinstance(scheduler, DDIMScheduler if law is Ddim else LCMScheduler)
    torch.testing.assert_close((scheduler.timesteps + 1) / 1000, step_grid(steps)[:-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", [V, EPSILON, X0], ids=lambda each: each.name)
@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("threshold", [NoThreshold(), StaticThreshold(), DynamicThreshold(0.9)], ids=str)
def test_a_chain_by_the_scheduler_is_ours(law: Any, prediction: Prediction, threshold: Any) -> None:
    """Step by step, with the same network and the same fresh noise; DDIM is asked to keep the clipped guess."""
    schedule, steps, shape = VPSchedule.linear(), 4, (2, 1, 8, 8)
    student = pixels(prediction, schedule)
    scheduler = few_step_scheduler(law(schedule), step_grid(steps), schedule, prediction, threshold)
    scheduler.set_timesteps(steps)
    x, *fresh = noises(steps, *shape)
    options: dict[str, Any] = {"use_clipped_model_output": True} if law is Ddim else {}
    for t, noise in zip(scheduler.timesteps, fresh, strict=True):
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *a, noise=noise, **k: noise)
            output = student.network.unet(x, t).sample
            x = scheduler.step(output, t, x, **options).prev_sample
    torch.testing.assert_close(
        (x / 2 + 0.5).clamp(0, 1), ours(student, law(schedule), steps, threshold, *shape), atol=1e-4, rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_an_exported_folder_needs_no_dagdiff(law: Any, tmp_path: Path) -> None:
    student, shape, boxed = pixels(), (3, 1, 8, 8), StaticThreshold()
    pipeline = build_pipeline(student, law(student.schedule), step_grid(4), boxed)
    pipeline.save_pretrained(tmp_path / "student")
    np.savez(tmp_path / "noises.npz", noises=torch.stack(noises(4, *shape)).numpy())
    (tmp_path / "loader.py").write_text(LOADER)
    words = ["loader.py", "student", repr(call_arguments(pipeline, 4)), "noises.npz", "images.npz"]
    done = subprocess.run([sys.executable, "-I", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "images.npz") as found:
        assert not found["dagdiff"]
        made = torch.from_numpy(found["images"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(made, ours(student, law(student.schedule), 4, boxed, *shape), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("make", [pipelines.stable_diffusion, pipelines.sdxl], ids=lambda make: make.__name__)
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_a_text_pipeline_keeps_all_but_network_and_scheduler(make: Any, law: Any, tmp_path: Path) -> None:
    """Latents of the exported pipeline, from the noises of our chain, are our student's."""
    base = pipelines.save(pipelines.seeded(make), tmp_path / "teacher")
    teacher = DiffusersExpert.from_pretrained(base, prompts=["a cat"])
    student = teacher.student().eval()
    with torch.no_grad():
        student.network.body.conv_out.weight.mul_(4.0)
    pipeline = build_pipeline(student, law(student.schedule), step_grid(4), NoThreshold(), base)
    assert pipeline.text_encoder is not None and pipeline.vae is not None
    x, *fresh = noises(4, 1, *teacher.shape)
    drawn = iter(fresh)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *a, **k: next(drawn))
        arguments = call_arguments(pipeline, 4)
        assert arguments == {"num_inference_steps": 4, "guidance_scale": 1.0}
        found = pipeline("a cat", latents=x, output_type="latent", **arguments).images
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(1, *teacher.shape, generator=generator)
    wanted = sample(
        StudentPolicy(student), law(student.schedule), step_grid(4), start, torch.zeros(1, dtype=torch.int64), generator
    )
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


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
        ({"times": step_grid(3)}, r"even grids whose steps divide 1000; got times \[1.0, 0.6667"),
        ({"times": torch.tensor([1.0, 0.3, 0.0])}, r"got times \[1.0, 0.3, 0.0\]"),
        ({"schedule": FlowSchedule()}, "students on rectified flow have no few-step scheduler"),
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
    labelled = Student(image_unet((1, 8, 8), labels=3, channels=(8, 16)), schedule)
    with pytest.raises(Refusal, match="no pipeline that tells a UNet2DModel a class"):
        build_pipeline(labelled, Ddim(schedule), times, none)


def test_the_card_tells_how_to_load_it() -> None:
    text = model_card("mine", "a teacher", {"num_inference_steps": 4, "guidance_scale": 1.0}, {"energy": "0.1"})
    assert "pipeline(num_inference_steps=4, guidance_scale=1.0)" in text and "| energy | 0.1 |" in text
    assert "A student of 4 steps, distilled from a teacher" in text
