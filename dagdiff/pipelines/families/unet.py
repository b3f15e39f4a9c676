"""U-Nets: of pixels or latents, plain, with classes, and with prompts (Stable Diffusion 1.x and 2.x, SDXL, Kolors)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.expert import Weight
from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, prompt_bank, unserved
from dagdiff.pipelines.families.classes import labels
from dagdiff.pipelines.prompts import fitting, sized_for
from dagdiff.shapes import States


class ImageUNet(Family):
    """``UNet2DModel``: plain or class-conditional."""

    def multiple(self, config: Any) -> int:
        """A halving a level."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def middle(self, network: Any) -> nn.Module | None:
        """The middle of the U."""
        return getattr(network, "mid_block", None)

    def width(self, config: Any) -> int:
        """That of the lowest level."""
        return int(config.block_out_channels[-1])

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """Labels where it has an embedding of classes."""
        config = network.config
        if config.class_embed_type is not None:
            raise unserved(network, f"its classes are no numbers (class_embed_type {config.class_embed_type!r})")
        if config.time_embedding_type != "positional":
            raise unserved(network, f"its clock is no sine (time_embedding_type {config.time_embedding_type!r})")
        return labels(network, config.num_class_embeds, config.num_class_embeds, wanted.null_class, wanted)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Tensor | None) -> Tensor:
        """Ask with classes or none."""
        output: Tensor = network(x_t, timestep, class_labels=given).sample
        return output


@dataclass(frozen=True)
class TextUNet(Family):
    """``UNet2DConditionModel``: Stable Diffusion 1.x and 2.x, SDXL and its kin such as SSD-1B and Kolors.

    Args:
        guidance: the weight that networks with an embedding of it (LCM: Luo et al. 2023,
            https://arxiv.org/abs/2310.04378) are told; others never see it.
    """

    guidance: Weight = 8.5

    def multiple(self, config: Any) -> int:
        """A halving a level."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def middle(self, network: Any) -> nn.Module | None:
        """The middle of the U."""
        return getattr(network, "mid_block", None)

    def width(self, config: Any) -> int:
        """That of the lowest level."""
        return int(config.block_out_channels[-1])

    def embedded(self, config: Any) -> Weight | None:
        """Those of latent consistency models."""
        return None if config.time_cond_proj_dim is None else self.guidance

    def hears(self, config: Any) -> bool:
        """All."""
        return True

    def hear(self, network: Any) -> None:
        """Add LCM's projection of an embedded weight, with zeros, to a network that has none."""
        if network.config.time_cond_proj_dim is not None:
            return
        first = network.time_embedding.linear_1
        network.time_embedding.cond_proj = _Projection(_WEIGHT_CHANNELS, first.in_features, bias=False).to(first.weight)
        nn.init.zeros_(network.time_embedding.cond_proj.weight)
        network.register_to_config(time_cond_proj_dim=_WEIGHT_CHANNELS)

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank; for SDXL with pooled embeddings and sizes."""
        config = network.config
        for name, served in _TEXT_ALONE.items():
            if config[name] not in served:
                raise unserved(network, f"it wants more than text ({name} {config[name]!r})")
        if pipeline.config.get("requires_aesthetics_score"):
            raise unserved(network, "it refines images by an aesthetic score (requires_aesthetics_score)")
        sized = config.addition_embed_type == "text_time"
        bank = prompt_bank(network, pipeline, wanted, encode_pooled if sized else encode)
        width = config.encoder_hid_dim or config.cross_attention_dim
        if not sized:
            return fitting(type(network).__name__, bank, hidden=width)
        summary = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        height, across = wanted.pixels
        bank = sized_for(bank, (height, across, 0, 0, height, across), wanted.pixels)
        return fitting(type(network).__name__, bank, hidden=width, pooled=summary, time_ids=6)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings, and the weight of guidance where the network has an embedding of it."""
        added = None if given.time_ids is None else {"text_embeds": given.pooled, "time_ids": given.time_ids}
        channels = network.config.time_cond_proj_dim
        told = None if channels is None else weight_embedding(timestep, self.guidance, channels).to(x_t.dtype)
        output: Tensor = network(
            x_t, timestep, encoder_hidden_states=given.hidden, added_cond_kwargs=added, timestep_cond=told
        ).sample
        return output


class _Projection(nn.Linear):
    """A linear layer that may be more precise than the network around it, as what is trained is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection in the precision of what is projected."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def encode(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Stable Diffusion 1.x and 2.x: the null condition is the empty prompt."""
    hidden, null = pipeline.encode_prompt(
        prompt=prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    return Text(hidden), Text(null[:1])


def encode_pooled(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """SDXL and Kolors: the null condition is the empty prompt, or zeros where the pipeline says so."""
    hidden, null, pooled, null_pooled = pipeline.encode_prompt(
        prompt=prompts, device=device, do_classifier_free_guidance=True
    )
    return Text(hidden, pooled), Text(null[:1], null_pooled[:1])


def weight_embedding(like: Tensor, weight: Weight, channels: int) -> Tensor:
    """Return sines and cosines of 1000 (w - 1) at ``channels`` / 2 frequencies from 1 to 1/10000, ``(B, channels)``.

    Args:
        like: B rows on its device.
        weight: w, one for all or one a row.
        channels: their number.
    """
    half = channels // 2
    rates = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, device=like.device, dtype=torch.float32))
    scaled = 1000.0 * (weight - 1.0)
    angles = (scaled.unsqueeze(-1) if isinstance(scaled, Tensor) else scaled) * rates
    rest = angles.new_zeros((*angles.shape[:-1], channels - 2 * half))
    return torch.cat([angles.sin(), angles.cos(), rest], -1).expand(len(like), -1)


_WEIGHT_CHANNELS = 256
"""Of the embedding of a weight, as latent consistency models have it."""

_TEXT_ALONE = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
}
"""What a text UNet's configuration may say: anything else asks for images or noise levels."""
