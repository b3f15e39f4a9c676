"""Prompts into numbers: a pipeline's own text encoders, asked once, fill a prompt bank.

Each family of pipelines encodes prompts in its own way, and says in its own way what it guides away from.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dagdiff.checkpoint import cache_folder, content_hash
from dagdiff.checks import Refusal
from dagdiff.jobs.pieces import Piece, kept_rows, stacked
from dagdiff.pipelines.banks import AskedBank, StoredBank
from dagdiff.pipelines.conditions import PromptBank, Text
from dagdiff.pipelines.fingerprint import fingerprint, tokenizer_print
from dagdiff.progress import Progress

Encode = Callable[[Any, list[str], torch.device], tuple[Text, Text]]
"""``(pipeline, prompts, device) -> (their embeddings, the null condition's)``."""

_LAST = slice(-2, None)
_AT_ONCE = 32
"""Prompts that are embedded together."""
_ON_DEVICE = 1 << 28
"""Bytes of a bank that goes to the device; a larger one stays on the disk."""


def cut_off(pipeline: Any, prompts: Sequence[str]) -> str | None:
    """Return which prompt has an end that no encoder of the pipeline reads, in words; None if there is none.

    CLIP reads 77 tokens; where T5 or a language model reads more beside it, that one counts.
    """
    call = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    most = call.default if call is not None and isinstance(call.default, int) else math.inf
    readers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None]
    if not readers or not all(hasattr(reader, "model_max_length") for reader in readers):
        return None
    limits = [min(reader.model_max_length, most) for reader in readers]
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) < min(limits) / _DENSE:
            continue
        lengths = [len(reader(prompt, truncation=False)["input_ids"]) for reader in readers]
        if all(length > limit for length, limit in zip(lengths, limits, strict=True)):
            place = max(range(len(limits)), key=limits.__getitem__)
            told = f"prompt {number} has {lengths[place]} tokens, and the encoder reads {limits[place]}"
            return f"{told}: the end of {prompt[:40]!r}... would be cut off. Shorten it, or leave it out."
    return None


_DENSE = 4
"""Tokens that a character may make, at most: its bytes."""


@torch.no_grad()
def embed(
    pipeline: Any, prompts: Sequence[str], device: torch.device, encode: Encode, asked: bool = False
) -> PromptBank:
    """Embed prompts, a few at a time; without any, the bank holds the null condition alone.

    Many are embedded once and kept in the cache, by the encoders, the tokenizers and the prompts. A large bank stays
    on the disk, memory-mapped.

    Args:
        pipeline: whose encoders are asked.
        prompts: in words.
        device: where they are embedded, and where the bank goes.
        encode: how.
        asked: of many prompts that are not in the cache, embed only those that a network is asked with.
    """
    if len(prompts) <= _AT_ONCE:
        return PromptBank(Text(**_embedded(pipeline, prompts, device, encode)), prompts)
    path = cache_folder() / "prompts" / f"{_key(pipeline, prompts, encode)}.safetensors"
    if asked and not path.exists():
        null = encode(pipeline, list(prompts[:1]), device)[1]
        return AskedBank(null, prompts, lambda words: Text(**_embedded(pipeline, words, device, encode)))
    kept = kept_rows(path, partial(_pieces, pipeline, prompts, device, encode), "embeddings of prompts")
    if sum(part.nbytes for part in kept.values()) > _ON_DEVICE:
        return StoredBank(Text(**kept), prompts, path)
    bank = PromptBank(Text(**{name: part.to(device) for name, part in kept.items()}), prompts)
    bank.file = path
    return bank


def _pieces(
    pipeline: Any, prompts: Sequence[str], device: torch.device, encode: Encode, state: Any
) -> Iterator[Piece]:  # fmt: skip
    """The embeddings of prompts from one on, and at last the null condition's."""
    begun, null = state or 0, None
    if begun > len(prompts):
        return
    with Progress("embedding prompts", len(prompts), "prompt", begun) as bar:
        for at in range(begun, len(prompts), _AT_ONCE):
            words = list(prompts[at : at + _AT_ONCE])
            known, empty = encode(pipeline, words, device)
            null = empty if null is None else null
            yield Piece(_named(known), at + len(words))
            bar.advance(len(words))
    null = encode(pipeline, list(prompts[:_AT_ONCE]), device)[1] if null is None else null
    yield Piece(_named(null), len(prompts) + 1)


def _named(text: Text) -> dict[str, Tensor]:
    """The parts of a text that there are, on the CPU."""
    return {name: part.cpu() for name, part in text._asdict().items() if part is not None}


def _key(pipeline: Any, prompts: Sequence[str], encode: Encode) -> str:
    """The hash of all on which embeddings depend."""
    whole: Any = encode.func if isinstance(encode, partial) else encode
    options = sorted(encode.keywords.items()) if isinstance(encode, partial) else []
    config = {name: str(value) for name, value in sorted(pipeline.config.items()) if not name.startswith("_")}
    told = [type(pipeline).__name__, str(config)]
    told += [f"{whole.__module__}.{whole.__qualname__} {options}", *prompts]
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module) and name.startswith("text_encoder"):
            told += [name, str(next(part.parameters()).dtype), fingerprint(part)]
        elif name.startswith("tokenizer") and hasattr(part, "get_vocab"):
            told += [name, tokenizer_print(part)]
    return content_hash(json.dumps(told))


@torch.no_grad()
def _embedded(
    pipeline: Any, prompts: Sequence[str], device: torch.device, encode: Encode
) -> dict[str, Tensor]:  # fmt: skip
    """The parts of a bank's text by their names."""
    chunks = [list(prompts[i : i + _AT_ONCE]) for i in range(0, len(prompts), _AT_ONCE)] or [[""]]
    known, nulls = zip(*(encode(pipeline, chunk, device) for chunk in chunks), strict=True)
    texts = [*known, nulls[0]] if prompts else [nulls[0]]
    columns = {name: [getattr(text, name) for text in texts] for name in Text._fields}
    return {name: stacked(column) for name, column in columns.items() if column[0] is not None}


def padded(texts: Sequence[Tensor]) -> Text:
    """Return embeddings of prompts of different lengths, ``(L, F)`` each, as rows with a mask of their tokens."""
    lengths = torch.tensor([len(text) for text in texts], device=texts[0].device)
    hidden = pad_sequence(list(texts), batch_first=True)
    return Text(hidden, mask=torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])


def sized_for(bank: PromptBank, told: Sequence[int], pixels: tuple[int, int], place: slice = _LAST) -> PromptBank:
    """Return a bank that tells each row the size of images; refuse one that tells another.

    Args:
        bank: with sizes or without.
        told: the numbers that networks are told of such images.
        pixels: height and width.
        place: of these two among the numbers.
    """
    if bank.time_ids is None:
        ids = bank.hidden.new_tensor(told).repeat(len(bank.hidden), 1)
        return bank.telling(ids)
    sizes = bank.time_ids[:, place]
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
