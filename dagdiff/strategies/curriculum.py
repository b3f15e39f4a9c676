"""Curricula: recipes that change the loop between its rounds.

A curriculum is any callable ``loop -> rounds``. It iterates over the loop in the caller's place, hands each round on,
and turns a knob before the next one; ``iter`` is the plain one.

A run that is resumed hands its earlier rounds on again, all at once (``loop.replayed`` of them), so that a curriculum
that goes by rounds needs no state. One that measures keeps what it measured in the objective, or has ``state_dict()``
and ``load_state_dict(state)``, and measures nothing in rounds that are replayed.

>>> for round in Coaching()(DAgger(student, expert, Progressive(), env, data)):  # doctest: +SKIP
...     print(round.number, round.losses)

Everything a curriculum asks of student and expert between two rounds is charged to the run, and told with the next.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_above, check_at_least, check_share
from dagdiff.dagger import DAgger
from dagdiff.metrics.amplification import measure_amplification
from dagdiff.mixture import LinearRamp, Ramp
from dagdiff.objectives.progressive import Progressive
from dagdiff.round import Round
from dagdiff.shapes import Times
from dagdiff.state import attributes, load_attributes

Curriculum = Callable[[DAgger], Iterator[Round]]
"""``loop -> `` its rounds, one after another."""


class Plain:
    """Every round like the one before."""

    def __call__(self, loop: DAgger) -> Iterator[Round]:
        """Yield the loop's rounds."""
        return iter(loop)


class ForwardTraining:
    """Learn one step after the other, each on the states to which the finished steps lead.

    The states of step k are then exactly those of inference: no shift, without a mixture and without aggregation. The
    price is a policy that is not stationary, a network a step, each of which gets a K-th of the updates (and the whole
    learning-rate ramp). Needs a student with ``networks``, one a step in their order, as
    ``dagdiff.policies.student.Stepwise`` has; shares 0,1,0 are the published method. Source: Ross and
    Bagnell 2010, https://proceedings.mlr.press/v9/ross10a.html.
    """

    def __call__(self, loop: DAgger) -> Iterator[Round]:
        """Yield the rounds, equally many a step.

        Raises:
            Refusal: for a student with one network for all steps, an objective with a grid of its own, or rounds that
                do not divide by the steps.
        """
        steps = len(loop.env.times) - 1
        networks, each = _networks(loop, steps), loop.rounds // steps
        weights = [[each for each in network.parameters() if each.requires_grad] for network in networks]
        ends = list(accumulate(sum(loop.updates_by_round[k * each :][:each]) for k in range(steps)))
        loop.learner.lr_ramp = ByStage(loop.learner.lr_ramp, ends)
        rounds = iter(loop)
        try:
            for step in range(steps):
                loop.focus(step)
                for number, learning in enumerate(weights):
                    _let_learn(learning, number == step)
                yield from islice(rounds, each)
            yield from rounds  # none are left; it ends
        finally:
            for learning in weights:
                _let_learn(learning, True)


@dataclass(frozen=True)
class ByStage:
    """A ramp that runs its whole course in each stage of training.

    Args:
        ramp: it.
        ends: how many updates have been made at the end of each stage; the last are all.
    """

    ramp: Ramp
    ends: Sequence[int]

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress`` of all training."""
        made = round(progress * self.ends[-1])
        stage = min(bisect_right(self.ends, made), len(self.ends) - 1)
        start = self.ends[stage - 1] if stage else 0
        return self.ramp((made - start) / (self.ends[stage] - start))


def _let_learn(weights: Iterable[nn.Parameter], learn: bool) -> None:
    for each in weights:
        each.requires_grad_(learn)


@dataclass(frozen=True)
class Coaching:
    """Easy targets first: labels go from the prediction that the policy made there to the expert's.

    A label keeps the ease it was given, as in the paper; let old records go (``rounds_kept``), or the early ones stay
    eased. Source: He, Daume and Eisner 2012, https://papers.nips.cc/paper/4545-imitation-learning-by-coaching.

    Args:
        ease: the policy's part of a label in the first round.
        until: the part of training after which labels are the expert's alone.
    """

    ease: float = 0.5
    until: float = 0.5

    def __post_init__(self) -> None:
        check_share("ease", self.ease)
        check_above("until", self.until, 0.0)

    def __call__(self, loop: DAgger) -> Iterator[Round]:
        """Yield the rounds; reject an objective without such labels."""
        objective, ramp = _progressive(loop, "coaching eases"), LinearRamp(self.ease, 0.0, self.until)
        objective.ease = ramp(0.0)
        for done in loop:
            yield done
            objective.ease = ramp(done.number / loop.rounds)


@dataclass(frozen=True)
class CostToGo:
    """Weigh the loss by what an error at each step costs in the end, measured after every round and averaged over them.

    An error e at step k moves the end of the chain by about A_k e (:mod:`dagdiff.metrics.amplification`), so its
    squared cost is A_k^2 e^2: the weights are A_k^2, scaled to mean 1, on top of the objective's own (give it
    ``unweighted`` to have them alone). A single measurement is noisy, for few chains switch modes and cost most: hence
    the mean over the rounds so far. The first round is not weighed. Source: AggreVaTe, Ross and Bagnell 2014,
    https://arxiv.org/abs/1406.5979, whose cost-sensitive loss this is to second order.

    Args:
        chains: to measure on.
    """

    chains: int = 64

    def __post_init__(self) -> None:
        check_at_least("chains", self.chains, 1)

    def __call__(self, loop: DAgger) -> Iterator[Round]:
        """Yield the rounds; reject an objective that can't be weighed by step."""
        objective, times = _progressive(loop, "cost-to-go weighs"), loop.env.times
        objective.by_time = weight = ByStep(times, torch.ones_like(times[:-1]))
        for done in loop:
            yield done
            if loop.replayed < done.number < loop.rounds:
                weight.add(self._square(loop))

    def _square(self, loop: DAgger) -> Tensor:
        """A_k^2, ``(K,)``; a step without error counts as one that keeps errors as they are."""
        env, generator = loop.env, loop.generator
        noise = torch.randn((self.chains, *env.action_spec.shape[1:]), generator=generator, device=env.device)
        condition = env.conditions(self.chains, generator) if loop.conditional else None
        found = measure_amplification(loop.policy, loop.expert, env.transition, env.times, noise, condition, generator)
        square = [1.0 if math.isnan(row.amplification) else row.amplification**2 for row in found]
        return torch.tensor(square, device=env.device)


