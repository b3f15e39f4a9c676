"""Lumina-Image 2."""

from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.expert import Weight
from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, prompt_bank, shifting
from dagdiff.pipelines.prompts import fitting
from dagdiff.shapes import States


class Lumina2(Family):
    """``Lumina2Transformer2DModel`` (Qin et al. 2025, https://arxiv.org/abs/2503.21758).

    Its clock runs from noise (0) to data (1), and its answer points at the data. A guided answer is scaled
    back, row by row, to the length of the conditional one.
    """

    bends_guidance = True

    def guided(self, told: Tensor, free: Tensor, weight: Weight) -> Tensor:
        """Keep the length of a row of the conditional answer."""
        mixed = super().guided(told, free, weight)
        length, wanted = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (mixed, told))
        kept: Tensor = mixed * (wanted / length)
        return kept

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with masks."""
        bank = prompt_bank(network, pipeline, wanted, encode)
        return fitting(type(network).__name__, bank, hidden=network.config.cap_feat_dim)

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Even sigmas, and a shift where the scheduler wants one, which its pipeline reckons from the channels."""
        even = {"sigmas": [1.0 - step / steps for step in range(steps)]}
        return even | shifting(scheduler, config.in_channels, 1.15)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings."""
        output: Tensor = network(
            hidden_states=x_t,
            timestep=1.0 - timestep / 1000.0,
            encoder_hidden_states=given.hidden,
            encoder_attention_mask=None if given.mask is None else given.mask.long(),
        ).sample
        return -output


def encode(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Embed prompts behind the pipeline's instruction; the null condition is the empty prompt without it."""
    hidden, mask, null, null_mask = pipeline.encode_prompt(list(prompts), device=device)
    return Text(hidden, mask=mask), Text(null[:1], mask=null_mask[:1])
