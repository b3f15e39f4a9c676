"""A student's chain and its exported pipeline's are one: every family, law, number of steps and precision."""

import math
from functools import partial
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
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from dagdiff.checks import Refusal
from dagdiff.pipelines.agreement import EXACT, check_agreement
from dagdiff.pipelines.calling import call_arguments
from dagdiff.pipelines.export import body_of, build_pipeline, chain_of
from dagdiff.pipelines.grids import read_grid
from dagdiff.pipelines.noise_law import read_noise_law
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.schedulers import record_chain, usual_times
from dagdiff.threshold import NoThreshold
from dagdiff.transition import Ddim, Renoise

pytestmark = pytest.mark.usefixtures("offline")

BETAS = {**pipelines.SD_BETAS, "clip_sample": False, "steps_offset": 1}
SILENT = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def shifting() -> Any:
    """FLUX with a shift that grows with the image."""
    made = pipelines.flux()
    made.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return made


MAKES = {
    "ddpm": lambda: pipelines.ddpm(DDPMScheduler(clip_sample=False)),
    "ddpm that clips": pipelines.ddpm,
    "ddpm of T 50": lambda: pipelines.ddpm(DDPMScheduler(50, clip_sample=False)),
    "sd": pipelines.stable_diffusion,
    "sd of T 1100": lambda: pipelines.stable_diffusion(DDIMScheduler(1100, **BETAS)),
    "sd without a signal at the end": lambda: pipelines.stable_diffusion(DDIMScheduler(**BETAS, **SILENT)),
    "sdxl": pipelines.sdxl,
    "dit": pipelines.dit,
    "sd3": pipelines.sd3,
    "flux dev": pipelines.flux,
    "flux schnell": partial(pipelines.flux, distilled=False),
    "flux that shifts": shifting,
}
FLOW = [name for name in MAKES if name.startswith(("sd3", "flux"))]


def load(name: str, folder: Path) -> tuple[str, DiffusersExpert]:
    base = pipelines.save(pipelines.seeded(MAKES[name]), folder / "teacher")
    prompts = ["a cat"] if name.startswith(("sd", "flux")) else ()
    return base, DiffusersExpert.from_pretrained(base, prompts, sample_size=8 if name in FLOW else None)


def moved(teacher: DiffusersExpert) -> Any:
    """A student whose answers are not its teacher's."""
    student = teacher.student().eval()
    body = student.network.body
    last = getattr(body, "conv_out", getattr(body, "proj_out", getattr(body, "proj_out_2", None)))
    with torch.no_grad():
        last.weight.mul_(4.0)
    return student


@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("name", MAKES)
def test_the_pipeline_s_own_loop_ends_where_the_student_s_chain_does(name: str, law: Any, tmp_path: Path) -> None:
    """Also in numbers of steps that divide no clock, and in one step."""
    base, teacher = load(name, tmp_path)
    student, move = moved(teacher), law(teacher.schedule)
    for steps in (1, 3, 4):
        times = usual_times(move, teacher.network.law, steps)
        record = chain_of(student, move, times, teacher.threshold)
        torch.testing.assert_close(record.times, times, atol=1e-6, rtol=0)
        pipeline = build_pipeline(student, move, times, teacher.threshold, base)
        arguments = call_arguments(pipeline, steps, None, record.call)
        found = check_agreement(pipeline, student, body_of(student), record, arguments, move, teacher.threshold)
        assert found.difference <= EXACT and found.rounding == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux dev"])
