"""Stable Diffusion 3 and 3.5."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, pooled_bank, shifting
from dagdiff.shapes import States


@dataclass(frozen=True)
class SD3(Family):
    """``SD3Transformer2DModel`` (Esser et al. 2024, https://arxiv.org/abs/2403.03206).

    Args:
        tokens: of T5 that a prompt may have.
    """

    tokens: int = 256

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with pooled embeddings."""
        return pooled_bank(network, pipeline, wanted, partial(encode, tokens=self.tokens))

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """A shift that grows with the image, where the scheduler wants one."""
        return shifting(scheduler, (size[0] // config.patch_size) * (size[1] // config.patch_size), 1.16)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with the prompts' embeddings and their summaries."""
        output: Tensor = network(x_t, given.hidden, given.pooled, timestep).sample
        return output


def encode(pipeline: Any, prompts: list[str], device: torch.device, tokens: int) -> tuple[Text, Text]:
    """Embed prompts; the null condition is the empty prompt."""
    hidden, null, pooled, null_pooled = pipeline.encode_prompt(
        prompt=prompts, prompt_2=None, prompt_3=None, device=device, max_sequence_length=tokens
    )
    return Text(hidden, pooled), Text(null[:1], null_pooled[:1])
