"""A learner: a network, and everything that an update of it is beside its loss.

The same class trains the student, the critic of DMD2 and a teacher.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff import engine
from dagdiff.average import Average
from dagdiff.checks import check_above, check_at_least, check_in, check_share
from dagdiff.mixture import Constant, Ramp, as_ramp
from dagdiff.round import NonFiniteLoss


class Loss(NamedTuple):
    """The scalar that is differentiated, and its parts (detached scalars) for the log."""

    loss: Tensor
    parts: Mapping[str, Tensor]


class RowLoss(Loss):
    """A loss that also tells that of each row, as samplers by loss need it (:mod:`dagdiff.buffers`).

    ``rows`` returns it, ``(B,)``; its mean is ``loss``. It is called only where such a sampler is.
    """

    rows: Callable[[], Tensor]

    @classmethod
    def of(cls, loss: Tensor, parts: Mapping[str, Tensor], rows: Callable[[], Tensor]) -> "RowLoss":
        """Return a loss with what tells that of its rows."""
        made = cls(loss, parts)
        made.rows = rows
        return made


@dataclass(frozen=True)
class Learning:
    """How a network learns.

    Args:
        optimiser: makes the optimiser from the network's parameters.
        lr_ramp: scales the learning rate by progress, or by a number.
        clip: the largest gradient norm; infinity clips nothing.
        ema: decay an update of the averaged network (:class:`dagdiff.average.Average`); 0 averages nothing.
        batch_size: rows of an update.
        accumulate: parts of a batch that go through the network one after the other, to save memory.
        on_nonfinite: what the loop does where a loss is not finite: ``"stop"`` ends training, ``"rollback"`` goes back
            to the last good round and makes the round again from new states, three times in a row at most.
    """

    optimiser: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam
    lr_ramp: Ramp | float = Constant(1.0)  # noqa: RUF009  (frozen)
    clip: float = 1.0
    ema: float = 0.0
    batch_size: int = 256
    accumulate: int = 1
    on_nonfinite: str = "stop"

    def __post_init__(self) -> None:
        check_in("on_nonfinite", self.on_nonfinite, ("stop", "rollback"))
        check_share("ema", self.ema)
        check_above("clip", self.clip, 0.0)
        as_ramp("lr_ramp", self.lr_ramp)
        for name in ("batch_size", "accumulate"):
            check_at_least(name, getattr(self, name), 1)

    @property
    def rows(self) -> int:
        """Rows of a part of a batch."""
        return -(-self.batch_size // self.accumulate)


class Learner:
    """A network in training. In several processes it starts from the first one's weights.

    There a loss must call ``forward``, which averages gradients; elsewhere, and in a lone process, it is ``network``.

    Args:
        network: what learns, in place.
        learning: how.
        updates: of the whole training, over which the ramp runs.
    """

    def __init__(self, network: nn.Module, learning: Learning, updates: int = 1) -> None:
        self.network, self.learning, self.lr_ramp = network, learning, as_ramp("lr_ramp", learning.lr_ramp)
        self.averaged = Average(network, learning.ema) if learning.ema else None
        self.optimiser = learning.optimiser(network.parameters())
        self.prepared = engine.prepare(network, self.optimiser)
        self.forward = self.prepared.forward
        engine.shard(self.averaged and self.averaged.module)
        self.whole = updates
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._rate)
        self.updates, self.last_good, self._same = 0, dict[str, Tensor](), False

    def update(self, loss: Tensor) -> Tensor:
        """Make one update by a loss; return the gradient's norm before clipping."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return self._step()

    def learn(self, batch: TensorDict, loss: Callable[[TensorDict], Loss]) -> dict[str, Tensor]:
        """Make one update by a batch's mean loss, part by part; return it, its parts and ``gradient_norm``."""
        self.optimiser.zero_grad(set_to_none=True)
        if len(batch) <= self.learning.rows:
            whole = loss(batch)
            whole.loss.backward()
            return {**whole.parts, "loss": whole.loss.detach(), "gradient_norm": self._step()}
        found: dict[str, Tensor] = {}
        parts = batch.split(self.learning.rows)
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self.prepared.apart():
                share, mean = len(part) / len(batch), loss(part)
                (share * mean.loss).backward()
            for name, value in {**mean.parts, "loss": mean.loss.detach()}.items():
                found[name] = share * value + found.get(name, 0.0)
        return {**found, "gradient_norm": self._step()}

    def parts(self) -> dict[str, Any]:
        """Return what holds the state of training, by name; each has ``state_dict`` and ``load_state_dict``."""
        held = {"network": self.network, "optimiser": self.optimiser, "averaged": self.averaged}
        return {"rates": self.rates, **{name: engine.Whole(part) for name, part in held.items() if part is not None}}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of training; the last good weights only where the network has moved on from them."""
        held = {name: part.state_dict() for name, part in self.parts().items()}
        return {**held, "updates": self.updates, "last_good": None if self._same else self.last_good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.updates = state["updates"]
        self.remember()
        if state["last_good"] is not None:
            device = next(self.network.parameters()).device
            self.last_good = {name: value.to(device) for name, value in state["last_good"].items()}
            self._same = False

    def _rate(self, made: int) -> float:
        """The scale of the learning rate after so many updates."""
        return self.lr_ramp(made / self.whole)

    def _step(self) -> Tensor:
        weights, self._same = list(self.network.parameters()), False
        norm = nn.utils.clip_grad_norm_(weights, self.learning.clip)
        self.optimiser.step()
        self.rates.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return norm

    def remember(self) -> None:
        """The network as it is now is the last good one."""
        self.last_good, self._same = copy.deepcopy(self.network.state_dict()), True

    def go_back(self) -> None:
        """The network is again the last good one."""
        self.network.load_state_dict(self.last_good)

    def close(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """End n updates, the losses of which are ``(n,)`` each; return their means. The network is the last good one.

        This is the one look at the device in these updates.

        Raises:
            NonFiniteLoss: if a loss is not finite; the network is back at the last good one.
        """
        losses = engine.mean(losses)
        finite = torch.stack([values.isfinite() for values in losses.values()]).all(0)
        if not finite.all():
            first = self.updates + int((~finite).nonzero()[0]) + 1
            self.go_back()
            raise NonFiniteLoss(
                f"the loss or its gradient is not finite at update {first}; the student is back at update "
                f"{self.updates}. Lower the learning rate, clip harder, or set a threshold."
            )
        self.updates += len(finite)
        self.remember()
        return {name: float(values.mean()) for name, values in losses.items()}
