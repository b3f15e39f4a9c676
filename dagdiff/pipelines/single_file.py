"""Students of Stable Diffusion as one ``.safetensors`` file, in the layout that ComfyUI and kohya's tools read.

That is the layout in which the models were first published: network, autoencoder and text encoders under the names of
their first code. diffusers reads it, and has no way back for whole models; here is one, for Stable Diffusion 1.x and
SDXL. Nothing is trusted: what is written is read again by diffusers' own conversion and compared, tensor by tensor.
Adapters leave in kohya's names, by diffusers' own conversion.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor, nn

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.schedulers import ChainRecord

State = dict[str, Tensor]

_FIRST = "Export a student of Stable Diffusion 1.x or SDXL, or take --format diffusers."


def single_file(pipeline: Any) -> State:
    """Return all weights of a pipeline under their first names.

    Raises:
        Refusal: for a pipeline that is not of Stable Diffusion 1.x or SDXL, or that diffusers would read otherwise.
    """
    kind, names = type(pipeline).__name__, ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    if kind not in names:
        raise Refusal(f"no single file of a {kind} is written here. {_FIRST}")
    unet, vae = pipeline.unet, pipeline.vae
    if unet.config.time_cond_proj_dim is not None:
        raise Refusal(
            "this network is told a weight of guidance (time_cond_proj_dim), for which the first layout has no name. "
            "Take --format diffusers."
        )
    state = {f"model.diffusion_model.{name}": values for name, values in _network(unet).items()}
    state |= {f"first_stage_model.{name}": values for name, values in _autoencoder(vae).items()}
    if kind == names[0]:
        if pipeline.text_encoder.config.hidden_size > 768:
            raise Refusal(f"Stable Diffusion 2's text encoder has another first form. {_FIRST}")
        state |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    else:
        state |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        state |= _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    state = {name: values.detach().cpu().contiguous() for name, values in state.items()}
    _check_read(pipeline, state)
    return state


def kohya_adapters(body: nn.Module) -> State:
    """Return the adapters of a network under kohya's names, with their alphas.

    Raises:
        Refusal: if there are none, or the network is no U-Net.
    """
    from peft import get_peft_model_state_dict

    from dagdiff.pipelines.lora import check_adapters_alone, has_adapters

    if not has_adapters(body):
        raise Refusal("this student has no adapters: all of it was trained. Export it without adapters.")
    check_adapters_alone(body)
    known = get_peft_model_state_dict(body, adapter_name="default")
    found: State = convert_state_dict_to_kohya({f"unet.{name}": values for name, values in known.items()})
    alpha = float(body.peft_config["default"].lora_alpha)  # type: ignore[index, union-attr]
    return {
        name: torch.tensor(alpha, dtype=torch.float32) if name.endswith(".alpha") else values.contiguous()
        for name, values in found.items()
    }


def calling(pipeline: Any, record: ChainRecord, base: str, whole: bool) -> str:
    """Return how such a file is used, in ComfyUI and in diffusers.

    Args:
        pipeline: that was exported.
        record: of the student's chain.
        base: the pipeline that adapters are for, or whose configuration a whole file has.
        whole: whether the file is a whole model.
    """
    scheduler = type(pipeline.scheduler).__name__
    sampler = "lcm" if scheduler == "LCMScheduler" else "ddim"
    even = [999.0 - 999.0 * step / record.steps for step in range(record.steps)]
    usual = all(abs(a - b) < 2.0 for a, b in zip(even, record.timesteps, strict=True))
    timesteps = ", ".join(f"{each:g}" for each in record.timesteps)
    grid = "scheduler sgm_uniform" if usual else f"sigmas of the timesteps {timesteps}"
    kind = type(pipeline).__name__
    load = "Load Checkpoint" if whole else f"Load Checkpoint of {base}, then Load LoRA (strength_model 1)"
    nodes = "" if record.prediction == "epsilon" else f"\n  ModelSamplingDiscrete: {record.prediction}"
    loaded = f'{kind}.from_single_file("student.safetensors", config="{base}")'
    if not whole:
        loaded = f'{kind}.from_pretrained("{base}"); pipeline.load_lora_weights("student.safetensors")'
    return f"""ComfyUI: {load}{nodes}
  KSampler: steps {record.steps}, cfg 1.0, sampler_name {sampler}, {grid}, denoise 1.0
diffusers: pipeline = {loaded}
  pipeline.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")"""


def save_state(state: Mapping[str, Tensor], file: Path, about: Mapping[str, str]) -> None:
    """Write tensors as one safetensors file, with what is told of them."""
    from safetensors.torch import save_file

    save_file(dict(state), str(file), {"format": "pt", **about})


def _network(unet: Any) -> State:
    """The U-Net under its first names."""
    return {_network_name(name, unet.config): values for name, values in unet.state_dict().items()}


