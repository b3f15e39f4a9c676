"""The imitation loss: how far a student's guesses are from its expert's at the same states, and what its means mean.

On which laws of states it is taken, and what lies between them, is :mod:`dagdiff.metrics.shift`'s.
"""

from collections.abc import Mapping

import torch

from dagdiff.expert import Expert
from dagdiff.metrics.base import Number
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition

LOSSES = {
    "loss_forward": Number(
        "Imitation loss on forward states (noised data): squared difference of the two predictions.", floor="0"
    ),
    "loss_expert": Number("Imitation loss on expert states: the same, where the expert acts in each step.", floor="0"),
    "loss_own": Number(
        "Imitation loss on student states: the same, at the states of the student's own chains.", floor="0"
    ),
    "data_mismatch": Number(
        "Loss on expert states minus on forward states: what the data shown do not cover.", floor="0", compared=True
    ),
    "own_errors": Number(
        "Loss on student states minus on expert states: what the student's own errors lead to.",
        floor="0",
        compared=True,
    ),
    "loss_gap": Number(
        "Loss on student states minus on forward states: what training on noised data alone does not see.",
        floor="0",
        compared=True,
    ),
    "end_error": Number(
        "Distance (rms) of the student's end to the end of its expert in the same place, from the same noise.",
        floor="0",
    ),
}
"""What the held-out imitation losses of a run mean, each a mean over steps."""


def gaps(losses: Mapping[str, float]) -> dict[str, float]:
    """Return what lies between the mean losses on the three laws of states, by name."""
    forward, expert, own = (losses[f"loss_{law}"] for law in ("forward", "expert", "own"))
    return {"data_mismatch": expert - forward, "own_errors": own - expert, "loss_gap": own - forward}


def imitation_loss(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    x_t: States,
    t: Times,
    s: Times,
    condition: Condition = None,
) -> float:
    """Return the mean squared distance between the policy's guess and the expert's, on given states.

    The expert's guess is the one that its sub-steps amount to up to ``transition.horizon(s)``. Its evaluations here are
    measurement, not training, and are not charged to ``expert.nfe``.
    """
    error, _ = guess_errors(policy, expert, transition, x_t, t, s, condition)
    return float(error.square().mean())


def guess_errors(
    policy: Denoiser, expert: Expert, transition: Transition, x_t: States, t: Times, s: Times, condition: Condition
) -> tuple[States, States]:
    """Return the policy's guess minus the expert's, and the expert's, both ``(B, *D)``; nobody is charged."""
    with torch.no_grad(), expert.ledger.free():
        target = expert.target(x_t, t, transition.horizon(s), condition)
        return policy(x_t, t, condition) - target, target
