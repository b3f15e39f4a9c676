"""The shapes dagdiff speaks in: aliases that say what a tensor is.

Every state tensor is ``(B, *D)``: a batch of ``B`` points of any shape ``D`` (``(2,)`` on the toys, ``(C, H, W)`` on
images). Times are ``(B,)`` floats from 1 (noise) to 0 (data).
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

States = Tensor
"""Points of the chain or of the data, ``(B, *D)``."""

Times = Tensor
"""Times in [0, 1], one a row, ``(B,)``."""

Condition = Tensor | None
"""What a chain is conditioned on, one row a chain, or None. On labelled mixtures: ``(B,)`` int64, -1 for "no label"."""


@runtime_checkable
class Denoiser(Protocol):
    """Anything that predicts the clean state behind a noisy one. Experts and students both are denoisers."""

    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the prediction of x0, ``(B, *D)``, for states ``x_t`` at times ``t``."""
        ...


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(B,)`` values to ``(B, 1, ..., 1)`` so that they multiply ``(B, *D)`` states row by row."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
