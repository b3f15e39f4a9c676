"""PixArt-alpha and PixArt-sigma."""

from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, default_of, prompt_bank
from dagdiff.pipelines.prompts import fitting, sized_for
from dagdiff.shapes import States


class PixArt(Family):
    """``PixArtTransformer2DModel`` (Chen et al. 2023, https://arxiv.org/abs/2310.00426, and 2024, 2403.04692).

    Networks of 1024 pixels a side (alpha) are told the size of images, as a sigma network is not.
    """

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with masks, and sizes where the network is told any."""
        config, name = network.config, type(network).__name__
        width = config.caption_channels or config.cross_attention_dim
        bank = prompt_bank(network, pipeline, wanted, encode)
        if not network.use_additional_conditions:
            return fitting(name, bank, hidden=width)
        return fitting(name, sized_for(bank, wanted.pixels, wanted.pixels), hidden=width, time_ids=2)

    def calling(self, config: Any) -> dict[str, Any]:
        """The sizes of images are as they are told, not the nearest of a list."""
        return {"guidance_scale": 1.0, "use_resolution_binning": False}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings, and the size and the ratio of its sides where the network takes them."""
        size = given.time_ids
        ratio = None if size is None else (size[:, :1].double() / size[:, 1:].double()).to(size.dtype)
        output: Tensor = network(
            x_t,
            encoder_hidden_states=given.hidden,
            encoder_attention_mask=None if given.mask is None else given.mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": size, "aspect_ratio": ratio},
        ).sample
        return output


def encode(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Embed prompts as the pipeline's own call cleans and cuts them; the null condition is the empty prompt."""
    cut = {name: default_of(pipeline, name) for name in ("clean_caption", "max_sequence_length")}
    hidden, mask, null, null_mask = pipeline.encode_prompt(prompts, device=device, **cut)
    return Text(hidden, mask=mask), Text(null[:1], mask=null_mask[:1])
