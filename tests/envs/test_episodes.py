"""The expert's chains as a Minari data set: read back with Minari, they are the expert's chains."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import seeded

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.envs.gymnasium import DenoisingGymEnv
from dagdiff.expert import Expert
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.transition import Ddim

WORDS = shlex.split("gather --task gaussians8-matched --policy fresh --steps 3 --device cpu --seed 5 --episodes 7")
NAME = "mine/ring-v0"


@pytest.fixture
def minari(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    pytest.importorskip("h5py")
    found = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "chains")
    return found


def test_minari_reads_the_experts_chains(minari, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert main([*WORDS, "--minari", NAME, "--out", "chains"]) == 0, capsys.readouterr().err
    kept = minari.load_dataset(NAME)
    assert NAME in minari.list_local_datasets()
    assert (kept.total_episodes, kept.total_steps) == (7, 21)
    it = Experiment.build(
        configure({"task": "gaussians8-matched", "policy": "fresh", "steps": 3, "device": "cpu", "seed": 5})
    )
    ends = it.sample_expert(7, 5).numpy()
    env = DenoisingGymEnv(transition=it.transition, times=it.times, bound=None)
    assert kept.observation_space == env.observation_space and kept.action_space == env.action_space
    for row, episode in enumerate(kept):
        assert np.allclose(episode.observations["x_t"][-1], ends[row], atol=1e-5)
        assert np.allclose(episode.observations["t"][:, 0], it.times)
        assert episode.terminations.tolist() == [False, False, True] and not episode.truncations.any()
        assert np.array_equal(episode.rewards, np.zeros(3))
        env.reset(options={"x_t": episode.observations["x_t"][0]})
        for step, action in enumerate(episode.actions):  # the actions lead from each state to the next
            observation, *_ = env.step(action)
            assert np.allclose(observation["x_t"], episode.observations["x_t"][step + 1], atol=1e-5)


def test_labelled_chains_keep_their_condition(minari, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    words = [word.replace("matched", "matched-labelled") for word in WORDS]
    assert main([*words, "--minari", NAME, "--out", "chains"]) == 0, capsys.readouterr().err
    asked = [set(episode.observations["condition"].tolist()) for episode in minari.load_dataset(NAME)]
    assert all(len(each) == 1 for each in asked) and len(set.union(*asked)) > 1


def test_what_is_there_stays(minari, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert main([*WORDS, "--minari", NAME, "--out", "chains"]) == 0
    assert main([*WORDS, "--minari", NAME, "--out", "chains"]) == 2
    assert "is there already. Raise the version" in capsys.readouterr().err
    assert len(list(minari.load_dataset(NAME))) == 7


@pytest.mark.parametrize(
    ("name", "told"),
    [("ring", "is no name of a Minari data set"), ("../a-v0", "is no name"), ("a//b-v0", "is no name")],
)
def test_a_name_that_minari_does_not_take_is_refused(minari, name: str, told: str) -> None:  # type: ignore[no-untyped-def]
    assert main([*WORDS, "--minari", name, "--out", "chains"]) == 2
    assert not Path("chains").exists()


def test_nothing_half_made_is_left(minari, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    from dagdiff.envs.episodes import save_episodes

    def full(self: object, episodes: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HDF5Storage, "update_episodes", full)
    it = Experiment.build(configure({"task": "gaussians8-matched", "policy": "fresh", "device": "cpu"}))
    expert = Expert(it.expert.denoiser, it.task.schedule)
    with pytest.raises(Refusal, match="No space left on device"):
        noise = torch.randn(2, 2, generator=seeded())
        save_episodes(Path("chains"), NAME, expert, Ddim(it.task.schedule), it.times, noise)
    assert [path for path in Path("chains").rglob("*") if path.is_file()] == []


def test_without_minari_the_package_is_named(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    from dagdiff.envs.episodes import check_episodes

    with pytest.raises(Refusal, match=r"pip install 'dagdiff\[minari\]'"):
        check_episodes(own_folder / "chains", NAME)
    assert not (own_folder / "chains").exists()
