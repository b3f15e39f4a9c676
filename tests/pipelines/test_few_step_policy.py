"""Keep few steps while fine-tuning: a student that starts from a few-step model, and an expert with somebody's LoRA."""

import io
import json
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
import yaml
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.pipelines.few_step import load_start, with_adapters, with_lora
from dagdiff.pipelines.lora import has_adapters, lora_student, merged, save_adapters
from dagdiff.pipelines.own_grid import own_timesteps
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.runs.identity import identity

pytestmark = pytest.mark.usefixtures("offline")
FEW = "--updates 2 --rounds 2 --chains 4 --batch_size 4 --heldout 2 --samples 10 --steps 2 --substeps 1 --device cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("few")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        yield folder


def other(make: Any, *arguments: Any, **options: Any) -> Any:
    """A pipeline of other weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make(*arguments, **options)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> str:
    return pipelines.save(pipelines.seeded(pipelines.stable_diffusion), folder / "teacher")


@pytest.fixture(scope="module")
def few(folder: Path) -> str:
    """Somebody's few-step model of the same kind."""
    scheduler = LCMScheduler(**pipelines.SD_BETAS, steps_offset=1)
    return pipelines.save(other(pipelines.stable_diffusion, scheduler), folder / "few")


@pytest.fixture(scope="module")
def style(folder: Path, teacher: str) -> str:
    """Adapters for the many-step model."""
    adapted = lora_student(DiffusersExpert.from_pretrained(teacher, ["a cat"]), rank=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data.normal_(0.0, 0.2)
    save_adapters(pipelines.seeded(pipelines.stable_diffusion), adapted.network.body, folder / "style")
    return str(folder / "style")


def dagdiff(line: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(shlex.split(line))
    return status, out.getvalue(), err.getvalue()


def refused(line: str) -> str:
    status, out, err = dagdiff(line)
    lines = [each for each in err.splitlines() if each.startswith("dagdiff: error:")]
    assert status == 2 and out == "" and len(lines) == 1, err
    return lines[0]


def built(folder: Path, teacher: str, **others: Any) -> Experiment:
    told = {"task": "pipeline", "pipeline.path": teacher, "pipeline.prompts": str(folder / "prompts.txt")}
    small = {"pipeline.own_samples": 10, "pipeline.own_steps": 2, "heldout": 0, "device": "cpu", "chains": 4}
    return Experiment.build(configure({**told, **small, **others}))


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in network.state_dict().items()}


def test_the_student_starts_as_the_few_step_model_under_another_expert(folder: Path, teacher: str, few: str) -> None:
    it = built(folder, teacher, policy={"class": "few-step", "path": few})
    found, wanted = weights(it.student.network.body), weights(pipelines_unet(few))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    mine = weights(it.expert.denoiser.network.body)  # type: ignore[attr-defined]
    assert all(torch.equal(mine[name], values) for name, values in weights(pipelines_unet(teacher)).items())
    assert it.student.network.conditions is it.expert.denoiser.network.conditions  # type: ignore[attr-defined]
    assert all(weight.requires_grad for weight in it.student.parameters())


def pipelines_unet(path: str) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(path, subfolder="unet")


def test_one_command_retunes_and_exports_it(folder: Path, teacher: str, few: str, style: str) -> None:
    words = f"--pipeline.path {teacher} --pipeline.lora {style} --pipeline.prompts {folder / 'prompts.txt'} {FEW}"
    line = f"distill --task pipeline {words} --policy {few} --objective consistency --shares 0,1,0"
    status, _, err = dagdiff(f"{line} --pipeline.own_samples 10 --pipeline.own_steps 2 --out {folder / 'tuned'}")
    assert status == 0, err
    it = open_run(folder / "tuned", "cpu")
    assert it.config["policy"]["class"] == "few-step" and it.config["policy"]["path"] == few
    status, _, err = dagdiff(f"export {folder / 'tuned'} --out {folder / 'exported'} --pictures 1")
    assert status == 0, err
    assert json.loads((folder / "exported" / "chain.json").read_text())["difference_from_dagdiff"] < 1e-4
    assert "with the adapters `style`" in (folder / "exported" / "README.md").read_text()
    again = f"{line} --policy {folder / 'exported'} --pipeline.own_samples 10 --pipeline.own_steps 2"
    status, _, err = dagdiff(f"{again} --out {folder / 'again'}")
    assert status == 0, "an export of ours is a start too: " + err


def test_with_a_rank_adapters_alone_are_trained_on_it(folder: Path, teacher: str, few: str) -> None:
    words = f"--pipeline.path {teacher} --pipeline.prompts {folder / 'prompts.txt'} {FEW} --shares 0,1,0"
    line = f"distill --task pipeline {words} --policy {few} --policy.rank 2 --pipeline.own_samples 10"
    status, _, err = dagdiff(f"{line} --pipeline.own_steps 2 --out {folder / 'adapted'}")
    assert status == 0, err
    it = open_run(folder / "adapted", "cpu")
    trained = [name for name, weight in it.student.named_parameters() if weight.requires_grad]
    assert it.config["policy"]["class"] == "few-step-lora" and trained and all("lora_" in name for name in trained)
    base = it.student.network.body.get_submodule(
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.base_layer"
    )
    wanted = pipelines_unet(few).get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.equal(base.weight, wanted.weight), "on the few-step model's own weights"
    status, _, err = dagdiff(f"export {folder / 'adapted'} --format lora --out {folder / 'lora'} --pictures 0")
    assert status == 0, err
    assert 'from_pretrained("path/to/few")' in (folder / "lora" / "README.md").read_text()
    kept = json.loads((folder / "adapted" / "base.json").read_text())
    (folder / "adapted" / "base.json").write_text(json.dumps({**kept, "start": "0" * 64}))
    (folder / "adapted" / "manifest.json").unlink()
    assert "the start of" in refused(f"sample {folder / 'adapted'} --num 1"), "another few-step model lies there now"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_is_added_to_the_expert_in_float32_and_cast_once(teacher: str, style: str, dtype: str) -> None:
    """Each weight is the nearest of its type to W + B A in float32, whose W and A and B are as they were saved."""
    exact = DiffusersExpert.from_pretrained(teacher, ["a cat"])
    wanted = weights(merged(with_adapters(exact, teacher, style).network.body))
    loaded = DiffusersExpert.from_pretrained(teacher, ["a cat"], dtype=dtype)
    plain = weights(loaded.network.body)
    found = with_lora(loaded, teacher, style).network.body
    assert not has_adapters(found) and found.dtype == getattr(torch, dtype)
    changed = [name for name in plain if not torch.equal(plain[name], weights(found)[name])]
    assert changed and all("attn" in name for name in changed)
    for name, values in weights(found).items():
        assert torch.equal(values, wanted[name].to(values.dtype)), name


def test_the_new_option_leaves_old_runs_what_they_were(folder: Path, teacher: str) -> None:
    config = configure({"task": "pipeline", "pipeline.path": teacher})
    assert "lora" in config["pipeline"] and "lora" not in identity(config)["settings"]["pipeline"]
    named = configure({"task": "pipeline", "pipeline.path": teacher, "pipeline.lora": "x"})
    assert identity(named)["settings"]["pipeline"]["lora"] == "x"


def test_what_cannot_be_a_start_is_refused(folder: Path, teacher: str, few: str, style: str) -> None:
    words = f"--pipeline.path {teacher} --pipeline.prompts {folder / 'prompts.txt'} --out {folder / 'never'}"
    (folder / "empty").mkdir()
    assert "holds neither a run" in refused(f"distill --task pipeline {words} --policy {folder / 'empty'}")
    assert "--task gaussians8-biased is none" in refused(f"distill --policy {few} --out {folder / 'never'}")
    large = pipelines.save(pipelines.seeded(pipelines.stable_diffusion, sample_size=16), folder / "large")
    teacher_of = DiffusersExpert.from_pretrained(teacher, ["a cat"])
    assert load_start(teacher_of, large).shape == (4, 8, 8), "a network has no size of its own"
    pixels = pipelines.save(pipelines.seeded(pipelines.ddpm), folder / "pixels")
    assert "UNet2DModel can't be served" in refused(f"distill --task pipeline {words} --policy {pixels}")
    assert "no pipeline at 'who/knows'" in refused(f"distill --task pipeline {words} --policy who/knows")
    lost = refused(f"distill --task pipeline {words} --policy {few} --pipeline.lora {folder / 'nowhere'}")
    assert "nowhere' can't be put on" in lost
    assert not (folder / "never").exists()
    noise = LCMScheduler(beta_start=1e-4, beta_end=0.02)
    strange = pipelines.save(pipelines.seeded(pipelines.stable_diffusion, noise), folder / "noise")
    with pytest.raises(Refusal, match=r"the expert and --policy .*noise differ in their noise law"):
        load_start(DiffusersExpert.from_pretrained(teacher, ["a cat"]), strange)


def test_a_lora_of_a_text_encoder_is_refused(folder: Path, teacher: str, style: str) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = pipelines.seeded(pipelines.stable_diffusion)
    adapted = lora_student(DiffusersExpert.from_pretrained(teacher, ["a cat"]), rank=2)
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    layers = get_peft_model_state_dict(adapted.network.body, adapter_name="default")
    told = {"unet_lora_layers": layers, "text_encoder_lora_layers": get_peft_model_state_dict(pipeline.text_encoder)}
    pipeline.save_lora_weights(folder / "both", **told)
    with pytest.raises(Refusal, match=r"adapters of the text_encoder too, .*fuse_lora"):
        with_lora(DiffusersExpert.from_pretrained(teacher, ["a cat"]), teacher, str(folder / "both"))


# -- its own timesteps ----------------------------------------------------------------------------------------------


def trailing() -> Any:
    return EulerDiscreteScheduler(**pipelines.SD_BETAS, steps_offset=1, timestep_spacing="trailing")


def shifted(shift: float) -> Any:
    """Rectified flow with a shift of its own."""
    made = pipelines.sd3()
    made.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=shift))
    return made


