"""What a family of diffusers networks is: how they are asked beside the state and the time, and what they answer.

A family knows a network's configuration and never its weights. One that is missing is a subclass of :class:`Family`
in a file of your own: name it by its import path (``--pipeline.family mine.MyFamily``), or hand an instance to
``DiffusersExpert.from_pretrained(family=...)``.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.expert import Weight
from dagdiff.pipelines.conditions import PromptBank
from dagdiff.pipelines.prompts import Encode, embed, fitting
from dagdiff.shapes import States


class Wanted(NamedTuple):
    """What the user asks of conditions: prompts to embed or a bank, a null class, and the size of images in pixels.

    With ``asked`` only those of many prompts are embedded that a network is asked with.
    """

    prompts: Sequence[str] | PromptBank
    null_class: int | None
    pixels: tuple[int, int]
    asked: bool = False


class Family(ABC):
    """Networks that are asked alike. ``config`` is a diffusers model's configuration.

    A subclass with a field ``guidance`` is a dataclass whose networks may be told a weight of guidance.
    """

    def channels(self, config: Any) -> tuple[int, int]:
        """Return the channels of the state it takes and of what it answers."""
        return config.in_channels, config.get("out_channels") or config.in_channels

    def size(self, config: Any) -> Any:
        """Return the usual side of its states: a number, a pair, or None where the configuration tells none."""
        return config.get("sample_size")

    def multiple(self, config: Any) -> int:
        """Return what both sides of a state must be multiples of."""
        return int(config.get("patch_size", 1))

    @abstractmethod
    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """Return what turns a condition into what the network takes; refuse a network that wants something else."""

    @abstractmethod
    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask the network."""

    def spacing(self, config: Any, size: tuple[int, int], scheduler: Any, steps: int) -> dict[str, Any]:
        """Return what its pipeline's call tells ``scheduler.set_timesteps`` for states of that size: sigmas, mu.

        Most tell nothing: timesteps are the scheduler's.
        """
        return {}

    def pack(self, x_t: States) -> Tensor:
        """Return states as the pipeline keeps them between steps."""
        return x_t

    def cell(self, pipeline: Any) -> int:
        """Return how many pixels of the pipeline's call a side of one place of a state has."""
        return int(getattr(pipeline, "vae_scale_factor", 1))

    bends_guidance: ClassVar[bool] = False
    """Whether :meth:`guided` is more than a weighted difference."""

    def guided(self, told: Tensor, free: Tensor, weight: Weight) -> Tensor:
        """Return what the pipeline's call makes of the answers with and without a condition."""
        return free + weight * (told - free)

    def embedded(self, config: Any) -> Weight | None:
        """Return the weight of guidance that the network is told, or None where it is told none."""
        return None

    def calling(self, config: Any) -> dict[str, Any]:
        """Return what its pipeline's call must be told so that it asks the network alone, once a step."""
        weight = self.embedded(config)
        return {"guidance_scale": 1.0 if weight is None else weight}

    blocks: ClassVar[str] = "transformer_blocks"
    """The name of the network's layers; a discriminator judges by the one in their middle."""

    def middle(self, network: Any) -> nn.Module | None:
        """Return the layer by whose output a discriminator judges; None if there is none.

        That is ``(B, C, H, W)`` or ``(B, tokens, C)`` of the state alone; of an output of several parts the last one.
        """
        layers = getattr(network, self.blocks, None)
        return layers[len(layers) // 2] if layers else None

    def width(self, config: Any) -> int:
        """Return the channels of that output."""
        return int(config.num_attention_heads * config.attention_head_dim)

    def telling(self, weight: Weight) -> "Family":
        """Return the family that tells its networks another weight of guidance, or one a row."""
        return replace(self, guidance=weight)  # type: ignore[type-var]

    def hears(self, config: Any) -> bool:
        """Return whether a student can be told a weight of guidance: it is told one, or :meth:`hear` sees to it."""
        return self.embedded(config) is not None

    def hear(self, network: Any) -> None:
        """Give a network that is told no weight an input for it, which changes nothing at first."""
        if not self.hears(network.config):
            raise unserved(network, "it can't be told a weight of guidance", cure=False)


def each_row(weight: Weight, like: Tensor) -> Tensor:
    """Return one weight, or one a row, as ``(B,)`` numbers beside timesteps ``(B,)``."""
    return weight.to(like) if isinstance(weight, Tensor) else torch.full_like(like, weight)


def prompt_bank(network: Any, pipeline: Any, wanted: Wanted, encode: Encode) -> PromptBank:
    """Return the bank that is given, or embed the prompts."""
    if wanted.null_class is not None:
        raise unserved(
            network, f"it is told prompts, not classes: leave null_class={wanted.null_class} out", cure=False
        )
    if isinstance(wanted.prompts, PromptBank):
        return wanted.prompts
    if getattr(pipeline, "encode_prompt", None) is None:
        raise unserved(
            network, f"{type(pipeline).__name__} has no encode_prompt; give a bank of embeddings", cure=False
        )
    return embed(pipeline, wanted.prompts, network.device, encode, wanted.asked)


def pooled_bank(network: Any, pipeline: Any, wanted: Wanted, encode: Encode) -> PromptBank:
    """Return a bank with pooled embeddings, of the widths that the network's configuration names."""
    bank, config = prompt_bank(network, pipeline, wanted, encode), network.config
    return fitting(type(network).__name__, bank, hidden=config.joint_attention_dim, pooled=config.pooled_projection_dim)


def unserved(network: Any, reason: str, cure: bool = True) -> Refusal:
    """Return the refusal of a network that no family serves as it is."""
    text = f"{type(network).__name__} can't be served: {reason}."
    return Refusal(f"{text} Name a plain text-to-image, class-conditional or unconditional pipeline." if cure else text)


def default_of(pipeline: Any, name: str) -> Any:
    """Return what a pipeline's call takes where an argument is not named."""
    return inspect.signature(pipeline.__call__).parameters[name].default


def even_sigmas(scheduler: Any, steps: int) -> dict[str, Any]:
    """The sigmas 1, ..., 1 / K that many pipelines of rectified flow pass, before any shift."""
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return {}
    return {"sigmas": [1.0 - step / steps for step in range(steps)]}


def shifting(scheduler: Any, tokens: int, usual: float) -> dict[str, Any]:
    """The exponent mu of the shift for an image of so many tokens: linear between the two that the scheduler tells.

    Args:
        scheduler: where ``use_dynamic_shifting`` is off, nothing is told.
        tokens: that the network makes of the image.
        usual: ``max_shift``, where the scheduler tells none.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", usual)
    return {"mu": low + (high - low) / (most - least) * (tokens - least)}
