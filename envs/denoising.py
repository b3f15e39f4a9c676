"""The denoising chain as an environment: three skins of one law, :mod:`dagdiff.transition`.

===========  =========================================================================================================
observation  ``x_t`` the state, ``t`` the time it is at, ``s`` the time the step lands, ``step``, perhaps ``condition``
action       the prediction x0, never the next state
transition   ``x_s = transition(x_t, x0, t, s, noise)``
reward       minus the mean squared distance to the expert's label of this step where an expert is given, else 0
episode      K steps, from noise at ``times[0]`` to ``times[K] = 0``
===========  =========================================================================================================

:class:`DenoisingEnv` is native TorchRL, for training: batched, on any device, without host syncs.
:class:`~dagdiff.envs.gymnasium.DenoisingVectorEnv` and :class:`~dagdiff.envs.gymnasium.DenoisingGymEnv` are
Gymnasium's, for stepping by hand and for other RL libraries.
"""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import EnvBase

from dagdiff.checks import check_at_least, check_same_shape, check_seed, check_times
from dagdiff.envs.gymnasium import DenoisingGymEnv, DenoisingVectorEnv
from dagdiff.envs.steps import interval, reward
from dagdiff.expert import Expert
from dagdiff.shapes import Condition, States, column
from dagdiff.transition import Transition, fresh_noise

__all__ = ["Conditions", "DenoisingEnv", "DenoisingGymEnv", "DenoisingVectorEnv"]

Conditions = Callable[[int, torch.Generator | None], Tensor]
"""``(n, generator) -> condition``: draws what each of n new chains is conditioned on, ``(n,)`` int64."""


class DenoisingEnv(EnvBase):
    """A batch of chains that move together, native TorchRL.

    Args:
        shape: of one state, ``(*D,)``.
        transition: the transition.
        times: the grid, falling to 0, K + 1 numbers.
        batch_size: the number B of chains.
        conditions: draws the chains' conditions; None for unconditional chains.
        expert: gives the reward; None for reward 0.
        generator: of start noise and fresh noise; reseeded by ``set_seed``.
        device: where the chains live.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        transition: Transition,
        times: Tensor | ArrayLike,
        batch_size: int = 256,
        conditions: Conditions | None = None,
        expert: Expert | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        super().__init__(device=torch.device(device), batch_size=torch.Size([batch_size]))
        self.shape_of_state, self.transition = tuple(shape), transition
        self.times = check_times(times).to(device, torch.float32)
        self.conditions, self.expert, self.generator = conditions, expert, generator
        self._together: tuple[Tensor | None, int] = (None, 0)  # the last steps of chains that move together, and it
        rows = self.batch_size
        states = Unbounded((*rows, *shape), device=self.device)
        time = Unbounded((*rows, 1), device=self.device)
        step = Unbounded((*rows, 1), dtype=torch.int64, device=self.device)
        observed = {"x_t": states, "t": time, "s": time.clone(), "step": step}
        if conditions is not None:
            observed["condition"] = Unbounded(rows, dtype=torch.int64, device=self.device)
        self.observation_spec = Composite(observed, shape=rows)
        self.action_spec = states.clone()
        self.reward_spec = Unbounded((*rows, 1), device=self.device)
        self.full_done_spec = Composite(
            {key: Binary(1, (*rows, 1), dtype=torch.bool, device=self.device) for key in ("done", "terminated")},
            shape=rows,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and copy everything but TorchRL's weak reference to a collector at work in it."""
        return {name: value for name, value in self.__dict__.items() if name != "_collector"}

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Do what TorchRL does, without its look at the device and its checks, for chains that a reset began together.

        Return the record of the step with its ``next``, and the record from which the next step starts.
        """
        step, place = self._together
        if step is None or tensordict.get("step", None) is not step:  # who knows where these chains are
            found: tuple[TensorDictBase, TensorDictBase] = super().step_and_maybe_reset(tensordict)
            return found
        moved = self._step(tensordict)
        record = tensordict.set("next", moved)
        following = moved
        if place + 1 == len(self.times) - 1:
            following = self._reset()
            following["done"] = following["terminated"] = torch.zeros_like(moved["done"])
        else:
            self._together = moved["step"], place + 1
        kept = {key: value for key, value in record.items() if key != "next"}
        columns = {**kept, **{key: value for key, value in following.items() if key != "reward"}}
        return record, TensorDict(columns, self.batch_size, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        """Give birth to B chains: noise at the first time.

        A given ``x_t``, ``step`` or ``condition`` is kept, but where a given chain has ended a new one starts.
        """
        given = TensorDict({}, self.batch_size) if tensordict is None or "_reset" in tensordict else tensordict
        x_t, step, condition = (given.get(key, None) for key in ("x_t", "step", "condition"))
        ended = None if step is None else step >= len(self.times) - 1
        if step is None:
            step = torch.zeros((*self.batch_size, 1), dtype=torch.int64, device=self.device)
        x_t = _renewed(x_t, ended, self._noise)
        if self.conditions is not None:
            draw = self.conditions
            condition = _renewed(condition, ended, lambda: draw(self.batch_size.numel(), self.generator))
        self._together = (step, 0) if ended is None else (None, 0)
        return self._observe(x_t, step if ended is None else step.masked_fill(ended, 0), condition)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Move every chain by one step of the law."""
        x_t, step = tensordict["x_t"], tensordict["step"]
        x0 = check_same_shape("the action", tensordict["action"], x_t)
        t, s = tensordict["t"].squeeze(-1), tensordict["s"].squeeze(-1)
        condition = tensordict.get("condition", None)
        x_s = self.transition(x_t, x0, t, s, fresh_noise(self.transition, x_t, self.generator))
        earned = reward(self.expert, self.transition, x_t, x0, t, s, condition).unsqueeze(-1)
        done = step + 1 >= len(self.times) - 1
        return self._observe(x_s, step + 1, condition).update(
            {"reward": earned, "done": done, "terminated": done.clone()}
        )

    def _observe(self, x_t: States, step: Tensor, condition: Condition) -> TensorDict:
        t, s = interval(self.times, step)
        columns = {"x_t": x_t, "t": t, "s": s, "step": step}
        if condition is not None:
            columns["condition"] = condition
        return TensorDict(columns, self.batch_size, device=self.device)

    def _noise(self) -> States:
        return torch.randn((*self.batch_size, *self.shape_of_state), generator=self.generator, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        if self.device.type != "meta":
            self.generator = torch.Generator(self.device)
            if seed is not None:
                self.generator.manual_seed(check_seed("seed", seed))


def _renewed(given: Tensor | None, ended: Tensor | None, draw: Callable[[], Tensor]) -> Tensor:
    """Return what is given, drawn anew in rows that have ``ended``, ``(B, 1)``, and in all if nothing is given."""
    if given is None:
        return draw()
    if ended is None:
        return given
    drawn = draw()
    return torch.where(column(ended.squeeze(-1), given), drawn, given)
