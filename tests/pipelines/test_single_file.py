"""Students of Stable Diffusion as one file: diffusers reads it back, and its names are those of the first layout."""

import json
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from dagdiff.checks import Refusal
from dagdiff.pipelines.lora import lora_student, merged
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.schedulers import ChainRecord
from dagdiff.pipelines.single_file import calling, kohya_adapters, save_state, single_file

ORIGINAL = {
    "StableDiffusionPipeline": (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.norm.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.weight",
        "model.diffusion_model.output_blocks.1.2.conv.weight",
        "model.diffusion_model.output_blocks.3.0.skip_connection.weight",
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
    ),
    "StableDiffusionXLPipeline": (
        "model.diffusion_model.label_emb.0.2.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.bias",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.positional_embedding",
    ),
}


@pytest.mark.parametrize("make", [pipelines.stable_diffusion, pipelines.sdxl])
def test_all_weights_leave_under_their_first_names(make: Any) -> None:
    pipeline = pipelines.seeded(make)
    state = single_file(pipeline)
    assert set(ORIGINAL[type(pipeline).__name__]) <= set(state)
    count = sum(values.numel() for values in state.values())
    parts = [pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    assert count == sum(values.numel() for part in parts if part is not None for values in part.state_dict().values())
    if "first_stage_model.encoder.mid.attn_1.q.weight" in state:
        assert state["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4, "convolutions of one pixel"


def test_diffusers_loads_network_and_autoencoder_from_the_file(tmp_path: Path) -> None:
    pipeline = pipelines.seeded(pipelines.stable_diffusion)
    folder, file = pipelines.save(pipeline, tmp_path / "whole"), tmp_path / "student.safetensors"
    save_state(single_file(pipeline), file, {"steps": "4"})
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        read = kind.from_single_file(str(file), config=folder, subfolder=part)
        found, wanted = read.state_dict(), getattr(pipeline, part).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], values) for name, values in wanted.items())


def test_a_layout_that_diffusers_would_read_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagdiff.pipelines.single_file._RESIDUAL", {"conv1": "in_layers.9"})
    with pytest.raises(Refusal, match=r"has no single file|is not read back"):
        single_file(pipelines.seeded(pipelines.stable_diffusion))


def test_others_are_refused() -> None:
    with pytest.raises(Refusal, match="no single file of a StableDiffusion3Pipeline"):
        single_file(pipelines.seeded(pipelines.sd3))


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_adapters_in_kohyas_names_are_read_as_they_were(tmp_path: Path, alpha: float | None) -> None:
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "base")
    student = lora_student(DiffusersExpert.from_pretrained(path, ["a cat"]), rank=2, alpha=alpha)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in student.parameters():
            if weight.requires_grad:
                weight.data.normal_(0.0, 0.2)
    state = kohya_adapters(student.network.body)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"} <= set(state)
    assert float(state[f"{layer}.alpha"]) == (2.0 if alpha is None else alpha)
    save_state(state, tmp_path / "kohya.safetensors", {})
    pipeline = pipelines.seeded(pipelines.stable_diffusion)
    pipeline.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors")
    wanted = merged(student.network.body).state_dict()
    found = merged(pipeline.unet).state_dict()
    assert all(torch.allclose(found[name], values, atol=1e-5) for name, values in wanted.items())
    with pytest.raises(Refusal, match="has no adapters"):
        kohya_adapters(pipelines.seeded(pipelines.text_unet))


def test_the_card_names_comfyuis_sampler_and_where_its_grid_differs() -> None:
    pipeline = pipelines.seeded(pipelines.stable_diffusion, LCMScheduler(**pipelines.SD_BETAS))
    even = ChainRecord(pipeline.scheduler, torch.zeros(5), (999.0, 749.0, 499.0, 249.0), {}, 1000, "epsilon")
    told = calling(pipeline, even, "base", whole=True)
    assert "steps 4, cfg 1.0, sampler_name lcm, scheduler sgm_uniform" in told and "ModelSampling" not in told
    other = ChainRecord(pipeline.scheduler, torch.zeros(3), (999.0, 259.0), {}, 1000, "v")
    told = calling(pipeline, other, "base", whole=False)
    assert "sigmas of the timesteps 999, 259" in told and "ModelSamplingDiscrete: v" in told and "Load LoRA" in told


def test_what_is_told_stands_in_the_file(tmp_path: Path) -> None:
    save_state({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"steps": "4"})
    head = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(head[:8], "little")
    assert json.loads(head[8 : 8 + length])["__metadata__"]["steps"] == "4"
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.ones(2))


def test_the_command_writes_the_whole_and_the_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a teacher in half precision too; each file beside its card."""
    from dagdiff.cli import main
    from dagdiff.runs.config import configure
    from dagdiff.runs.experiment import Experiment
    from dagdiff.runs.folder import save_student

    base = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    told = {"pipeline.path": base, "pipeline.prompts": str(tmp_path / "prompts.txt"), "pipeline.dtype": "bfloat16"}
    chosen = {"task": "pipeline", "objective": "consistency", "steps": 2, "policy": {"class": "lora", "rank": 2}}
    it = Experiment.build(configure({**told, **chosen, "device": "cpu"}), training=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in it.student.parameters():
            if weight.requires_grad:
                weight.data.normal_(0.0, 0.1)
    save_student(it, tmp_path / "run")
    words = ["export", str(tmp_path / "run"), "--pictures", "0", "--format"]
    for form in ("safetensors", "kohya"):
        assert main([*words, form, "--out", str(tmp_path / form)]) == 0, capsys.readouterr().err
        card = (tmp_path / form / "README.md").read_text()
        assert "KSampler: steps 2, cfg 1.0, sampler_name lcm" in card
        assert (tmp_path / form / "scheduler" / "scheduler_config.json").exists()
    whole = load_file(tmp_path / "safetensors" / "student.safetensors")
    assert whole["model.diffusion_model.out.2.weight"].dtype == torch.bfloat16
    assert "pipeline.load_lora_weights" in (tmp_path / "kohya" / "README.md").read_text()
    adapters = load_file(tmp_path / "kohya" / "student.safetensors")
    assert all(name.startswith("lora_unet_") for name in adapters)
