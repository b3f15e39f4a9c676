"""The held-out measurement that closes a round: how the student does, step by step, on each law of states.

The laws are those that training mixes: forward-diffused data, the student's own chains, and the expert's, which walks
its own path from the noise that the student starts from. The same noise and the same data rows serve every round, so
that rounds compare.
"""

import torch
from tensordict import TensorDict

from dagdiff.checks import check_finite
from dagdiff.expert import Expert
from dagdiff.metrics.shift import imitation_loss
from dagdiff.objectives.base import Objective
from dagdiff.policy import StudentPolicy
from dagdiff.rollout import Data, draw
from dagdiff.schedule import perturb
from dagdiff.shapes import States, Times
from dagdiff.transition import Step, Transition, chain


class HeldOut:
    """A fixed set of chains and data rows, measured again whenever it is called.

    Args:
        data: clean points; ``rows`` of them are drawn now.
        transition: the student's law of motion.
        times: its grid.
        rows: how many chains, and how many forward states a step.
        conditional: whether chains have a condition.
        seed: of the draw.
    """

    def __init__(
        self, data: Data, transition: Transition, times: Times, rows: int, conditional: bool = False, seed: int = 10_000
    ) -> None:
        self.transition, self.times, self.seed = transition, times, seed
        generator = self._generator()
        self.x0, self.condition = draw(data, rows, generator, conditional)
        check_finite("the held-out rows of the data", self.x0)
        self.noise = torch.randn(self.x0.shape, generator=generator, device=self.x0.device)

    def imitation(self, policy: StudentPolicy, expert: Expert) -> dict[str, list[float]]:
        """Return ``loss_forward``, ``loss_own`` and ``loss_expert``, the imitation loss at each step, at no charge."""
        generator = self._generator()
        steps = self._chains(policy)
        with expert.ledger.free():
            led = expert.walk(self.noise, self.times[:-1], self.condition)
        return {
            "loss_forward": [self._loss(policy, expert, self._forward(step, generator), step) for step in steps],
            "loss_own": [self._loss(policy, expert, step.x_t, step) for step in steps],
            "loss_expert": [self._loss(policy, expert, x_t, step) for x_t, step in zip(led, steps, strict=True)],
        }

    @torch.no_grad()
    def objective(self, policy: StudentPolicy, expert: Expert, objective: Objective) -> float:
        """Return the objective's own loss on the states that the student visits."""
        condition = {} if self.condition is None else {"condition": self.condition}
        steps = self._chains(policy)
        records = [TensorDict({"x_t": at.x_t, "t": at.t, "s": at.s, **condition}, [len(at.x_t)]) for at in steps]
        own = objective.annotate(expert, torch.cat(records))
        policy.student.eval()
        return float(objective.loss(policy.student, own).loss)

    @torch.no_grad()
    def faulty(self, expert: Expert) -> str | None:
        """Name what the expert answers with NaN or infinity, of held-out forward states and its own; None if neither.

        It is asked at no charge.
        """
        generator, n = self._generator(), len(self.x0)
        noise = torch.randn(self.x0.shape, generator=generator, device=self.x0.device)
        with expert.ledger.free():
            for t in self.times[:-1]:
                at = t.expand(n)
                x_t = perturb(self.x0, noise, at, self.transition.schedule)
                if not expert(x_t, at, self.condition).isfinite().all():
                    return "the expert's labels of held-out forward states"
            if not torch.stack(expert.walk(self.noise, self.times[:-1], self.condition)).isfinite().all():
                return "the states of the expert's held-out chains"
        return None

    def _chains(self, policy: StudentPolicy) -> list[Step]:
        return list(chain(policy, self.transition, self.times, self.noise, self.condition, self._generator()))

    def _loss(self, policy: StudentPolicy, expert: Expert, x_t: States, step: Step) -> float:
        return imitation_loss(policy, expert, self.transition, x_t, step.t, step.s, self.condition)

    def _forward(self, step: Step, generator: torch.Generator) -> States:
        noise = torch.randn(self.x0.shape, generator=generator, device=self.x0.device)
        return perturb(self.x0, noise, step.t, self.transition.schedule)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.times.device).manual_seed(self.seed)
