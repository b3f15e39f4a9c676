"""The chain as Gymnasium's users use it: names, options, bounds, autoreset row by row, pictures, other libraries."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RenderCollection, RescaleAction
from helpers import ROOT
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs

from dagdiff.checks import Refusal
from dagdiff.envs.gymnasium import DenoisingGymEnv, DenoisingVectorEnv
from dagdiff.expert import Expert
from dagdiff.schedule import CosineSchedule

NAMES = ("dagdiff/Denoising-v0", "dagdiff/DenoisingBounded-v0")
MODES = {mode.value: mode for mode in AutoresetMode}


def halve(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    return x_t / 2


def zeros(rows: int) -> np.ndarray:
    return np.zeros((rows, 2), np.float32)


# Names


@pytest.mark.parametrize(
    ("before", "name"),
    [("import dagdiff.envs", "dagdiff/Denoising-v0"), ("", "dagdiff.envs:dagdiff/DenoisingBounded-v0")],
    ids=["imported", "named"],
)
def test_a_fresh_interpreter_makes_the_environment(before: str, name: str) -> None:
    code = f"import gymnasium\n{before}\nprint(gymnasium.make({name!r}, steps=3).reset(seed=0)[0]['x_t'].shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(2,)", done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [{}, {"labels": 3, "shape": (3, 4, 4)}], ids=["plain", "labelled images"])
def test_gymnasium_accepts_it_by_name_with_its_pictures(name: str, more: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box.*")  # states have no bounds, actions other than 1
        check_env(gymnasium.make(name, **more).unwrapped)


# The grid


@pytest.mark.parametrize(
    "times",
    [
        [1.0, 0.5, 0.0],
        (1, 0.5, 0),
        np.array([1.0, 0.5, 0.0]),
        np.linspace(0.0, 1.0, 3)[::-1],
        np.array([1.0, 0.5, 0.0], dtype=">f8"),
        torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64),
        [torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.0)],
    ],
    ids=["list", "tuple", "array", "reversed", "big-endian", "tensor", "scalars"],
)
def test_times_are_any_numbers(times: Any) -> None:
    env = gymnasium.make("dagdiff/Denoising-v0", times=times)
    seen = [env.reset(seed=0)[0], env.step(zeros(1)[0])[0]]
    assert [(float(each["t"][0]), float(each["s"][0])) for each in seen] == [(1.0, 0.5), (0.5, 0.0)]
    assert all(env.observation_space.contains(each) for each in seen)


@pytest.mark.parametrize("times", ["abc", None, {}, ["a", "b"], [1.0, [0.0]]], ids=str)
def test_times_that_are_no_numbers(times: Any) -> None:
    if times is None:
        return
    with pytest.raises(Refusal, match=r"times must be an array of numbers; got .* Pass e\.g\. torch\.linspace"):
        DenoisingVectorEnv(times=times)


# Bounds


def test_the_bound_is_that_of_the_action_space_and_of_nothing_else() -> None:
    spaces = {
        bound: gymnasium.make("dagdiff/Denoising-v0", bound=bound).action_space for bound in (0.5, 10.0, np.inf, None)
    }
    assert [float(space.high[0]) for space in spaces.values()] == [0.5, 10.0, np.inf, np.inf]
    assert gymnasium.make(NAMES[0]).action_space == spaces[10.0]
    assert gymnasium.make(NAMES[1]).action_space.high.tolist() == [3.0, 3.0]
    far = np.full(2, 7.0, np.float32)
    ends = []
    for bound in (0.5, None):
        env = DenoisingGymEnv(bound=bound, steps=1)
        env.reset(seed=0)
        ends.append(env.step(far)[0]["x_t"])
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_allclose(ends[0], far, rtol=1e-5)
    with pytest.raises(Refusal, match=r"bound must be above 0\.0; got -1"):
        DenoisingGymEnv(bound=-1)


@pytest.mark.parametrize("name", NAMES)
def test_actions_may_be_rescaled(name: str) -> None:
    plain = gymnasium.make(name)
    scaled = RescaleAction(gymnasium.make(name), -1.0, 1.0)
    plain.reset(seed=0)
    scaled.reset(seed=0)
    reach = plain.action_space.high[0]
    one, two = (env.step(action)[0]["x_t"] for env, action in ((plain, [reach, -reach]), (scaled, np.float32([1, -1]))))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_stable_baselines_start(name: str, algorithm: str) -> None:
    library = pytest.importorskip("stable_baselines3")
    options = {"PPO": {"n_steps": 16, "batch_size": 16}, "SAC": {"learning_starts": 4}}[algorithm]
    getattr(library, algorithm)("MultiInputPolicy", gymnasium.make(name, labels=3), **options).learn(16)


# Options of reset


def test_a_chosen_condition() -> None:
    env = DenoisingGymEnv(labels=5)
    for chosen in (3, np.int64(3), np.array([3]), torch.tensor(3)):
        assert env.reset(options={"condition": chosen})[0]["condition"] == 3
    chains = DenoisingVectorEnv(3, labels=5)
    assert chains.reset(options={"condition": 4})[0]["condition"].tolist() == [4, 4, 4]
    assert chains.reset(options={"condition": [0, 4, 2]})[0]["condition"].tolist() == [0, 4, 2]
    assert chains.step(zeros(3))[0]["condition"].tolist() == [0, 4, 2]
    rows = {"condition": 1, "reset_mask": np.array([False, True, False])}
    assert chains.reset(options=rows)[0]["condition"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"conditon": 3},
            r"unknown reset option 'conditon'. Did you mean 'condition'\? Known: condition, reset_mask, x_t",
        ),
        ({"condition": 5}, r"options\['condition'\] must be whole numbers from 0 to 4, .* got 5"),
        ({"condition": -1}, "from 0 to 4"),
        ({"condition": 1.0}, "must be whole numbers"),
        ({"condition": [1, 2]}, "one for all chains or 3, one a chain"),
        ({"condition": "cat"}, "got 'cat'"),
        ({"reset_mask": [1, 0, 1]}, r"options\['reset_mask'\] must be 3 booleans"),
        ({"reset_mask": [True]}, "must be 3 booleans"),
        ({"reset_mask": [False] * 3}, "at least one of them true"),
        ({"x_t": "noise"}, r"options\['x_t'\] must be an array of numbers"),
        ({"x_t": np.full((3, 2), np.inf)}, r"options\['x_t'\] holds 6 values that are NaN or infinite"),
    ],
    ids=str,
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    chains = DenoisingVectorEnv(3, labels=5)
    chains.reset(seed=0)
    before = chains.np_random.bit_generator.state
    with pytest.raises(Refusal, match=message):
        chains.reset(seed=1, options=options)
    assert chains.np_random.bit_generator.state == before


def test_refused_options_of_one_chain() -> None:
    with pytest.raises(Refusal, match=r"unknown reset option 'reset_mask'.* Known: condition, x_t"):
        DenoisingGymEnv(labels=5).reset(options={"reset_mask": np.array([True])})
    with pytest.raises(Refusal, match=r"these chains have no conditions. Make the environment with labels=N"):
        DenoisingGymEnv().reset(options={"condition": 3})


# Actions


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_and_moves_nothing(value: float) -> None:
    env = DenoisingGymEnv()
    start, _ = env.reset(seed=0)
    with pytest.raises(Refusal, match="the action holds 1 values that are NaN or infinite, of 2"):
        env.step(np.array([0.0, value], np.float32))
    assert env.step(zeros(1)[0])[0]["step"] == start["step"] + 1


@pytest.mark.parametrize("action", [[0.5, 1.0], (0.5, 1), np.array([0.5, 1.0]), torch.tensor([0.5, 1.0])], ids=type)
def test_actions_are_any_numbers(action: Any) -> None:
    env = DenoisingGymEnv(steps=1)
    env.reset(seed=0)
    np.testing.assert_allclose(env.step(action)[0]["x_t"], [0.5, 1.0], rtol=1e-5)


# Autoreset


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_autoreset_row_by_row_is_gymnasiums(mode: AutoresetMode) -> None:
    """Against Gymnasium's own vector of single chains, rows out of step: all but the numbers drawn is equal."""
    own = DenoisingVectorEnv(3, steps=3, expert=Expert(halve, CosineSchedule()), autoreset_mode=mode)
    theirs = SyncVectorEnv(
        [lambda: DenoisingGymEnv(steps=3, expert=Expert(halve, CosineSchedule()))] * 3, autoreset_mode=mode
    )
    for env in (own, theirs):
        env.reset(seed=0)
        env.step(zeros(3))
        env.reset(options={"reset_mask": np.array([True, False, True])})
    for _ in range(8):
        (one, paid, ended, cut, told), (two, earned, over, truncated, info) = (
            env.step(zeros(3)) for env in (own, theirs)
        )
        assert one["step"].tolist() == two["step"].tolist()
        assert ended.tolist() == over.tolist() and cut.tolist() == truncated.tolist()
        assert (paid == 0).tolist() == (earned == 0).tolist()
        assert told.keys() == info.keys()
        for name in told:
            if name.startswith("_"):
                assert told[name].tolist() == info[name].tolist()
        for mine, other in zip(told.get("final_obs", []), info.get("final_obs", []), strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                assert mine["step"] == other["step"] == 3 and own.single_observation_space.contains(mine)
        if mode is AutoresetMode.DISABLED and ended.any():
            for env in (own, theirs):
                env.reset(options={"reset_mask": ended.copy()})


def test_a_row_that_ends_leaves_the_others_alone() -> None:
    chains = DenoisingVectorEnv(2, steps=2)
    chains.reset(seed=0)
    chains.step(zeros(2))
    chains.reset(options={"reset_mask": np.array([False, True])})
    before = chains.step(zeros(2))[0]
    assert before["step"].tolist() == [2, 1]
    actions = np.array([[np.nan, np.nan], [0.0, 0.0]], np.float32)  # the action of a row that starts anew is ignored
    after, paid, ended, _, _ = chains.step(actions)
    assert after["step"].tolist() == [0, 2] and ended.tolist() == [False, True] and paid[0] == 0
    assert (np.abs(after["x_t"][1]) <= np.abs(before["x_t"][1])).all()
    with pytest.raises(Refusal, match="NaN or infinite"):
        chains.step(actions)  # now it is the other row that starts anew


def test_same_step_tells_the_end_and_starts_anew() -> None:
    chains = DenoisingVectorEnv(2, steps=1, labels=9, autoreset_mode="SameStep")
    assert chains.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    chains.reset(seed=0, options={"condition": [7, 8]})
    guess = np.array([[0.5, 1.0], [-0.5, 0.0]], np.float32)
    born, _, ended, _, info = chains.step(guess)
    assert ended.all() and born["step"].tolist() == [0, 0] and (born["t"] == 1.0).all()
    for row, end in enumerate(info["final_obs"]):
        np.testing.assert_allclose(end["x_t"], guess[row], atol=1e-6)
        assert end["step"] == 1 and end["t"][0] == 0.0 and end["condition"] == 7 + row


def test_disabled_names_the_rows_that_ended() -> None:
    chains = DenoisingVectorEnv(3, steps=2, autoreset_mode=AutoresetMode.DISABLED)
    chains.reset(seed=0)
    chains.step(zeros(3))
    chains.reset(options={"reset_mask": np.array([False, True, False])})
    ended = chains.step(zeros(3))[2]
    with pytest.raises(Refusal, match=r"chains \[0, 2\] have ended: step=2 of 2. Call reset\(options="):
        chains.step(zeros(3))
    chains.reset(options={"reset_mask": ended})
    assert chains.step(zeros(3))[0]["step"].tolist() == [1, 2, 1]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(Refusal, match=r"unknown autoreset_mode 'SameSteps'. Did you mean 'SameStep'\?"):
        DenoisingVectorEnv(autoreset_mode="SameSteps")


def test_torchrl_wraps_rows_that_are_reset_by_hand() -> None:
    env = GymWrapper(DenoisingVectorEnv(4, autoreset_mode=AutoresetMode.DISABLED))
    check_env_specs(env, seed=0)
    rolled = env.rollout(9, break_when_any_done=False)
    assert rolled["step"].argmax(-1)[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


# Pictures


def test_a_chain_is_drawn_with_the_experts_arrow() -> None:
    expert = Expert(halve, CosineSchedule())
    pictures = {}
    for name, judge in {"with": expert, "without": None}.items():
        env = gymnasium.make("dagdiff/Denoising-v0", render_mode="rgb_array", expert=judge)
        env.reset(seed=0)
        pictures[name] = env.render()
    assert pictures["with"].dtype == np.uint8 and pictures["with"].shape == (320, 320, 3)
    assert (pictures["with"] < 64).all(-1).sum() > (pictures["without"] < 64).all(-1).sum() + 20
    assert expert.nfe == 0


def test_drawing_changes_nothing_and_the_chain_gets_longer() -> None:
    def ends(render: bool) -> tuple[np.ndarray, list[int]]:
        env = DenoisingGymEnv(render_mode="rgb_array")
        env.reset(seed=0)
        coloured = []
        for _ in range(4):
            observation = env.step(np.float32([2.0, -2.0]))[0]
            if render:
                picture = env.render().astype(int)
                coloured.append(int((picture[..., 0] - picture[..., 1] > 64).sum()))
        return observation["x_t"], coloured

    (plain, _), (drawn, coloured) = ends(False), ends(True)
    np.testing.assert_array_equal(plain, drawn)
    assert coloured == sorted(coloured) and coloured[-1] > coloured[0]


@pytest.mark.parametrize("shape", [(1,), (5,), (64,), (4, 4), (1, 8, 8), (3, 8, 4), (4, 8, 8)], ids=str)
def test_every_shape_has_a_picture(shape: tuple[int, ...]) -> None:
    chains = DenoisingVectorEnv(2, shape, expert=Expert(halve, CosineSchedule()), labels=3, render_mode="rgb_array")
    chains.reset(seed=0)
    for _ in range(4):
        chains.step(100.0 * np.ones((2, *shape)))
        first, second = chains.render()
        assert first.shape == second.shape == (320, 320, 3) and first.min() < 255


def test_frames_may_be_collected() -> None:
    env = RenderCollection(gymnasium.make("dagdiff/Denoising-v0", render_mode="rgb_array"))
    env.reset(seed=0)
    for _ in range(4):
        env.step(zeros(1)[0])
    frames = env.render()
    assert len(frames) == 5 and (frames[0] != frames[4]).any()


def test_record_video(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = gymnasium.wrappers.RecordVideo(
        gymnasium.make("dagdiff/Denoising-v0", render_mode="rgb_array"),
        str(tmp_path),
        episode_trigger=lambda number: True,
    )
    env.reset(seed=0)
    for _ in range(4):
        env.step(zeros(1)[0])
    env.close()
    assert [file.stat().st_size > 0 for file in tmp_path.glob("*.mp4")] == [True]


def test_refused_pictures() -> None:
    with pytest.raises(Refusal, match=r"unknown render_mode 'human'.* Known: rgb_array"):
        DenoisingGymEnv(render_mode="human")
    env = DenoisingGymEnv(render_mode="rgb_array")
    with pytest.raises(Refusal, match="render was called before reset"):
        env.render()
    silent = DenoisingGymEnv(render_mode=None)
    silent.reset(seed=0)
    with pytest.raises(Refusal, match="Make the environment with render_mode='rgb_array'"):
        silent.render()
