"""Teachers that are none: few-step models, pipelines that start from pictures; and weights that a network is told."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pipelines
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.pipelines.calling import call_arguments
from dagdiff.pipelines.few_step import load_start
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.tasks.pipeline import _loaded

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a cache of its own and a file of prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    _loaded.cache_clear()
    Path("prompts.txt").write_text("a cat\n")
    return tmp_path


def distil(folder: str, *words: str) -> int:
    """The status of a short training."""
    told = ["--pipeline.path", folder, "--pipeline.prompts", "prompts.txt", "--pipeline.own_samples", "10"]
    small = ["--updates", "2", "--rounds", "1", "--chains", "2", "--batch_size", "2", "--heldout", "0"]
    small += ["--samples", "10", "--pipeline.own_steps", "1", "--device", "cpu", "--out", "run"]
    return main(["distill", "--task", "pipeline", *told, *small, *words])


# -- few-step models as teachers ------------------------------------------------------------------------------------


def turbo() -> Any:
    """The scheduler of SD-Turbo."""
    return EulerDiscreteScheduler(**pipelines.SD_BETAS, steps_offset=1, timestep_spacing="trailing")


SIGNS = {
    "lcm scheduler": (lambda: pipelines.stable_diffusion(LCMScheduler(**pipelines.SD_BETAS)), "LCMScheduler"),
    "turbo": (lambda: pipelines.stable_diffusion(turbo()), "timestep_spacing is trailing"),
    "lcm network": (lambda: pipelines.stable_diffusion(time_cond_proj_dim=16), "time_cond_proj_dim"),
}


@pytest.mark.parametrize("name", SIGNS)
def test_few_step_models_are_no_teachers_unless_it_is_said(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sign = SIGNS[name]
    pipelines.save(pipelines.seeded(make), Path("teacher"))
    assert distil("teacher") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert sign in told and "--pipeline.few_step true" in told
    assert not Path("run").exists()
    assert distil("teacher", "--pipeline.few_step", "true") == 0


@pytest.mark.parametrize("folder", ["sdxl-turbo", "FLUX.1-schnell", "my_LCM", "sd15-hyper-sd"])
def test_names_of_few_step_models_are_a_sign(folder: str, here: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.ddpm), here / folder)
    assert folder in str(DiffusersExpert.from_pretrained(base).few_step)


@pytest.mark.parametrize("folder", ["sd15", "turbot", "teacher", "hyperion-xl"])
def test_usual_models_have_no_sign(folder: str, here: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.ddpm), here / folder)
    assert DiffusersExpert.from_pretrained(base).few_step is None


def test_trailing_timesteps_of_zero_terminal_snr_are_no_sign(here: Path) -> None:
    silent = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    make = pipelines.stable_diffusion(DDIMScheduler(**pipelines.SD_BETAS, **silent, clip_sample=False))
    assert DiffusersExpert.from_pretrained(pipelines.save(make, here / "v")).few_step is None


def test_what_dagdiff_exported_is_a_few_step_model(here: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.ddpm), here / "student")
    (here / "student" / "chain.json").write_text("{}")
    assert "exported it as a student" in str(DiffusersExpert.from_pretrained(base).few_step)


# -- pipelines that start from pictures -----------------------------------------------------------------------------


def image_to_image(kind: Any, make: Any, **more: Any) -> Any:
    """A pipeline of another class with the parts of a text-to-image one."""
    parts = {name: part for name, part in pipelines.seeded(make).components.items() if name != "controlnet"}
    return kind(**parts, **more)


def control_net() -> Any:
    """Stable Diffusion with a ControlNet."""
    net = ControlNetModel.from_unet(pipelines.text_unet())
    return image_to_image(
        StableDiffusionControlNetPipeline, pipelines.stable_diffusion, controlnet=net, requires_safety_checker=False
    )


OTHERS = {
    "img2img": lambda: image_to_image(
        StableDiffusionImg2ImgPipeline, pipelines.stable_diffusion, requires_safety_checker=False
    ),
    "inpaint": lambda: image_to_image(
        StableDiffusionInpaintPipeline, pipelines.stable_diffusion, requires_safety_checker=False
    ),
    "controlnet": control_net,
    "sdxl img2img": lambda: image_to_image(StableDiffusionXLImg2ImgPipeline, pipelines.sdxl),
    "flux img2img": lambda: image_to_image(FluxImg2ImgPipeline, pipelines.flux),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pipelines_that_start_from_pictures_are_refused_with_their_twin(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cure is run as it is told, and what it makes is a teacher."""
    pipelines.save(OTHERS[name](), Path("other"))
    assert distil("other") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "starts from more than text" in told
    cure = told.partition("name that: ")[2].strip().removesuffix(".")
    exec(f"diffusers.{cure.replace('FOLDER', repr('twin'))}", {"diffusers": diffusers})
    assert json.loads(Path("twin/model_index.json").read_text())["_class_name"] in ("FluxPipeline", *_TWINS)
    assert distil("twin", *(["--pipeline.sample_size", "8"] if "flux" in name else [])) == 0


