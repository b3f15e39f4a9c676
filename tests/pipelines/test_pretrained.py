"""Experts from diffusers pipelines: each family equals its own pipeline, offline; the rest is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pipelines
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UNet1DModel,
    VQModel,
)
from helpers import ROOT

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.pipelines.conditions import Labels, PromptBank, Text, Unconditional
from dagdiff.pipelines.families import Flux, ImageUNet, TextUNet, Wanted
from dagdiff.pipelines.latents import Autoencoder
from dagdiff.pipelines.noise_law import read_noise_law
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.policies.prediction import EPSILON, FLOW, X0, V
from dagdiff.schedule import FlowSchedule, step_grid
from dagdiff.threshold import DynamicThreshold, NoThreshold, QuantileBox, StaticThreshold
from dagdiff.transition import Ddim, sample

pytestmark = pytest.mark.usefixtures("offline")

PROMPTS = ["a cat", "two dogs"]
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def pixels(folder: Path) -> str:
    return pipelines.save(pipelines.seeded(pipelines.ddpm), folder / "ddpm")


@pytest.fixture(scope="module")
def diffusion(folder: Path) -> tuple[Any, str]:
    """A Stable Diffusion pipeline and its folder."""
    pipeline = pipelines.seeded(pipelines.stable_diffusion)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipelines.save(pipeline, folder / "sd")


@pytest.fixture(scope="module")
def teacher(diffusion: tuple[Any, str]) -> DiffusersExpert:
    return DiffusersExpert.from_pretrained(diffusion[1], PROMPTS)


def noise_like(teacher: DiffusersExpert, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, *teacher.shape, generator=torch.Generator().manual_seed(7))


def end(teacher: DiffusersExpert, timesteps: torch.Tensor, condition: torch.Tensor | None, w: float) -> torch.Tensor:
    """The end of the expert's own chain over a sampler's timesteps."""
    expert = Expert(teacher, teacher.schedule, guidance=w, threshold=teacher.threshold)
    times = teacher.network.law.times(timesteps)
    return expert.walk(noise_like(teacher), times, condition)[-1]


# -- the noise law --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [10, 1000])
def test_every_entry_of_the_table_maps_back_to_its_timestep(entries: int) -> None:
    law = read_noise_law(DDIMScheduler(num_train_timesteps=entries))
    numbers = torch.arange(entries)
    assert torch.equal(law.timestep((numbers + 1.0) / entries), numbers.float())
    assert torch.equal(law.timestep(law.times(numbers)), torch.cat([numbers.flip(0), torch.zeros(1)]))


def test_between_entries_the_timestep_is_a_fraction_and_below_the_first_it_stays() -> None:
    law = read_noise_law(DDIMScheduler(num_train_timesteps=10))
    torch.testing.assert_close(law.timestep(torch.tensor([0.55, 0.25])), torch.tensor([4.5, 1.5]))
    assert torch.equal(law.timestep(torch.tensor([0.05, 0.0])), torch.zeros(2))


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, LCMScheduler, TCDScheduler])
def test_one_table_whatever_the_sampler(kind: Any) -> None:
    law = read_noise_law(kind(**pipelines.SD_BETAS))
    expected = DDPMScheduler(**pipelines.SD_BETAS).alphas_cumprod
    torch.testing.assert_close(law.schedule.alphas_cumprod, expected)
    assert (law.prediction, law.entries) == (EPSILON, 1000)


def test_a_sampler_s_timesteps_become_a_grid() -> None:
    law = read_noise_law(PNDMScheduler(skip_prk_steps=True, steps_offset=1))
    sampler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    sampler.set_timesteps(4)
    assert sampler.timesteps.tolist() == [751, 501, 501, 251, 1]
    torch.testing.assert_close(law.times(sampler.timesteps), torch.tensor([0.752, 0.502, 0.252, 0.002, 0.0]))
    flow = read_noise_law(FlowMatchEulerDiscreteScheduler(shift=3.0))
    torch.testing.assert_close(flow.times(torch.tensor([1000.0, 900.0])), torch.tensor([1.0, 0.9, 0.0]))


def test_the_uniform_grid_is_trailing_spacing() -> None:
    sampler = DDIMScheduler(timestep_spacing="trailing")
    sampler.set_timesteps(5)
    torch.testing.assert_close(read_noise_law(sampler).times(sampler.timesteps), step_grid(5))


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), V),
        (DDPMScheduler(prediction_type="sample"), X0),
        (FlowMatchEulerDiscreteScheduler(), FLOW),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), FLOW),
    ],
)
def test_predictions(scheduler: Any, prediction: Any) -> None:
    law = read_noise_law(scheduler)
    assert law.prediction is prediction
    assert isinstance(law.schedule, FlowSchedule) == (prediction is FLOW)


def test_zero_terminal_snr_is_zero_whatever_the_sampler_keeps() -> None:
    options: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    euler, ddim = EulerDiscreteScheduler(**options), DDIMScheduler(**options)
    assert euler.alphas_cumprod[-1] > 0
    tables = [read_noise_law(scheduler).schedule.alphas_cumprod for scheduler in (euler, ddim)]
    assert tables[0][-1] == 0
    torch.testing.assert_close(*tables)


def test_thresholds() -> None:
    assert read_noise_law(DDPMScheduler(clip_sample_range=1.5)).threshold == StaticThreshold(-1.5, 1.5)
    assert read_noise_law(DDPMScheduler(clip_sample=False)).threshold == NoThreshold()
    assert read_noise_law(DDPMScheduler(thresholding=True)).threshold == StaticThreshold()
    dynamic = DDPMScheduler(thresholding=True, sample_max_value=100.0, dynamic_thresholding_ratio=0.9)
    law, guess = read_noise_law(dynamic), 3 * torch.randn(4, 1, 8, 8)
    assert law.threshold == DynamicThreshold(0.9)
    torch.testing.assert_close(law.threshold(guess), dynamic._threshold_sample(guess))
    assert read_noise_law(DDPMScheduler(), latent=True).threshold == NoThreshold()
    assert read_noise_law(EulerDiscreteScheduler()).threshold == NoThreshold()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), "EDMEulerScheduler tells no alphas_cumprod.*Name a pipeline with a DDPM"),
        (CMStochasticIterativeScheduler(), "CMStochasticIterativeScheduler tells no alphas_cumprod"),
        (EulerDiscreteScheduler(timestep_type="continuous"), "EulerDiscreteScheduler tells no alphas_cumprod by which"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "no signal left at the last timestep.*v_prediction or sample"),
        (EulerDiscreteScheduler(rescale_betas_zero_snr=True), "no signal left at the last timestep"),
        (DDIMScheduler(prediction_type="score"), "prediction_type 'score'; served are epsilon, v_prediction, sample"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "upside down"),
    ],
)
def test_laws_that_cannot_be_read_are_refused(scheduler: Any, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        read_noise_law(scheduler)


# -- pixels ---------------------------------------------------------------------------------------------------------


def test_pixels_are_loaded_as_they_were_saved(pixels: str, offline: list[Any]) -> None:
    teacher = DiffusersExpert.from_pretrained(pixels)
    assert teacher.shape == teacher.autoencoder.image_shape == (1, 8, 8)
    assert teacher.threshold == StaticThreshold()
    assert isinstance(teacher.network.conditions, Unconditional)
    assert not any(weight.requires_grad for weight in teacher.network.parameters())
    assert not any(module.training for module in teacher.network.modules())
    x_t, t = noise_like(teacher), torch.tensor([0.3, 0.8])
    unet, scheduler = pipelines.seeded(pipelines.ddpm).unet.eval(), DDIMScheduler()
    scheduler.set_timesteps(1000)
    for row, timestep in enumerate((299, 799)):
        output = unet(x_t[row : row + 1], timestep).sample
        expected = scheduler.step(output, timestep, x_t[row : row + 1]).pred_original_sample
        torch.testing.assert_close(teacher.threshold(teacher(x_t, t))[row : row + 1], expected, **TOLERANCE)
    assert not teacher(x_t, t).requires_grad
    images = torch.zeros(1, 1, 8, 8)
    assert teacher.autoencoder.decode(teacher.autoencoder.encode(images)) is images
    assert offline == []


@pytest.mark.parametrize(("flat", "pickled"), [(True, False), (False, True), (True, True)])
def test_flat_layout_and_bin_weights(pixels: str, tmp_path: Path, flat: bool, pickled: bool) -> None:
    again = pipelines.save(pipelines.seeded(pipelines.ddpm), tmp_path / "again", pickled, flat)
    assert (tmp_path / "again" / "unet").exists() is not flat
    if pickled:
        with pytest.raises(Refusal, match="allow_pickle"):
            DiffusersExpert.from_pretrained(again)
    one, other = DiffusersExpert.from_pretrained(pixels), DiffusersExpert.from_pretrained(again, allow_pickle=pickled)
    x_t, t = noise_like(one), torch.tensor([0.3, 0.8])
    assert torch.equal(one(x_t, t), other(x_t, t))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=["epsilon", "v-zero-snr", "sample-cosine"],
)
def test_the_chain_equals_the_ddim_pipeline_s(changes: dict[str, Any], tmp_path: Path) -> None:
    pipeline = DDIMPipeline(pipelines.seeded(pipelines.unet), DDIMScheduler(**changes))
    pipeline.set_progress_bar_config(disable=True)
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipeline, tmp_path))
    generator = torch.Generator().manual_seed(7)
    options: dict[str, Any] = {"use_clipped_model_output": True, "output_type": "pt"}
    images = pipeline(2, generator, num_inference_steps=5, **options).images
    timesteps = pipeline.scheduler.timesteps
    ours = end(teacher, timesteps, None, 1.0)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), images, **TOLERANCE)
    expert = Expert(teacher, teacher.schedule, threshold=teacher.threshold)
    times = teacher.network.law.times(timesteps)
    sampled = sample(expert, Ddim(teacher.schedule), times, noise_like(teacher))
    torch.testing.assert_close(sampled, ours)


def test_a_learned_variance_is_left_aside(tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.ddpm, out_channels=2)
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipeline, tmp_path))
    x_t, t = noise_like(teacher), torch.full((2,), 0.5)
    output = pipeline.unet.eval()(x_t, 499).sample[:, :1]
    torch.testing.assert_close(teacher.network(x_t, t), output)
    assert teacher(x_t, t).shape == x_t.shape


def test_classes(tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.ddpm, num_class_embeds=4)
    saved = pipelines.save(pipeline, tmp_path)
    teacher = DiffusersExpert.from_pretrained(saved, null_class=3)
    x_t, t = noise_like(teacher), torch.full((2,), 0.5)
    for given, classes in (([2, -1], [2, 3]), (None, [3, 3])):
        condition = None if given is None else torch.tensor(given)
        expected = pipeline.unet.eval()(x_t, 499, class_labels=torch.tensor(classes)).sample
        torch.testing.assert_close(teacher.network(x_t, t, condition), expected)
    assert set(teacher.network.conditions.draw(200, torch.Generator().manual_seed(0)).tolist()) == {0, 1, 2}
    without = DiffusersExpert.from_pretrained(saved)
    torch.testing.assert_close(without(x_t, t, torch.tensor([2, 1])), teacher(x_t, t, torch.tensor([2, 1])))
    with pytest.raises(Refusal, match=r"needs a class a row, 0 to 3; got no condition. Pass null_class"):
        without(x_t, t)
    with pytest.raises(Refusal, match=r"holds -1, and this network has no null class"):
        Expert(without, without.schedule, guidance=2.0)(x_t, t, torch.tensor([2, 1]))
    with pytest.raises(Refusal, match="must lie between -1"):
        teacher(x_t, t, torch.tensor([0, 4]))
    with pytest.raises(Refusal, match="a class of the network, 0 or above; got -2"):
        Labels(4, null=-2)


def test_half_precision_stays_in_the_network(pixels: str) -> None:
    half = DiffusersExpert.from_pretrained(pixels, dtype="bfloat16")
    full = DiffusersExpert.from_pretrained(pixels)
    assert {weight.dtype for weight in half.network.parameters()} == {torch.bfloat16}
    x_t, t = noise_like(full), torch.full((2,), 0.2)
    assert half(x_t, t).dtype == torch.float32
    torch.testing.assert_close(half(x_t, t), full(x_t, t), atol=0.1, rtol=0.05)
    with pytest.raises(Refusal, match=r"unknown dtype 'float8'.*Known: bfloat16, float16, float32"):
        DiffusersExpert.from_pretrained(pixels, dtype="float8")


def test_the_network_runs_where_it_is_moved(pixels: str) -> None:
    teacher = DiffusersExpert.from_pretrained(pixels).to("meta")
    guess = teacher(torch.zeros(2, 1, 8, 8, device="meta"), torch.ones(2, device="meta"))
    assert guess.is_meta and guess.shape == (2, 1, 8, 8)


def test_another_sample_size(pixels: str) -> None:
    teacher = DiffusersExpert.from_pretrained(pixels, sample_size=16)
    assert teacher(torch.zeros(1, 1, 16, 16), torch.ones(1)).shape == (1, 1, 16, 16)
    with pytest.raises(Refusal, match="sample_size must be a multiple of 2 for this UNet2DModel; got 9 x 9"):
        DiffusersExpert.from_pretrained(pixels, sample_size=9)


def test_a_student_starts_as_the_teacher_and_leaves_it_alone(teacher: DiffusersExpert) -> None:
    student = teacher.student()
    x_t, t, condition = noise_like(teacher), torch.full((2,), 0.5), torch.tensor([1, -1])
    before = teacher(x_t, t, condition)
    guess = student(x_t, t, condition)
    torch.testing.assert_close(guess, before)
    optimiser = torch.optim.SGD(student.parameters(), 0.1)
    guess.square().mean().backward()
    optimiser.step()
    assert not torch.equal(student(x_t, t, condition), before)
    assert torch.equal(teacher(x_t, t, condition), before)
    assert student.network.conditions is teacher.network.conditions


# -- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [1.0, 4.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_stable_diffusion_equals_its_ddim_pipeline(
    diffusion: tuple[Any, str], teacher: DiffusersExpert, w: float, to_one: bool
) -> None:
    pipeline, _ = diffusion
    assert teacher.shape == (4, 8, 8) and teacher.autoencoder.image_shape == (3, 16, 16)
    ddim = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=to_one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "scheduler", ddim)
        prompts, noise = [PROMPTS[1], PROMPTS[0]], noise_like(teacher)
        options: dict[str, Any] = {"output_type": "latent", "height": 16, "width": 16, "guidance_scale": w}
        theirs = pipeline(prompts, num_inference_steps=5, latents=noise, **options).images
    expert = Expert(teacher, teacher.schedule, guidance=w)
    times = teacher.network.law.times(ddim.timesteps)
    if not to_one:
        times[-1] = 0.001  # where such a pipeline stops: entry 0
    ours = expert.walk(noise, times, torch.tensor([1, 0]))[-1]
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_equals_its_ddim_pipeline(zeros: bool, tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.sdxl, zeros)
    pipeline.set_progress_bar_config(disable=True)
    saved = pipelines.save(pipeline, tmp_path / "sdxl")
    teacher = DiffusersExpert.from_pretrained(saved, PROMPTS)
    bank = teacher.network.conditions
    assert bank.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    assert bool((bank.hidden[-1] == 0).all()) is zeros
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True)
    options: dict[str, Any] = {"output_type": "latent", "height": 16, "width": 16, "guidance_scale": 5.0}
    theirs = pipeline(PROMPTS, num_inference_steps=4, latents=noise_like(teacher), **options).images
    ours = end(teacher, pipeline.scheduler.timesteps, torch.tensor([0, 1]), 5.0)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(Refusal, match=r"made for images of \[16, 16\] pixels, not \[32, 32\]. Embed the prompts again"):
        DiffusersExpert.from_pretrained(saved, tmp_path / "bank.safetensors", sample_size=16)


def test_dit_equals_its_pipeline(tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.dit)
    pipeline.set_progress_bar_config(disable=True)
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipeline, tmp_path))
    assert teacher.threshold == NoThreshold()
    generator, classes = torch.Generator().manual_seed(7), [3, 998]
    theirs = pipeline(classes, 4.0, generator, num_inference_steps=4, output_type="pt").images
    ours = teacher.autoencoder.decode(end(teacher, pipeline.scheduler.timesteps, torch.tensor(classes), 4.0))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, **TOLERANCE)


def test_sd3_equals_its_flow_pipeline(tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.sd3)
    pipeline.set_progress_bar_config(disable=True)
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipeline, tmp_path), PROMPTS)
    assert isinstance(teacher.schedule, FlowSchedule)
    options: dict[str, Any] = {"output_type": "latent", "height": 16, "width": 16, "guidance_scale": 5.0}
    theirs = pipeline(PROMPTS, num_inference_steps=4, latents=noise_like(teacher), **options).images
    ours = end(teacher, pipeline.scheduler.timesteps, torch.tensor([0, 1]), 5.0)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("distilled", [True, False])
def test_flux_equals_its_flow_pipeline(distilled: bool, tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.flux, distilled)
    pipeline.set_progress_bar_config(disable=True)
    family = Flux(tokens=16, guidance=2.5)
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipeline, tmp_path), PROMPTS, sample_size=8, family=family)
    noise = noise_like(teacher)
    packed = pipeline._pack_latents(noise, 2, 4, 8, 8)
    options: dict[str, Any] = {"output_type": "latent", "height": 16, "width": 16, "max_sequence_length": 16}
    options |= {"guidance_scale": 2.5, "negative_prompt": "", "true_cfg_scale": 3.0}
    theirs = pipeline(PROMPTS, num_inference_steps=4, latents=packed, **options).images
    ours = end(teacher, pipeline.scheduler.timesteps, torch.tensor([0, 1]), 3.0)
    torch.testing.assert_close(pipeline._pack_latents(ours, 2, 4, 8, 8), theirs, **TOLERANCE)


def test_no_condition_is_the_empty_prompt(diffusion: tuple[Any, str], teacher: DiffusersExpert) -> None:
    x_t, t = noise_like(teacher), torch.full((2,), 0.5)
    null = teacher(x_t, t, torch.tensor([-1, -1]))
    assert torch.equal(teacher(x_t, t), null)
    named = DiffusersExpert.from_pretrained(diffusion[1], ["", "a cat"])
    torch.testing.assert_close(named(x_t, t, torch.tensor([0, 0])), null)
    alone = DiffusersExpert.from_pretrained(diffusion[1])
    assert len(alone.network.conditions) == 0
    assert alone.network.conditions.draw(2).tolist() == [-1, -1]
    torch.testing.assert_close(alone(x_t, t), null)
    assert not torch.equal(teacher(x_t, t, torch.tensor([0, 1])), null)


def test_a_saved_bank_needs_no_text_encoder(
    diffusion: tuple[Any, str], teacher: DiffusersExpert, tmp_path: Path
) -> None:
    bank = tmp_path / "bank.safetensors"
    teacher.network.conditions.save(bank)
    bare = Path(shutil.copytree(diffusion[1], tmp_path / "bare"))
    shutil.rmtree(bare / "text_encoder")
    shutil.rmtree(bare / "tokenizer")
    again = DiffusersExpert.from_pretrained(str(bare), str(bank))
    assert again.network.conditions.prompts == tuple(PROMPTS)
    x_t, t, condition = noise_like(teacher), torch.full((2,), 0.5), torch.tensor([1, -1])
    assert torch.equal(again(x_t, t, condition), teacher(x_t, t, condition))


def test_many_prompts_are_embedded_a_few_at_a_time(
    diffusion: tuple[Any, str], teacher: DiffusersExpert, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"  prompt {i} \n" for i in range(70)) + "\n\na cat\n", encoding="utf-8")
    bank = DiffusersExpert.from_pretrained(diffusion[1], file).network.conditions
    assert (len(bank), bank.prompts[0], bank.prompts[-1]) == (71, "prompt 0", "a cat")
    torch.testing.assert_close(bank.hidden[[70, 71]], teacher.network.conditions.hidden[[0, 2]])
    assert bank.draw(500, torch.Generator().manual_seed(0)).unique().numel() == 71


def test_banks_that_are_none_are_refused(tmp_path: Path, diffusion: tuple[Any, str]) -> None:
    from safetensors.torch import save_file

    def file(**tensors: torch.Tensor) -> Path:
        save_file(tensors, tmp_path / "bank.safetensors")
        return tmp_path / "bank.safetensors"

    hidden = torch.zeros(3, 16, 16)
    with pytest.raises(Refusal, match=r"missing.safetensors can't be read as a prompt bank"):
        PromptBank.load(tmp_path / "missing.safetensors")
    with pytest.raises(Refusal, match=r"holds \['latents'\], which is no prompt bank. It takes"):
        PromptBank.load(file(latents=hidden))
    with pytest.raises(Refusal, match=r"needs hidden \(N \+ 1, L, F\) and as many rows of all else"):
        PromptBank.load(file(hidden=hidden, pooled=torch.zeros(2, 4)))
    with pytest.raises(Refusal, match=r"hidden in .*bank.safetensors holds 1 values that are NaN"):
        PromptBank.load(file(hidden=torch.full((1, 1, 1), torch.nan)))
    with pytest.raises(Refusal, match=r"a prompt bank of 5 prompts"):
        PromptBank(Text(hidden), ["a"] * 5)
    with pytest.raises(
        Refusal, match=r"takes prompts of widths {'hidden': 16}; the bank has {'hidden': 8}. It is another"
    ):
        DiffusersExpert.from_pretrained(diffusion[1], file(hidden=torch.zeros(3, 16, 8)))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.tensor([0, 2]), "must lie between -1 .none. and 1; got 0 to 2. There are 2"),
        (torch.tensor([-2, 0]), "got -2 to 0"),
        (torch.tensor([0]), r"one integer a row, \(2,\); got \(1,\)"),
        (torch.tensor([0.0, 1.0]), "one integer a row.*float32"),
    ],
)
def test_conditions_that_name_no_prompt_are_refused(
    teacher: DiffusersExpert, condition: torch.Tensor, message: str
) -> None:
    with pytest.raises(Refusal, match=message):
        teacher(noise_like(teacher), torch.ones(2), condition)


# -- latents --------------------------------------------------------------------------------------------------------


def test_latents_are_scaled_and_shifted(generator: torch.Generator) -> None:
    vae = pipelines.seeded(pipelines.vae, scaling_factor=1.5, shift_factor=0.25).eval()
    coder = Autoencoder(vae, (8, 8), batch_size=2)
    images = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    mode = vae.encode(images).latent_dist.mode()
    torch.testing.assert_close(coder.encode(images), (mode - 0.25) * 1.5)
    torch.testing.assert_close(coder.decode((mode - 0.25) * 1.5), vae.decode(mode).sample)
    drawn = coder.encode(images, generator)
    std = vae.encode(images).latent_dist.std.mean() * 1.5
    assert 0.5 * std < (drawn - coder.encode(images)).std() < 2 * std


def test_latents_with_a_mean_and_std_a_channel(generator: torch.Generator) -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae = pipelines.seeded(pipelines.vae, scaling_factor=0.5, latents_mean=mean, latents_std=std).eval()
    images = torch.rand(1, 3, 16, 16, generator=generator)
    mode = vae.encode(images).latent_dist.mode()
    expected = (mode - torch.tensor(mean)[:, None, None]) * 0.5 / torch.tensor(std)[:, None, None]
    coder = Autoencoder(vae, (8, 8))
    torch.testing.assert_close(coder.encode(images), expected)
    torch.testing.assert_close(coder.decode(expected), vae.decode(mode).sample)


def test_a_vector_quantised_autoencoder(generator: torch.Generator) -> None:
    vq = VQModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        scaling_factor=0.5,
        latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    images = torch.rand(1, 3, 16, 16, generator=generator)
    torch.testing.assert_close(Autoencoder(vq, (8, 8)).encode(images), vq.encode(images).latents * 0.5)
    assert Autoencoder(vq, (8, 8)).decode(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 16, 16)
    with pytest.raises(Refusal, match="unknown autoencoder 'UNet2DModel'"):
        Autoencoder(pipelines.unet(), (8, 8))


def test_latents_are_thresholded_by_channel(teacher: DiffusersExpert, generator: torch.Generator) -> None:
    latents = teacher.autoencoder.encode(torch.rand(20, 3, 16, 16, generator=generator))
    assert latents.shape == (20, *teacher.shape)
    box = QuantileBox.estimate(latents)
    assert box.low.shape == (4,)
    clamped = Expert(teacher, teacher.schedule, threshold=box)(noise_like(teacher), torch.ones(2))
    assert ((clamped >= box.low.reshape(1, 4, 1, 1)) & (clamped <= box.high.reshape(1, 4, 1, 1))).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"images must be \(B, 3, 16, 16\) for this expert; got \(1, 3, 8, 8\). Resize"),
        (torch.zeros(3, 16, 16), r"got \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"floats in \[-1, 1\]; got torch.uint8.*images / 127.5 - 1"),
        (torch.full((1, 3, 16, 16), 255.0), r"floats in \[-1, 1\]; got torch.float32 from 255 to 255"),
        (torch.full((1, 3, 16, 16), torch.nan), r"floats in \[-1, 1\]"),
    ],
)
def test_images_that_are_none_are_refused(teacher: DiffusersExpert, images: torch.Tensor, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        teacher.autoencoder.encode(images)


def test_states_of_another_resolution_are_refused(teacher: DiffusersExpert) -> None:
    with pytest.raises(Refusal, match=r"states are \(B, 4, 8, 8\); got \(1, 3, 16, 16\). Encode images"):
        teacher(torch.zeros(1, 3, 16, 16), torch.ones(1))


# -- what can't be loaded -------------------------------------------------------------------------------------------


def test_no_such_folder() -> None:
    with pytest.raises(Refusal, match=r"no pipeline at '/no/such/folder': there is no such folder"):
        DiffusersExpert.from_pretrained("/no/such/folder")


def test_no_network(offline: list[Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(
            Refusal, match=r"no pipeline at 'nobody/nothing': no folder here.*Check the name and the net"
        ):
            DiffusersExpert.from_pretrained("nobody/nothing")
    offline.clear()


def test_a_hub_id_is_fetched_without_what_is_never_used(pixels: str) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagdiff.pipelines.loading.DiffusionPipeline.download", download)
        assert DiffusersExpert.from_pretrained("somebody/something").shape == (1, 8, 8)
    assert asked["name"] == "somebody/something"
    assert {"safety_checker", "image_encoder"} < set(asked)
    assert "text_encoder" not in asked


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_folder_half_downloaded_is_refused(pixels: str, tmp_path: Path, missing: str) -> None:
    half = Path(shutil.copytree(pixels, tmp_path / "half"))
    (half / missing).unlink()
    with pytest.raises(Refusal, match=r"half' (can't be loaded as|is incomplete: ).*Download or save it again") as no:
        DiffusersExpert.from_pretrained(str(half))
    assert len(str(no.value).splitlines()) == 1


def test_weights_half_downloaded_are_refused(pixels: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    half = Path(shutil.copytree(pixels, tmp_path / "half"))
    weights = half / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: values.clone() for name, values in load_file(weights).items()}  # they lie in the file itself
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Refusal, match=r"unet/diffusion_pytorch_model\.safetensors is cut off"):
        DiffusersExpert.from_pretrained(str(half))
    tensors.pop("conv_in.bias")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(Refusal, match="is incomplete: weights of its unet are missing"):
        DiffusersExpert.from_pretrained(str(half))


def test_a_pipeline_without_a_denoiser_is_refused(pixels: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pixels, tmp_path / "other"))
    index = json.loads((other / "model_index.json").read_text())
    index["prior"] = index.pop("unet")
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(Refusal, match="a DDPMPipeline without a unet or a transformer"):
        DiffusersExpert.from_pretrained(str(other))


def test_transformers_is_asked_for_where_it_is_needed(diffusion: tuple[Any, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagdiff.pipelines.loading.find_spec", lambda name: None)
        with pytest.raises(Refusal, match=r"needs the package transformers. Run pip install 'dagdiff\[hub\]'"):
            DiffusersExpert.from_pretrained(diffusion[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_channels": 3}, r"UNet2DModel answers with 3 channels; a guess of the state has 1, or 2 with a variance"),
        ({"class_embed_type": "timestep"}, r"UNet2DModel can't be served: its classes are no numbers"),
        ({"sample_size": None}, "tells no sample_size in its configuration. Pass sample_size"),
    ],
)
def test_pixel_networks_that_cannot_be_served(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=message):
        DiffusersExpert.from_pretrained(pipelines.save(pipelines.ddpm(**changes), tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, r"UNet2DConditionModel takes 9 channels, and states have 4: .*inpainting"),
        ({"class_embed_type": "timestep"}, r"more than text .class_embed_type 'timestep'"),
    ],
)
def test_text_networks_that_cannot_be_served(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=message):
        DiffusersExpert.from_pretrained(pipelines.save(pipelines.stable_diffusion(**changes), tmp_path))


def test_families_refuse_what_wants_something_else() -> None:
    wanted, plain = Wanted((), None, (16, 16)), SimpleNamespace(config={})
    learned = pipelines.unet(time_embedding_type="learned", num_train_timesteps=10)
    with pytest.raises(Refusal, match=r"its clock is no sine .time_embedding_type 'learned'"):
        ImageUNet().conditions(learned, plain, wanted)
    with pytest.raises(Refusal, match="refines images by an aesthetic score"):
        TextUNet().conditions(
            pipelines.text_unet(), SimpleNamespace(config={"requires_aesthetics_score": True}), wanted
        )
    with pytest.raises(Refusal, match="SimpleNamespace has no encode_prompt; give a bank of embeddings"):
        TextUNet().conditions(pipelines.text_unet(), plain, wanted)


def test_an_unknown_network_is_refused_by_name(pixels: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pixels, tmp_path / "other"))
    shutil.rmtree(other / "unet")
    UNet1DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
        norm_num_groups=4,
    ).save_pretrained(other / "unet")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet1DModel"]}))
    with pytest.raises(Refusal, match=r"unknown network 'UNet1DModel'.*Known: .*FluxTransformer2DModel.*UNet2DModel"):
        DiffusersExpert.from_pretrained(str(other))


def test_what_a_network_does_not_take_is_refused(pixels: str, diffusion: tuple[Any, str]) -> None:
    teacher = DiffusersExpert.from_pretrained(pixels)
    with pytest.raises(Refusal, match=r"takes no condition; got one of shape \(1,\). Leave it out"):
        teacher(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long))
    assert teacher.network.conditions.draw(3) is None
    with pytest.raises(Refusal, match="UNet2DModel can't be served: it takes no text: leave the prompts out"):
        DiffusersExpert.from_pretrained(pixels, ["a cat"])
    with pytest.raises(Refusal, match="it has no classes: leave null_class=3 out"):
        DiffusersExpert.from_pretrained(pixels, null_class=3)
    with pytest.raises(Refusal, match="it is told prompts, not classes: leave null_class=3 out"):
        DiffusersExpert.from_pretrained(diffusion[1], null_class=3)


def test_the_package_of_policies_does_not_load_diffusers() -> None:
    code = "import sys, dagdiff.policies; assert not {'diffusers', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
