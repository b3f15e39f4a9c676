"""How each family of diffusers networks is asked: what it takes beside the state and the time, and what it answers.

A family knows a network's configuration and never its weights. One that is missing here is a class of these
methods (without ``spacing`` its pipeline leaves timesteps to the scheduler); hand an instance to
``DiffusersExpert.from_pretrained(family=...)``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dagdiff.checks import Refusal
from dagdiff.pipelines.conditions import Labels, PromptBank, Unconditional
from dagdiff.pipelines.prompts import Encode, embed, encode_flux, encode_sd, encode_sd3, encode_sdxl, fitting, sized_for
from dagdiff.shapes import States


class Wanted(NamedTuple):
    """What the user asks of conditions: prompts to embed or a bank, a null class, and the size of images in pixels."""

    prompts: Sequence[str] | PromptBank
    null_class: int | None
    pixels: tuple[int, int]


class Family(Protocol):
    """Networks that are asked alike. ``config`` is a diffusers model's configuration."""

    def channels(self, config: Any) -> tuple[int, int]:
        """Return the channels of the state it takes and of what it answers."""
        ...

    def size(self, config: Any) -> Any:
        """Return the usual side of its states: a number, a pair, or None where the configuration tells none."""
        ...

    def multiple(self, config: Any) -> int:
        """Return what both sides of a state must be multiples of."""
        ...

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """Return what turns a condition into what the network takes; refuse a network that wants something else."""
        ...

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Return what its pipeline's call tells ``scheduler.set_timesteps`` for states of that size: sigmas, mu."""
        ...

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask the network."""
        ...


class ImageUNet:
    """``UNet2DModel``: plain or class-conditional."""

    def channels(self, config: Any) -> tuple[int, int]:
        """As the configuration says."""
        return config.in_channels, config.out_channels

    def size(self, config: Any) -> Any:
        """As the configuration says."""
        return config.sample_size

    def multiple(self, config: Any) -> int:
        """A halving a level."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """Labels where it has an embedding of classes."""
        config = network.config
        if config.class_embed_type is not None:
            raise _refuse(network, f"its classes are no numbers (class_embed_type {config.class_embed_type!r})")
        if config.time_embedding_type != "positional":
            raise _refuse(network, f"its clock is no sine (time_embedding_type {config.time_embedding_type!r})")
        return _labels(network, config.num_class_embeds, config.num_class_embeds, wanted.null_class, wanted)

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Nothing: timesteps are the scheduler's."""
        return {}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Tensor | None) -> Tensor:
        """Ask with classes or none."""
        output: Tensor = network(x_t, timestep, class_labels=given).sample
        return output


