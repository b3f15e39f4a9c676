"""The environment: three skins of one law, their specs, seeds, resets and refusals."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.collectors import MultiSyncCollector
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import check_env_specs

from dagdiff.checks import Refusal
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.gymnasium import DenoisingGymEnv, DenoisingVectorEnv
from dagdiff.expert import Expert
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.rollout import MixturePolicy
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.shapes import column
from dagdiff.transition import Ddim, Renoise, sample

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_shape = pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)


def policy(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    return torch.sin(2 * x_t) + column(t, x_t)


def labels(n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    return torch.randint(8, (n,), generator=generator)


def native(shape: tuple[int, ...] = (2,), rows: int = 5, **more: Any) -> DenoisingEnv:
    arguments = {"transition": Ddim(CosineSchedule()), "times": step_grid(4), **more}
    return DenoisingEnv(shape, batch_size=rows, **arguments)


def run_native(env: DenoisingEnv, state: TensorDict) -> TensorDict:
    for _ in range(len(env.times) - 1):
        state = env.step(state.set("action", policy(state["x_t"], state["t"].squeeze(-1))))["next"]
    return state


def run_vector(env: DenoisingVectorEnv, observation: dict[str, Any]) -> tuple[np.ndarray, ...]:
    for _ in range(len(env.times) - 1):
        action = policy(torch.from_numpy(observation["x_t"]), torch.from_numpy(observation["t"]).squeeze(-1))
        observation, _, terminated, truncated, _ = env.step(action.numpy())
    return observation["x_t"], terminated, truncated


@every_shape
@every_schedule
def test_all_skins_and_sample_are_one_law(schedule: Callable, shape: tuple[int, ...]) -> None:
    noise, law, grid = torch.randn(5, *shape), Ddim(schedule), step_grid(4)
    expected = sample(policy, law, grid, noise)

    env = native(shape, transition=law, times=grid)
    state = run_native(env, env.reset(TensorDict({"x_t": noise.clone()}, [5])))
    torch.testing.assert_close(state["x_t"], expected)
    assert state["done"].all() and state["terminated"].all()

    vector = DenoisingVectorEnv(5, shape, law, grid)
    x, terminated, truncated = run_vector(vector, vector.reset(options={"x_t": noise.numpy()})[0])
    torch.testing.assert_close(torch.from_numpy(x), expected)
    assert terminated.all() and not truncated.any()

    single = DenoisingGymEnv(shape=shape, transition=law, times=grid)
    for row in range(5):
        observation, _ = single.reset(options={"x_t": noise[row].numpy()})
        for number in range(4):
            action = policy(torch.from_numpy(observation["x_t"])[None], torch.from_numpy(observation["t"]))[0]
            observation, _, done, cut, _ = single.step(action.numpy())
            assert done == (number == 3) and not cut
        torch.testing.assert_close(torch.from_numpy(observation["x_t"]), expected[row])


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_the_native_env_is_sample_for_any_shape_and_number_of_steps(steps: int, rows: int, shape: list[int]) -> None:
    env, noise = native(tuple(shape), rows, times=step_grid(steps)), torch.randn(rows, *shape)
    ended = run_native(env, env.reset(TensorDict({"x_t": noise.clone()}, [rows])))
    torch.testing.assert_close(ended["x_t"], sample(policy, env.transition, env.times, noise))


def test_the_native_env_draws_what_sample_draws() -> None:
    """Re-noising chains are equal, too, where both draw from the same generator."""
    law = Renoise(CosineSchedule())
    env = native(transition=law, generator=torch.Generator().manual_seed(7))
    state = run_native(env, env.reset())
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(5, 2, generator=generator)
    torch.testing.assert_close(state["x_t"], sample(policy, law, step_grid(4), noise, generator=generator))


@every_shape
@pytest.mark.parametrize("law", [Ddim, Renoise, lambda schedule: Ddim(schedule, 0.5)], ids=["ddim", "renoise", "eta"])
@pytest.mark.parametrize("conditions", [None, labels], ids=["plain", "labelled"])
def test_torchrl_accepts_the_native_env(shape: tuple[int, ...], law: Callable, conditions: Callable | None) -> None:
    env = native(shape, transition=law(CosineSchedule()), conditions=conditions)
    check_env_specs(env, seed=0)
    rolled = env.rollout(10, break_when_any_done=True)
    assert rolled.batch_size == torch.Size([5, 4])
    assert ("condition" in rolled.keys()) == (conditions is not None)  # noqa: SIM118


@every_shape
@pytest.mark.parametrize("count", [0, 3])
def test_gymnasium_accepts_the_single_env(shape: tuple[int, ...], count: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box.*")  # states without bounds are meant
        warnings.filterwarnings("ignore", message=".*render_modes.*")
        check_env(DenoisingGymEnv(shape=shape, labels=count), skip_render_check=True)


@every_shape
@pytest.mark.parametrize("count", [0, 3])
def test_torchrl_accepts_the_wrapped_vector_env(shape: tuple[int, ...], count: int) -> None:
    vector = DenoisingVectorEnv(4, shape, labels=count, autoreset_mode=AutoresetMode.DISABLED)
    check_env_specs(GymWrapper(vector), seed=0)


def test_gym_make_and_make_vec() -> None:
    single = gymnasium.make("dagdiff/Denoising-v0", shape=(3,), steps=2)
    observation, _ = single.reset(seed=0)
    assert observation["x_t"].shape == (3,) and single.observation_space.contains(observation)
    single.step(np.zeros(3, np.float32))
    assert single.step(np.zeros(3, np.float32))[2]
    vector = gymnasium.make_vec("dagdiff/Denoising-v0", 6, vectorization_mode="vector_entry_point", steps=3, labels=4)
    assert isinstance(vector.unwrapped, DenoisingVectorEnv)
    observation, _ = vector.reset(seed=0)
    assert observation["x_t"].shape == (6, 2) and vector.observation_space.contains(observation)
    assert set(observation["condition"]) <= set(range(4))
    observation, reward, terminated, truncated, _ = vector.step(vector.action_space.sample())
    assert vector.observation_space.contains(observation)
    assert reward.shape == terminated.shape == truncated.shape == (6,)


def test_the_observation_says_where_the_chain_is() -> None:
    vector, grid = DenoisingVectorEnv(3, times=torch.tensor([0.9, 0.5, 0.2, 0.0])), [0.9, 0.5, 0.2, 0.0, 0.0]
    observation, _ = vector.reset(seed=0)
    for number in range(4):
        assert observation["step"].tolist() == [number] * 3
        np.testing.assert_allclose(observation["t"], grid[number])
        np.testing.assert_allclose(observation["s"], grid[number + 1])
        if number < 3:
            observation = vector.step(np.zeros((3, 2), np.float32))[0]


def test_seeds() -> None:
    vector = DenoisingVectorEnv(3, labels=5, transition=Renoise(CosineSchedule()))

    def trace(seed: int) -> list[np.ndarray]:
        observation, _ = vector.reset(seed=seed)
        return [observation["x_t"], observation["condition"], vector.step(np.zeros((3, 2), np.float32))[0]["x_t"]]

    for one, two in zip(trace(1), trace(1), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.allclose(trace(1)[0], trace(2)[0])
    single = DenoisingGymEnv()
    np.testing.assert_array_equal(single.reset(seed=1)[0]["x_t"], single.reset(seed=1)[0]["x_t"])
    assert not np.allclose(single.reset()[0]["x_t"], single.reset()[0]["x_t"])

    env = native(conditions=labels)
    env.set_seed(1)
    first = env.reset()
    env.set_seed(1)
    assert (env.reset() == first).all()
    assert not torch.isclose(env.reset()["x_t"], first["x_t"]).any()


def test_autoreset_next_step_starts_new_chains_and_ignores_the_action() -> None:
    vector = DenoisingVectorEnv(3, steps=2)
    start, _ = vector.reset(seed=0)
    for _ in range(2):
        ended, _, terminated, _, _ = vector.step(np.zeros((3, 2), np.float32))
    assert terminated.all() and (ended["step"] == 2).all()
    born, reward, terminated, truncated, _ = vector.step(np.full((3, 2), np.nan, np.float32))
    assert (born["step"] == 0).all() and (born["t"] == 1).all()
    assert not terminated.any() and not truncated.any() and (reward == 0).all()
    assert np.isfinite(born["x_t"]).all() and not np.isclose(born["x_t"], start["x_t"]).any()


def test_autoreset_disabled_refuses_until_reset() -> None:
    vector = DenoisingVectorEnv(3, steps=2, autoreset_mode=AutoresetMode.DISABLED)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    vector.reset(seed=0)
    for _ in range(2):
        vector.step(np.zeros((3, 2), np.float32))
    with pytest.raises(Refusal, match=r"the chains have ended: step=2 of 2. Call reset\(\) for new ones"):
        vector.step(np.zeros((3, 2), np.float32))
    vector.reset()
    assert (vector.step(np.zeros((3, 2), np.float32))[0]["step"] == 1).all()


def test_a_reset_mask_restarts_those_rows_alone() -> None:
    vector = DenoisingVectorEnv(3, steps=4, labels=50, autoreset_mode=AutoresetMode.DISABLED)
    vector.reset(seed=0)
    before = vector.step(np.zeros((3, 2), np.float32))[0]
    after, _ = vector.reset(options={"reset_mask": np.array([True, False, True])})
    assert after["step"].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(after["x_t"][1], before["x_t"][1])
    assert after["condition"][1] == before["condition"][1]
    assert not np.isclose(after["x_t"][[0, 2]], before["x_t"][[0, 2]]).any()
    moved = vector.step(np.zeros((3, 2), np.float32))[0]
    assert moved["step"].tolist() == [1, 2, 1]
    np.testing.assert_allclose(moved["t"].squeeze(-1), [0.75, 0.5, 0.75])


def test_reset_into_a_given_state() -> None:
    given_x = torch.randn(5, 2)
    env = native()
    state = env.reset(TensorDict({"x_t": given_x, "step": torch.full((5, 1), 2)}, [5]))
    assert torch.equal(state["x_t"], given_x)
    assert (state["t"] == 0.5).all() and (state["s"] == 0.25).all() and (state["step"] == 2).all()
    assert (env.reset(TensorDict({"x_t": given_x}, [5]))["t"] == 1).all()
    for one in (DenoisingVectorEnv(5), DenoisingVectorEnv(5, labels=3)):
        np.testing.assert_array_equal(one.reset(options={"x_t": given_x.numpy()})[0]["x_t"], given_x.numpy())
    single, _ = DenoisingGymEnv().reset(options={"x_t": given_x[0].numpy()})
    np.testing.assert_array_equal(single["x_t"], given_x[0].numpy())


@pytest.mark.parametrize("step", [None, 0, 2])
def test_reset_into_a_given_state_keeps_the_given_condition(step: int | None) -> None:
    env, mine = native(conditions=labels), torch.tensor([5, 6, 7, 0, 1])
    given_state = TensorDict({"x_t": torch.randn(5, 2), "condition": mine}, [5])
    if step is not None:
        given_state["step"] = torch.full((5, 1), step)
    assert torch.equal(env.reset(given_state)["condition"], mine)


def test_reset_into_a_given_step_still_has_a_condition() -> None:
    env = native(conditions=labels)
    given_state = TensorDict({"x_t": torch.randn(5, 2), "step": torch.full((5, 1), 2)}, [5])
    assert env.reset(given_state)["condition"].shape == (5,)


def test_a_finished_chain_starts_anew() -> None:
    env = native(conditions=labels, generator=torch.Generator().manual_seed(0))
    ended = run_native(env, env.reset())
    born = env.reset(ended.clone())
    assert (born["step"] == 0).all() and (born["t"] == 1).all() and (born["s"] == 0.75).all()
    assert not born["done"].any() and not born["terminated"].any()
    assert not torch.isclose(born["x_t"], ended["x_t"]).any()
    assert run_native(env, born)["done"].all()


def test_only_the_finished_chains_of_a_given_state_start_anew() -> None:
    env, x_t, asked = native(conditions=labels), torch.randn(5, 2), torch.tensor([50, 51, 52, 53, 54])
    step = torch.tensor([[4], [0], [3], [4], [2]])
    born = env.reset(TensorDict({"x_t": x_t, "step": step, "condition": asked}, [5]))
    assert born["step"].flatten().tolist() == [0, 0, 3, 0, 2]
    kept = torch.tensor([1, 2, 4])
    assert torch.equal(born["x_t"][kept], x_t[kept]) and torch.equal(born["condition"][kept], asked[kept])
    assert not torch.isclose(born["x_t"][[0, 3]], x_t[[0, 3]]).any() and (born["condition"][[0, 3]] < 8).all()


def test_the_grid_of_the_native_env_is_any_numbers() -> None:
    for times in ([1.0, 0.5, 0.0], (1, 0.5, 0), np.linspace(0.0, 1.0, 3)[::-1]):
        assert native(times=times).times.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.slow
def test_a_student_acts_in_several_processes() -> None:
    """TorchRL's collector of processes pickles the policy and the recipe of its environments."""
    make = partial(DenoisingEnv, (2,), Ddim(CosineSchedule()), step_grid(4), 8)
    student = MixturePolicy(Student(MLP(width=8), CosineSchedule()), exact(CosineSchedule()), Ddim(CosineSchedule()))
    collector = MultiSyncCollector(
        [make, make], student, frames_per_batch=64, total_frames=128, auto_register_policy_transforms=False
    )
    try:
        batches = [batch.clone() for batch in collector]
    finally:
        collector.shutdown()
    assert [batch.numel() for batch in batches] == [64, 64]
    for batch in batches:
        flat = batch.reshape(-1)
        guess = student.student(flat["x_t"], flat["t"].squeeze(-1))
        torch.testing.assert_close(flat["action"], guess, rtol=1e-4, atol=1e-5)


