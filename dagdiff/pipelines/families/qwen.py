"""Qwen-Image."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dagdiff.expert import Weight
from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, prompt_bank, shifting, unserved
from dagdiff.pipelines.prompts import fitting
from dagdiff.shapes import States


@dataclass(frozen=True)
class QwenImage(Family):
    """``QwenImageTransformer2DModel`` (Wu et al. 2025, https://arxiv.org/abs/2508.02324).

    Its states are packed as FLUX's are. Prompts have as many tokens as they need. A guided answer is scaled back, patch
    by patch, to the length of the conditional one.

    Args:
        tokens: that a prompt may have.
        empty: the prompt that is guided away from; its makers' own calls name one space.
    """

    bends_guidance = True
    tokens: int = 512
    empty: str = " "

    def channels(self, config: Any) -> tuple[int, int]:
        """A patch has four times the channels of a state; the answer is told a state's."""
        return config.in_channels // 4, config.out_channels or config.in_channels // 4

    def size(self, config: Any) -> int:
        """The configuration tells none; its pipeline makes images of 1024 pixels a side."""
        return 128

    def multiple(self, config: Any) -> int:
        """The patch."""
        return 2

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with masks."""
        config = network.config
        for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if config.get(name):
                raise unserved(network, f"it edits images, or is told more than text ({name})")
        bank = prompt_bank(network, pipeline, wanted, partial(encode, tokens=self.tokens, empty=self.empty))
        return fitting(type(network).__name__, bank, hidden=config.joint_attention_dim)

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Even sigmas, and a shift that grows with the image where the scheduler wants one."""
        even = {"sigmas": [1.0 - step / steps for step in range(steps)]}
        return even | shifting(scheduler, (size[0] // 2) * (size[1] // 2), 1.15)

    def pack(self, x_t: States) -> Tensor:
        """Return states as the network takes and the pipeline keeps them: a row for each patch."""
        return pixel_unshuffle(x_t, 2).flatten(2).transpose(1, 2)

    def guided(self, told: Tensor, free: Tensor, weight: Weight) -> Tensor:
        """Keep the length of a patch of the conditional answer."""
        mixed = super().guided(told, free, weight)
        return mixed * (_lengths(told) / _lengths(mixed))

    def calling(self, config: Any) -> dict[str, Any]:
        """Its guidance has a name of its own."""
        return {"true_cfg_scale": 1.0}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask about packed states; return the answer unpacked."""
        height, width = x_t.shape[2] // 2, x_t.shape[3] // 2
        packed = network(
            hidden_states=self.pack(x_t),
            encoder_hidden_states=given.hidden,
            encoder_hidden_states_mask=None if given.mask is None else given.mask.bool(),
            timestep=timestep.to(x_t.dtype) / 1000,
            img_shapes=[[(1, height, width)]] * len(x_t),
        ).sample
        return pixel_shuffle(packed.transpose(1, 2).unflatten(2, (height, width)), 2)


def _lengths(answer: Tensor) -> Tensor:
    """The length of each patch, in the place of each of its latents."""
    patches: Tensor = torch.linalg.vector_norm(pixel_unshuffle(answer, 2), dim=1, keepdim=True)
    return patches.repeat_interleave(2, 2).repeat_interleave(2, 3)


def encode(
    pipeline: Any, prompts: list[str], device: torch.device, tokens: int, empty: str
) -> tuple[Text, Text]:  # fmt: skip
    """Embed prompts, each as long as it is."""
    told, null = (
        Text(
            hidden, mask=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask
        )
        for hidden, mask in (
            pipeline.encode_prompt(prompt=each, device=device, max_sequence_length=tokens)
            for each in (prompts, [empty])
        )
    )
    return told, null
