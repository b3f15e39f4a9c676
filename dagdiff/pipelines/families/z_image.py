"""Z-Image."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.families.base import Family, Wanted, prompt_bank, shifting
from dagdiff.pipelines.prompts import fitting, padded
from dagdiff.shapes import States


@dataclass(frozen=True)
class ZImage(Family):
    """``ZImageTransformer2DModel`` (Z-Image team 2025, https://arxiv.org/abs/2511.22699).

    Its clock runs from noise (0) to data (1), and its answer points at the data. Prompts have as many tokens as they
    need. What its pipeline's call names guidance g is a weight of g + 1 here.

    Args:
        tokens: that a prompt may have.
    """

    tokens: int = 512

    def channels(self, config: Any) -> tuple[int, int]:
        """As many as it takes."""
        return config.in_channels, config.in_channels

    def size(self, config: Any) -> int:
        """The configuration tells none; its pipeline makes images of 1024 pixels a side."""
        return 128

    def multiple(self, config: Any) -> int:
        """The patch."""
        return 2

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """A prompt bank with masks."""
        bank = prompt_bank(network, pipeline, wanted, partial(encode, tokens=self.tokens))
        return fitting(type(network).__name__, bank, hidden=network.config.cap_feat_dim)

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Even sigmas, and a shift that grows with the image where the scheduler wants one."""
        even = {"sigmas": [1.0 - step / steps for step in range(steps)]}
        return even | shifting(scheduler, (size[0] // 2) * (size[1] // 2), 1.15)

    def calling(self, config: Any) -> dict[str, Any]:
        """Guidance is off at 0, not at 1."""
        return {"guidance_scale": 0.0}

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask about each row with the tokens of its own prompt."""
        hidden = given.hidden
        lengths = [hidden.shape[1]] * len(x_t) if given.mask is None else given.mask.bool().sum(1).tolist()
        texts = [text[:length] for text, length in zip(hidden, lengths, strict=True)]
        answers = network(list(x_t.unsqueeze(2).unbind(0)), (1000.0 - timestep) / 1000.0, texts).sample
        return -torch.stack(list(answers)).squeeze(2)


def encode(pipeline: Any, prompts: list[str], device: torch.device, tokens: int) -> tuple[Text, Text]:
    """Embed prompts; the null condition is the empty prompt."""
    known, nulls = pipeline.encode_prompt(prompt=list(prompts), device=device, max_sequence_length=tokens)
    return padded(known), padded(nulls[:1])
