r"""Distribution matching distillation (DMD2): move samples where the real score exceeds the fake one.

Source: Yin et al. 2024, https://arxiv.org/abs/2405.14867.

The student's answer x = G(x_t, t) is perturbed to a random time tau and shown to two denoisers: the expert (the *real*
score) and a network that learns online to denoise what the student makes (the *fake* score). The student descends

.. math:: L = \tfrac12 \lVert x - sg(x - g) \rVert^2, \qquad g = (\mu_{fake} - \mu_{real}) / mean|x - \mu_{real}|

whose gradient with respect to x is g. A GAN head on the fake score's features can be added; it compares with real data.
The critic (fake score and head) learns on answers to the same mixture of states as the student, several updates to one.

A few-step student answers at K times, and only the last answer is a sample. One fake score for all, as published, sees
their pool: where the answers at one time have too much of a mode and those at another too little, the pool looks right,
nothing pulls, and modes are lost. So the critic here is told the *origin* of an answer, the time t at which the student
made it, and each time is matched on its own; ``tell_origin=False`` is the published pool.

For the same reason the mixture is one of own and of expert states: there the answers at any time should follow the
whole law. Answers at forward states should follow the law of the data shown; where that is not the teacher's, matching
the pool bends the answers at own states the other way.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import softplus

from dagdiff.checks import Refusal, check_at_least
from dagdiff.expert import Expert
from dagdiff.learner import Learner, Learning
from dagdiff.objectives.base import Clean, Loss, Objective, denoising_loss
from dagdiff.schedule import perturb
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Renoise


def score_difference(answer: States, real: States, fake: States) -> States:
    """Return g = (fake - real) / mean(abs(answer - real)), the mean a row's; a row without scale gets no gradient."""
    scale = (answer - real).abs().flatten(1).mean(1)
    difference = (fake - real) / scale.reshape(-1, *[1] * (answer.ndim - 1))
    return torch.nan_to_num(difference, nan=0.0, posinf=0.0, neginf=0.0)