class ByStep:
    """A weight for each step of a grid, looked up by where the step starts.

    Args:
        times: the grid, ``(K + 1,)``.
        weights: ``(K,)``, before costs are known.
    """

    def __init__(self, times: Times, weights: Tensor) -> None:
        self.times, self.weights, self.costs = times, weights, torch.zeros_like(weights)

    def add(self, costs: Tensor) -> None:
        """Weigh by the sum of all costs so far, ``(K,)``, scaled to mean 1."""
        self.costs = self.costs + costs
        self.weights = self.costs / self.costs.mean()

    def __call__(self, t: Times) -> Tensor:
        """Return the weights of the steps that start nearest to ``t``, ``(B,)``."""
        return self.weights[(self.times[:-1] - t.unsqueeze(-1)).abs().argmin(-1)]

    def state_dict(self) -> dict[str, Any]:
        """Return weights and costs."""
        return attributes(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        load_attributes(self, state)


@dataclass(frozen=True)
class AdaptiveShares:
    """Take as many on-policy states as the shift of the last round calls for (ours).

    The part of the loss on student states that forward states do not show, 1 - loss_forward / loss_own, is 0 without a
    shift and goes to 1 with it. It scales the two on-policy shares that the run was given, which so are the most there
    can be; forward states take the rest. The held-out measurement that it looks at is training now, and is charged.

    Args:
        least: the part of the given on-policy shares that is taken even without a shift, and in the first round.
    """

    least: float = 0.2

    def __post_init__(self) -> None:
        check_share("least", self.least)

    def __call__(self, loop: DAgger) -> Iterator[Round]:
        """Yield the rounds; reject a loop that measures nothing."""
        if loop.heldout is None:
            raise Refusal("adaptive shares look at the held-out loss gap; got heldout=0. Pass e.g. heldout=128.")
        most, measured = loop.shares, len(loop.heldout.x0) * (len(loop.env.times) - 1)
        twice = 2 if loop.conditional and loop.expert.guidance != 1.0 else 1
        loop.shares = most.ramped(self.least)
        for done in loop:
            yield done
            loop.ledger.charge(3 * measured)  # the chains, and the guesses on both laws
            loop.expert.ledger.charge(2 * measured * loop.expert.substeps * twice)
            loop.shares = most.ramped(self.height(sum(done.loss_forward), sum(done.loss_own)))

    def height(self, forward: float, own: float) -> float:
        """Return what the on-policy shares are scaled by, in [``least``, 1], from the loss on both laws of states."""
        unseen = 1.0 - forward / own if own > forward else 0.0
        return max(self.least, unseen)


def _networks(loop: DAgger, steps: int) -> nn.ModuleList:
    networks = getattr(loop.student, "networks", None)
    if not isinstance(networks, nn.ModuleList) or len(networks) != steps:
        raise Refusal(
            f"forward training needs a student with a network for each of {steps} steps; got a "
            f"{type(loop.student).__name__}. Pass stepwise=true, or wrap it: Stepwise(student, times)."
        )
    if len(loop.sources.grid) != len(loop.env.times):
        raise Refusal(
            f"forward training needs an objective that trains at the student's own {steps} times; "
            f"{type(loop.objective).__name__} takes {len(loop.sources.grid) - 1} others. Use Progressive."
        )
    if loop.rounds % steps:
        raise Refusal(
            f"rounds must divide by the {steps} steps, a stage a step; got {loop.rounds}. Pass e.g. rounds={5 * steps}."
        )
    return networks


def _progressive(loop: DAgger, change: str) -> Progressive:
    if not isinstance(loop.objective, Progressive):
        name = type(loop.objective).__name__
        raise Refusal(f"{change} the labels of progressive distillation; got the objective {name}. Use Progressive.")
    return loop.objective
