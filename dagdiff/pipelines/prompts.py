"""Prompts into numbers: a pipeline's own text encoders, asked once, fill a prompt bank.

Each family of pipelines encodes prompts in its own way, and says in its own way what it guides away from.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dagdiff.checks import Refusal
from dagdiff.pipelines.conditions import PromptBank, Text

Encode = Callable[[Any, list[str], torch.device], tuple[Text, Text]]
"""``(pipeline, prompts, device) -> (their embeddings, the null condition's)``."""


def encode_sd(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """Stable Diffusion 1.x and 2.x: the null condition is the empty prompt."""
    hidden, null = pipeline.encode_prompt(
        prompt=prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    return Text(hidden), Text(null[:1])


def encode_sdxl(pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Text, Text]:
    """SDXL: the null condition is the empty prompt, or zeros where the pipeline says so."""
    hidden, null, pooled, null_pooled = pipeline.encode_prompt(
        prompt=prompts, device=device, do_classifier_free_guidance=True
    )
    return Text(hidden, pooled), Text(null[:1], null_pooled[:1])


def encode_sd3(pipeline: Any, prompts: list[str], device: torch.device, tokens: int) -> tuple[Text, Text]:
    """Stable Diffusion 3: the null condition is the empty prompt."""
    hidden, null, pooled, null_pooled = pipeline.encode_prompt(
        prompt=prompts, prompt_2=None, prompt_3=None, device=device, max_sequence_length=tokens
    )
    return Text(hidden, pooled), Text(null[:1], null_pooled[:1])


def encode_flux(pipeline: Any, prompts: list[str], device: torch.device, tokens: int) -> tuple[Text, Text]:
    """FLUX.1, whose pipeline names no null condition: the empty prompt is encoded like the others."""
    hidden, pooled, _ = pipeline.encode_prompt(
        prompt=[*prompts, ""], prompt_2=None, device=device, max_sequence_length=tokens
    )
    return Text(hidden[:-1], pooled[:-1]), Text(hidden[-1:], pooled[-1:])


@torch.no_grad()
def embed(pipeline: Any, prompts: Sequence[str], device: torch.device, encode: Encode) -> PromptBank:
    """Embed prompts, a few at a time; without any, the bank holds the null condition alone."""
    chunks = [list(prompts[i : i + 32]) for i in range(0, len(prompts), 32)] or [[""]]
    known, nulls = zip(*(encode(pipeline, chunk, device) for chunk in chunks), strict=True)
    texts = [*known, nulls[0]] if prompts else [nulls[0]]
    columns = {name: [getattr(text, name) for text in texts] for name in ("hidden", "pooled")}
    parts = {name: torch.cat(column) for name, column in columns.items() if column[0] is not None}
    return PromptBank(Text(**parts), prompts)


def sized_for(bank: PromptBank, pixels: tuple[int, int]) -> PromptBank:
    """Return a bank that tells each row the size of images, as SDXL wants it; refuse one that tells another."""
    if bank.time_ids is None:
        ids = bank.hidden.new_tensor([*pixels, 0, 0, *pixels]).repeat(len(bank.hidden), 1)
        return PromptBank(Text(bank.hidden, bank.pooled, ids), bank.prompts)
    sizes = bank.time_ids[:, 4:6]
    if (sizes != sizes.new_tensor(pixels)).any():
        raise Refusal(
            f"the prompt bank was made for images of {[int(side) for side in sizes[0]]} pixels, not {list(pixels)}. "
            "Embed the prompts again, or leave its time_ids out."
        )
    return bank


def fitting(name: str, bank: PromptBank, **widths: int) -> PromptBank:
    """Refuse a bank whose embeddings are not as wide as the network takes them; return it."""
    found = {each: part.shape[-1] for each, part in bank.named_buffers() if each in widths}
    if found != widths:
        raise Refusal(
            f"{name} takes prompts of widths {widths}; the bank has {found}. It is another model's: "
            "embed the prompts with this one."
        )
    return bank
