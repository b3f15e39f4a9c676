r"""Per-step Gaussian KL: take the steps that the expert would take, where a step is a draw and not a point.

An ancestral step draws x_s from a Gaussian whose mean a prediction of x0 fixes and whose variance it does not
(:meth:`dagdiff.transition.Ddim.kernel`). Student and expert then differ by

.. math:: KL\big(N(\mu_S, v) \,\|\, N(\mu_E, v)\big) = \frac{\lVert \mu_S - \mu_E \rVert^2}{2 v}
          = \frac{(\alpha_s - k \alpha_t)^2}{2 v} \lVert x_0^S - x_0^E \rVert^2,

progressive distillation's squared error with a weight that follows from the sampler instead of being chosen. Summed
over a chain of the student's own it is the KL divergence of the two laws of chains (the chain rule; with equal
variances both directions agree), which is what *on-policy distillation* of language models descends token by token
(Agarwal et al. 2023, https://arxiv.org/abs/2306.13649).

**At s = 0** a posterior step draws nothing, v = 0, and the KL of two points is infinite. There the step counts as a
decoder with the upper of the two variances that Ho et al. 2020 (https://arxiv.org/abs/2006.11239) name, that of
forward diffusion from s to t, which at s = 0 is sigma_t^2; both are scaled by eta^2.
"""

from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.objectives.base import Clean, Loss, Objective, RowLoss, by_row
from dagdiff.shapes import States, Times, column
from dagdiff.transition import Ddim


def kernel_kl(one: States, other: States, t: Times, s: Times, law: Ddim) -> Tensor:
    """Return the KL divergence of the steps from t to s with two predictions of x0, each coordinate's, ``(B, *D)``.

    A row's sum is the divergence in nats. The state does not matter: it moves both means alike.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = law.schedule(t), law.schedule(s)
    kept, fresh = law.kernel(t, s)
    variance = torch.where(sigma_s > 0, fresh**2, (law.eta * sigma_t) ** 2)
    weight = (alpha_s - kept * alpha_t) ** 2 / (2.0 * variance)
    return column(weight, one) * (one - other).square()


class GaussianKL(Objective):
    """The KL divergence of the student's ancestral steps from the expert's, on states of any source.

    Args:
        eta: how much of a step's noise is fresh, above 0 and up to 1 (ancestral sampling); the student is sampled so.
    """

    label_options = ("eta",)
    own_law_alone = True

    def __init__(self, eta: float = 1.0) -> None:
        if not 0.0 < eta <= 1.0:
            raise Refusal(f"eta must lie in (0, 1], else a step has no variance; got {eta}. Pass e.g. eta=1.")
        self.eta, self.sampler = eta, partial(Ddim, eta=eta)

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Keep the law of the steps."""
        self.law = Ddim(expert.schedule, self.eta)

    def horizon(self, s: Times) -> Times:
        """The landing time itself: up to there the expert's sub-steps walk."""
        return s

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``target``: the expert's prediction for the step from t to s."""
        target = expert.target(states["x_t"], states["t"], states["s"], states.get("condition"))
        return states.set("target", target).set("end", states["s"].clone())

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the mean divergence a coordinate, in nats."""
        guess = student(batch["x_t"], batch["t"], batch.get("condition"))
        each = kernel_kl(guess, batch["target"], batch["t"], batch["s"], self.law)
        loss = each.mean()
        return RowLoss.of(loss, {"kl": loss.detach()}, partial(by_row, each))