def _network_name(name: str, config: Any) -> str:
    """The first name of a weight of the U-Net: blocks are counted through, and the parts of each have a place."""
    layers = config.layers_per_block
    for now, first in _ENDS.items():
        if name.startswith(now):
            return first + name[len(now) :]
    if name.startswith("mid_block."):
        _, part, number, tail = name.split(".", 3)
        place = 1 if part == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_inner(part, tail)}"
    side, block, part, number, tail = name.split(".", 4)
    level, start = int(block), int(block) * (layers + 1)
    if part == "downsamplers":
        return f"input_blocks.{1 + start + layers}.0.op.{tail.removeprefix('conv.')}"
    if part == "upsamplers":
        return f"output_blocks.{start + layers}.{1 + ('Attn' in config.up_block_types[level])}.{tail}"
    place = start + int(number) + (side == "down_blocks")
    blocks = "input_blocks" if side == "down_blocks" else "output_blocks"
    return f"{blocks}.{place}.{int(part == 'attentions')}.{_inner(part, tail)}"


def _inner(part: str, tail: str) -> str:
    """The rest of a name, within a residual block or an attention, which has kept its own."""
    if part == "attentions":
        return tail
    for now, first in _RESIDUAL.items():
        if tail.startswith(f"{now}."):
            return first + tail[len(now) :]
    return tail


_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _autoencoder(vae: Any) -> State:
    """The autoencoder under its first names; its attention was made of convolutions of one pixel."""
    levels, found = len(vae.config.block_out_channels), {}
    for name, values in vae.state_dict().items():
        first = name
        for now, before in _VAE:
            first = re.sub(now, before, first)
        first = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{levels - 1 - int(match[1])}.", first)
        attention = ".attn_1." in first and first.endswith(".weight") and ".norm." not in first
        found[first] = values[:, :, None, None] if attention and values.ndim == 2 else values
    return found


_VAE = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"(up_blocks\.\d+)\.resnets\.", r"\1.block."),
    (r"(up_blocks\.\d+)\.upsamplers\.0\.", r"\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_q\.", "mid.attn_1.q."),
    (r"mid_block\.attentions\.0\.to_k\.", "mid.attn_1.k."),
    (r"mid_block\.attentions\.0\.to_v\.", "mid.attn_1.v."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
)


def _clip(encoder: Any, prefix: str) -> State:
    """A CLIP text encoder under its first names; transformers may or may not wrap it in ``text_model``."""
    found = {name.removeprefix("text_model."): values for name, values in encoder.state_dict().items()}
    return {f"{prefix}text_model.{name}": values for name, values in found.items()}


def _open_clip(encoder: Any, prefix: str) -> State:
    """An OpenCLIP text encoder under its first names: queries, keys and values are one matrix."""
    found, joined = {}, dict[str, dict[str, Tensor]]()
    for name, values in encoder.state_dict().items():
        bare = name.removeprefix("text_model.")
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", bare)
        if match:
            place = f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            joined.setdefault(place, {})[match[2]] = values
        elif bare == "text_projection.weight":
            found["text_projection"] = values.T
        elif bare in _OPEN_CLIP:
            found[_OPEN_CLIP[bare]] = values
        elif bare.startswith("encoder.layers."):
            first = bare.replace("encoder.layers.", "transformer.resblocks.")
            for now, before in _OPEN_CLIP_LAYER.items():
                first = first.replace(now, before)
            found[first] = values
    found |= {place: torch.cat([parts[each] for each in "qkv"]) for place, parts in joined.items()}
    return {f"{prefix}{name}": values for name, values in found.items()}


_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def _check_read(pipeline: Any, state: State) -> None:
    """Let diffusers read each part back by its own conversion; refuse what is not as it was."""
    from diffusers.loaders import single_file_utils as reading

    try:
        parts = {
            "unet": reading.convert_ldm_unet_checkpoint(dict(state), dict(pipeline.unet.config)),
            "vae": reading.convert_ldm_vae_checkpoint(dict(state), dict(pipeline.vae.config)),
            "text_encoder": reading.convert_ldm_clip_checkpoint(dict(state)),
        }
        if hasattr(pipeline, "text_encoder_2"):
            told = pipeline.text_encoder_2, dict(state), "conditioner.embedders.1.model."
            parts["text_encoder_2"] = reading.convert_open_clip_checkpoint(*told)
    except Exception as error:  # a converter that meets another layout raises anything
        raise Refusal(
            f"this {type(pipeline).__name__} has no single file that diffusers reads back ({type(error).__name__}: "
            f"{first_line(error)}). {_FIRST}"
        ) from None
    for part, found in parts.items():
        for name, values in _differing(getattr(pipeline, part), found):
            raise Refusal(f"{name} of the {part} is not read back as it was ({values}). {_FIRST}")


def _differing(module: nn.Module, found: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The weights of a module that are missing from what was read, or are others."""
    read = {name.removeprefix("text_model."): values for name, values in found.items()}
    for name, values in module.state_dict().items():
        bare = name.removeprefix("text_model.")
        if bare.endswith("position_ids"):
            continue
        if bare not in read:
            yield name, "missing"
        elif not torch.equal(read[bare].cpu(), values.cpu()):
            yield name, f"{tuple(read[bare].shape)} for {tuple(values.shape)}"
