"""The shift of any few-step pipeline: its sampler is read from its scheduler, exactly or not at all."""

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
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)

from dagdiff.batches import InParts
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.pipelines.few_step import read_sampler, read_scheduler, with_adapters
from dagdiff.pipelines.lora import lora_student, save_adapters
from dagdiff.pipelines.noise_law import read_noise_law
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.transition import Ddim, Renoise, sample

pytestmark = pytest.mark.usefixtures("offline")

BETAS = pipelines.SD_BETAS
TRAILING = {"timestep_spacing": "trailing"}
FLAT = {"clip_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> str:
    return pipelines.save(pipelines.seeded(pipelines.stable_diffusion), folder / "teacher")


@pytest.fixture(scope="module")
def student(folder: Path) -> str:
    """The teacher's own network with LCM's sampler."""
    pipeline = pipelines.seeded(pipelines.stable_diffusion, LCMScheduler(**BETAS, steps_offset=1))
    return pipelines.save(pipeline, folder / "student")


def dagdiff(line: str) -> tuple[int, str, str]:
    """Run a command line in this process; return its status and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(shlex.split(line))
    return status, out.getvalue(), err.getvalue()


# -- the student's sampler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "steps", "law"),
    [
        (LCMScheduler(**BETAS), 4, Renoise),
        (LCMScheduler(**BETAS), 1, Renoise),
        (DDIMScheduler(**BETAS, **FLAT), 4, Ddim),
        (DDIMScheduler(**BETAS, **FLAT, **TRAILING), 1, Ddim),
        (DDIMScheduler(**BETAS, **FLAT, set_alpha_to_one=False, steps_offset=1), 4, Ddim),
        (EulerDiscreteScheduler(**BETAS), 5, Ddim),
        (EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True), 4, Ddim),
        (EulerAncestralDiscreteScheduler(**BETAS, **TRAILING), 1, Ddim),
        (EulerAncestralDiscreteScheduler(**BETAS, **TRAILING), 4, Ddim),
        (DDPMScheduler(**BETAS, **FLAT), 4, Ddim),
        (DPMSolverMultistepScheduler(**BETAS, solver_order=1, **TRAILING), 4, Ddim),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 4, Ddim),
        (FlowMatchLCMScheduler(shift=3.0), 4, Renoise),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else None,
)
def test_a_scheduler_is_read_as_its_law_and_its_own_grid(scheduler: Any, steps: int, law: Any) -> None:
    found = read_sampler(scheduler, read_noise_law(scheduler, latent=True), steps)
    assert isinstance(found.transition, law) and len(found.times) == steps + 1
    ancestral = isinstance(scheduler, EulerAncestralDiscreteScheduler | DDPMScheduler)
    assert getattr(found.transition, "eta", 0.0) == (1.0 if ancestral else 0.0)
    told = read_noise_law(scheduler, latent=True).timestep(found.times[:-1])
    torch.testing.assert_close(told, scheduler.timesteps.float(), atol=1e-2, rtol=1e-4)


def test_lcms_own_chain_is_the_one_that_is_measured(student: str) -> None:
    """The whole of a chain, network included: the scheduler's steps and ours, on the same noise."""
    scheduler, expert = read_scheduler(student), DiffusersExpert.from_pretrained(student, ["a cat"])
    sampler = read_sampler(scheduler, expert.network.law, 4)
    noise, zero = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.zeros(2, dtype=torch.int64)
    ours = sample(expert, sampler.transition, sampler.times, noise, zero, torch.Generator().manual_seed(4))
    scheduler.set_timesteps(4)
    fresh, x_t = torch.Generator().manual_seed(4), noise
    for timestep in scheduler.timesteps:
        t = (timestep + 1.0).expand(2) / 1000
        with torch.no_grad():
            output = expert.network(x_t, t, zero)
        x_t = scheduler.step(output, timestep, x_t, generator=fresh).prev_sample
    torch.testing.assert_close(ours, x_t, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "steps", "told"),
    [
        (TCDScheduler(**BETAS), 4, "the steps of TCDScheduler are not known here. Save the student with one of LCM"),
        (PNDMScheduler(**BETAS), 4, "the steps of PNDMScheduler are not known"),
        (DPMSolverMultistepScheduler(**BETAS), 4, r"step 1 of DPMSolverMultistepScheduler is not that of Ddim .* away"),
        (DDIMScheduler(**BETAS, **FLAT, timestep_spacing="linspace"), 4, "step 0 of DDIMScheduler is not"),
        (DDPMScheduler(**BETAS, **FLAT, variance_type="fixed_large"), 4, "step 0 of DDPMScheduler is not"),
        (DDIMScheduler(**BETAS, **FLAT), 1, r"DDIMScheduler begins 1 step at the time 0.001, .*trailing"),
        (LCMScheduler(**BETAS), 60, r"LCMScheduler has no grid of 60 steps \(.*Name another number"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4, "no grid of 4 steps .*mu"),
        (LCMScheduler(**BETAS), 0, "steps must be at least 1; got 0"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else None,
)
def test_a_sampler_that_is_no_law_of_ours_is_refused(scheduler: Any, steps: int, told: str) -> None:
    with pytest.raises(Refusal, match=told):
        read_sampler(scheduler, read_noise_law(scheduler, latent=True), steps)


def test_rows_in_parts_are_the_rows_at_once() -> None:
    seen = []

    def denoiser(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(len(x_t))
        return x_t * t[:, None] + (0 if condition is None else condition[:, None])

    x, t, c = torch.randn(7, 2), torch.rand(7), torch.arange(7)
    assert torch.equal(InParts(denoiser, 3)(x, t, c), denoiser(x, t, c)) and seen == [3, 3, 1, 7]
    assert torch.equal(InParts(denoiser, 3)(x, t), denoiser(x, t))


# -- the command ----------------------------------------------------------------------------------------------------

FEW = "--steps 2 --num 10 --substeps 1 --own_steps 2 --device cpu"


def test_the_shift_of_two_pipelines_is_told_and_kept(teacher: str, student: str, folder: Path) -> None:
    words = f"shift --expert {teacher} --student {student} --prompts {folder / 'prompts.txt'} {FEW}"
    status, told, err = dagdiff(f"{words} --out {folder / 'shift'}")
    assert status == 0, err
    assert "LCMScheduler (Renoise) at the times 1.000, 0.500, 0.000" in told
    assert "10 samples of the teacher itself" in told and "imitation loss on" in told
    assert (folder / "shift" / "shift.csv").read_text().count("\n") == 3
    assert (folder / "shift" / "shift.png").exists()


def test_a_few_step_model_is_no_expert(teacher: str, student: str, folder: Path) -> None:
    words = f"shift --expert {student} --student {student} --prompts {folder / 'prompts.txt'} {FEW}"
    status, out, err = dagdiff(words)
    (line,) = (each for each in err.splitlines() if each.startswith("dagdiff: error:"))
    assert status == 2 and out == ""
    assert "its scheduler is LCMScheduler" in line and "pass --few_step true" in line
    status, _, err = dagdiff(f"{words} --few_step true")
    assert status == 0, err


def test_a_student_that_is_its_teacher_has_no_error(teacher: str, student: str, folder: Path) -> None:
    """One sub-step and the same guidance: both answer alike, everywhere."""
    words = f"shift --expert {teacher} --student {student} --prompts {folder / 'prompts.txt'} {FEW}"
    status, told, err = dagdiff(f"{words} --guidance 2 --student_guidance 2 --out {folder / 'alike'}")
    assert status == 0, err
    rows = np.genfromtxt(folder / "alike" / "shift.csv", delimiter=",", names=True)
    assert (rows["loss_own"] < 1e-8).all() and "no shift to repair" in told


def test_forward_states_are_made_of_given_images(teacher: str, student: str, folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    words = f"shift --expert {teacher} --student {student} --prompts {folder / 'prompts.txt'} {FEW}"
    status, told, err = dagdiff(f"{words} --images {folder / 'images.npz'}")
    assert status == 0, err
    assert "10 of the images in" in told
    status, _, err = dagdiff(f"{words} --images {folder / 'images.npz'} --num 13")
    assert status == 2 and "holds 12 images; got --num 13. Ask for fewer." in err


@pytest.mark.slow
def test_adapters_on_the_experts_network_are_a_student_too(teacher: str, folder: Path) -> None:
    """They are loaded as the pipeline loads them, with another sampler than the one that was saved."""
    pipeline = pipelines.seeded(pipelines.stable_diffusion)
    adapted = lora_student(DiffusersExpert.from_pretrained(teacher, ["a cat"]), rank=2)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    save_adapters(pipeline, adapted.network.body, folder / "lora")
    student = with_adapters(DiffusersExpert.from_pretrained(teacher, ["a cat"]), teacher, str(folder / "lora"))
    x, t, zero = torch.randn(2, 4, 8, 8), torch.full((2,), 0.6), torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(student(x, t, zero), adapted(x, t, zero), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(student(x, t, zero), DiffusersExpert.from_pretrained(teacher, ["a cat"])(x, t, zero))
    words = f"shift --expert {teacher} --lora {folder / 'lora'} --scheduler LCMScheduler"
    status, told, err = dagdiff(f"{words} --prompts {folder / 'prompts.txt'} {FEW} --out {folder / 'adapted'}")
    assert status == 0, err
    assert "LCMScheduler (Renoise)" in told
    rows = np.genfromtxt(folder / "adapted" / "shift.csv", delimiter=",", names=True)
    assert (rows["loss_own"] > 1e-6).all(), "it is not its teacher"


# -- what can't be --------------------------------------------------------------------------------------------------


def refused(line: str) -> str:
    """The one line with which a command is turned away, status 2."""
    status, out, err = dagdiff(line)
    lines = [each for each in err.splitlines() if each.startswith("dagdiff: error:")]
    assert status == 2 and out == "" and len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def others(folder: Path, teacher: str) -> dict[str, str]:
    """Students that don't fit: of another size, other channels, another noise, with a broken part."""
    made = pipelines.seeded
    lcm, sd = LCMScheduler(**BETAS, steps_offset=1), pipelines.stable_diffusion
    found = {
        "large": pipelines.save(made(sd, lcm, sample_size=16), folder / "large"),
        "pixels": pipelines.save(made(pipelines.ddpm), folder / "pixels"),
        "noise": pipelines.save(made(sd, LCMScheduler(beta_start=1e-4, beta_end=0.02)), folder / "noise"),
        "tcd": pipelines.save(made(sd, TCDScheduler(**BETAS, steps_offset=1)), folder / "tcd"),
    }
    for name in ("half", "strange"):
        shutil.copytree(teacher, folder / name)
        found[name] = str(folder / name)
    (folder / "half" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = json.loads((folder / "strange" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "MyOwnScheduler"]
    (folder / "strange" / "model_index.json").write_text(json.dumps(index))
    return found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("large", r"the states of --expert .*teacher are \(4, 8, 8\), those of --student .*large \(4, 16, 16\)"),
        (
            "noise",
            r"--expert .*teacher and --student .*noise differ in their noise law, by up to .* keeps its teacher's",
        ),
        ("tcd", "the steps of TCDScheduler are not known here. Save the student with one of"),
        ("half", "half' can't be loaded as a diffusers pipeline .* Download or save it again, whole."),
        ("strange", "strange' can't be loaded as a diffusers pipeline .*MyOwnScheduler"),
    ],
)
def test_students_that_do_not_fit_are_refused(
    name: str, told: str, teacher: str, folder: Path, others: dict[str, str]
) -> None:
    words = f"shift --expert {teacher} --student {others[name]} --prompts {folder / 'prompts.txt'} {FEW}"
    assert re.search(told, refused(words))


def test_channels_prompts_and_places_that_cannot_be_are_refused(
    teacher: str, student: str, folder: Path, others: dict[str, str]
) -> None:
    pixels = f"shift --expert {others['pixels']} --student"
    assert "those of --student" in refused(
        f"{pixels} {pipelines.save(pipelines.ddpm(in_channels=3, out_channels=3), folder / 'rgb')} {FEW}"
    )
    (folder / "empty.txt").write_text("\n\n")
    pair = f"shift --expert {teacher} --student {student} {FEW}"
    assert "holds no prompt. Write one a line." in refused(f"{pair} --prompts {folder / 'empty.txt'}")
    assert "is asked with prompts. Give a file of them: --prompts" in refused(pair)
    assert "no images at" in refused(f"{pair} --prompts {folder / 'prompts.txt'} --images {folder / 'nowhere'}")
    away = refused(f"shift --expert {teacher} --student who/knows --prompts {folder / 'prompts.txt'} {FEW}")
    assert "no pipeline at 'who/knows': no folder here has that name, and the hub does not give it" in away
    assert "there is no such folder" in refused(f"shift --expert ./nowhere --student {student} {FEW}")
    assert "num must be at least 10; got 3" in refused(f"{pair} --num 3")
    assert "there is no student. Pass --student FOLDER, or --lora" in refused(f"shift --expert {teacher}")
    adapters = refused(f"{pair} --prompts {folder / 'prompts.txt'} --lora {folder / 'nowhere'}")
    assert "nowhere' can't be put on" in adapters and "load_lora_weights reads" in adapters
    odd = refused(f"{pair} --prompts {folder / 'prompts.txt'} --scheduler MyOwnScheduler")
    assert "MyOwnScheduler" in odd and "Save the pipeline again with one of" in odd


def test_a_scheduler_that_cannot_be_read_is_refused(others: dict[str, str]) -> None:
    with pytest.raises(Refusal, match=r"the scheduler of .*strange' can't be read .*MyOwnScheduler"):
        read_scheduler(others["strange"])


# -- timesteps of one's own, and students that only their call makes right ---------------------------------------------


def test_a_student_is_measured_at_the_timesteps_that_are_named(teacher: str, student: str, folder: Path) -> None:
    """DMD2's own call."""
    words = f"--prompts {folder / 'prompts.txt'} --num 10 --own_steps 2 --device cpu"
    status, out, err = dagdiff(f"shift --expert {teacher} --student {student} --timesteps 999,749,499,249 {words}")
    assert status == 0, err
    assert "LCMScheduler (Renoise) at the times 1.000, 0.750, 0.500, 0.250, 0.000" in out
    status, _, err = dagdiff(f"shift --expert {teacher} --student {student} --timesteps nine {words}")
    assert status == 2 and "--timesteps nine are no numbers" in err
    status, _, err = dagdiff(f"shift --expert {teacher} --student {student} --timesteps 249,999 {words}")
    assert status == 2 and "must be whole numbers that fall, at most 999" in err


def test_ddim_that_clips_is_read_as_its_call_must_ask_it() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    found = read_sampler(scheduler, read_noise_law(scheduler), 4)
    assert found.call == {"use_clipped_model_output": True} and isinstance(found.transition, Ddim)


def test_euler_without_a_signal_at_the_end_is_read() -> None:
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = EulerDiscreteScheduler(**BETAS, **options, **TRAILING)
    found = read_sampler(scheduler, read_noise_law(scheduler, latent=True), 4)
    torch.testing.assert_close(found.times, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
