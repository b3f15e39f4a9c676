"""The held-out measurement that closes a round: how the student does, step by step, on each law of states.

The laws are those of :mod:`dagdiff.metrics.shift`: forward-diffused data, the student's own chains, and chains of the
expert in the student's place. The same noise and the same data rows serve every round, so that rounds compare; the
expert's chains are made in the first.
"""

import torch
from tensordict import TensorDict

from dagdiff.checks import check_finite
from dagdiff.expert import Expert
from dagdiff.metrics.imitation import imitation_loss
from dagdiff.objectives.base import Objective
from dagdiff.policy import ExpertPolicy, StudentPolicy
from dagdiff.rollout import Data, draw
from dagdiff.schedule import perturb
from dagdiff.shapes import Denoiser, States, Times
from dagdiff.transition import Step, Transition, chain


class HeldOut:
    """A fixed set of chains and data rows, measured again whenever it is called.

    Args:
        data: clean points; ``rows`` of them are drawn now.
        transition: the student's transition.
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
        self._led: tuple[Expert, list[Step]] | None = None

    def imitation(self, policy: Denoiser, expert: Expert) -> dict[str, list[float]]:
        """Return ``loss_forward``, ``loss_own`` and ``loss_expert``, the imitation loss at each step, at no charge."""
        generator = self._generator()
        steps = self._chains(policy)
        led = [step.x_t for step in self._expert_chains(expert)]
        return {
            "loss_forward": [self._loss(policy, expert, self._forward(step, generator), step) for step in steps],
            "loss_own": [self._loss(policy, expert, step.x_t, step) for step in steps],
            "loss_expert": [self._loss(policy, expert, x_t, step) for x_t, step in zip(led, steps, strict=True)],
        }

    def displacement(self, policy: Denoiser, expert: Expert) -> list[float]:
        """Return the root mean square distance of own to expert states of the same noise, where each step lands."""
        pairs = zip(self._chains(policy), self._expert_chains(expert), strict=True)
        return [float((own.x_s - led.x_s).square().mean().sqrt()) for own, led in pairs]

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
        if not torch.stack([step.x_s for step in self._expert_chains(expert)]).isfinite().all():
            return "the states of the expert's held-out chains"
        return None

    def _expert_chains(self, expert: Expert) -> list[Step]:
        """The expert's chains; they are run once for an expert, for it is frozen."""
        if self._led is None or self._led[0] is not expert:
            with expert.ledger.free():
                self._led = expert, self._chains(ExpertPolicy(expert, self.transition, self.times))
        return self._led[1]

    def _chains(self, policy: Denoiser) -> list[Step]:
        return list(chain(policy, self.transition, self.times, self.noise, self.condition, self._generator()))

    def _loss(self, policy: Denoiser, expert: Expert, x_t: States, step: Step) -> float:
        return imitation_loss(policy, expert, self.transition, x_t, step.t, step.s, self.condition)

    def _forward(self, step: Step, generator: torch.Generator) -> States:
        noise = torch.randn(self.x0.shape, generator=generator, device=self.x0.device)
        return perturb(self.x0, noise, step.t, self.transition.schedule)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.times.device).manual_seed(self.seed)
