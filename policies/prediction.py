"""What a network predicts, and the prediction x0 it amounts to: epsilon, v, flow velocity or x0 itself.

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
        """Return the prediction of x0 that a network's ``output`` at ``(x_t, t)`` amounts to."""
        alpha, sigma = (column(values, x_t) for values in schedule(t))
        return self.to_x0(x_t, output, alpha, sigma)


def _same(x: Tensor, value: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return value


def _x0_of_epsilon(x: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (x - s * eps) / a


def _epsilon_of_x0(x: Tensor, x0: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (x - a * x0) / s


def _x0_of_v(x: Tensor, v: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (a * x - s * v) / (a * a + s * s)


def _v_of_x0(x: Tensor, x0: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (a * x - (a * a + s * s) * x0) / s


def _x0_of_flow(x: Tensor, u: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (x - s * u) / (a + s)


def _flow_of_x0(x: Tensor, x0: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (x - (a + s) * x0) / s


# Named functions, not lambdas: a student that goes to another process is pickled with them.
X0 = Prediction("x0", _same, _same)
EPSILON = Prediction("epsilon", _x0_of_epsilon, _epsilon_of_x0)
V = Prediction("v", _x0_of_v, _v_of_x0)
FLOW = Prediction("flow", _x0_of_flow, _flow_of_x0)

PREDICTIONS = {prediction.name: prediction for prediction in (X0, EPSILON, V, FLOW)}
