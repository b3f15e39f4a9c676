"""HunyuanDiT."""

from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn

from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, default_of, prompt_bank
from dagdiff.pipelines.prompts import fitting, sized_for
from dagdiff.shapes import States


class HunyuanDiT(Family):
    """``HunyuanDiT2DModel`` (Li et al. 2024, https://arxiv.org/abs/2405.08748): two texts, a size, a style."""

    blocks = "blocks"

    def channels(self, config: Any) -> tuple[int, int]:
        """A variance beside the guess, where it has learned one."""
        return config.in_channels, config.in_channels * (2 if config.learn_sigma else 1)

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank of both encoders with masks, and sizes."""
        config = network.config
        bank = prompt_bank(network, pipeline, wanted, encode)
        original = default_of(pipeline, "original_size")
        bank = sized_for(bank, (*original, *wanted.pixels, 0, 0), wanted.pixels, slice(2, 4))
        widths = {"hidden": config.cross_attention_dim, "hidden_2": config.cross_attention_dim_t5}
        return fitting(type(network).__name__, bank, **widths, time_ids=6)

    def calling(self, config: Any) -> dict[str, Any]:
        """The sizes of images are as they are told, not the nearest of a list."""
        return {"guidance_scale": 1.0, "use_resolution_binning": False}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with both texts' embeddings, the size, the usual style, and the places of the patches."""
        output: Tensor = network(
            x_t,
            timestep.to(x_t.dtype),
            encoder_hidden_states=given.hidden,
            text_embedding_mask=given.mask,
            encoder_hidden_states_t5=given.hidden_2,
            text_embedding_mask_t5=given.mask_2,
            image_meta_size=given.time_ids,
            style=torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device),
            image_rotary_emb=_places(network, x_t),
        ).sample
        return output


def encode(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Embed prompts by both encoders; the null condition is the empty prompt."""
    (one, no_one, mask, no_mask), (two, no_two, mask_2, no_mask_2) = (
        pipeline.encode_prompt(
            prompts,
            device=device,
            dtype=pipeline.transformer.dtype,
            max_sequence_length=tokens,
            text_encoder_index=place,
        )
        for place, tokens in enumerate((77, 256))
    )
    null = Text(no_one[:1], mask=no_mask[:1], hidden_2=no_two[:1], mask_2=no_mask_2[:1])
    return Text(one, mask=mask, hidden_2=two, mask_2=mask_2), null


def _places(network: Any, x_t: States) -> Any:
    """Rotary embeddings of the patches: the middle of a grid as wide as a picture of 512 pixels has, scaled to fit."""
    patch = network.config.patch_size
    grid = x_t.shape[2] // patch, x_t.shape[3] // patch
    base = 64 // patch
    sides = [round(base / max(grid) * side) for side in grid]
    starts = [round((base - side) / 2.0) for side in sides]
    ends = [start + side for start, side in zip(starts, sides, strict=True)]
    width = network.inner_dim // network.num_heads
    return get_2d_rotary_pos_embed(width, (starts, ends), grid, device=x_t.device, output_type="pt")
