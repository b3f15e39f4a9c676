"""The student's network, read as a denoiser: whatever it predicts, it answers with x0."""

from typing import Any

from torch import Tensor, nn

from dagdiff.prediction import Prediction, V
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, States, Times


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

    def forward(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the guess of x0, ``(B, *D)``."""
        return self.prediction.guess(x_t, self.network(x_t, t, condition), t, self.schedule)

    def features(self, x_t: States, t: Times, condition: Condition = None) -> Tensor:
        """Return the network's last hidden layer, ``(B, F)``; a GAN head judges by it."""
        hidden: Tensor = self.network.features(x_t, t, condition)
        return hidden

    @property
    def feature_size(self) -> int:
        """F, the width of :meth:`features`."""
        return int(self.network.feature_size)