def test_in_half_precision_all_parts_have_one_type(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, teacher = load(name, tmp_path)
    student, move = moved(teacher), Ddim(teacher.schedule)
    times = usual_times(move, teacher.network.law, 3)
    record = chain_of(student, move, times, NoThreshold())
    pipeline = build_pipeline(student, move, times, NoThreshold(), base, dtype=dtype)
    kinds = {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)}
    assert kinds == {dtype} and body_of(student).dtype == torch.float32, "the student keeps its own"
    arguments = call_arguments(pipeline, 3)
    found = check_agreement(pipeline, student, body_of(student), record, arguments, move, NoThreshold())
    assert found.rounding > 0.0 and found.difference <= found.allowed < 0.2


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_pipeline_that_samples_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    base, teacher = load(name, tmp_path)
    student, move = moved(teacher), Ddim(teacher.schedule)
    times = usual_times(move, teacher.network.law, 4)
    record = chain_of(student, move, times, NoThreshold())
    pipeline = build_pipeline(student, move, times, NoThreshold(), base)
    other = call_arguments(pipeline, 4) | {"guidance_scale": 3.0}
    step = pipeline.scheduler.step
    with pytest.raises(Refusal, match=r"does not sample as this student does: .* differ by"):
        check_agreement(pipeline, student, body_of(student), record, other, move, NoThreshold())
    assert pipeline.scheduler.step == step, "the scheduler is left as it was"
    with pytest.raises(Refusal, match=r"can't be called \(TypeError"):
        check_agreement(
            pipeline, student, body_of(student), record, other | {"guidance_scale": None}, move, NoThreshold()
        )


@pytest.mark.parametrize(("name", "seeded"), [("sd", True), ("flux dev", False)])
def test_a_pipeline_that_keeps_its_generator_to_itself_is_known(name: str, seeded: bool, tmp_path: Path) -> None:
    base, teacher = load(name, tmp_path)
    student, move = moved(teacher), Renoise(teacher.schedule)
    times = usual_times(move, teacher.network.law, 2)
    record = chain_of(student, move, times, NoThreshold())
    pipeline = build_pipeline(student, move, times, NoThreshold(), base)
    arguments = call_arguments(pipeline, 2)
    found = check_agreement(pipeline, student, body_of(student), record, arguments, move, NoThreshold())
    assert found.seeded == seeded


# -- the grids that students are trained on -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_flow_students_are_trained_on_the_grid_that_their_pipeline_runs(name: str, steps: int, tmp_path: Path) -> None:
    _, teacher = load(name, tmp_path)
    pipeline = pipelines.seeded(MAKES[name])
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16, "max_sequence_length": 16}
    pipeline("a cat", num_inference_steps=steps, output_type="latent", **size)
    run = pipeline.scheduler.sigmas
    for law in (Ddim, Renoise):
        torch.testing.assert_close(usual_times(law(teacher.schedule), teacher.network.law, steps), run)


def test_the_shift_of_a_large_image_is_the_pipeline_s(tmp_path: Path) -> None:
    """FLUX.1-dev's own numbers: 1,024 pixels are 4,096 patches, whose shift is exp(1.15)."""
    _, teacher = load("flux that shifts", tmp_path)
    told = teacher.network.family.spacing(None, (128, 128), teacher.network.law.scheduler, 2)
    assert math.isclose(told["mu"], 1.15) and told["sigmas"] == [1.0, 0.5]


@pytest.mark.parametrize("entries", [16, 50, 1000, 1100])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 8, 12, 16])
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_students_of_a_table_are_asked_at_whole_timesteps_near_the_even_grid(
    entries: int, steps: int, law: Any
) -> None:
    noise = read_noise_law(DDIMScheduler(entries, clip_sample=False))
    times = usual_times(law(noise.schedule), noise, steps)
    asked = noise.timestep(times[:-1])
    assert torch.equal(asked, asked.round()) and float(asked[0]) == entries - 1 and len(asked.unique()) == steps
    even = torch.linspace(1.0, 0.0, steps + 1)
    assert float((times - even).abs().max()) < 1.0 / entries
    record = record_chain(law(noise.schedule), times, noise, NoThreshold())
    record.scheduler.set_timesteps(steps)
    assert record.call == {} and record.scheduler.timesteps.tolist() == list(record.timesteps)