def exact(schedule: Callable, substeps: int = 1) -> Expert:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    mixture = GaussianMixtureExpert(means, torch.tensor([0.2, 0.3]), torch.tensor([0.5, 0.5]), schedule)
    return Expert(mixture, schedule, substeps)


@pytest.mark.parametrize("count", [0, 2])
def test_the_reward_is_minus_the_squared_distance_to_the_experts_guess(count: int) -> None:
    schedule = CosineSchedule()
    expert, action = exact(schedule), torch.randn(5, 2)
    env = native(expert=expert, conditions=(lambda n, g: torch.randint(2, (n,), generator=g)) if count else None)
    state = env.reset()
    condition = state.get("condition", None)
    expected = -(action - expert(state["x_t"], torch.ones(5), condition)).square().mean(1)
    torch.testing.assert_close(env.step(state.set("action", action))["next", "reward"].squeeze(-1), expected)

    vector = DenoisingVectorEnv(5, expert=expert, labels=count)
    seen, _ = vector.reset(seed=0)
    condition = torch.from_numpy(seen["condition"]) if count else None
    expected = -(action - expert(torch.from_numpy(seen["x_t"]), torch.ones(5), condition)).square().mean(1)
    np.testing.assert_allclose(vector.step(action.numpy())[1], expected.numpy(), rtol=1e-5)

    single = DenoisingGymEnv(expert=expert, labels=count)
    seen, _ = single.reset(seed=0)
    condition = torch.tensor([int(seen["condition"])]) if count else None
    expected = -(action[:1] - expert(torch.from_numpy(seen["x_t"])[None], torch.ones(1), condition)).square().mean()
    assert single.step(action[0].numpy())[1] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_the_label_of_the_step_is_the_best_action_and_no_expert_no_reward(law: Callable) -> None:
    schedule, times = CosineSchedule(), step_grid(4)
    expert = exact(schedule, substeps=8)
    env = DenoisingEnv((2,), law(schedule), times, 5, expert=expert, generator=torch.Generator().manual_seed(0))
    state, t = env.reset(), torch.ones(5)
    plain = env.step(state.clone().set("action", expert(state["x_t"], t)))["next", "reward"]
    label = expert.target(state["x_t"], t, env.transition.horizon(times[1].expand(5)))
    best = env.step(state.set("action", label))["next", "reward"]
    assert (best == 0).all()
    assert (plain < 0).all(), "the plain guess is another action where the expert walks in sub-steps"
    bare = native()
    assert (bare.step(bare.reset().set("action", torch.randn(5, 2)))["next", "reward"] == 0).all()


