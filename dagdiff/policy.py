"""The policy: the few-step student as it is used, in roll-ins and at inference alike.

Inside a loss the student's network is called bare. In its role as policy it runs in eval mode and without gradient
(dropout in a roll-in would visit states that inference never meets), and its guess is thresholded if the run is
reflected.
"""

import torch
from torch import nn

from dagdiff.checks import check_same_shape
from dagdiff.shapes import Condition, States, Times
from dagdiff.threshold import NoThreshold, Threshold


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