_TWINS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


@pytest.mark.parametrize("kind", ["quantization_config", "quanto_qmap.json"])
def test_quantised_networks_are_refused_and_told_why(kind: str, here: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.flux), here / "int8")
    file = here / "int8" / "transformer" / "config.json"
    if kind == "quantization_config":
        config = json.loads(file.read_text()) | {kind: {"quant_method": "quanto", "weights_dtype": "int8"}}
        file.write_text(json.dumps(config))
    else:
        (file.parent / kind).write_text("{}")
    with pytest.raises(Refusal, match=r"transformer of '.*int8' is quantised \(quanto\): integers can't be trained"):
        DiffusersExpert.from_pretrained(base, ["a cat"])


def test_a_single_file_is_refused_and_told_why(here: Path) -> None:
    Path("model.safetensors").write_bytes(b"")
    with pytest.raises(Refusal, match=r"holds weights, but neither the scheduler .* from_single_file"):
        DiffusersExpert.from_pretrained("model.safetensors")


def test_prompts_that_are_too_long_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all encoders cut them: CLIP's end alone is no loss where T5 reads on."""
    pipelines.save(pipelines.seeded(pipelines.stable_diffusion), Path("teacher"))
    Path("prompts.txt").write_text("a cat\na very long sentence on dogs\n")
    assert distil("teacher") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "prompt 2 has 25 tokens, and the encoder reads 16" in told and "Shorten it" in told
    base = pipelines.save(pipelines.seeded(pipelines.flux), here / "flux")
    told = [
        str(DiffusersExpert.from_pretrained(base, [prompt], sample_size=8).cut_off)
        for prompt in ("a very long sentence on dogs", "dogs " * 200)
    ]
    assert told[0] == "None" and "tokens, and the encoder reads 512" in told[1]


# -- weights of guidance that a network is told ---------------------------------------------------------------------


def experiment(**settings: Any) -> Experiment:
    """A short run of the pipeline in the folder ``teacher``."""
    told = {"path": "teacher", "prompts": "prompts.txt", "own_samples": 10, "own_steps": 1, "sample_size": 8}
    told |= settings.pop("pipeline", {})
    small = {
        "updates": 2,
        "rounds": 1,
        "steps": 2,
        "chains": 2,
        "batch_size": 2,
        "heldout": 0,
        "samples": 10,
        "substeps": 1,
    }
    chosen = {"task": "pipeline", "device": "cpu", **small, **settings, "pipeline": told}
    return Experiment.build(configure(chosen), training=False)


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.5])
def test_flux_dev_is_told_the_weight_and_not_guided_once_more(weight: float, here: Path) -> None:
    """The expert's chain is that of the pipeline's own call with that guidance, evaluation for evaluation."""
    pipeline = pipelines.seeded(pipelines.flux)
    pipeline.set_progress_bar_config(disable=True)
    pipelines.save(pipeline, Path("teacher"))
    run = experiment(guidance=weight)
    noise = torch.randn(1, *run.task.shape, generator=torch.Generator().manual_seed(5))
    ours = run.expert.walk(noise, run.times, torch.tensor([0]))[-1]
    assert run.expert.nfe == (len(run.times) - 1) * run.expert.substeps, "one evaluation a step"
    usual = 3.5 if weight == 1.0 else weight
    family, size = run.task.teacher.network.family, {"height": 16, "width": 16}
    sigmas = [float(time) for time in run.times[:-1]]
    given = {"latents": family.pack(noise), "sigmas": sigmas, "guidance_scale": usual, "output_type": "latent", **size}
    theirs = pipeline("a cat", **given).images
    torch.testing.assert_close(family.pack(ours), theirs, atol=1e-5, rtol=1e-5)
    told = call_arguments(pipeline, 2, run.task.shape[1:], None, run.student.network.family)
    assert told["guidance_scale"] == usual


def test_a_student_that_starts_from_a_few_step_model_is_told_its_expert_s_weight(here: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.flux), here / "flux")
    teacher = DiffusersExpert.from_pretrained(base, ["a cat"], sample_size=8)
    assert teacher.guided(2.0) == 1.0
    start = load_start(teacher, base)
    assert start.network.family.embedded(start.network.body.config) == 2.0


