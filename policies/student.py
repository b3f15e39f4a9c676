"""The student's network, read as a denoiser: whatever it predicts, it answers with x0; and a student a step."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.policies.prediction import Prediction, V
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, States, Times, column


class Student(nn.Module):
    """A raw network adapted once, so that expert, env and objectives all speak x0; learned teachers use it too.

    Args:
        network: ``(x_t, t, condition) -> output``.
        schedule: the noise schedule of its states.
        prediction: what the output means; v by default, which is well scaled at every noise level.
    """

    network: Any  # a module, perhaps with ``features``

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: Prediction = V) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction = network, schedule, prediction

    def forward(self, x_t: States, t: Times, condition: Condition = None, *told: Times) -> States:
        """Return the prediction of x0, ``(B, *D)``; a :meth:`told` one also takes the origin of ``x_t``."""
        return self.prediction.guess(x_t, self.network(x_t, t, condition, *told), t, self.schedule)

    def features(self, x_t: States, t: Times, condition: Condition = None, *told: Times) -> Tensor:
        """Return the network's last hidden layer, ``(B, F)``; a GAN head judges by it."""
        hidden: Tensor = self.network.features(x_t, t, condition, *told)
        return hidden

    def with_origin(self) -> "Student":
        """Return a copy that can also be told an origin, the time ``(B,)`` at which the point it sees was predicted."""
        twin = copy.deepcopy(self)  # with what hangs on its calls, such as its precision
        twin.__class__ = Student  # a forward of one's own may take no origin
        twin.network = twin.network.with_origin()
        return twin

    @property
    def labels(self) -> int | None:
        """The number of classes that the network knows, 0 for an unconditional one; None if it does not say."""
        return getattr(self.network, "labels", None)

    @property
    def feature_size(self) -> int:
        """F, the width of :meth:`features`."""
        return int(self.network.feature_size)


class Stepwise(nn.Module):
    """A student that is not stationary: a network of its own for each step of the grid, all copies of one.

    A state is answered by the network of the step that starts nearest to its time. All networks look at all rows and
    the right answer is picked, so that nothing waits for the device; a row counts as one evaluation, for a chain needs
    no more.

    Args:
        student: what is copied, ``(x_t, t, condition) -> x0``.
        times: the grid, ``(K + 1,)``.
    """

    starts: Tensor

    def __init__(self, student: nn.Module, times: Times) -> None:
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(student) for _ in times[:-1])
        self.register_buffer("starts", times[:-1].clone(), persistent=False)

    def forward(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the prediction of x0, ``(B, *D)``."""
        place = (self.starts - t.unsqueeze(-1)).abs().argmin(-1)
        guess = torch.zeros_like(x_t)
        for step, network in enumerate(self.networks):
            guess = torch.where(column(place == step, x_t), network(x_t, t, condition), guess)
        return guess

    @property
    def schedule(self) -> Schedule | None:
        """The noise schedule of the networks, None if they do not say."""
        return getattr(self.networks[0], "schedule", None)

    @property
    def labels(self) -> int | None:
        """The number of classes that the networks know, None if they do not say."""
        return getattr(self.networks[0], "labels", None)

    def with_origin(self) -> nn.Module:
        """Return a copy of the first network that can also be told an origin: one judge for all steps."""
        critic: nn.Module = self.networks[0].with_origin()  # type: ignore[operator]
        return critic
