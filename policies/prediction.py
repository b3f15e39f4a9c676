"""What a network predicts, and the clean guess x0 it amounts to: epsilon, v, flow velocity or x0 itself.

With x = a x0 + s eps, v = a eps - s x0 (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512) and u = eps - x0, every
conversion is one line. They hold for any (a, s): on variance-preserving schedules a^2 + s^2 = 1, on rectified flow a +
s = 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dagdiff.schedule import Schedule
from dagdiff.shapes import States, Times, column

Conversion = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(x_t, value, alpha, sigma) -> value``, alpha and sigma already shaped to broadcast."""


@dataclass(frozen=True)
class Prediction:
    """A parameterisation of the network: ``to_x0(x, output, a, s)`` and ``from_x0(x, x0, a, s)`` undo each other."""

    name: str
    to_x0: Conversion
    from_x0: Conversion

    def guess(self, x_t: States, output: Tensor, t: Times, schedule: Schedule) -> States:
        """Return the guess of x0 that a network's ``output`` at ``(x_t, t)`` amounts to."""
        alpha, sigma = (column(values, x_t) for values in schedule(t))
        return self.to_x0(x_t, output, alpha, sigma)


X0 = Prediction("x0", lambda x, x0, a, s: x0, lambda x, x0, a, s: x0)
EPSILON = Prediction("epsilon", lambda x, eps, a, s: (x - s * eps) / a, lambda x, x0, a, s: (x - a * x0) / s)
V = Prediction(
    "v", lambda x, v, a, s: (a * x - s * v) / (a * a + s * s), lambda x, x0, a, s: (a * x - (a * a + s * s) * x0) / s
)
FLOW = Prediction("flow", lambda x, u, a, s: (x - s * u) / (a + s), lambda x, x0, a, s: (x - (a + s) * x0) / s)

PREDICTIONS = {prediction.name: prediction for prediction in (X0, EPSILON, V, FLOW)}
