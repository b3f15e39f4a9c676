r"""Distribution matching distillation (DMD2): move samples where the real score exceeds the fake one.

Source: Yin et al. 2024, https://arxiv.org/abs/2405.14867.

The student's answer x = G(x_t, t) is perturbed to a random time tau and shown to two denoisers: the expert (the *real*
score) and a network that learns online to denoise what the student makes (the *fake* score). The student descends

.. math:: L = \tfrac12 \lVert x - sg(x - g) \rVert^2, \qquad g = (\mu_{fake} - \mu_{real}) / mean|x - \mu_{real}|

whose gradient with respect to x is g. A GAN head on the critic's features can be added; it compares with real data.
The critic (with its head) learns on answers to the same mixture of states as the student, several updates to one.

A few-step student answers at K times, and only the last answer is a sample. One critic for all, as published, sees
their pool: where the answers at one time have too much of a mode and those at another too little, the pool looks right,
nothing pulls, and modes are lost. So the critic here is told the *origin* of an answer, the time t at which the student
made it, and each time is matched on its own; ``tell_origin=False`` is the published pool. Drawing tau within the step
in which the answer was made (``tau_by_step``) keeps the times apart too, with the published network: trajectory
distribution matching (Luo et al. 2025, https://arxiv.org/abs/2503.06674) and Phased DMD (Fan et al. 2025,
https://arxiv.org/abs/2510.27684) do so.

For the same reason the mixture is one of own and of expert states: there the answers at any time should follow the
whole law. Answers at forward states should follow the law of the data shown; where that is not the teacher's, matching
the pool bends the answers at student states the other way.

A label can stand beside the matching: with ``label_weight`` the answer is also drawn to the end of the expert's walk
from its state. DMD had such a term, on pairs from noise (Yin et al. 2023, https://arxiv.org/abs/2311.18828), and DMD2
gave it up for its price; here a label is bought once and serves many batches.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import softplus

from dagdiff.checks import Refusal, check_at_least
from dagdiff.expert import Expert
from dagdiff.learner import Learner, Learning
from dagdiff.objectives.base import Clean, Loss, Objective, RowLoss, by_row, denoising_loss
from dagdiff.schedule import perturb
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Renoise


def score_difference(answer: States, real: States, fake: States) -> States:
    """Return g = (fake - real) / mean(abs(answer - real)), the mean a row's; a row without scale gets no gradient."""
    scale = (answer - real).abs().flatten(1).mean(1)
    scale = scale.reshape(-1, *[1] * (answer.ndim - 1))
    difference = (fake - real) / scale
    return torch.where(scale < torch.finfo(scale.dtype).tiny, 0.0, difference)  # NaN stays: it is somebody's fault


Seen = tuple[Any, ...]
"""What a critic is shown: ``x_tau, tau, condition``, and the origin where it is told that."""


