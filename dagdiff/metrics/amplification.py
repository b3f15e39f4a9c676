r"""Error amplification: what an error made at step k costs by the end of the chain, relative to its size.

The student is followed to step k. There it acts once, and beside it, from the same state, the expert; then the expert
finishes both chains, with the same fresh noise. With predictions :math:`a_k`, ends :math:`y`, and root mean squares
over rows and coordinates,

.. math:: A_k = \frac{\lVert y(a_k^S) - y(a_k^E) \rVert}{\lVert a_k^S - a_k^E \rVert}.

It is the cost-to-go of one wrong action, the quantity that AggreVaTe learns from (Ross and Bagnell 2014,
https://arxiv.org/abs/1406.5979), in the form in which it can be compared between steps. Below 1 the rest of the chain
forgives the error, above 1 it makes it worse; at the last step the prediction is the end and A = 1. The profile says
why imitating all steps alike need not be right, and where the worst case of theory, every error kept to the end, stops
short: the constant u of the bound u e K.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dagdiff.checks import check_times
from dagdiff.expert import Expert
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition


@dataclass(frozen=True)
class StepAmplification:
    """One step: the student's error there, and what that error alone costs at the end, both in units of x."""

    step: int
    t: float
    error: float
    cost: float

    @property
    def amplification(self) -> float:
        """Cost over error; NaN where there is no error."""
        return self.cost / self.error if self.error > 0.0 else math.nan

    def as_row(self) -> dict[str, float]:
        """The fields and the amplification, by name."""
        return {**asdict(self), "amplification": self.amplification}


@torch.no_grad()
def measure_amplification(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    times: Times,
    noise: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
    tell: Callable[[], object] | None = None,
) -> list[StepAmplification]:
    """Return the amplification at each of the K steps of ``times``, measured on as many chains as ``noise`` has rows.

    The expert that is passed is charged, for a run may weigh its training by this: with k sub-steps it costs K^2 k
    evaluations a row, and K of the student. Measure ``with expert.ledger.free():`` to charge nobody.

    Args:
        policy: the student in its role, or any denoiser.
        expert: the expert; it acts up to ``transition.horizon(s)``, as in rollouts.
        transition: the student's transition.
        times: its grid, K + 1 times.
        noise: where the chains start, ``(B, *D)``.
        condition: of the chains.
        generator: of the fresh noise, the same for the chains that are compared.
        tell: called after each step.
    """
    check_times(times)
    steps = [(t.expand(len(noise)), s.expand(len(noise))) for t, s in pairwise(times)]
    draws = [torch.randn(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype) for _ in steps]

    def act(x_t: States, step: int) -> States:
        t, s = steps[step]
        return expert.target(x_t, t, transition.horizon(s), condition)

    def move(x_t: States, guess: States, step: int) -> States:
        return transition(x_t, guess, *steps[step], draws[step])

    def finish(x_s: States, step: int) -> States:
        for later in range(step + 1, len(steps)):
            x_s = move(x_s, act(x_s, later), later)
        return x_s

    rows, x_t = [], noise
    for step, (t, _) in enumerate(steps):
        own, led = policy(x_t, t, condition), act(x_t, step)
        follows = move(x_t, own, step)
        cost = _rms(finish(follows, step) - finish(move(x_t, led, step), step))
        rows.append(StepAmplification(step, float(times[step]), _rms(own - led), cost))
        x_t = follows
        if tell is not None:
            tell()
    return rows


def format_amplification(rows: Sequence[StepAmplification]) -> str:
    """Return the profile as a table of fixed width, one line a step."""
    lines = ["step    t    error     cost  cost / error"]
    for row in rows:
        lines.append(f"{row.step:>4} {row.t:>4.2f} {row.error:>8.3g} {row.cost:>8.3g} {row.amplification:>13.3g}")
    return "\n".join(lines)


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())
