"""Networks that are told a class: the conditions of the U-Nets and of DiT."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dagdiff.checks import Refusal
from dagdiff.pipelines.conditions import Labels, Unconditional
from dagdiff.pipelines.families.base import Wanted, unserved


def labels(
    network: Any, classes: int | None, rows: int | None, null: int | None, wanted: Wanted,
    names: Mapping[str, int] | None = None,
) -> nn.Module:  # fmt: skip
    """Return labels, or nothing for a network without classes; its embedding has so many rows."""
    if len(wanted.prompts):
        raise unserved(network, "it takes no text: leave the prompts out", cure=False)
    if classes is None and wanted.null_class is not None:
        raise unserved(network, f"it has no classes: leave null_class={wanted.null_class} out", cure=False)
    if rows is not None and null is not None and null >= rows:
        raise Refusal(
            f"null_class={null} is no class of this {type(network).__name__}: its embedding has {rows} rows, 0 to "
            f"{rows - 1}. Name one of them, or leave it out and keep guidance at 1."
        )
    return Unconditional() if classes is None else Labels(classes, null, names)