class DistributionMatching(Objective):
    """DMD2 on states of any source.

    Args:
        critic_updates: updates of the fake score (and head) before each update of the student; 5 as published, which
            a critic that is not told the origin needs.
        critic_lr: learning rate of the critic (AdamW).
        critic_betas: AdamW's decay rates of the first and the second moment.
        gan_weight: weight of the GAN loss of the student; 0 leaves the head away. Needs a student network with
            ``features(x_t, t, condition) -> (B, F)`` and ``feature_size``, and real data.
        gan_critic_weight: weight of the head's own loss beside the fake score's.
        tau: the range of the random time at which the two scores are compared.
        tell_origin: tell the critic at which time an answer was made. Needs a student network with ``with_origin()``,
            a copy that takes the origin as one more argument.
    """

    sampler = Renoise
    backward_simulation = True

    def __init__(
        self,
        critic_updates: int = 2,
        critic_lr: float = 2e-3,
        critic_betas: tuple[float, float] = (0.9, 0.999),
        gan_weight: float = 0.0,
        gan_critic_weight: float = 1e-2,
        tau: tuple[float, float] = (0.02, 0.98),
        tell_origin: bool = True,
    ) -> None:
        check_at_least("critic_updates", critic_updates, 1)
        check_at_least("gan_weight", gan_weight, 0.0)
        if not 0.0 < tau[0] < tau[1] <= 1.0:
            raise Refusal(f"tau must be a range inside (0, 1]; got {tau}. Pass e.g. tau=(0.02, 0.98).")
        self.critic_updates, self.critic_lr, self.critic_betas, self.tau = critic_updates, critic_lr, critic_betas, tau
        self.gan_weight, self.gan_critic_weight = gan_weight, gan_critic_weight
        self.tell_origin = tell_origin

    def check_student(self, student: nn.Module) -> None:
        """Refuse a student that can't be told an origin, or has no features for the head, where these are needed."""
        fake = _with_origin(student) if self.tell_origin else student
        if self.gan_weight:
            _feature_size(fake)

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Start the fake score from the student (which starts from the teacher)."""
        self.expert, self.clean, self.generator = expert, clean, generator
        self.fake: Any = _with_origin(student) if self.tell_origin else copy.deepcopy(student)
        self.head = _head(self.fake, generator) if self.gan_weight else None
        self.critic = nn.ModuleList([self.fake, self.head] if self.head else [self.fake])
        adam = partial(torch.optim.AdamW, lr=self.critic_lr, betas=self.critic_betas, weight_decay=0.01)
        self.learner = Learner(self.critic, Learning(adam, clip=10.0))

    def state_dict(self) -> dict[str, Any]:
        """Return the critic's: fake score, head and optimiser."""
        return {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the critic's state back."""
        self.learner.load_state_dict(state["learner"])

    def horizon(self, s: Times) -> Times:
        """Time 0: answers are to be clean samples, whatever the step."""
        return torch.zeros_like(s)

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the distribution-matching loss (plus the GAN's); only the student's answer carries gradient."""
        condition, origin = batch.get("condition"), self._origin(batch)
        answer = student(batch["x_t"], batch["t"], condition)
        with torch.no_grad():
            x_tau, tau = self._perturb(answer)
            real = self.expert(x_tau, tau, condition)
            fake = self.expert.threshold(self.fake(x_tau, tau, condition, *origin))
            goal = answer - score_difference(answer, real, fake)
        matching = 0.5 * (answer - goal).square().mean()
        if self.head is None:
            return Loss(matching, {"matching": matching.detach()})
        self.critic.requires_grad_(False)  # the student's loss leaves no gradient on its critic
        gan = softplus(-self._logit(answer, condition, origin)).mean()
        self.critic.requires_grad_(True)
        return Loss(matching + self.gan_weight * gan, {"matching": matching.detach(), "gan": gan.detach()})

    def improve_critic(self, student: nn.Module, batch: TensorDict) -> Mapping[str, Tensor]:
        """Teach the fake score to denoise the student's answers, and the head to tell them from real data."""
        condition, origin = batch.get("condition"), self._origin(batch)
        with torch.no_grad():
            answer = student(batch["x_t"], batch["t"], condition)
        noise, tau = self._noise(answer), self._times(answer)
        loss = denoising_loss(self.fake, answer, noise, tau, self.expert.schedule, condition, *origin)
        parts = {"fake": loss.detach()}
        if self.head is not None:
            real, label = self.clean(len(answer))
            made, true = self._logit(answer, condition, origin), self._logit(real, label, origin)
            head = softplus(made).mean() + softplus(-true).mean()
            loss, parts["head"] = loss + self.gan_critic_weight * head, head.detach()
        self.learner.update(loss)
        return parts

    def _origin(self, batch: TensorDict) -> tuple[Times, ...]:
        """What the critic is told beside the condition: when an answer to the batch is made, or nothing."""
        return (batch["t"],) if self.tell_origin else ()

    def _logit(self, x0: States, condition: Condition, origin: tuple[Times, ...]) -> Tensor:
        """The head's logit, ``(B, 1)``, that ``x0`` is real, seen at a random noise level."""
        assert self.head is not None
        x_tau, tau = self._perturb(x0)
        logit: Tensor = self.head(self.fake.features(x_tau, tau, condition, *origin))
        return logit

    def _perturb(self, x0: States) -> tuple[States, Times]:
        tau = self._times(x0)
        return perturb(x0, self._noise(x0), tau, self.expert.schedule), tau

    def _times(self, x0: States) -> Times:
        low, high = self.tau
        return low + (high - low) * torch.rand(len(x0), generator=self.generator, device=x0.device, dtype=x0.dtype)

    def _noise(self, x0: States) -> States:
        return torch.randn(x0.shape, generator=self.generator, device=x0.device, dtype=x0.dtype)


def _with_origin(student: Any) -> nn.Module:
    """A copy of the student's network that takes an origin too."""
    try:
        copied: nn.Module = student.with_origin()
    except AttributeError as error:
        if error.name != "with_origin":
            raise
        raise Refusal(
            "DMD2 tells its fake score at which time an answer was made, which needs a student with with_origin(); "
            f"{type(student).__name__} has none. Set tell_origin=False (one fake score for all times) or add it."
        ) from None
    return copied


def _feature_size(network: nn.Module) -> int:
    """The width of the network's features."""
    size: int | None = getattr(network, "feature_size", None)
    if size is None:
        raise Refusal(
            f"gan_weight > 0 needs a student with features(x_t, t, condition) and feature_size; "
            f"{type(network).__name__} has none. Set gan_weight=0 or add them."
        )
    return size


def _head(network: nn.Module, generator: torch.Generator | None) -> nn.Module:
    """A small discriminator on the network's features, its weights drawn from ``generator``."""
    size = _feature_size(network)
    device = next(network.parameters()).device
    hidden, last = nn.Linear(size, size, device=device), nn.Linear(size, 1, device=device)
    for layer in (hidden, last):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(hidden, nn.SiLU(), last)
