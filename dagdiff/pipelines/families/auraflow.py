"""AuraFlow."""

from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, prompt_bank
from dagdiff.pipelines.prompts import fitting
from dagdiff.shapes import States


class AuraFlow(Family):
    """``AuraFlowTransformer2DModel`` (fal 2024), on rectified flow."""

    blocks = "joint_transformer_blocks"

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank; tokens beyond a prompt's end are zeros, and no mask is told."""
        bank = prompt_bank(network, pipeline, wanted, encode)
        return fitting(type(network).__name__, bank, hidden=network.config.joint_attention_dim)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings, at a time from 0 to 1."""
        output: Tensor = network(
            x_t, encoder_hidden_states=given.hidden, timestep=(timestep / 1000.0).to(x_t.dtype)
        ).sample
        return output


def encode(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Embed prompts; the null condition is the empty prompt."""
    hidden, _, null, _ = pipeline.encode_prompt(prompts, device=device)
    return Text(hidden), Text(null[:1])
