"""What all skins of the chain share: where a step starts and lands, and what it earns."""

import torch
from torch import Tensor

from dagdiff.expert import Expert
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Transition


def interval(times: Times, step: Tensor) -> tuple[Times, Times]:
    """Return where the given steps start and where they land, both like ``step``; a finished chain stays at the end."""
    last = len(times) - 1
    return times[step], times[(step + 1).clamp(max=last)]


def reward(
    expert: Expert | None, transition: Transition, x_t: States, x0: States, t: Times, s: Times, condition: Condition
) -> Tensor:
    """Return minus the mean squared distance of each prediction to the expert's, ``(B,)``; 0 without an expert.

    The expert's prediction is the one that its sub-steps amount to up to ``transition.horizon(s)``: what imitation asks
    for.
    """
    if expert is None:
        return torch.zeros(len(x_t), device=x_t.device)
    advice = expert.target(x_t, t, transition.horizon(s), condition)
    return -(x0 - advice).square().flatten(1).mean(1)
