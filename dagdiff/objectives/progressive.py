r"""Progressive distillation (PD): one student step does what k expert sub-steps do.

Source: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512.

.. math:: L = \mathbb{E}\; w(t)\, \lVert x_0^S(x_t, t) - x^*(x_t, t, s) \rVert^2, \qquad w = \max(SNR_t, 1)

where x* is the prediction with which one DDIM step from t to s lands where the expert's k sub-steps land. With labels
that end at data s is 0: x* is where the expert's whole walk ends, and the student answers every state with data, for a
chain that perturbs each prediction afresh.

Two things may change while it trains. ``ease`` blends the label of a rollout's state with the prediction that the
policy itself made there, an easier target (coaching: He, Daume and Eisner 2012,
https://papers.nips.cc/paper/4545-imitation-learning-by-coaching). It must be the prediction of *then*, kept as a label:
blending with the present prediction f would leave the gradient's direction, as f - ((1 - e) x* + e sg(f)) is (1 - e)(f
- x*) in value. ``by_time`` weighs the loss once more, by the step's start.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import check_in
from dagdiff.expert import Expert
from dagdiff.objectives.base import Clean, Loss, Objective, RowLoss, by_row
from dagdiff.shapes import Times, column
from dagdiff.transition import Ddim, Renoise

Weight = Callable[[Tensor, Tensor], Tensor]
"""``(alpha, sigma) -> weight`` of a squared error in x0."""


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """max(SNR, 1): the paper's weight, which keeps the steps near pure noise alive."""
    return (alpha / sigma).square().clamp(min=1.0)


def unweighted(alpha: Tensor, sigma: Tensor) -> Tensor:
    """1: the squared distance as it is."""
    return torch.ones_like(alpha)


def snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """SNR: the squared distance becomes that in epsilon.

    For a network that predicts epsilon and a grid that starts in almost pure noise: its prediction of x0 there is off
    by 1 / alpha of its error, and with any other weight that first step outweighs all others.
    """
    return (alpha / sigma).square()


def v_space(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weight that makes the loss a squared distance in v; on variance-preserving schedules it is SNR + 1."""
    return ((alpha**2 + sigma**2) / sigma).square()


class Progressive(Objective):
    """PD on states of any source; data are needed for forward states alone.

    Args:
        weight: of the squared error, by noise level.
        label_end: to where the expert walks for a label: "step" (where the student's step lands, as published) or
            "data" (the whole walk).
    """

    label_options = ("label_end",)

    def __init__(self, weight: Weight = truncated_snr, label_end: str = "step") -> None:
        check_in("label_end", label_end, ("step", "data"))
        self.weight, self.label_end = weight, label_end
        self.sampler = Renoise if label_end == "data" else Ddim
        self.ease = 0.0
        self.by_time: Callable[[Times], Tensor] | None = None

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Keep the schedule that weighs the error."""
        self.schedule = expert.schedule

    def horizon(self, s: Times) -> Times:
        """The landing time itself, or time 0: up to there the expert's sub-steps walk."""
        return torch.zeros_like(s) if self.label_end == "data" else s

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``target``: the expert's prediction for the walk from t, with ``ease`` blended with the policy's own."""
        end = self.horizon(states["s"])
        target = expert.target(states["x_t"], states["t"], end, states.get("condition"))
        own = states.get("action", None)
        if self.ease > 0.0 and own is not None:
            target = torch.lerp(target, own, column(self.ease * (states["actor"] == 0), target))
        return states.set("target", target).set("end", end.clone())

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the weighted squared distance to the target."""
        alpha, sigma = (column(values, batch["x_t"]) for values in self.schedule(batch["t"]))
        error = student(batch["x_t"], batch["t"], batch.get("condition")) - batch["target"]
        weight = self.weight(alpha, sigma)
        if self.by_time is not None:
            weight = weight * column(self.by_time(batch["t"]), error)
        each = weight * error.square()
        loss = each.mean()
        return RowLoss.of(loss, {"distance": loss.detach()}, partial(by_row, each))