def lcm(originally: int = 50) -> Any:
    return LCMScheduler(**pipelines.SD_BETAS, steps_offset=1, original_inference_steps=originally)


@pytest.mark.parametrize(
    ("make", "steps", "wanted"),
    [
        (lambda: pipelines.stable_diffusion(lcm()), 4, [999, 759, 499, 259]),
        (lambda: pipelines.stable_diffusion(lcm()), 2, None),
        (lambda: pipelines.stable_diffusion(lcm(30)), 4, [989, 758, 494, 263]),
        (lambda: pipelines.stable_diffusion(lcm(8)), 16, None),
        (lambda: pipelines.stable_diffusion(trailing()), 4, None),
        (lambda: pipelines.stable_diffusion(), 4, None),
        (lambda: shifted(5.0), 2, [1000.0, 24.414066]),
        (lambda: pipelines.sd3(), 2, None),
    ],
)
def test_a_few_step_model_s_own_timesteps_are_read(make: Any, steps: int, wanted: Any, tmp_path: Path) -> None:
    """None where they are those of the student's usual grid, or no grid of a few-step model."""
    start = pipelines.save(pipelines.seeded(make), tmp_path / "start")
    flow = (tmp_path / "start" / "transformer").exists()
    base = pipelines.seeded(pipelines.sd3 if flow else pipelines.stable_diffusion)
    found = own_timesteps(start, pipelines.save(base, tmp_path / "base"), steps)
    assert found == (None if wanted is None else pytest.approx(wanted))