def test_answers_are_fresh_tensors_never_views_of_the_envs_own() -> None:
    vector = DenoisingVectorEnv(3)
    first, _ = vector.reset(seed=0)
    kept = {name: value.copy() for name, value in first.items()}
    second = vector.step(np.zeros((3, 2), np.float32))[0]
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)
    second["x_t"].fill(9.0)
    second["step"].fill(0)
    third = vector.step(np.zeros((3, 2), np.float32))[0]
    assert (third["x_t"] < 5).all() and (third["step"] == 2).all()

    start = np.ones((3, 2), np.float32)
    vector.reset(options={"x_t": start})
    start.fill(7.0)
    moved = vector.step(np.zeros((3, 2), np.float32))[0]["x_t"]
    assert (np.abs(moved) <= 1.0).all()


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5,), (1, 2), (5, 2, 1)])
def test_an_action_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    vector = DenoisingVectorEnv(5)
    vector.reset(seed=0)
    with pytest.raises(Refusal, match=r"the action must answer with the shape of the states, \(5, 2\)"):
        vector.step(np.zeros(shape, np.float32))
    if shape[0] == 5:
        single = DenoisingGymEnv()
        single.reset(seed=0)
        with pytest.raises(Refusal, match=r"the action must answer with the shape of the states, \(1, 2\)"):
            single.step(np.zeros(shape[1:], np.float32))


