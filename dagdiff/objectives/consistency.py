r"""Consistency distillation (LCM): answer alike along the expert's path (Luo et al. 2023, https://arxiv.org/abs/2310.04378).

.. math:: L = \mathbb{E}\; d\big(f(x_t, t),\; f_{ema}(x_{e}, e)\big), \qquad f(x, t) = c_{skip} x + c_{out} x_0^S

where the expert walks from (x_t, t) to (x_e, e), its label's *end*. f is the identity at t = 0, which ties the chain of
equal answers to the data. Published is one step of a fine solver grid, e = t - 1/50: the student's own average says the
rest of the path, and copies its errors some fifty times. With e = 0 the expert walks the whole path, the goal is
where it ends, and there is no target network (:mod:`dagdiff.objectives.label_end`).
"""

import copy
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff import engine
from dagdiff.average import Follower
from dagdiff.checks import check_above, check_at_least, check_share
from dagdiff.expert import Expert
from dagdiff.objectives.base import Clean, Loss, Objective, RowLoss, by_row
from dagdiff.objectives.label_end import Data, LabelEnd, as_label_end, check_label_end
from dagdiff.schedule import perturb, step_grid
from dagdiff.shapes import States, Times, column
from dagdiff.transition import Renoise, ddim


def boundary(x_t: States, x0: States, t: Times, sigma_data: float = 0.5, steepness: float = 10_000.0) -> States:
    """Return f = c_skip x_t + c_out x0, which is x_t at t = 0.

    c_skip = sd^2 / ((r t)^2 + sd^2) and c_out = r t / sqrt((r t)^2 + sd^2), with sd ``sigma_data`` and r ``steepness``.
    """
    scaled = column(steepness * t, x_t)
    square = scaled.square() + sigma_data**2
    return sigma_data**2 / square * x_t + scaled / square.sqrt() * x0


def pseudo_huber(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Return sqrt((a - b)^2 + c^2) - c, averaged: quadratic within ``width`` c, linear beyond."""
    return _pseudo_huber(a, b, width).mean()


def _pseudo_huber(a: Tensor, b: Tensor, width: float) -> Tensor:
    """The same of each coordinate, ``(B, *D)``."""
    return ((a - b).square() + width**2).sqrt() - width


class Consistency(Objective):
    """LCM on states of any source; data are needed for forward states alone.

    Args:
        solver_steps: steps of the expert's grid; forward states take its times, and one solver step is 1 / solver_steps
            long.
        label_end: to where the expert walks for a label: "step" (one solver step, as published), "data" (the whole
            walk), "uniform" (a time of the grid below t, drawn), the time on, in (0, 1], or the import path of a law
            ``(t, generator) -> end``.
        ema: decay of the target network, an update.
        huber_width: c of the pseudo-Huber distance.
        renoise: spread on-policy states over the solver's times, by perturbing each prediction of a rollout to a time
            of the step it was made in. The student's own grid has few times, and the answer at each leans on the
            answers just below it.
    """

    label_options = ("solver_steps", "renoise", "label_end")
    sampler = Renoise

    def __init__(
        self,
        solver_steps: int = 50,
        ema: float = 0.95,
        huber_width: float = 1e-3,
        renoise: bool = True,
        label_end: float | str | LabelEnd = "step",
    ) -> None:
        check_at_least("solver_steps", solver_steps, 1)
        check_share("ema", ema)
        check_above("huber_width", huber_width, 0.0)
        self.solver_steps, self.ema, self.huber_width, self.renoise = solver_steps, ema, huber_width, renoise
        self.published, self.label_end = label_end == "step", as_label_end(label_end, solver_steps)
        self.target: nn.Module | None = None
        self.generator: torch.Generator | None = None

    def begin(self, student: nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Start the target network from the student, where labels end before the data."""
        self.threshold, self.schedule, self.generator = expert.threshold, expert.schedule, generator
        if not isinstance(self.label_end, Data):
            self.target = copy.deepcopy(student).eval().requires_grad_(False)
            engine.shard(self.target)
            self.follower = Follower(self.target, student, self.ema)

    def horizon(self, s: Times) -> Times:
        """Time 0: all states of a path are answered with its clean end."""
        return torch.zeros_like(s)

    def grid(self, times: Times) -> Times:
        """The solver's grid."""
        return step_grid(self.solver_steps).to(times.device)

    def settle(self, records: TensorDict, generator: torch.Generator | None) -> TensorDict:
        """With ``renoise``, perturb each prediction to a time of the solver's grid, drawn within its step.

        A prediction made at much noise is rough, and states of little noise made from it are none of a chain.
        """
        if not self.renoise:
            return records
        guess, t, s = records["action"], records["t"], records["s"]
        drawn = s + (t - s) * torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype)
        t = (drawn * self.solver_steps).round().clamp(min=1.0) / self.solver_steps
        noise = torch.randn(guess.shape, generator=generator, device=guess.device, dtype=guess.dtype)
        return records.update(
            {"x_t": perturb(guess, noise, t, self.schedule), "t": t, "s": t - 1.0 / self.solver_steps}
        )

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``x_next`` and ``end``, the state and the time to which the expert walks.

        It is asked once for the published solver step, and else as often as its sub-steps say.
        """
        x_t, t, condition = states["x_t"], states["t"], states.get("condition")
        end = check_label_end(self.label_end(t, self.generator), t)
        if self.published:
            states["x_next"] = ddim(x_t, expert(x_t, t, condition), t, end, expert.schedule)
        else:
            states["x_next"] = expert.advance(x_t, t, end, condition)
        return states.set("end", end)

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        """Return the mean pseudo-Huber distance of the student's answer to where the path ends, as far as is known."""
        condition, goal = batch.get("condition"), batch["x_next"]
        answer = boundary(batch["x_t"], student(batch["x_t"], batch["t"], condition), batch["t"])
        if self.target is not None:
            with torch.no_grad():
                guess = self.threshold(self.target(goal, batch["end"], condition))
                goal = boundary(goal, guess, batch["end"])
        each = _pseudo_huber(answer, goal, self.huber_width)
        loss = each.mean()
        return RowLoss.of(loss, {"distance": loss.detach()}, partial(by_row, each))

    def follow(self, student: nn.Module) -> None:
        """Move the target network towards the student."""
        if self.target is not None:
            self.follower.follow()
