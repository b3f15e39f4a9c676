"""FLUX.2: dev, which is told a weight of guidance, and klein, which is not."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.expert import Weight
from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, each_row, even_sigmas, prompt_bank
from dagdiff.pipelines.prompts import fitting
from dagdiff.shapes import States


@dataclass(frozen=True)
class Flux2(Family):
    """``Flux2Transformer2DModel``: a place of its states is a patch of 2 x 2 latents, scaled a channel.

    Args:
        tokens: that a prompt has.
        guidance: the weight that networks distilled from guidance (FLUX.2-dev) are told; others never see it.
    """

    tokens: int = 512
    guidance: Weight = 4.0

    def size(self, config: Any) -> int:
        """The configuration tells none; its pipelines make images of 1024 pixels a side, 16 a place."""
        return 64

    def multiple(self, config: Any) -> int:
        """Its states are patches already."""
        return 1

    def cell(self, pipeline: Any) -> int:
        """A patch is two latents wide."""
        return 2 * int(pipeline.vae_scale_factor)

    def embedded(self, config: Any) -> Weight | None:
        """FLUX.2-dev's."""
        return self.guidance if config.guidance_embeds else None

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank; its null row is the empty prompt."""
        bank = prompt_bank(network, pipeline, wanted, partial(encode, tokens=self.tokens))
        return fitting(type(network).__name__, bank, hidden=network.config.joint_attention_dim)

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Even sigmas, and where the scheduler wants one a shift for so many places and steps."""
        shift = {"mu": fitted_shift(size[0] * size[1], steps)} if scheduler.config.get("use_dynamic_shifting") else {}
        return even_sigmas(scheduler, steps) | shift

    def pack(self, x_t: States) -> Tensor:
        """Return states as the network takes and the pipeline keeps them: a row for each place."""
        return x_t.flatten(2).transpose(1, 2)

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask about packed states; return the answer unpacked. Places are told by time, row, column and word."""
        height, width = x_t.shape[2:]
        packed: Tensor = network(
            hidden_states=self.pack(x_t),
            encoder_hidden_states=given.hidden,
            timestep=timestep.to(x_t.dtype) / 1000,
            img_ids=_places(x_t.device, 1, height, width, 1),
            txt_ids=_places(x_t.device, 1, 1, 1, given.hidden.shape[1]),
            guidance=each_row(self.guidance, timestep) if network.config.guidance_embeds else None,
        ).sample
        return packed.transpose(1, 2).reshape(x_t.shape)


def encode(pipeline: Any, prompts: list[str], device: torch.device, tokens: int) -> tuple[Text, Text]:
    """Embed prompts and, like them, the empty one, which is the null condition."""
    hidden, _ = pipeline.encode_prompt(prompt=[*prompts, ""], device=device, max_sequence_length=tokens)
    return Text(hidden[:-1]), Text(hidden[-1:])


def fitted_shift(places: int, steps: int) -> float:
    """The exponent mu of FLUX.2's shift, which its makers fitted: lines in the places at 10 and at 200 steps.

    Between them it is linear in the steps; above 4,300 places the line of 200 steps holds for all.
    """
    many = 0.00016927 * places + 0.45666666
    if places > 4300:
        return many
    few = 8.73809524e-05 * places + 1.89833333
    slope = (many - few) / 190.0
    return slope * steps + (many - 200.0 * slope)


def _places(device: torch.device, *sides: int) -> Tensor:
    """All places of a grid, a row of coordinates each."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in sides))
