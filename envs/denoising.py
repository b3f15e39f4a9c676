"""The denoising chain as an environment: three skins of one law, :mod:`dagdiff.transition`.

===========  =========================================================================================================
observation  ``x_t`` the state, ``t`` the time it is at, ``s`` the time the step lands, ``step``, perhaps ``condition``
action       the clean guess x0, never the next state
transition   ``x_s = transition(x_t, x0, t, s, noise)``
reward       minus the mean squared distance to the expert's guess where an expert is given, else 0
episode      K steps, from noise at ``times[0]`` to ``times[K] = 0``
===========  =========================================================================================================

:class:`DenoisingEnv` is native TorchRL, for training: batched, on any device, without host syncs.
:class:`DenoisingVectorEnv` and :class:`DenoisingGymEnv` are Gymnasium's, for stepping by hand and for other RL
libraries; they are registered as ``dagdiff/Denoising-v0``.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import EnvBase

from dagdiff.checks import Refusal, check_at_least, check_same_shape, check_seed, check_times
from dagdiff.expert import Expert
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Ddim, Transition, fresh_noise

Conditions = Callable[[int, torch.Generator | None], Tensor]
"""``(n, generator) -> condition``: draws what each of n new chains is conditioned on, ``(n,)`` int64."""


class DenoisingEnv(EnvBase):
    """A batch of chains that move together, native TorchRL.

    Args:
        shape: of one state, ``(*D,)``.
        transition: the law of motion.
        times: the grid, falling to 0, ``(K + 1,)``.
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
        times: Times,
        batch_size: int = 256,
        conditions: Conditions | None = None,
        expert: Expert | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        super().__init__(device=torch.device(device), batch_size=torch.Size([batch_size]))
        self.shape_of_state, self.transition, self.times = (
            tuple(shape),
            transition,
            check_times(times).to(device, torch.float32),
        )
        self.conditions, self.expert, self.generator = conditions, expert, generator
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

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        """Give birth to B chains: noise at the first time. A given ``x_t``, ``step`` or ``condition`` is kept."""
        given = TensorDict({}, self.batch_size) if tensordict is None or "_reset" in tensordict else tensordict
        x_t, step, condition = (given.get(key, None) for key in ("x_t", "step", "condition"))
        if x_t is None:
            x_t = self._noise()
        if step is None:
            step = torch.zeros((*self.batch_size, 1), dtype=torch.int64, device=self.device)
        if condition is None and self.conditions is not None:
            condition = self.conditions(len(x_t), self.generator)
        return self._observe(x_t, step, condition)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Move every chain by one step of the law."""
        x_t, step = tensordict["x_t"], tensordict["step"]
        x0 = check_same_shape("the action", tensordict["action"], x_t)
        t, s = tensordict["t"].squeeze(-1), tensordict["s"].squeeze(-1)
        condition = tensordict.get("condition", None)
        x_s = self.transition(x_t, x0, t, s, fresh_noise(self.transition, x_t, self.generator))
        reward = _reward(self.expert, x_t, x0, t, condition).unsqueeze(-1)
        done = step + 1 >= len(self.times) - 1
        return self._observe(x_s, step + 1, condition).update(
            {"reward": reward, "done": done, "terminated": done.clone()}
        )

    def _observe(self, x_t: States, step: Tensor, condition: Condition) -> TensorDict:
        t, s = _interval(self.times, step)
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


class DenoisingVectorEnv(VectorEnv):
    """A batch of chains that move together, Gymnasium's ``VectorEnv``: NumPy outside, the same law inside.

    All chains end together at step K; the next ``step`` or ``reset`` starts new ones (``AutoresetMode.NEXT_STEP``), or
    give ``autoreset_mode=AutoresetMode.DISABLED`` and reset by hand. Arguments as in :class:`DenoisingEnv`;
    ``num_envs`` is B. ``steps`` builds a uniform grid where no ``times`` are given.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(
        self,
        num_envs: int = 1,
        shape: tuple[int, ...] = (2,),
        transition: Transition | None = None,
        times: Times | None = None,
        steps: int = 4,
        expert: Expert | None = None,
        labels: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        check_at_least("num_envs", num_envs, 1)
        self.num_envs, self.shape_of_state, self.expert, self.labels = num_envs, tuple(shape), expert, labels
        self.transition = transition or Ddim(CosineSchedule())
        self.times = check_times(step_grid(steps) if times is None else times)
        self.metadata = {**type(self).metadata, "autoreset_mode": autoreset_mode}
        self.autoreset_mode = autoreset_mode
        self.single_observation_space = _observation_space(self.shape_of_state, len(self.times) - 1, labels)
        self.single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, self.shape_of_state, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._step = np.zeros(num_envs, dtype=np.int64)
        self._x: States | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start new chains, from noise or ``options={"x_t": array}``; ``options["reset_mask"]`` names the rows."""
        super().reset(seed=seed)
        options = options or {}
        noise = torch.as_tensor(options["x_t"], dtype=torch.float32) if "x_t" in options else self._noise()
        fresh = torch.as_tensor(options.get("reset_mask", np.ones(self.num_envs, bool)))
        labels = torch.from_numpy(self.np_random.integers(max(self.labels, 1), size=self.num_envs))
        check_same_shape("options['x_t']", noise, torch.empty((self.num_envs, *self.shape_of_state), device="meta"))
        if self._x is None:
            self._x, self._condition = noise, labels
        self._x = torch.where(fresh.reshape(-1, *[1] * len(self.shape_of_state)), noise, self._x)
        self._condition = torch.where(fresh, labels, self._condition)
        self._step = np.where(fresh.numpy(), 0, self._step)
        return self._observation(), {}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move every chain by one step; a guess is an array like ``x_t``.

        Raises:
            Refusal: before the first ``reset``, or after the end of the chains when autoreset is disabled.
        """
        last = len(self.times) - 1
        if self._x is None:
            raise Refusal("step was called before reset. Call reset() first.")
        still = np.zeros(self.num_envs, dtype=bool)
        if (self._step >= last).any():
            if self.autoreset_mode is AutoresetMode.DISABLED:
                raise Refusal(f"the chains have ended: step={last} of {last}. Call reset() for new ones.")
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs, np.float32), still, still.copy(), info
        x0 = check_same_shape("the action", torch.as_tensor(actions, dtype=torch.float32), self._x)
        t, s = (time.squeeze(-1) for time in _interval(self.times, torch.from_numpy(self._step[:, None])))
        condition = self._condition if self.labels else None
        reward = _reward(self.expert, self._x, x0, t, condition).numpy()
        self._x = self.transition(self._x, x0, t, s, self._noise())
        self._step = self._step + 1
        return self._observation(), reward, self._step >= last, still, {}

    def _observation(self) -> dict[str, Any]:
        assert self._x is not None
        t, s = _interval(self.times, torch.from_numpy(self._step[:, None]))
        columns = {"x_t": self._x.numpy().copy(), "t": t.numpy(), "s": s.numpy(), "step": self._step.copy()}
        return {**columns, "condition": self._condition.numpy().copy()} if self.labels else columns

    def _noise(self) -> States:
        noise = self.np_random.standard_normal((self.num_envs, *self.shape_of_state), dtype=np.float32)
        return torch.from_numpy(noise)