def test_a_run_is_at_the_timesteps_of_its_start(folder: Path, teacher: str, few: str) -> None:
    """They are written into its configuration, and named ones, or null, go before them."""
    told = {"task": "pipeline", "pipeline.path": teacher, "policy": {"class": "few-step", "path": few}}
    config = configure(told)
    assert config["pipeline"]["timesteps"] == [999.0, 759.0, 499.0, 259.0]
    it = built(folder, teacher, policy={"class": "few-step", "path": few})
    assert it.times.tolist() == pytest.approx([1.0, 0.76, 0.5, 0.26, 0.0])
    for named in ([999.0, 749.0, 499.0, 249.0], None):
        assert configure({**told, "pipeline.timesteps": named})["pipeline"]["timesteps"] == named
    assert configure(config) == config, "what is written out stays"
    usual = configure({"task": "pipeline", "pipeline.path": teacher})
    assert usual["pipeline"]["timesteps"] is None
    halved = {**told, "stages": [8, 4]}
    assert configure(halved)["pipeline"]["timesteps"] == [999.0, 759.0, 499.0, 259.0]


def test_an_export_and_a_run_hand_their_timesteps_on(folder: Path, teacher: str) -> None:
    words = f"--pipeline.path {teacher} --pipeline.prompts {folder / 'prompts.txt'} --pipeline.own_samples 10 {FEW}"
    line = f"distill --task pipeline {words} --pipeline.own_steps 2 --objective consistency"
    status, _, err = dagdiff(f"{line} --pipeline.timesteps 999,399 --out {folder / 'odd'}")
    assert status == 0, err
    status, _, err = dagdiff(f"export {folder / 'odd'} --out {folder / 'odd-export'} --pictures 0")
    assert status == 0, err
    for start in ("odd", "odd-export"):
        status, out, err = dagdiff(f"{line} --policy {folder / start} --print_config")
        assert status == 0 and yaml.safe_load(out)["pipeline"]["timesteps"] == [999.0, 399.0], err
        status, out, err = dagdiff(f"{line} --policy {folder / start} --pipeline.timesteps null --print_config")
        assert status == 0 and yaml.safe_load(out)["pipeline"]["timesteps"] is None, err
        status, out, err = dagdiff(f"{line} --policy {folder / start} --steps 3 --print_config")
        assert status == 0 and yaml.safe_load(out)["pipeline"]["timesteps"] is None, err
