r"""The noise schedule: how much data and how much noise a state at time t holds.

.. math:: x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad t \in [0, 1],\quad \alpha_0 = 1,\ \sigma_0 = 0.

A schedule is any callable ``t -> (alpha_t, sigma_t)`` on ``(B,)`` times. Three are here: :class:`CosineSchedule`,
:class:`VPSchedule` (any diffusers scheduler with ``alphas_cumprod``) and :class:`FlowSchedule` (rectified flow).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_at_least, check_times
from dagdiff.shapes import States, Times, column

Schedule = Callable[[Times], tuple[Tensor, Tensor]]
"""``t -> (alpha_t, sigma_t)``, all ``(B,)``."""


def perturb(x0: States, noise: States, t: Times, schedule: Schedule) -> States:
    """Forward diffusion: return x_t = alpha_t x0 + sigma_t noise, ``(B, *D)``."""
    alpha, sigma = (column(values, x0) for values in schedule(t))
    return alpha * x0 + sigma * noise


@dataclass(frozen=True)
class CosineSchedule:
    """alpha_t = cos(theta t), sigma_t = sin(theta t), without the offset of Nichol and Dhariwal (2021).

    Source: https://arxiv.org/abs/2102.09672. Here theta stops short of pi/2, so that alpha_1 = ``terminal_alpha`` > 0:
    predicting epsilon stays possible at t = 1.
    """

    terminal_alpha: float = 1e-3

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t), each ``(B,)``."""
        angle = t * math.acos(self.terminal_alpha)
        return torch.cos(angle), torch.sin(angle)


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow: alpha_t = 1 - t, sigma_t = t (Liu et al. 2022, https://arxiv.org/abs/2209.03003)."""

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t), each ``(B,)``."""
        return 1.0 - t, t


@dataclass(frozen=True, eq=False)
class VPSchedule:
    """A variance-preserving schedule given by ``alphas_cumprod``, ``(T,)``, as diffusers' schedulers hold it.

    The integer timestep i of the table is the time (i + 1) / T; t = 0 is clean data. Between two entries the angle
    atan2(sigma, alpha) is interpolated linearly, so alpha^2 + sigma^2 = 1 everywhere, zero terminal SNR included.
    """

    alphas_cumprod: Tensor
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if table.ndim != 1 or not ((table >= 0) & (table <= 1)).all() or (table[1:] > table[:-1]).any():
            raise Refusal(
                f"alphas_cumprod must be 1-D, fall, and lie in [0, 1]; got shape {tuple(table.shape)}. "
                "Pass e.g. diffusers.DDIMScheduler().alphas_cumprod."
            )

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> "VPSchedule":
        """Linear betas (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        return cls(torch.cumprod(1.0 - betas, 0))

    def __call__(self, t: Times) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t), each ``(B,)``."""
        angles = self._angles(t)
        steps = len(angles) - 1
        place = (t * steps).clamp(0, steps)
        below = place.floor().clamp(max=steps - 1)
        low, high = angles[below.long()], angles[below.long() + 1]
        angle = torch.lerp(low, high, (place - below).to(low.dtype))
        return torch.cos(angle).clamp(min=0), torch.sin(angle)

    def _angles(self, like: Tensor) -> Tensor:
        """The angle at t = 0, 1/T, ..., 1, kept once per device so that a call copies nothing between devices."""
        if like.device not in self._tables:
            clean_first = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.double().cpu()])
            self._tables[like.device] = torch.acos(clean_first.sqrt()).to(like.device, torch.float32)
        return self._tables[like.device]


def step_grid(steps: int) -> Times:
    """Return the uniform grid 1 = t_K > ... > t_0 = 0 of a ``steps``-step sampler, ``(steps + 1,)``."""
    check_at_least("steps", steps, 1)
    return torch.linspace(1.0, 0.0, steps + 1)


def refine(times: Times, substeps: int) -> Times:
    """Split every interval of a falling grid into ``substeps`` equal parts; the old times stay on the new grid."""
    check_times(times)
    check_at_least("substeps", substeps, 1)
    fraction = torch.arange(substeps, dtype=times.dtype, device=times.device) / substeps
    inner = times[:-1, None] + (times[1:] - times[:-1])[:, None] * fraction
    return torch.cat([inner.flatten(), times[-1:]])
