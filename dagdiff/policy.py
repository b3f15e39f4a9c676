"""Policies: the few-step student as it is used, in roll-ins and at inference alike, and the expert in its place.

Inside a loss the student's network is called bare. In its role as policy it runs in eval mode and without gradient
(dropout in a roll-in would visit states that inference never meets), and its guess is thresholded if the run is
reflected. The expert as policy, on the student's own chain, is what a perfect imitator becomes.
"""

import torch
from torch import nn

from dagdiff.checks import check_same_shape
from dagdiff.expert import Expert
from dagdiff.shapes import Condition, States, Times
from dagdiff.threshold import NoThreshold, Threshold
from dagdiff.transition import Transition


class StudentPolicy:
    """Any denoising network in its role: eval mode, no gradient, thresholded. A denoiser itself.

    Args:
        student: the network, ``(x_t, t, condition) -> x0``; it goes on training elsewhere, the policy follows.
        threshold: the reflected operator applied to each guess.
    """

    def __init__(self, student: nn.Module, threshold: Threshold | None = None) -> None:
        self.student, self.threshold = student, threshold or NoThreshold()

    @torch.no_grad()
    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the thresholded guess of x0, ``(B, *D)``; every module's train / eval mode is left as it was."""
        training = [module for module in self.student.modules() if module.training]
        if training:
            self.student.eval()
        try:
            guess = self.student(x_t, t, condition)
        finally:
            for module in training:
                module.training = True
        return self.threshold(check_same_shape("the student", guess, x_t))


class ExpertPolicy:
    """The expert in the student's place: at each state the guess that its sub-steps amount to, for the student's step.

    Args:
        expert: the expert.
        transition: the student's law of motion; it says up to where a guess must be right.
        times: the student's grid. A state between two of its times is taken to step to the lower one.
    """

    def __init__(self, expert: Expert, transition: Transition, times: Times) -> None:
        self.expert, self.transition, self.times = expert, transition, times

    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the guess of x0, ``(B, *D)``."""
        below = self.times < t.unsqueeze(-1) - _SAME_TIME
        s = self.times[below.int().argmax(-1)]
        return self.expert.target(x_t, t, self.transition.horizon(s), condition)


_SAME_TIME = 1e-5
