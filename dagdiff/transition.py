"""The transition: ONE reverse step x_t -> x_s, given a prediction of x0.

Environment, expert, objectives and :func:`sample` all step through these functions, so the chain a student is trained
on is the chain it is used with. Two laws are here. :class:`Ddim` keeps the noise that x_t and the prediction imply
(Song et al. 2020, https://arxiv.org/abs/2010.02502); :class:`Renoise` draws fresh noise, as multistep consistency
sampling does (Song et al. 2023, https://arxiv.org/abs/2303.01469). :class:`EpsilonScaling` corrects the predictions of
either on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_above, check_in, check_share, check_times
from dagdiff.schedule import Schedule, perturb
from dagdiff.shapes import Condition, Denoiser, States, Times, column


def ddim(x_t: States, x0: States, t: Times, s: Times, schedule: Schedule) -> States:
    """Return x_s = alpha_s x0 + sigma_s eps, eps being the noise in x_t if x0 is true. At t = 0, x_t stays."""
    return keep_noise(x_t, x0, schedule(t), schedule(s))


def keep_noise(x_t: States, x0: States, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> States:
    """Return :func:`ddim`'s x_s from (alpha, sigma), each ``(B,)``, where the step starts and where it ends."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end
    ratio = torch.where(sigma_t > 0, sigma_s / sigma_t, 1.0)
    return column(alpha_s - ratio * alpha_t, x_t) * x0 + column(ratio, x_t) * x_t


class Transition(Protocol):
    """A transition. ``noise`` is a fresh standard normal like ``x_t``; deterministic laws ignore it."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the states."""
        ...

    def __call__(self, x_t: States, x0: States, t: Times, s: Times, noise: States) -> States:
        """Return x_s, ``(B, *D)``."""
        ...

    def horizon(self, s: Times) -> Times:
        """The time up to which a prediction matters: where an expert's prediction must land to be right."""
        ...


def fresh_noise(transition: Transition, x_t: States, generator: torch.Generator | None) -> States:
    """Return a standard normal like ``x_t``, or zeros for a law that says ``stochastic = False``: it looks at none."""
    if not getattr(transition, "stochastic", True):
        return torch.zeros_like(x_t)
    return torch.randn(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)


@dataclass(frozen=True)
class Ddim:
    """DDIM with ``eta`` in [0, 1]: 0 is the deterministic probability-flow step, 1 is ancestral (DDPM) sampling.

    The prediction must explain the state at s, where the step lands.
    """

    schedule: Schedule
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_share("eta", self.eta)

    @property
    def stochastic(self) -> bool:
        """Whether a step takes fresh noise."""
        return self.eta > 0.0

    def __call__(self, x_t: States, x0: States, t: Times, s: Times, noise: States) -> States:
        """Return x_s: DDIM's mean, a part of whose noise is replaced by ``noise`` when eta > 0."""
        if self.eta == 0.0:
            return ddim(x_t, x0, t, s, self.schedule)
        alpha_t, alpha_s = (column(self.schedule(time)[0], x_t) for time in (t, s))
        kept, fresh = (column(values, x_t) for values in self.kernel(t, s))
        return alpha_s * x0 + kept * (x_t - alpha_t * x0) + fresh * noise

    def kernel(self, t: Times, s: Times) -> tuple[Tensor, Tensor]:
        """Return ``(kept, fresh)``, each ``(B,)``, of x_s ~ N(alpha_s x0 + kept (x_t - alpha_t x0), fresh^2)."""
        alpha_t, sigma_t = self.schedule(t)
        alpha_s, sigma_s = self.schedule(s)
        alpha_ratio = torch.where(alpha_s > 0, alpha_t / alpha_s, torch.ones_like(alpha_t))
        sigma_ratio = torch.where(sigma_t > 0, sigma_s / sigma_t, torch.ones_like(sigma_t))
        fresh = self.eta * sigma_ratio * (sigma_t**2 - (alpha_ratio * sigma_s) ** 2).clamp(min=0).sqrt()
        kept = torch.where(sigma_t > 0, (sigma_s**2 - fresh**2).clamp(min=0).sqrt() / sigma_t, torch.ones_like(sigma_t))
        return kept, fresh

    def horizon(self, s: Times) -> Times:
        """The landing time itself."""
        return s


@dataclass(frozen=True)
class Renoise:
    """Perturb the prediction afresh: x_s = alpha_s x0 + sigma_s noise. It must explain the clean end of the chain."""

    schedule: Schedule

    def __call__(self, x_t: States, x0: States, t: Times, s: Times, noise: States) -> States:
        """Return x_s; x_t matters only through the prediction."""
        return perturb(x0, noise, s, self.schedule)

    def horizon(self, s: Times) -> Times:
        """Time 0."""
        return torch.zeros_like(s)