def test_samples_of_other_weights_are_others(here: Path) -> None:
    """The cache knows the weight that the network was told."""
    pipelines.save(pipelines.seeded(pipelines.flux), Path("teacher"))
    one, same, two = (experiment(guidance=weight).task.world.splits[0].points for weight in (2.0, 2.0, 6.0))
    assert torch.equal(one, same) and not torch.equal(one, two)


def test_a_network_of_a_latent_consistency_model_hears_its_weight(here: Path) -> None:
    pipeline = pipelines.seeded(pipelines.stable_diffusion, LCMScheduler(**pipelines.SD_BETAS), time_cond_proj_dim=16)
    pipeline.set_progress_bar_config(disable=True)
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipeline, Path("lcm")), ["a cat"])
    assert teacher.guided(6.0) == 1.0
    noise = torch.randn(1, *teacher.shape, generator=torch.Generator().manual_seed(5))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True)
    size = {"height": 16, "width": 16, "output_type": "latent"}
    theirs = pipeline("a cat", num_inference_steps=1, latents=noise, guidance_scale=6.0, **size).images
    time = teacher.network.law.times(pipeline.scheduler.timesteps)[:1]
    torch.testing.assert_close(teacher(noise, time, torch.tensor([0])), theirs, atol=2e-4, rtol=2e-4)
    assert isinstance(pipeline, StableDiffusionPipeline) and not isinstance(pipeline, FluxPipeline)


# -- embeddings are made once ---------------------------------------------------------------------------------------


def test_many_prompts_are_embedded_once(here: Path) -> None:
    """The second load asks no encoder; other prompts, weights or tokens are another matter."""
    base = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), here / "sd")
    prompts, asked = [f"cat {number}" for number in range(40)], []

    def load(folder: str, told: list[str]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            encode = StableDiffusionPipeline.encode_prompt
            patch.setattr(StableDiffusionPipeline, "encode_prompt", lambda *a, **k: asked.append(1) or encode(*a, **k))
            return DiffusersExpert.from_pretrained(folder, told).network.conditions

    first = load(base, prompts)
    assert len(asked) == 2 and len(list((here / "cache" / "prompts").iterdir())) == 1
    again = load(base, prompts)
    assert len(asked) == 2 and torch.equal(first.hidden, again.hidden) and again.prompts == tuple(prompts)
    load(pipelines.save(pipelines.seeded(pipelines.stable_diffusion), here / "copy"), prompts)
    assert len(asked) == 2, "wherever it lies"
    load(base, prompts[::-1])
    assert len(asked) == 4
    other = pipelines.stable_diffusion()
    load(pipelines.save(other, here / "other"), prompts)
    assert len(asked) == 6
    other.tokenizer.model_max_length = 12
    assert load(pipelines.save(other, here / "shorter"), prompts).hidden.shape[1] == 12


# -- families of one's own ------------------------------------------------------------------------------------------

OWN = """
from dagdiff.pipelines.families import TextUNet

class Louder(TextUNet):
    def __call__(self, network, x_t, timestep, given):
        return 2.0 * super().__call__(network, x_t, timestep, given)

class None_:
    pass
"""


def test_a_family_is_named_from_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("louder.py").write_text(OWN)
    pipelines.save(pipelines.seeded(pipelines.stable_diffusion), Path("teacher"))
    assert distil("teacher", "--pipeline.family", "louder.Louder") == 0
    assert main(["export", "run", "--out", "out"]) == 2
    assert "--trust_code" in capsys.readouterr().err
    assert distil("teacher", "--pipeline.family", "louder.None_", "--out", "other") == 2
    assert "no subclass of dagdiff.pipelines.families.Family" in capsys.readouterr().err
    assert distil("teacher", "--pipeline.family", "UNet2DConditonModel", "--out", "other") == 2
    assert "Did you mean" in capsys.readouterr().err


def test_what_is_told_of_a_pipeline_later_leaves_a_run_what_it_was(here: Path) -> None:
    from dagdiff.runs.identity import identity

    told = {"path": "teacher", "prompts": "prompts.txt"}
    pipelines.save(pipelines.seeded(pipelines.stable_diffusion), Path("teacher"))
    found = identity(configure({"task": "pipeline", "pipeline": told}))["settings"]["pipeline"]
    assert "family" not in found and "few_step" not in found


def test_refusals_name_the_cure(here: Path) -> None:
    base = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), here / "sd")
    index = json.loads((here / "sd" / "model_index.json").read_text())
    (here / "sd" / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionImg2ImgPipeline"}))
    with pytest.raises(Refusal, match=r"StableDiffusionPipeline.from_pretrained\('.*sd'\).save_pretrained"):
        DiffusersExpert.from_pretrained(base, ["a cat"])
