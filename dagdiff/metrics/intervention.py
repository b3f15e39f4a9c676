"""The intervention curve: what would the student's samples be worth if the expert acted now and then?

Two questions at the student's chain, by doing and not by correlating. *How much*: let the expert act in a part p of the
chains at every step. p = 0 is the student alone and p = 1 the expert in the student's environment; what lies between
them is all that imitation could repair, and how fast the curve falls says how far one good step helps the bad ones that
follow. *Where*: let the expert act at step k alone. A step whose repair gains nothing is not where the shift is.

Every run starts from the same noise, meets the same fresh noise, and lets the expert drive nested sets of chains (who
is driven at p = 0.25 is at p = 0.5 too), so runs differ by the intervention only and their errors are those of paired
differences. The chain is :func:`dagdiff.transition.chain`, and the expert's answer is the prediction that its sub-steps
amount to up to ``transition.horizon(s)``, as in the rollouts of DAgger (Ross, Gordon & Bagnell 2011,
https://arxiv.org/abs/1011.0686). Its evaluations are measurement and are not charged.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_share, check_times
from dagdiff.expert import Expert
from dagdiff.metrics.samples import energy_distance
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition, sample

Scorer = Callable[[Tensor], float]
"""Any quality of samples ``(B, *D)``, as one number."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The parts of the chains that the expert drives at every step, where nobody names others."""


@dataclass(frozen=True)
class Intervention:
    """One run: who acted, and the quality of the samples.

    ``p`` is the part of the chains that the expert drives, at every step or, if ``step`` is a number, there alone (it
    starts at time ``t``; NaN otherwise). ``energy`` is the samples' energy distance to the reference, in units of x;
    ``gain`` what it is below the student's own, give or take the standard error ``error`` of that paired difference
    over chains (somewhat too large for p between 0 and 1, where the number of driven chains is fixed). ``score`` is the
    caller's scorer's, or NaN.
    """

    p: float
    step: int | None
    t: float
    energy: float
    gain: float
    error: float
    score: float = math.nan

    def as_row(self) -> dict[str, float | None]:
        """The fields, by name."""
        return asdict(self)


def measure_interventions(
    policy: Denoiser,
    expert: Expert,
    transition: Transition,
    times: Times,
    noise: States,
    reference: States,
    generator: torch.Generator,
    condition: Condition = None,
    probabilities: Sequence[float] = SHARES,
    steps: Sequence[int] | None = None,
    scorer: Scorer | None = None,
    tell: Callable[[], object] | None = None,
) -> list[Intervention]:
    """Return the curve over ``probabilities`` (0 and 1 join them), then over the single ``steps`` (None: every step).

    Args:
        policy: the student in its role, or any denoiser.
        expert: the expert; it may be asked anywhere.
        transition: the student's transition.
        times: its grid, K + 1 times.
        noise: where the chains start, ``(B, *D)``.
        reference: clean points of the target, ``(n, *D)``.
        generator: of the fresh noise, and then of who is driven. The run with p = 0 is ``sample`` with this generator.
        condition: of the chains.
        probabilities: parts of the chains that the expert drives at every step.
        steps: the steps at which it drives all chains, alone.
        scorer: another quality of the samples.
        tell: called after each run.

    Raises:
        Refusal: for a probability outside [0, 1] or a step outside the grid.
    """
    count = len(check_times(times)) - 1
    for p in probabilities:
        check_share("probabilities", p)
    parts = [(p, None, [p] * count) for p in sorted({0.0, *map(float, probabilities), 1.0})]
    alone = [(1.0, k, only_at(k, count)) for k in (range(count) if steps is None else steps)]
    start = generator.get_state()
    base = sample(policy, transition, times, noise, condition, generator)
    order = torch.rand((count, len(noise)), generator=generator, device=generator.device).argsort(dim=1)
    energy, influence = energy_distance(base, reference), _influence(base, reference)
    rows = []
    for p, step, shares in [*parts, *alone]:
        mixed = Mixed(policy, expert, transition, times, shares, order)
        again = torch.Generator(generator.device)
        again.set_state(start)
        points = sample(mixed, transition, times, noise, condition, again)
        reached = energy_distance(points, reference)
        error = float((influence - _influence(points, reference)).std()) / math.sqrt(len(points))
        score = math.nan if scorer is None else float(scorer(points))
        t = math.nan if step is None else float(times[step])
        rows.append(Intervention(p, step, t, reached, energy - reached, error, score))
        if tell is not None:
            tell()
    return rows