class DiT:
    """``DiTTransformer2DModel`` (Peebles and Xie 2022, https://arxiv.org/abs/2212.09748): the last class is none."""

    def channels(self, config: Any) -> tuple[int, int]:
        """As the configuration says."""
        return config.in_channels, config.out_channels or config.in_channels

    def size(self, config: Any) -> Any:
        """As the configuration says."""
        return config.sample_size

    def multiple(self, config: Any) -> int:
        """The patch."""
        return int(config.patch_size)

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """Labels, with a null class of its own."""
        classes = network.config.num_embeds_ada_norm
        null = classes if wanted.null_class is None else wanted.null_class
        return _labels(network, classes, classes + 1, null, wanted, getattr(pipeline, "labels", None))

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Nothing: timesteps are the scheduler's."""
        return {}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with classes."""
        output: Tensor = network(x_t, timestep, class_labels=given).sample
        return output


class TextUNet(ImageUNet):
    """``UNet2DConditionModel``: Stable Diffusion 1.x and 2.x, SDXL and its kin such as SSD-1B."""

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank; for SDXL with pooled embeddings and sizes."""
        config = network.config
        for name, served in _TEXT_ALONE.items():
            if config[name] not in served:
                raise _refuse(network, f"it wants more than text ({name} {config[name]!r})")
        if pipeline.config.get("requires_aesthetics_score"):
            raise _refuse(network, "it refines images by an aesthetic score (requires_aesthetics_score)")
        sized = config.addition_embed_type == "text_time"
        bank = _bank(network, pipeline, wanted, encode_sdxl if sized else encode_sd)
        width = config.encoder_hid_dim or config.cross_attention_dim
        if not sized:
            return fitting(type(network).__name__, bank, hidden=width)
        summary = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return fitting(type(network).__name__, sized_for(bank, wanted.pixels), hidden=width, pooled=summary, time_ids=6)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings."""
        added = None if given.time_ids is None else {"text_embeds": given.pooled, "time_ids": given.time_ids}
        output: Tensor = network(x_t, timestep, encoder_hidden_states=given.hidden, added_cond_kwargs=added).sample
        return output


@dataclass(frozen=True)
class SD3(DiT):
    """``SD3Transformer2DModel`` (Esser et al. 2024, https://arxiv.org/abs/2403.03206).

    Args:
        tokens: of T5 that a prompt may have.
    """

    tokens: int = 256

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with pooled embeddings."""
        bank = _bank(network, pipeline, wanted, partial(encode_sd3, tokens=self.tokens))
        config = network.config
        return fitting(
            type(network).__name__, bank, hidden=config.joint_attention_dim, pooled=config.pooled_projection_dim
        )

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """A shift that grows with the image, where the scheduler wants one."""
        return shifting(scheduler, (size[0] // config.patch_size) * (size[1] // config.patch_size), 1.16)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings and their summaries."""
        output: Tensor = network(x_t, given.hidden, given.pooled, timestep).sample
        return output


@dataclass(frozen=True)
class Flux:
    """``FluxTransformer2DModel``: its states are packed into rows of 2 x 2 patches.

    Args:
        tokens: of T5 that a prompt may have.
        guidance: the weight that networks distilled from guidance (FLUX.1-dev) are told; others never see it.
    """

    tokens: int = 512
    guidance: float = 3.5

    def channels(self, config: Any) -> tuple[int, int]:
        """A patch has four times the channels of a state."""
        return config.in_channels // 4, (config.out_channels or config.in_channels) // 4

    def size(self, config: Any) -> int:
        """The configuration tells none; its pipelines make images of 1024 pixels a side."""
        return 128

    def multiple(self, config: Any) -> int:
        """The patch."""
        return 2

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with pooled embeddings; its null row is the empty prompt."""
        bank = _bank(network, pipeline, wanted, partial(encode_flux, tokens=self.tokens))
        config = network.config
        return fitting(
            type(network).__name__, bank, hidden=config.joint_attention_dim, pooled=config.pooled_projection_dim
        )

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Even sigmas, and a shift that grows with the image where the scheduler wants one."""
        return even_sigmas(scheduler, steps) | shifting(scheduler, (size[0] // 2) * (size[1] // 2), 1.15)

    def pack(self, x_t: States) -> Tensor:
        """Return states as the network takes and the pipeline keeps them: a row for each patch."""
        return pixel_unshuffle(x_t, 2).flatten(2).transpose(1, 2)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask about packed states; return the answer unpacked."""
        height, width = x_t.shape[2] // 2, x_t.shape[3] // 2
        told = torch.full_like(timestep, self.guidance) if network.config.guidance_embeds else None
        rows, columns = torch.arange(height, device=x_t.device), torch.arange(width, device=x_t.device)
        places = torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype, device=x_t.device), rows, columns)
        packed = network(
            hidden_states=self.pack(x_t),
            encoder_hidden_states=given.hidden,
            pooled_projections=given.pooled,
            timestep=timestep.to(x_t.dtype) / 1000,  # it counts in thousandths itself
            img_ids=places.to(x_t.dtype),
            txt_ids=places.new_zeros(given.hidden.shape[1], 3).to(x_t.dtype),
            guidance=told,
        ).sample
        return pixel_shuffle(packed.transpose(1, 2).unflatten(2, (height, width)), 2)


FAMILIES: dict[str, Family] = {
    "UNet2DModel": ImageUNet(),
    "UNet2DConditionModel": TextUNet(),
    "DiTTransformer2DModel": DiT(),
    "SD3Transformer2DModel": SD3(),
    "FluxTransformer2DModel": Flux(),
}
"""The families that are served, by the class of their network in diffusers."""


def even_sigmas(scheduler: Any, steps: int) -> dict[str, Any]:
    """The sigmas 1, ..., 1 / K that many pipelines of rectified flow pass, before any shift."""
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return {}
    return {"sigmas": [1.0 - step / steps for step in range(steps)]}


def shifting(scheduler: Any, tokens: int, usual: float) -> dict[str, Any]:
    """The exponent mu of the shift for an image of so many tokens: linear between the two that the scheduler tells.

    Args:
        scheduler: where ``use_dynamic_shifting`` is off, nothing is told.
        tokens: that the network makes of the image.
        usual: ``max_shift``, where the scheduler tells none.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", usual)
    return {"mu": low + (high - low) / (most - least) * (tokens - least)}


_TEXT_ALONE = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_cond_proj_dim": (None,),
}
"""What a text UNet's configuration may say: anything else asks for images, noise levels or a guidance weight."""


def _bank(network: Any, pipeline: Any, wanted: Wanted, encode: Encode) -> PromptBank:
    """Return the bank that is given, or embed the prompts."""
    if wanted.null_class is not None:
        raise _refuse(network, f"it is told prompts, not classes: leave null_class={wanted.null_class} out", cure=False)
    if isinstance(wanted.prompts, PromptBank):
        return wanted.prompts
    if getattr(pipeline, "encode_prompt", None) is None:
        raise _refuse(network, f"{type(pipeline).__name__} has no encode_prompt; give a bank of embeddings", cure=False)
    return embed(pipeline, wanted.prompts, network.device, encode)


def _labels(
    network: Any, classes: int | None, rows: int | None, null: int | None, wanted: Wanted,
    names: Mapping[str, int] | None = None,
) -> nn.Module:  # fmt: skip
    """Return labels, or nothing for a network without classes; its embedding has so many rows."""
    if len(wanted.prompts):
        raise _refuse(network, "it takes no text: leave the prompts out", cure=False)
    if classes is None and wanted.null_class is not None:
        raise _refuse(network, f"it has no classes: leave null_class={wanted.null_class} out", cure=False)
    if rows is not None and null is not None and null >= rows:
        raise Refusal(
            f"null_class={null} is no class of this {type(network).__name__}: its embedding has {rows} rows, 0 to "
            f"{rows - 1}. Name one of them, or leave it out and keep guidance at 1."
        )
    return Unconditional() if classes is None else Labels(classes, null, names)


def _refuse(network: Any, reason: str, cure: bool = True) -> Refusal:
    text = f"{type(network).__name__} can't be served: {reason}."
    return Refusal(f"{text} Name a plain text-to-image, class-conditional or unconditional pipeline." if cure else text)
