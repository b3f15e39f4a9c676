"""What every objective has in common: annotate states once, then turn batches of them into a loss."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.expert import Expert
from dagdiff.learner import Loss as Loss
from dagdiff.learner import RowLoss as RowLoss
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, States, Times, column
from dagdiff.state import attributes, load_attributes
from dagdiff.transition import Ddim

__all__ = ["Clean", "Loss", "Objective", "RowLoss", "by_row", "denoising_loss"]

Clean = Callable[[int], tuple[States, Condition]]
"""``n ->`` n clean points of the distillation set and their conditions."""


class Objective:
    """Base class: override ``annotate`` and ``loss``; the other hooks are for objectives that remember something.

    A batch of states is a TensorDict of ``x_t`` ``(B, *D)``, ``t`` and ``s`` ``(B,)`` (where the step starts and
    lands), perhaps ``condition``, ``source`` and ``round``, and whatever ``annotate`` added.
    """

    sampler: Any = Ddim
    """Makes the law by which the student is sampled, and so rolled out, from the noise schedule."""

    backward_simulation: bool = False
    """Whether the published method already trains on student states, as DMD2 does."""

    version: int = 1
    """Of labels and loss: whoever changes what the same settings train raises it, and old results are not reused."""

    label_options: tuple[str, ...] | None = None
    """Options on which labels, and the states that are labelled, depend; None for all, which is always safe."""

    critic_updates: int = 0
    """How often ``improve_critic`` runs, each on a batch of its own, before an update of the student."""

    def check_student(self, student: nn.Module) -> None:
        """Reject a student that lacks what the losses need; nothing is kept."""

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Called once before training: keep what the losses need (copies of the student, the expert, clean data)."""

    real_data: bool = False
    """Whether the loss compares with real data, for which samples of the teacher can't stand in."""

    own_law_alone: bool = False
    """Whether the loss holds for chains of the law that ``sampler`` makes alone, to the width of its fresh noise."""

    def horizon(self, s: Times) -> Times | None:
        """The time at which the predictions taught for a step to ``s`` are right, as a law's ``horizon`` asks for it.

        None, as objectives of one's own may leave it, fits every law.
        """
        return None

    def grid(self, times: Times) -> Times:
        """The grid whose times forward-diffused states take; the sampler's own unless the objective has another."""
        return times

    def settle(self, records: TensorDict, generator: torch.Generator | None) -> TensorDict:
        """Move rollout records (they also hold ``action``, the prediction made there) to where the objective trains."""
        return records

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add the expert's label to states that enter the aggregate. A label never ages: the expert is frozen.

        Beside it stands its ``end``, ``(B,)``: the time to which the expert walked for it.
        States of a rollout still hold ``action``, the prediction made there; it is dropped afterwards.
        """
        return states

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the loss of the student on annotated states."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(student, batch)")

    def improve_critic(self, student: nn.Module, batch: TensorDict) -> Mapping[str, Tensor]:
        """Update the critic, if the objective has one, on the student's answers to ``batch``; return its losses."""
        return {}

    def follow(self, student: nn.Module) -> None:
        """Called after each update of the student: let target networks follow it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must be kept to resume training; override it to keep less, or more.

        That is the state of each attribute that is a module, an optimiser, a tensor or a number, or that has a
        ``state_dict()``.
        """
        return attributes(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take that state back; ``begin`` has been called."""
        load_attributes(self, state)


def by_row(each: Tensor) -> Tensor:
    """Return the mean of each row, ``(B,)``, of ``(B, *D)``."""
    return each.flatten(1).mean(1)


def denoising_loss(
    denoiser: Callable[..., States],
    x0: States,
    noise: States,
    t: Times,
    schedule: Schedule,
    condition: Condition = None,
    *origin: Tensor,
) -> Tensor:
    """Return the mean squared error in v, which is ((alpha^2 + sigma^2) / sigma)^2 times that of the prediction of x0.

    It weighs a prediction by how hard it is, stays finite for t > 0, and equals the flow-matching loss on rectified
    flow up to the schedule's norm. Teachers and fake scores train with it. ``origin`` is what a critic takes beside the
    condition.
    """
    alpha, sigma = (column(values, x0) for values in schedule(t))
    error = denoiser(alpha * x0 + sigma * noise, t, condition, *origin) - x0
    return (((alpha**2 + sigma**2) / sigma) ** 2 * error.square()).mean()