def test_more_steps_than_a_clock_has_are_refused() -> None:
    noise = read_noise_law(DDIMScheduler(4, clip_sample=False))
    with pytest.raises(Refusal, match="a clock of 4 timesteps has no 5 steps"):
        usual_times(Ddim(noise.schedule), noise, 5)


# -- timesteps of one's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [(999, 749, 499, 249), (800,), (399,), (999, 250)])
@pytest.mark.parametrize("kind", [LCMScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_visits_the_timesteps_that_it_is_told(kind: Any, timesteps: tuple[int, ...]) -> None:
    """Those of DMD2 in four steps and in one, and of Hyper-SD in one."""
    scheduler = kind(**pipelines.SD_BETAS)
    found = read_grid(scheduler, read_noise_law(scheduler), len(timesteps), timesteps)
    torch.testing.assert_close(found, torch.tensor([*(each + 1.0 for each in timesteps), 0.0]) / 1000)


@pytest.mark.parametrize(
    ("timesteps", "match"),
    [
        ((), "must be whole numbers that fall"),
        ((249, 999), "--timesteps 249,999 must be whole numbers that fall, at most 999"),
        ((1000, 1), "at most 999: this network's clock has 1000 timesteps"),
        ((999.5, 1), "must be whole numbers"),
        ((5, -1), "must be whole numbers"),
    ],
)
def test_timesteps_that_can_t_be_are_refused(timesteps: tuple[float, ...], match: str) -> None:
    scheduler = LCMScheduler()
    with pytest.raises(Refusal, match=match):
        read_grid(scheduler, read_noise_law(scheduler), max(1, len(timesteps)), timesteps)


def test_a_scheduler_that_takes_no_timesteps_is_refused() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    with pytest.raises(Refusal, match=r"DDIMScheduler takes no timesteps of your own. Name another with --scheduler"):
        read_grid(scheduler, read_noise_law(scheduler), 1, (800,))


@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize(
    ("name", "timesteps", "word"),
    [
        ("ddpm", (999, 600, 100), "timesteps"),
        ("sd", (800,), "timesteps"),
        ("sdxl", (999, 600), "timesteps"),
        ("flux schnell", (1000.0, 800.0, 300.0), "sigmas"),
        ("sd3", (1000.0, 250.0), "sigmas"),
    ],
)
def test_students_of_named_timesteps_leave_with_them_in_their_call(
    name: str, timesteps: tuple[float, ...], word: str, law: Any, tmp_path: Path
) -> None:
    base, teacher = load(name, tmp_path)
    student, move = moved(teacher), law(teacher.schedule)
    times = usual_times(move, teacher.network.law, len(timesteps), timesteps)
    np.testing.assert_allclose(teacher.network.law.timestep(times[:-1]).numpy(), timesteps, rtol=1e-6)
    record = chain_of(student, move, times, NoThreshold())
    assert list(record.call) == [word]
    pipeline = build_pipeline(student, move, times, NoThreshold(), base)
    arguments = call_arguments(pipeline, len(timesteps), None, record.call)
    assert word in arguments and "num_inference_steps" not in arguments
    found = check_agreement(pipeline, student, body_of(student), record, arguments, move, NoThreshold())
    assert found.difference <= EXACT


def test_a_pipeline_that_can_t_be_told_timesteps_refuses_them(tmp_path: Path) -> None:
    base, teacher = load("dit", tmp_path)
    move = Ddim(teacher.schedule)
    times = usual_times(move, teacher.network.law, 2, (999, 300))
    with pytest.raises(Refusal, match=r"a DiTPipeline can't be called with timesteps .* \[999.0, 300.0\]"):
        build_pipeline(moved(teacher), move, times, NoThreshold(), base)
    with pytest.raises(Refusal, match=r"2 timesteps are named for 4 steps. Pass --steps 2"):
        usual_times(move, teacher.network.law, 4, (999, 300))
