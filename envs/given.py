"""What a caller passes to the Gymnasium environments, read as tensors or rejected with a sentence."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dagdiff.checks import Refusal, as_floats, check_in, check_same_shape
from dagdiff.shapes import States

Mask = NDArray[np.bool_]
"""Which rows, ``(B,)``."""


def read_options(options: dict[str, Any] | None, known: Iterable[str]) -> dict[str, Any]:
    """Return a copy of the options of a ``reset``; reject one that is not known."""
    known = tuple(known)
    for name in options or {}:
        check_in("reset option", name, known)
    return dict(options or {})


def read_states(name: str, values: Tensor | ArrayLike, shape: Sequence[int], rows: Mask) -> States:
    """Return states or predictions of that shape as a tensor of its own; reject NaN and infinity in ``rows``."""
    found = as_floats(name, values, "Pass an array like x_t.")
    check_same_shape(name, found, torch.empty(tuple(shape), device="meta"))
    bad = int((~found[torch.from_numpy(rows)].isfinite()).sum())
    if bad:
        raise Refusal(
            f"{name} holds {bad} values that are NaN or infinite, of {found.numel()}. Pass finite numbers; if a policy "
            "made them, look at its weights and its input."
        )
    return found


def read_conditions(values: Tensor | ArrayLike, count: int, labels: int) -> Tensor:
    """Return ``count`` conditions below ``labels``, ``(count,)`` int64, from one for all or one each."""
    if not labels:
        raise Refusal(
            f"options['condition'] is {values!r:.80}, and these chains have no conditions. Make the environment with "
            "labels=N."
        )
    found = np.asarray(values)
    fits = found.dtype.kind in "iu" and found.shape in ((), (count,))
    if not fits or not ((found >= 0) & (found < labels)).all():
        raise Refusal(
            f"options['condition'] must be whole numbers from 0 to {labels - 1}, one for all chains or {count}, one a "
            f"chain; got {values!r:.80}. Pass e.g. 0."
        )
    return torch.from_numpy(np.broadcast_to(found, count).astype(np.int64))


def read_mask(values: ArrayLike, count: int) -> Mask:
    """Return the rows, ``(count,)``, that a mask names."""
    found = np.asarray(values)
    if found.dtype != np.bool_ or found.shape != (count,) or not found.any():
        raise Refusal(
            f"options['reset_mask'] must be {count} booleans, at least one of them true; got {values!r:.80}. Leave it "
            "out to reset all chains."
        )
    return found.copy()


def read_autoreset(value: AutoresetMode | str) -> AutoresetMode:
    """Return the mode itself, or the one of that name, as Gymnasium's own vector environments do."""
    if isinstance(value, AutoresetMode):
        return value
    return AutoresetMode(check_in("autoreset_mode", value, [mode.value for mode in AutoresetMode]))