LAWS: dict[str, Callable[..., Transition]] = {"Ddim": Ddim, "Renoise": Renoise}
"""The laws that a saved student may name, by class."""


def law_named(name: str, schedule: Schedule, eta: float | None = None) -> Transition:
    """Return the law of that class on a schedule, with its ``eta`` if it has one.

    Raises:
        Refusal: for another name, or an eta that the law does not take.
    """
    law = LAWS[check_in("sampler", name, LAWS)]
    if (eta is None) == (law is Ddim) or not isinstance(eta, int | float | None):
        raise Refusal(f"the sampler {name} does not go with eta={eta!r}. Ddim takes one in [0, 1], Renoise null.")
    return law(schedule) if eta is None else law(schedule, eta=eta)


@dataclass(frozen=True)
class EpsilonScaling:
    """A law whose predictions have their noise divided by ``scale``: Ning et al. 2024, https://arxiv.org/abs/2308.15321.

    A student that meets its own errors predicts too much noise, they find, and a few-step chain is such a student. With
    eps = (x_t - alpha_t x0) / sigma_t the prediction becomes (x_t - sigma_t eps / scale) / alpha_t. It acts at
    inference alone: nothing is trained anew, and no network is asked.

    Where alpha_t is below ``least_alpha`` the prediction stays as it is. The correction is (1 - 1 / scale) (x_t /
    alpha_t - x0), which near t = 1 blows any scale up by 1 / alpha_t (a thousand on the cosine schedule), and a step of
    a few-step chain, unlike the published ones of hundreds, lands where alpha_s is large. Nor is there anything to
    correct: at the first step nobody has erred yet, the state is the noise it should be.

    Args:
        transition: the law that moves the state.
        scale: lambda of the paper, the same at all times; 1 changes nothing, the paper finds a little above 1 best.
        least_alpha: where the guard ends.
    """

    transition: Transition
    scale: float
    least_alpha: float = 0.1

    def __post_init__(self) -> None:
        check_above("scale", self.scale, 0.0)
        check_above("least_alpha", self.least_alpha, 0.0)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the states."""
        return self.transition.schedule

    @property
    def stochastic(self) -> bool:
        """As the law."""
        return getattr(self.transition, "stochastic", True)

    def __call__(self, x_t: States, x0: States, t: Times, s: Times, noise: States) -> States:
        """Return x_s: where the law leads with the corrected prediction."""
        alpha = column(self.schedule(t)[0], x_t)
        away = x_t / alpha.clamp(min=self.least_alpha) - x0  # sigma eps / alpha
        corrected = x0 + (1.0 - 1.0 / self.scale) * away
        return self.transition(x_t, torch.where(alpha < self.least_alpha, x0, corrected), t, s, noise)

    def horizon(self, s: Times) -> Times:
        """The law's own."""
        return self.transition.horizon(s)


class Step(NamedTuple):
    """One step of a chain: the state, where it starts and lands (both ``(B,)``), the prediction, and its next state."""

    x_t: States
    t: Times
    s: Times
    x0: States
    x_s: States


def chain(
    policy: Denoiser,
    transition: Transition,
    times: Times,
    noise: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
    fresh: Sequence[States] = (),
) -> Iterator[Step]:
    """Run the reverse chain from ``noise`` (the state at ``times[0]``, ``(B, *D)``) and yield its K steps one by one.

    The fresh noise of the K steps is drawn by ``generator`` as they come, unless it is given in ``fresh``.

    Raises:
        Refusal: if ``times`` do not fall to 0.
    """
    x_t = noise
    for number, (t, s) in enumerate(pairwise(check_times(times))):
        t, s = t.expand(len(x_t)), s.expand(len(x_t))
        x0 = policy(x_t, t, condition)
        drawn = fresh[number].to(x_t.device) if fresh else fresh_noise(transition, x_t, generator)
        x_s = transition(x_t, x0, t, s, drawn)
        yield Step(x_t, t, s, x0, x_s)
        x_t = x_s


def sample(
    policy: Denoiser,
    transition: Transition,
    times: Times,
    noise: States,
    condition: Condition = None,
    generator: torch.Generator | None = None,
    fresh: Sequence[States] = (),
) -> States:
    """Return the clean end of the chain, ``(B, *D)``: inference. Arguments as in :func:`chain`."""
    with torch.no_grad():
        for step in chain(policy, transition, times, noise, condition, generator, fresh):
            x_t = step.x_s
    return x_t
