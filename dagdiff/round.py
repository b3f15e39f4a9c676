"""A round of the loop: what it did, and how it can fail."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dagdiff.mixture import Shares


@dataclass(frozen=True)
class Round:
    """What one round of the loop did.

    ``losses`` are means over the round's updates; ``nfe_*`` count network evaluations (rows) since training began;
    ``loss_forward``, ``loss_own`` and ``loss_expert`` are the held-out imitation losses at each step of the grid, on
    forward states, the student's own and the expert's; ``heldout`` is the objective's own loss on held-out states of
    the student (the measure that picks the best round). They are empty or nan when ``heldout=0``.
    """

    number: int
    updates: int
    beta: float
    shares: Shares
    losses: dict[str, float]
    size: int
    nfe_student: int
    nfe_expert: int
    seconds: float
    loss_forward: list[float] = field(default_factory=list)
    loss_own: list[float] = field(default_factory=list)
    loss_expert: list[float] = field(default_factory=list)
    heldout: float = math.nan


def as_round(fields: Mapping[str, Any]) -> Round:
    """Return the round whose fields, as ``asdict`` tells them, these are."""
    return Round(**{**fields, "shares": Shares(*fields["shares"])})


def updates_by_round(updates: int, rounds: int) -> list[int]:
    """Spread all updates of a run over its rounds, as evenly as can be: the first rounds take the remainder."""
    each, rest = divmod(updates, rounds)
    return [each + (number < rest) for number in range(rounds)]


class NonFiniteLoss(RuntimeError):
    """Training met a loss that is NaN or infinite. The student has been put back to the end of the last good round."""


class NonFiniteSource(NonFiniteLoss):
    """Training met data, labels or states that are NaN or infinite; the message names their source."""
