"""Covariate shift, measured: at each step, how far the student's own states are from those it was trained on.

Three state laws meet at every time t of the grid: forward-diffused data, the expert's chains, and the student's own
chains. The *imitation loss* is the squared distance between the student's guess and the expert's; on the student's own
states minus on forward states it is the *loss gap*: what off-policy training does not see. Distances between the laws
say where the chain has gone, the gap says whether the student can cope there.
"""

import copy
import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dagdiff.checkpoint import save_text
from dagdiff.expert import Expert
from dagdiff.metrics.samples import energy_distance, sliced_wasserstein
from dagdiff.schedule import perturb
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition, chain


@dataclass(frozen=True)
class StepShift:
    """The shift at one step: the student's imitation loss on each law of states, and distances between the laws.

    Distances compare the student's states with forward and with expert states: energy distance and sliced
    2-Wasserstein, both in units of x.
    """

    step: int
    t: float
    loss_forward: float
    loss_own: float
    loss_expert: float
    energy_forward: float
    energy_expert: float
    sliced_w2_forward: float
    sliced_w2_expert: float

    @property
    def loss_gap(self) -> float:
        """Imitation loss on own states minus on forward states."""
        return self.loss_own - self.loss_forward

    def as_row(self) -> dict[str, float]:
        """The fields and the gap, by name."""
        return {**asdict(self), "loss_gap": self.loss_gap}


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
    judge = copy.copy(expert)
    target = judge.target(x_t, t, transition.horizon(s), condition)
    with torch.no_grad():
        return float((policy(x_t, t, condition) - target).square().mean())


def measure_shift(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    times: Times,
    x0: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
) -> list[StepShift]:
    """Return the shift at every step of the grid, measured on as many chains as there are rows of clean data ``x0``.

    ``x0`` are data of the kind that the student's forward states are made of; ``condition`` goes with its rows. Student
    and expert chains start from the same noise; the expert walks its own DDIM path.
    """
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    own = list(chain(policy, transition, times, noise, condition, generator))
    led = copy.copy(expert).walk(noise, times, condition)
    rows = []
    for number, (mine, theirs) in enumerate(zip(own, led, strict=False)):
        fresh = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        forward = perturb(x0, fresh, mine.t, expert.schedule)
        laws = {"forward": forward, "own": mine.x_t, "expert": theirs}
        losses: dict[str, Any] = {
            f"loss_{name}": imitation_loss(policy, expert, transition, x_t, mine.t, mine.s, condition)
            for name, x_t in laws.items()
        }
        for name in ("forward", "expert"):
            losses[f"energy_{name}"] = energy_distance(mine.x_t, laws[name])
            losses[f"sliced_w2_{name}"] = sliced_wasserstein(mine.x_t, laws[name], generator=generator)
        rows.append(StepShift(step=number, t=float(mine.t[0]), **losses))
    return rows


def format_table(rows: list[StepShift]) -> str:
    """Return the shift as a table of fixed width, one line a step, with the ratio of own to forward loss."""
    lines = ["step     t   loss: forward      own   expert  own/forward   energy to: forward   expert"]
    for row in rows:
        ratio = row.loss_own / max(row.loss_forward, 1e-12)
        lines.append(
            f"{row.step:>4} {row.t:>5.3g} {row.loss_forward:>15.3g} {row.loss_own:>8.3g} {row.loss_expert:>8.3g} "
            f"{ratio:>11.2f}x {row.energy_forward:>20.4g} {row.energy_expert:>8.3g}"
        )
    return "\n".join(lines)


def write_table(rows: list[StepShift], path: Path) -> None:
    """Write the shift as CSV, one line a step, every field and the gap."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0].as_row()))
    table.writeheader()
    table.writerows(row.as_row() for row in rows)
    save_text(path, text.getvalue())
