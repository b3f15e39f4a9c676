r"""Progressive distillation (PD): one student step does what k expert sub-steps do.

Source: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512.

.. math:: L = \mathbb{E}\; w(t)\, \lVert x_0^S(x_t, t) - x^*(x_t, t, s) \rVert^2, \qquad w = \max(SNR_t, 1)

where x* is the guess with which one DDIM step from t to s lands where the expert's k sub-steps land.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.expert import Expert
from dagdiff.objectives.base import Clean, Loss, Objective
from dagdiff.shapes import column

Weight = Callable[[Tensor, Tensor], Tensor]
"""``(alpha, sigma) -> weight`` of a squared error in x0."""


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """max(SNR, 1): the paper's weight, which keeps the steps near pure noise alive."""
    return (alpha / sigma).square().clamp(min=1.0)


def v_space(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weight that makes the loss a squared distance in v; on variance-preserving schedules it is SNR + 1."""
    return ((alpha**2 + sigma**2) / sigma).square()


class Progressive(Objective):
    """PD on states of any source.

    Args:
        weight: of the squared error, by noise level.
    """

    def __init__(self, weight: Weight = truncated_snr) -> None:
        self.weight = weight

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Keep the schedule that weighs the error."""
        self.schedule = expert.schedule

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``target``: the expert's guess for the step from t to s."""
        return states.set("target", expert.target(states["x_t"], states["t"], states["s"], states.get("condition")))

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the weighted squared distance to the target."""
        alpha, sigma = (column(values, batch["x_t"]) for values in self.schedule(batch["t"]))
        error = student(batch["x_t"], batch["t"], batch.get("condition")) - batch["target"]
        loss = (self.weight(alpha, sigma) * error.square()).mean()
        return Loss(loss, {"distance": loss.detach()})