def test_the_native_env_refuses_an_action_that_would_broadcast() -> None:
    env = native()
    state = env.reset()
    with pytest.raises(Refusal, match=r"\(5, 2\); got \(5, 1\)"):
        env.step(state.set("action", torch.zeros(5, 1)))


@pytest.mark.parametrize("shape", [(2, 5), (3, 2), (2,)])
@pytest.mark.parametrize("before", [False, True], ids=["first reset", "later reset"])
def test_a_given_state_of_the_wrong_shape_is_refused(shape: tuple[int, ...], before: bool) -> None:
    vector = DenoisingVectorEnv(2)
    if before:
        vector.reset(seed=0)
    with pytest.raises(Refusal, match=r"x_t.*\(2, 2\)"):
        vector.reset(options={"x_t": np.zeros(shape, np.float32)})


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(Refusal, match=r"step was called before reset. Call reset\(\) first"):
        DenoisingVectorEnv(2).step(np.zeros((2, 2), np.float32))
    with pytest.raises(Refusal, match="before reset"):
        DenoisingGymEnv().step(np.zeros(2, np.float32))


def test_other_refusals() -> None:
    rising = torch.tensor([0.5, 1.0, 0.0])
    for make in (lambda: native(times=rising), lambda: DenoisingVectorEnv(times=rising)):
        with pytest.raises(Refusal, match=r"times\[1\]=1 after times\[0\]=0.5"):
            make()
    with pytest.raises(Refusal, match="batch_size must be at least 1; got 0"):
        native(rows=0)
    with pytest.raises(Refusal, match="num_envs must be at least 1; got 0"):
        DenoisingVectorEnv(0)
    with pytest.raises(Refusal, match="steps must be at least 1; got 0"):
        DenoisingVectorEnv(steps=0)


