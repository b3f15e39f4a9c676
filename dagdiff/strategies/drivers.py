"""Other behaviour policies: who acts in a rollout, beside the plain mixture of :class:`dagdiff.rollout.MixturePolicy`.

A driver decides which *states* are visited; the labels stay the expert's, whoever acted. What it asks of the expert and
of the student in order to decide is training, and is charged like everything else.
"""

import torch
from tensordict import TensorDictBase

from dagdiff.checks import Refusal, check_at_least, check_share
from dagdiff.expert import Expert
from dagdiff.rollout import MixturePolicy
from dagdiff.shapes import Condition, Denoiser, States, Times, column
from dagdiff.transition import Transition


class Dart(MixturePolicy):
    """Expert chains with noise: where the expert drives, its prediction errs as much as the student's does (DART).

    The noise of a step is Gaussian, and in each coordinate as large as the student's error there: the root mean square,
    over the rows that the expert drives, of the student's prediction minus the expert's. So the chains visit the
    neighbourhood of the expert's path that the student will need, without its being led by a poor student. Where the
    student drives nothing changes; use expert chains, e.g. shares 0.25,0,0.75.

    Source: Laskey et al. 2017, https://arxiv.org/abs/1703.09327. There the noise has a full covariance, fitted between
    rounds; a deviation for each coordinate works for images too, and measuring it in the rollout itself costs one more
    student evaluation a row and never lags behind.
    """

    def advice(self, x_t: States, t: Times, s: Times, condition: Condition) -> States:
        """Return the expert's prediction with the noise of this step."""
        advice = super().advice(x_t, t, s, condition)
        deviation = (self.student(x_t, t, condition) - advice).square().mean(0).sqrt()
        return advice + deviation * torch.randn(
            advice.shape, generator=self.generator, device=advice.device, dtype=advice.dtype
        )


class Gate(MixturePolicy):
    """Let the student drive until it goes astray: the expert acts where their predictions differ too much (SafeDAgger).

    The difference is the root mean square over a row's coordinates, in units of x. So early rollouts of a poor student
    do not waste labels on states where no good student comes, and later ones are the student's own. Rows that ``beta``
    gives to the expert are the expert's as ever, so its own chains stay what they are.

    Source: Zhang and Cho 2017, https://arxiv.org/abs/1605.06450. There a classifier learns to foresee the difference
    and saves the questions; here they are asked, up to the budget.

    Args:
        student, expert, transition, per_chain, generator, conditional: as in the mixture.
        threshold: the difference that is let pass.
        budget: the part of the chains about which the expert may be asked at each step, drawn afresh: a rollout of B
            chains and K steps costs at most budget B K k evaluations of an expert with k sub-steps.
    """

    def __init__(
        self,
        student: Denoiser,
        expert: Expert,
        transition: Transition,
        per_chain: bool = False,
        generator: torch.Generator | None = None,
        conditional: bool = False,
        threshold: float = 0.2,
        budget: float = 1.0,
    ) -> None:
        check_at_least("threshold", threshold, 0.0)
        check_share("budget", budget)
        if per_chain:
            raise Refusal("per_chain=True keeps a driver to the chain's end, which a gate can't. Pass per_chain=False.")
        super().__init__(student, expert, transition, per_chain, generator, conditional)
        self.threshold, self.budget = threshold, budget

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action`` and ``actor``, the expert's where it drives or steps in."""
        decided = super().forward(tensordict)
        action, actor = decided["action"], decided["actor"]
        rows = self._asked(actor)
        if len(rows) == 0:
            return decided
        x_t, t, s = decided["x_t"][rows], decided["t"].squeeze(-1)[rows], decided["s"].squeeze(-1)[rows]
        condition = decided.get("condition", None)
        advice = self.advice(x_t, t, s, None if condition is None else condition[rows])
        apart = (advice - action[rows]).square().flatten(1).mean(1).sqrt() > self.threshold
        chosen = torch.where(column(apart, advice), advice, action[rows])
        decided.set("action", action.index_copy(0, rows, chosen))
        return decided.set("actor", actor.index_copy(0, rows, apart.unsqueeze(-1).to(actor.dtype)))

    def _asked(self, actor: torch.Tensor) -> torch.Tensor:
        """The rows in question: round(budget B) of those that the student drives, or all of them if they are fewer."""
        count = min(round(self.budget * len(actor)), len(actor) - round(self.beta * len(actor)))
        draw = torch.rand(len(actor), generator=self.generator, device=actor.device)
        return (draw + actor.squeeze(-1)).argsort()[:count]
