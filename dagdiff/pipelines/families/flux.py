"""FLUX.1: dev, which is told a weight of guidance, and schnell, which is not."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dagdiff.expert import Weight
from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, each_row, even_sigmas, pooled_bank, shifting
from dagdiff.shapes import States


@dataclass(frozen=True)
class Flux(Family):
    """``FluxTransformer2DModel``: its states are packed into rows of 2 x 2 patches.

    Args:
        tokens: of T5 that a prompt may have.
        guidance: the weight that networks distilled from guidance (FLUX.1-dev) are told; others never see it.
    """

    tokens: int = 512
    guidance: Weight = 3.5

    def channels(self, config: Any) -> tuple[int, int]:
        """A patch has four times the channels of a state."""
        return config.in_channels // 4, (config.out_channels or config.in_channels) // 4

    def size(self, config: Any) -> int:
        """The configuration tells none; its pipelines make images of 1024 pixels a side."""
        return 128

    def multiple(self, config: Any) -> int:
        """The patch."""
        return 2

    def embedded(self, config: Any) -> Weight | None:
        """FLUX.1-dev's."""
        return self.guidance if config.guidance_embeds else None

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with pooled embeddings; its null row is the empty prompt."""
        return pooled_bank(network, pipeline, wanted, partial(encode, tokens=self.tokens))

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Even sigmas, and a shift that grows with the image where the scheduler wants one."""
        return even_sigmas(scheduler, steps) | shifting(scheduler, (size[0] // 2) * (size[1] // 2), 1.15)

    def pack(self, x_t: States) -> Tensor:
        """Return states as the network takes and the pipeline keeps them: a row for each patch."""
        return pixel_unshuffle(x_t, 2).flatten(2).transpose(1, 2)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask about packed states; return the answer unpacked."""
        height, width = x_t.shape[2] // 2, x_t.shape[3] // 2
        told = each_row(self.guidance, timestep) if network.config.guidance_embeds else None
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


def encode(pipeline: Any, prompts: list[str], device: torch.device, tokens: int) -> tuple[Text, Text]:
    """Embed prompts; the pipeline names no null condition, so the empty prompt is encoded like the others."""
    hidden, pooled, _ = pipeline.encode_prompt(
        prompt=[*prompts, ""], prompt_2=None, device=device, max_sequence_length=tokens
    )
    return Text(hidden[:-1], pooled[:-1]), Text(hidden[-1:], pooled[-1:])
