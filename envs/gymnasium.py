"""The denoising chain for Gymnasium: many chains or one, stepped by hand or by other RL libraries.

Observation, action, transition, reward and episode are those of :mod:`dagdiff.envs.denoising`; states are NumPy arrays.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dagdiff.checks import Refusal, as_floats, check_above, check_at_least, check_in, check_times
from dagdiff.envs.given import Mask, read_autoreset, read_conditions, read_mask, read_options, read_states
from dagdiff.envs.render import Frame, draw_chain
from dagdiff.envs.steps import interval, reward
from dagdiff.expert import Expert
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.shapes import States, column
from dagdiff.transition import Ddim, Transition

Answer = tuple[dict[str, Any], NDArray[np.float32], Mask, Mask, dict[str, Any]]
"""``(observation, reward, terminated, truncated, info)``."""

WIDE = 10.0
"""The default ``bound``: beyond any prediction of standardised data, and finite, as many RL libraries want it."""


class DenoisingVectorEnv(VectorEnv):
    """A batch of chains, Gymnasium's ``VectorEnv``: NumPy outside, the same law inside.

    A chain ends at step K. What then happens is Gymnasium's choice of ``autoreset_mode``, row by row:

    - ``NEXT_STEP``: the next ``step`` starts a new chain in that row, ignores its action and pays 0;
    - ``SAME_STEP``: the same ``step`` starts it; the end is in ``info["final_obs"][row]``;
    - ``DISABLED``: ``reset(options={"reset_mask": rows})`` starts it; stepping on is rejected.

    Args:
        num_envs: the number B of chains.
        shape: of one state, ``(*D,)``.
        transition: the transition; DDIM on the cosine schedule if not given.
        times: the grid, falling to 0, K + 1 numbers.
        steps: K of a uniform grid, where no ``times`` are given.
        expert: gives the reward; None for reward 0.
        labels: the number of conditions, of which each chain draws one; 0 for unconditional chains.
        bound: the action space is the box [-bound, bound]; None for no bounds. A prediction outside is taken as it is:
            the law of the chain is the same for every bound.
        autoreset_mode: as above, or its name.
        render_mode: ``"rgb_array"`` for pictures of the chains, None for none.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self,
        num_envs: int = 1,
        shape: tuple[int, ...] = (2,),
        transition: Transition | None = None,
        times: Tensor | ArrayLike | None = None,
        steps: int = 4,
        expert: Expert | None = None,
        labels: int = 0,
        bound: float | None = WIDE,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_at_least("num_envs", num_envs, 1)
        check_at_least("labels", labels, 0)
        reach = np.inf if bound is None else bound
        check_above("bound", reach, 0.0)
        if render_mode is not None:
            check_in("render_mode", render_mode, self.metadata["render_modes"])
        self.num_envs, self.shape_of_state, self.expert, self.labels = num_envs, tuple(shape), expert, labels
        self.transition = transition or Ddim(CosineSchedule())
        self.times = check_times(step_grid(steps) if times is None else times).to("cpu", torch.float32)
        self.autoreset_mode, self.render_mode = read_autoreset(autoreset_mode), render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = _observation_space(self.shape_of_state, self._last, labels)
        self.single_action_space = gymnasium.spaces.Box(-reach, reach, self.shape_of_state, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._states, self._all = (num_envs, *self.shape_of_state), np.ones(num_envs, dtype=bool)
        self._step = np.zeros(num_envs, dtype=np.int64)
        self._x: States | None = None
        self._trails: list[list[NDArray[np.float32]]] = [[] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start new chains.

        Args:
            seed: of all draws from now on.
            options: ``x_t``, the states to start from, ``(B, *D)``; ``condition``, one for all chains or ``(B,)``;
                ``reset_mask``, the rows to start anew, ``(B,)`` booleans. What is not given is drawn; all rows start.

        Raises:
            Refusal: for another option, or a value that does not fit.
        """
        given = read_options(options, ("x_t", "condition", "reset_mask"))
        rows = read_mask(given["reset_mask"], self.num_envs) if "reset_mask" in given else self._all
        x_t = read_states("options['x_t']", given["x_t"], self._states, rows) if "x_t" in given else None
        condition = read_conditions(given["condition"], self.num_envs, self.labels) if "condition" in given else None
        super().reset(seed=seed)
        self._begin(rows, x_t, condition)
        return self._observation(), {}

    def step(self, actions: ArrayLike) -> Answer:
        """Move every chain by one step; predictions are an array like ``x_t``.

        Raises:
            Refusal: before the first ``reset``, after the end of a chain where autoreset is disabled, and for
                predictions of another shape or that are not finite.
        """
        if self._x is None:
            raise Refusal("step was called before reset. Call reset() first.")
        ended = self._step >= self._last
        if ended.any() and self.autoreset_mode is AutoresetMode.DISABLED:
            raise Refusal(_ended(ended, self._last))
        earned, moving = np.zeros(self.num_envs, np.float32), ~ended
        guesses = read_states("the action", actions, self._states, moving)
        if moving.any():
            earned[moving] = self._move(moving, guesses)
        if ended.any():
            self._begin(ended)
        observation, terminated, info = self._observation(), moving & (self._step >= self._last), {}
        if terminated.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = _final(observation, terminated)
            self._begin(terminated)
            observation = self._observation()
        return observation, earned, terminated, np.zeros(self.num_envs, dtype=bool), info

    def render(self) -> tuple[Frame, ...]:
        """Return a picture of each chain so far, ``(H, W, 3)`` bytes, with an arrow to the expert's prediction.

        The expert is asked at nobody's charge, and no draw is made.

        Raises:
            Refusal: without a ``render_mode``, or before the first ``reset``.
        """
        if self.render_mode is None:
            raise Refusal("render was called without a render_mode. Make the environment with render_mode='rgb_array'.")
        if self._x is None:
            raise Refusal("render was called before reset. Call reset() first.")
        advice = None
        if self.expert is not None:
            t, _ = interval(self.times, torch.from_numpy(self._step))
            with self.expert.ledger.free():
                advice = self.expert(self._x, t, self._condition if self.labels else None).numpy()
        return tuple(
            draw_chain(
                trail,
                None if advice is None or step == self._last else advice[row],
                f"step {step} of {self._last}, t = {float(self.times[step]):.2f}"
                + (f", condition {int(self._condition[row])}" if self.labels else ""),
            )
            for row, (trail, step) in enumerate(zip(self._trails, self._step, strict=True))
        )

    @property
    def _last(self) -> int:
        """K, the step at which a chain has ended."""
        return len(self.times) - 1

    def _begin(self, rows: Mask, x_t: States | None = None, condition: Tensor | None = None) -> None:
        """Start new chains in ``rows``, from what is given or drawn."""
        noise = self._noise() if x_t is None else x_t
        labels = torch.from_numpy(self.np_random.integers(max(self.labels, 1), size=self.num_envs))
        labels = labels if condition is None else condition
        if self._x is None:
            self._x, self._condition, rows = noise, labels, self._all
        chosen = torch.from_numpy(rows)
        self._x = torch.where(column(chosen, noise), noise, self._x)
        self._condition = torch.where(chosen, labels, self._condition)
        self._step = np.where(rows, 0, self._step)
        self._remember(rows)

    def _move(self, rows: Mask, guesses: States) -> NDArray[np.float32]:
        """Move the chains of ``rows`` by one step of the law; return what they earn."""
        assert self._x is not None
        chosen = torch.from_numpy(rows.nonzero()[0])
        x_t, x0 = self._x[chosen], guesses[chosen]
        t, s = interval(self.times, torch.from_numpy(self._step)[chosen])
        condition = self._condition[chosen] if self.labels else None
        earned = reward(self.expert, self.transition, x_t, x0, t, s, condition)
        self._x = self._x.index_copy(0, chosen, self.transition(x_t, x0, t, s, self._noise()[chosen]))
        self._step = self._step + rows
        self._remember(rows)
        return earned.numpy()

    def _remember(self, rows: Mask) -> None:
        """Keep the states of ``rows`` for their pictures."""
        if self.render_mode is None:
            return
        assert self._x is not None
        for row in rows.nonzero()[0]:
            self._trails[row] = [*(self._trails[row] if self._step[row] else []), self._x[row].numpy().copy()]

    def _observation(self) -> dict[str, Any]:
        assert self._x is not None
        t, s = interval(self.times, torch.from_numpy(self._step[:, None]))
        columns = {"x_t": self._x.numpy().copy(), "t": t.numpy(), "s": s.numpy(), "step": self._step.copy()}
        return {**columns, "condition": self._condition.numpy().copy()} if self.labels else columns

    def _noise(self) -> States:
        return torch.from_numpy(self.np_random.standard_normal(self._states, dtype=np.float32))


class DenoisingGymEnv(gymnasium.Env):
    """One chain, Gymnasium's ``Env``: a vector of one, to be reset by hand. See :class:`DenoisingVectorEnv`.

    Args:
        shape: of the state, ``(*D,)``.
        transition: the transition; DDIM on the cosine schedule if not given.
        times: the grid, falling to 0, K + 1 numbers.
        steps: K of a uniform grid, where no ``times`` are given.
        expert: gives the reward; None for reward 0.
        labels: the number of conditions, of which a chain draws one; 0 for an unconditional chain.
        bound: the action space is the box [-bound, bound]; None for no bounds.
        render_mode: ``"rgb_array"`` for pictures of the chain, None for none.
    """

    metadata = DenoisingVectorEnv.metadata

    def __init__(
        self,
        shape: tuple[int, ...] = (2,),
        transition: Transition | None = None,
        times: Tensor | ArrayLike | None = None,
        steps: int = 4,
        expert: Expert | None = None,
        labels: int = 0,
        bound: float | None = WIDE,
        render_mode: str | None = None,
    ) -> None:
        self._chains = DenoisingVectorEnv(
            1, shape, transition, times, steps, expert, labels, bound, AutoresetMode.DISABLED, render_mode
        )
        self.render_mode = render_mode
        self.observation_space = self._chains.single_observation_space
        self.action_space = self._chains.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a new chain, from noise or from ``options={"x_t": array}``, on ``options={"condition": number}``."""
        given = read_options(options, ("x_t", "condition"))
        if "x_t" in given:
            given["x_t"] = as_floats("options['x_t']", given["x_t"], "Pass an array like x_t.")[None]
        super().reset(seed=seed)
        observation, info = self._chains.reset(seed=seed, options=given)
        return _row(observation, 0), info

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move the chain by one step of the law."""
        guess = as_floats("the action", action, "Pass an array like x_t.")[None]
        observation, earned, terminated, truncated, info = self._chains.step(guess)
        return _row(observation, 0), float(earned[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Frame:
        """Return a picture of the chain so far, ``(H, W, 3)`` bytes, with an arrow to the expert's prediction."""
        return self._chains.render()[0]


def _observation_space(shape: tuple[int, ...], last: int, labels: int) -> gymnasium.spaces.Dict:
    box = gymnasium.spaces.Box
    spaces: dict[str, gymnasium.Space[Any]] = {
        "x_t": box(-np.inf, np.inf, shape, np.float32),
        "t": box(0.0, 1.0, (1,), np.float32),
        "s": box(0.0, 1.0, (1,), np.float32),
        "step": gymnasium.spaces.Discrete(last + 1),
    }
    return gymnasium.spaces.Dict({**spaces, "condition": gymnasium.spaces.Discrete(labels)} if labels else spaces)


def _row(observation: dict[str, Any], row: int) -> dict[str, Any]:
    return {key: value[row] for key, value in observation.items()}


def _final(observation: dict[str, Any], rows: Mask) -> dict[str, Any]:
    """Return what Gymnasium tells of chains that end and start anew within one step, as its own vector envs do."""
    ends = np.full(len(rows), None, dtype=object)
    for row in rows.nonzero()[0]:
        ends[row] = _row(observation, int(row))
    return {"final_obs": ends, "_final_obs": rows.copy(), "final_info": {}, "_final_info": rows.copy()}


def _ended(rows: Mask, last: int) -> str:
    """The sentence for a step beyond the end."""
    if rows.all():
        return f"the chains have ended: step={last} of {last}. Call reset() for new ones."
    return (
        f"chains {rows.nonzero()[0].tolist()} have ended: step={last} of {last}. "
        "Call reset(options={'reset_mask': terminated}) for new ones in their place."
    )
