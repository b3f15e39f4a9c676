"""Policies: the few-step student as it is used, in rollouts and at inference alike, and the expert in its place.

Inside a loss the student's network is called bare. In its role as policy it runs in eval mode and without gradient
(dropout in a rollout would visit states that inference never meets), and its prediction is thresholded if the run is
reflected. The expert as policy, on the student's own chain, is what a perfect imitator becomes.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_same_shape
from dagdiff.expert import Expert
from dagdiff.shapes import Condition, States, Times
from dagdiff.threshold import NoThreshold, Threshold
from dagdiff.transition import Transition


class StudentPolicy:
    """Any denoising network in its role: eval mode, no gradient, thresholded. A denoiser itself.

    Args:
        student: the network, ``(x_t, t, condition) -> x0``; it goes on training elsewhere, the policy follows.
        threshold: the reflected operator applied to each prediction.
    """

    def __init__(self, student: nn.Module, threshold: Threshold | None = None) -> None:
        self.student, self.threshold = student, threshold or NoThreshold()

    @torch.no_grad()
    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the thresholded prediction of x0, ``(B, *D)``; every module's train / eval mode is left as it was."""
        training = [module for module in self.student.modules() if module.training]
        if training:
            self.student.eval()
        try:
            guess = self.student(x_t, t, condition)
        finally:
            for module in training:
                module.training = True
        return self.threshold(check_same_shape("the student", guess, x_t))


class Foreign(nn.Module):
    """Somebody's student as a module: any callable ``(x_t, t, condition) -> x0``, whose answers are looked at.

    Args:
        student: the callable; a module is registered, so that eval mode reaches it.
        name: of the student in errors.
    """

    def __init__(self, student: Callable[..., Any], name: str = "the student") -> None:
        super().__init__()
        self.student, self.name = check_student(student, name), name

    def forward(self, x_t: States, t: Times, condition: Condition = None) -> Tensor:
        """Return the prediction of x0, ``(B, *D)``, in the precision of the states.

        Raises:
            Refusal: for an answer of another shape, or one that holds NaN or infinity.
        """
        guess = check_same_shape(self.name, self.student(x_t, t, condition), x_t)
        bad = int((~guess.isfinite()).sum())
        if bad:
            raise Refusal(
                f"{self.name} answers with NaN or infinity at t = {float(t.max()):.3g}, in {bad} of {guess.numel()} "
                "values. Answer every state with a finite prediction of x0, those of pure noise too."
            )
        return guess.to(x_t.dtype)


def check_student(student: Any, name: str) -> Callable[..., Any]:
    """Reject what can't be called as ``(x_t, t, condition)``, as far as it says; return it."""
    asked = "It is asked as student(x_t, t, condition) and answers with x0, one prediction a row."
    if not callable(student):
        raise Refusal(f"{name} is a {type(student).__name__}, which can't be called. {asked}")
    try:
        inspect.signature(student).bind(None, None, None)
    except TypeError as error:
        raise Refusal(f"{name} can't be called with three arguments ({error}). {asked}") from None
    except ValueError:  # some that are written in C do not say
        pass
    return student  # type: ignore[no-any-return]


class ExpertPolicy:
    """The expert in the student's place: the prediction that its sub-steps amount to for the student's step.

    Args:
        expert: the expert.
        transition: the student's transition; it says up to where a prediction must be right.
        times: the student's grid. A state between two of its times is taken to step to the lower one.
    """

    def __init__(self, expert: Expert, transition: Transition, times: Times) -> None:
        self.expert, self.transition, self.times = expert, transition, times

    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the prediction of x0, ``(B, *D)``."""
        below = self.times < t.unsqueeze(-1) - _SAME_TIME
        s = self.times[below.int().argmax(-1)]
        return self.expert.target(x_t, t, self.transition.horizon(s), condition)


_SAME_TIME = 1e-5