class Mixed:
    """A policy that lets the expert act in a given part of the rows at each step; a denoiser itself.

    As in the rollouts, exactly round(p B) of B rows are driven, only they are shown to the expert, and where one of the
    two drives all rows the other is not asked.

    Args:
        policy: the student in its role, or any denoiser.
        expert: the expert; it is asked for free.
        transition: the law that the chain moves by; it says where a prediction must land.
        times: the chain's grid, K + 1 times.
        shares: the expert's part of the rows at each of the K steps.
        order: ``(K, B)``: who is driven first, a permutation of the rows at each step.
    """

    def __init__(
        self,
        policy: Denoiser,
        expert: Expert,
        transition: Transition,
        times: Times,
        shares: Sequence[float],
        order: Tensor,
    ) -> None:
        if not len(shares) == len(order) == len(times) - 1:
            raise Refusal(
                f"shares and order need one entry a step; got {len(shares)} and {len(order)} for {len(times) - 1} "
                "steps. Pass one share for each interval of the grid."
            )
        for share in shares:
            check_share("shares", share)
        self.policy, self.expert, self.transition = policy, expert, transition
        self.times, self.shares, self.order = times, shares, order

    @torch.no_grad()
    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the prediction of x0, ``(B, *D)``: the expert's where it drives, else the policy's."""
        step = int((self.times[:-1] - t[0]).abs().argmin())
        rows = self.order[step, : round(self.shares[step] * len(x_t))].sort().values.to(x_t.device)
        guess = x_t if len(rows) == len(x_t) else self.policy(x_t, t, condition)
        if len(rows) == 0:
            return guess
        end = self.transition.horizon(self.times[step + 1].expand(len(rows)))
        asked = None if condition is None else condition[rows]
        with self.expert.ledger.free():
            return guess.index_copy(0, rows, self.expert.target(x_t[rows], t[rows], end, asked))


def only_at(step: int, count: int) -> list[float]:
    """Shares of an expert that drives all chains at one step of ``count`` and none at the others."""
    if not 0 <= step < count:
        raise Refusal(f"steps must lie in [0, {count - 1}]; got {step}. The first step, from noise, is step 0.")
    return [float(k == step) for k in range(count)]


def format_interventions(rows: Sequence[Intervention]) -> str:
    """Return the curve as a table of fixed width, one line a run."""
    scored = any(not math.isnan(row.score) for row in rows)
    titles = f"{'the expert acts':<25} {'energy distance':>15} {'gain over p = 0':>18}"
    lines = [titles + (f" {'score':>12}" if scored else "")]
    for row in rows:
        score = f" {row.score:>12.4g}" if scored else ""
        lines.append(f"{name(row):<25} {row.energy:>15.4g} {f'{row.gain:.2g} ± {row.error:.1g}':>18}{score}")
    return "\n".join(lines)


def name(row: Intervention) -> str:
    """Who acted, in words: "with p = 0.25 a step", "only at step 2 (t = 0.5)"."""
    if row.step is not None:
        return f"only at step {row.step} (t = {row.t:.3g})"
    return {0.0: "never (p = 0)", 1.0: "always (p = 1)"}.get(row.p, f"with p = {row.p:g} a step")


def _influence(points: States, reference: States) -> Tensor:
    """What each row contributes to the energy distance to first order, up to a constant, ``(B,)``.

    Hampel 1974, "The influence curve and its role in robust estimation",
    https://doi.org/10.1080/01621459.1974.10482962.
    """
    x, y = (cloud.detach().double().flatten(1) for cloud in (points, reference.to(points.device)))
    return 2.0 * torch.cdist(x, y).mean(dim=1) - 2.0 * torch.cdist(x, x).sum(dim=1) / (len(x) - 1)