@every_shape
@pytest.mark.parametrize("law", [Ddim, Renoise, lambda schedule: Ddim(schedule, 0.5)], ids=["ddim", "renoise", "eta"])
@every_schedule
def test_the_native_env_runs_on_meta(shape: tuple[int, ...], law: Callable, schedule: Callable) -> None:
    env = native(
        shape,
        transition=law(schedule),
        conditions=lambda n, generator: torch.zeros(n, dtype=torch.int64, device="meta"),
        expert=Expert(Student(MLP(shape[0], width=8), schedule).to("meta"), schedule) if shape == (2,) else None,
        device="meta",
    )
    env.set_seed(0)
    state = env._reset()
    for _ in range(4):
        assert state["x_t"].is_meta and state["x_t"].shape == (5, *shape)
        state["action"] = torch.empty(5, *shape, device="meta")
        state = env._step(state)
    assert all(state[name].is_meta for name in ("x_t", "t", "s", "step", "condition", "reward", "done", "terminated"))


def test_the_env_takes_the_grids_precision() -> None:
    """A grid of double precision (numpy's habit) is no reason for another dtype in the records."""
    env = native(times=step_grid(4).double())
    check_env_specs(env, seed=0)


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_chains_that_move_together_do_what_torchrl_does(law: Callable) -> None:
    """Over two whole chains and a half: the records, their order, the draws, and what a policy writes beside."""
    found = []
    for step in (DenoisingEnv.step_and_maybe_reset, EnvBase.step_and_maybe_reset):
        env = native(
            transition=law(CosineSchedule()),
            conditions=lambda n, generator: torch.randint(3, (n,), generator=generator),
        )
        env.set_seed(5)
        state, records = env.reset(), []
        for number in range(10):
            state["action"], state["actor"] = 0.5 * state["x_t"], torch.full((5, 1), number)
            record, state = step(env, state)
            records.append(record)
            assert torch.equal(state["actor"], record["actor"]), "a driver may be held"
        found.append((torch.stack(records), state))
    for one, other in zip(*found, strict=True):
        assert set(one.keys(True, True)) == set(other.keys(True, True))
        assert all(torch.equal(one[key], other[key]) for key in one.keys(True, True))


def test_chains_at_steps_of_their_own_are_left_to_torchrl() -> None:
    env = native()
    env.set_seed(0)
    state = env.reset(env.reset().select("x_t").set("step", torch.tensor([[0], [3], [1], [3], [2]])))
    state["action"] = torch.zeros_like(state["x_t"])
    record, state = env.step_and_maybe_reset(state)
    assert record["next", "done"].flatten().tolist() == [False, True, False, True, False]
    assert state["step"].flatten().tolist() == [1, 0, 2, 0, 3]


def test_no_step_of_chains_that_move_together_looks_at_the_device() -> None:
    env = native(device="meta")
    state = env._reset()
    for _ in range(9):
        state["action"] = torch.empty(5, 2, device="meta")
        record, state = env.step_and_maybe_reset(state)
        assert record["next", "x_t"].is_meta and state["x_t"].is_meta
