r"""The exact expert: for a Gaussian mixture the posterior mean E[x0 | x_t] is a closed form at every noise level.

With components N(m_k, s_k^2 I) of weight w_k, the noisy state is a mixture too, x_t ~ N(alpha m_k, v_k I) with
v_k = alpha^2 s_k^2 + sigma^2, and

.. math:: E[x_0 | x_t] = \sum_k p(k | x_t) \left( m_k + \frac{\alpha s_k^2}{v_k} (x_t - \alpha m_k) \right).

A student taught by it has no teacher error: every gap is the distillation's own.
"""

import copy

import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, States, Times


class GaussianMixtureExpert:
    """The exact denoiser of a mixture of isotropic Gaussians, on any schedule.

    With a condition (a component's number a row, -1 for none) it is the exact denoiser of that component alone.

    Args:
        means: ``(M, D)``.
        stds: ``(M,)``.
        weights: ``(M,)``, summing to 1.
        schedule: the noise schedule of the states it will be asked about.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor, schedule: Schedule) -> None:
        positive = bool((stds > 0).all()) and bool((weights > 0).all())
        if not (len(means) == len(stds) == len(weights) and positive and abs(float(weights.sum()) - 1.0) < 1e-4):
            raise Refusal(
                f"a mixture needs as many stds and weights (all > 0, weights summing to 1) as means; got {len(means)} "
                f"means, {len(stds)} stds {stds.tolist()}, weights {weights.tolist()}. Normalise the weights."
            )
        self.means, self.stds, self.weights, self.schedule = means.float(), stds.float(), weights.float(), schedule
        self.labels = len(means)

    def to(self, device: torch.device | str) -> "GaussianMixtureExpert":
        """Return the expert with its mixture on ``device``."""
        twin = copy.copy(self)
        twin.means, twin.stds, twin.weights = (part.to(device) for part in (self.means, self.stds, self.weights))
        return twin

    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return E[x0 | x_t], ``(B, D)``."""
        alpha, sigma = (values.unsqueeze(-1) for values in self.schedule(t))
        variance = (alpha * self.stds) ** 2 + sigma**2
        responsibility = torch.softmax(self._log_joint(x_t, alpha, variance, condition), dim=1)
        gain = alpha * self.stds**2 / variance
        pull = (responsibility * (1.0 - gain * alpha)) @ self.means
        return pull + (responsibility * gain).sum(1, keepdim=True) * x_t

    def log_density(self, x_t: States, t: Times) -> Tensor:
        """Return log q_t(x_t), ``(B,)``, without the constant D / 2 log 2 pi."""
        alpha, sigma = (values.unsqueeze(-1) for values in self.schedule(t))
        joint = self._log_joint(x_t, alpha, (alpha * self.stds) ** 2 + sigma**2, None)
        return torch.logsumexp(joint, dim=1)

    def _log_joint(self, x_t: States, alpha: Tensor, variance: Tensor, condition: Condition) -> Tensor:
        """Return log p(x_t, k) up to a constant a row, ``(B, M)``; a condition leaves its own component alone."""
        apart = (
            x_t.square().sum(1, keepdim=True) - 2 * alpha * (x_t @ self.means.T) + alpha**2 * self.means.square().sum(1)
        )
        joint = self.weights.log() - 0.5 * x_t.shape[1] * variance.log() - 0.5 * apart / variance
        if condition is None:
            return joint
        other = torch.arange(len(self.weights), device=x_t.device) != condition.unsqueeze(1)
        return joint.masked_fill(other & (condition >= 0).unsqueeze(1), float("-inf"))
