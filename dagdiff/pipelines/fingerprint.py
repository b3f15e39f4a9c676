"""Hashes of networks and of tokenizers: by them what was made with these is found again in the cache."""

import json
from typing import Any

from torch import Tensor, nn

from dagdiff.checkpoint import content_hash


def fingerprint(network: nn.Module) -> str:
    """Return a hash of a network's weights and of its prompts, by the names, the shapes and some values of each.

    A full digest of a large network takes longer than loading it.
    """
    parts: list[Tensor | str] = []
    for name, values in (*network.named_parameters(), *network.named_buffers()):
        flat = values.detach().flatten()
        parts += [f"{name} {tuple(values.shape)}", flat[:: max(1, len(flat) // 256)]]
    return content_hash(*parts)


def tokenizer_print(tokenizer: Any) -> str:
    """Return a hash of all that a tokenizer does: its own description where it has one, else its vocabulary."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    told = json.dumps(tokenizer.get_vocab(), sort_keys=True) if inner is None else inner.to_str()
    names = ("chat_template", "model_max_length", "padding_side", "truncation_side")
    return content_hash(type(tokenizer).__name__, told, *(str(getattr(tokenizer, name, None)) for name in names))