class DenoisingGymEnv(gymnasium.Env):
    """One chain, Gymnasium's ``Env``: a vector of one. Arguments as in :class:`DenoisingVectorEnv`."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(self, **arguments: Any) -> None:
        self._chains = DenoisingVectorEnv(num_envs=1, autoreset_mode=AutoresetMode.DISABLED, **arguments)
        self.observation_space = self._chains.single_observation_space
        self.action_space = self._chains.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a new chain, from noise or from ``options={"x_t": array}``."""
        super().reset(seed=seed)
        if options and "x_t" in options:
            options = {**options, "x_t": np.asarray(options["x_t"])[None]}
        observation, info = self._chains.reset(seed=seed, options=options)
        return _first(observation), info

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move the chain by one step of the law."""
        observation, reward, terminated, truncated, info = self._chains.step(np.asarray(action)[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


def _interval(times: Times, step: Tensor) -> tuple[Times, Times]:
    """Return where the given step starts and where it lands; a finished chain stays at the end."""
    last = len(times) - 1
    return times[step], times[(step + 1).clamp(max=last)]


def _reward(expert: Expert | None, x_t: States, x0: States, t: Times, condition: Condition) -> Tensor:
    if expert is None:
        return torch.zeros(len(x_t), device=x_t.device)
    return -(x0 - expert(x_t, t, condition)).square().flatten(1).mean(1)


def _observation_space(shape: tuple[int, ...], last: int, labels: int) -> gymnasium.spaces.Dict:
    box = gymnasium.spaces.Box
    spaces: dict[str, gymnasium.Space[Any]] = {
        "x_t": box(-np.inf, np.inf, shape, np.float32),
        "t": box(0.0, 1.0, (1,), np.float32),
        "s": box(0.0, 1.0, (1,), np.float32),
        "step": gymnasium.spaces.Discrete(last + 1),
    }
    return gymnasium.spaces.Dict({**spaces, "condition": gymnasium.spaces.Discrete(labels)} if labels else spaces)


def _first(observation: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in observation.items()}


gymnasium.register(
    "dagdiff/Denoising-v0",
    entry_point="dagdiff.envs.denoising:DenoisingGymEnv",
    vector_entry_point="dagdiff.envs.denoising:DenoisingVectorEnv",
)