class Critic(nn.Module):
    """The critic and the GAN's head as one network: several processes see its forward alone.

    Args:
        fake: a denoiser, with ``features`` where there is a head.
        head: judges these; None for no GAN.
    """

    def __init__(self, fake: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.fake: Any = fake
        self.head = head

    def forward(self, seen: Seen | None, judged: Sequence[Seen] = ()) -> tuple[States | None, list[Tensor]]:
        """Return the critic's prediction at what is ``seen``, and of all that is ``judged`` a logit of being real.

        A prediction is ``(B, *D)``, a logit ``(B, 1)``.
        """
        guess = None if seen is None else self.fake(*seen)
        return guess, [self.head(self.fake.features(*each)) for each in judged if self.head is not None]


class DistributionMatching(Objective):
    """DMD2 on states of any source; data are needed for forward states and a GAN head alone.

    Args:
        critic_updates: updates of the critic (and its head) before each update of the student; 5 as published, which
            a critic that is not told the origin needs.
        critic_lr: learning rate of the critic (AdamW).
        critic_betas: AdamW's decay rates of the first and the second moment.
        gan_weight: weight of the GAN loss of the student; 0 leaves the head away. Needs a student network with
            ``features(x_t, t, condition) -> (B, F)`` and ``feature_size``, and real data: of a pipeline, pictures.
        gan_critic_weight: weight of the head's own loss beside the critic's.
        tau: the range of the random time at which the two scores are compared.
        tell_origin: tell the critic at which time an answer was made. Needs a student network with ``with_origin()``,
            a copy that takes the origin as one more argument.
        tau_by_step: draw tau between the end and the start of the step in which an answer was made, within ``tau``.
        label_weight: weight of the mean squared distance of an answer to the expert's label; 0 buys no labels.
    """

    label_options = ("label_weight",)
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
        tau_by_step: bool = False,
        label_weight: float = 0.0,
    ) -> None:
        check_at_least("critic_updates", critic_updates, 1)
        check_at_least("gan_weight", gan_weight, 0.0)
        check_at_least("label_weight", label_weight, 0.0)
        if not 0.0 < tau[0] < tau[1] <= 1.0:
            raise Refusal(f"tau must be a range inside (0, 1]; got {tau}. Pass e.g. tau=(0.02, 0.98).")
        self.critic_updates, self.critic_lr, self.critic_betas, self.tau = critic_updates, critic_lr, critic_betas, tau
        self.gan_weight, self.gan_critic_weight = gan_weight, gan_critic_weight
        self.real_data = gan_weight > 0
        self.tell_origin, self.tau_by_step, self.label_weight = tell_origin, tau_by_step, label_weight

    def check_student(self, student: nn.Module) -> None:
        """Reject a student that can't be told an origin, or has no features for the head, where these are needed."""
        fake = _with_origin(student) if self.tell_origin else student
        if self.gan_weight:
            _feature_size(fake)

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Start the critic from the student (which starts from the teacher)."""
        self.expert, self.clean, self.generator = expert, clean, generator
        self.fake: Any = _with_origin(student) if self.tell_origin else copy.deepcopy(student)
        self.head = _head(self.fake, generator) if self.gan_weight else None
        self.critic = Critic(self.fake, self.head)
        fused = not next(self.critic.parameters()).is_meta
        adam = partial(torch.optim.AdamW, lr=self.critic_lr, betas=self.critic_betas, weight_decay=0.01, fused=fused)
        self.learner = Learner(self.critic, Learning(adam, clip=10.0))

    def state_dict(self) -> dict[str, Any]:
        """Return the critic's state: its network, head and optimiser."""
        return {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the critic's state back."""
        self.learner.load_state_dict(state["learner"])

    def horizon(self, s: Times) -> Times:
        """Time 0: answers are to be clean samples, whatever the step."""
        return torch.zeros_like(s)

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``target`` and ``end``, where the expert's walk ends, if labels have a weight."""
        if not self.label_weight:
            return states
        end = self.horizon(states["s"])
        target = expert.target(states["x_t"], states["t"], end, states.get("condition"))
        return states.set("target", target).set("end", end)

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the matching loss, plus the GAN's and the label's; only the student's answer carries gradient."""
        condition, origin = batch.get("condition"), self._origin(batch)
        answer = student(batch["x_t"], batch["t"], condition)
        with torch.no_grad():
            x_tau, tau = self._perturb(answer, batch)
            real = self.expert(x_tau, tau, condition)
            fake = self.expert.threshold(self.critic((x_tau, tau, condition, *origin))[0])
            goal = answer - score_difference(answer, real, fake)
        matching = (answer - goal).square()
        loss, each = 0.5 * matching.mean(), [(0.5, matching)]
        parts = {"matching": loss.detach()}
        if self.label_weight:
            apart = (answer - batch["target"]).square()
            label = apart.mean()
            loss, parts["label"] = loss + self.label_weight * label, label.detach()
            each.append((self.label_weight, apart))
        if self.head is not None:
            trained = [weight for weight in self.critic.parameters() if weight.requires_grad]
            for weight in trained:  # the student's loss leaves no gradient on its critic
                weight.requires_grad_(False)
            unreal = softplus(-self._logit(answer, condition, origin, batch))
            gan = unreal.mean()
            for weight in trained:
                weight.requires_grad_(True)
            loss, parts["gan"] = loss + self.gan_weight * gan, gan.detach()
            each.append((self.gan_weight, unreal))
        return RowLoss.of(loss, parts, partial(_by_row, each))

    def improve_critic(self, student: nn.Module, batch: TensorDict) -> Mapping[str, Tensor]:
        """Teach the critic to denoise the student's answers, and the head to tell them from real data."""
        condition, origin = batch.get("condition"), self._origin(batch)
        with torch.no_grad():
            answer = student(batch["x_t"], batch["t"], condition)
        noise, tau = self._noise(answer), self._times(batch)
        judged: list[Seen] = []
        if self.head is not None:
            real, label = self.clean(len(answer))
            judged = [
                self._shown(answer, condition, origin, batch),
                self._shown(real, label, origin, batch),
            ]
        logits: list[Tensor] = []

        def fake(*seen: Any) -> States:
            guess: States
            guess, logits[:] = self.learner.forward(seen, judged)
            return guess

        loss = denoising_loss(fake, answer, noise, tau, self.expert.schedule, condition, *origin)
        parts = {"fake": loss.detach()}
        if self.head is not None:
            made, true = logits
            head = softplus(made).mean() + softplus(-true).mean()
            loss, parts["head"] = loss + self.gan_critic_weight * head, head.detach()
        self.learner.update(loss)
        return parts

    def _origin(self, batch: TensorDict) -> tuple[Times, ...]:
        """What the critic is told beside the condition: when an answer to the batch is made, or nothing."""
        return (batch["t"],) if self.tell_origin else ()

    def _logit(self, x0: States, condition: Condition, origin: tuple[Times, ...], batch: TensorDict) -> Tensor:
        """The head's logit, ``(B, 1)``, that ``x0`` is real, seen at a random noise level."""
        logit: Tensor = self.critic(None, [self._shown(x0, condition, origin, batch)])[1][0]
        return logit

    def _shown(self, x0: States, condition: Condition, origin: tuple[Times, ...], batch: TensorDict) -> Seen:
        """What the head is shown of a point: it at a random noise level."""
        return (*self._perturb(x0, batch), condition, *origin)

    def _perturb(self, x0: States, batch: TensorDict) -> tuple[States, Times]:
        tau = self._times(batch)
        return perturb(x0, self._noise(x0), tau, self.expert.schedule), tau

    def _times(self, batch: TensorDict) -> Times:
        """A time tau for each row of the batch."""
        t = batch["t"]
        drawn = torch.rand(t.shape, generator=self.generator, device=t.device, dtype=t.dtype)
        if not self.tau_by_step:
            low, high = self.tau
            return low + (high - low) * drawn
        return torch.lerp(batch["s"].clamp(*self.tau), t.clamp(*self.tau), drawn)

    def _noise(self, x0: States) -> States:
        return torch.randn(x0.shape, generator=self.generator, device=x0.device, dtype=x0.dtype)


def _by_row(each: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The loss of each row, ``(B,)``, of losses with their weights, ``(B, *D)`` each."""
    return torch.stack([weight * by_row(values) for weight, values in each]).sum(0)


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
