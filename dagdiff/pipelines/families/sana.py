"""Sana."""

from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, default_of, prompt_bank, unserved
from dagdiff.pipelines.prompts import fitting
from dagdiff.shapes import States


class Sana(Family):
    """``SanaTransformer2DModel`` (Xie et al. 2024, https://arxiv.org/abs/2410.10629).

    Prompts stand behind the instruction that the pipeline's call gives its language model.
    """

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with masks; Sana-Sprint is a few-step model and no teacher."""
        if network.config.guidance_embeds:
            raise unserved(network, "it is a few-step model that is told a weight of guidance (Sana-Sprint)")
        bank = prompt_bank(network, pipeline, wanted, encode)
        return fitting(type(network).__name__, bank, hidden=network.config.caption_channels)

    def calling(self, config: Any) -> dict[str, Any]:
        """The sizes of images are as they are told, not the nearest of a list."""
        return {"guidance_scale": 1.0, "use_resolution_binning": False}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings; its clock has a scale."""
        output: Tensor = network(
            x_t,
            encoder_hidden_states=given.hidden,
            encoder_attention_mask=given.mask,
            timestep=timestep * network.config.timestep_scale,
        ).sample
        return output


def encode(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Embed prompts as the pipeline's own call does; the null condition is the empty prompt, without instruction."""
    names = ("clean_caption", "max_sequence_length", "complex_human_instruction")
    told = {name: default_of(pipeline, name) for name in names}
    hidden, mask, null, null_mask = pipeline.encode_prompt(prompts, device=device, **told)
    return Text(hidden, mask=mask), Text(null[:1], mask=null_mask[:1])
