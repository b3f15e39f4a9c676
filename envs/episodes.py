"""The expert's chains as a Minari data set, which offline imitation libraries read: an episode a chain.

Observations and actions are those of :class:`~dagdiff.envs.gymnasium.DenoisingGymEnv`: K + 1 states with their times,
and K predictions of x0. The expert acts as it would in the student's place. Its reward is 0: it is minus the distance
to its own prediction.

Minari (https://minari.farama.org) is an optional extra: ``pip install 'dagdiff[minari]'``.
"""

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dagdiff import __version__
from dagdiff.checkpoint import check_writable, refused_writes, save_text
from dagdiff.checks import Refusal, check_at_least, check_times
from dagdiff.envs.gymnasium import DenoisingGymEnv
from dagdiff.expert import Expert
from dagdiff.policy import ExpertPolicy
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Step, Transition, chain

NAMESPACE = "namespace_metadata.json"
"""The file by which Minari knows a folder of data sets."""


def check_episodes(folder: Path, name: str) -> None:
    """Reject a data set that could not be written, before anything is made.

    Args:
        folder: Minari's root, which it reads from ``MINARI_DATASETS_PATH``.
        name: of the data set, as Minari spells them: ``group/name-v0``.

    Raises:
        Refusal: if the package is missing, the name is none of Minari's, or there is such a data set.
    """
    _minari()
    if not re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", name, re.ASCII):
        raise Refusal(
            f"--minari {name!r} is no name of a Minari data set. Write GROUP/NAME-vVERSION, e.g. mine/grid-v0."
        )
    check_writable("--out", folder / name)
    if (folder / name).exists():
        raise Refusal(f"{folder / name} is there already. Raise the version in --minari, or name another --out.")


def save_episodes(
    folder: Path,
    name: str,
    expert: Expert,
    transition: Transition,
    times: Times,
    noise: States,
    condition: Condition = None,
    labels: int = 0,
    generator: torch.Generator | None = None,
    told: str = "",
) -> Path:
    """Let the expert walk chains, and keep them as a Minari data set, whole or not at all; return its folder.

    Args:
        folder: Minari's root, and
        name: of the data set, both as in :func:`check_episodes`.
        expert: who acts; it is charged.
        transition: the student's transition.
        times: its grid, ``(K + 1,)``.
        noise: where the chains start, ``(B, *D)``.
        condition: of each chain, ``(B,)``.
        labels: how many conditions there are.
        generator: of the law's fresh noise.
        told: what the data set is, in a sentence.

    Raises:
        Refusal: as :func:`check_episodes`, or if it can't be written.
    """
    check_episodes(folder, name)
    check_at_least("episodes", len(noise), 1)
    check_times(times)
    env = DenoisingGymEnv(tuple(noise.shape[1:]), transition, times, labels=labels, bound=None)
    with torch.no_grad():
        policy = ExpertPolicy(expert, transition, times)
        steps = list(chain(policy, transition, times, noise, condition, generator))
    root = folder.absolute()  # Minari joins relative paths twice
    place = root / name
    with refused_writes(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            _write(aside / "data", name, env, _episodes(steps, times, condition), told)
            aside.chmod(0o755)
            aside.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    for parent in [each for each in place.parents if root in each.parents]:
        if not (parent / NAMESPACE).exists():
            save_text(parent / NAMESPACE, "{}")
    return folder / name


def _write(data: Path, name: str, env: DenoisingGymEnv, episodes: Iterator[dict[str, Any]], told: str) -> None:
    """Write the files of a data set."""
    minari = _minari()
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what a made-up environment lacks
        storage = MinariStorage.new(data, env.observation_space, env.action_space, jpeg_encoding=False)
        storage.update_metadata(
            {
                "dataset_id": name,
                "algorithm_name": f"the expert of dagdiff {__version__}",
                "description": told,
                "minari_version": minari.__version__,
            }
        )
        storage.update_episodes([EpisodeBuffer(**each) for each in episodes])


def _episodes(steps: list[Step], times: Times, condition: Condition) -> Iterator[dict[str, Any]]:
    """Each chain as Minari takes it: K + 1 observations, K actions."""
    states = _array(torch.stack([*(step.x_t for step in steps), steps[-1].x_s], dim=1))
    guesses, grid = _array(torch.stack([step.x0 for step in steps], dim=1)), _array(times)[:, None]
    count = len(steps)
    ends = {"t": grid, "s": np.concatenate([grid[1:], grid[-1:]]), "step": np.arange(count + 1)}
    for row in range(len(states)):
        asked = {} if condition is None else {"condition": np.full(count + 1, int(condition[row]))}
        yield {
            "id": row,
            "observations": {"x_t": states[row], **ends, **asked},
            "actions": guesses[row],
            "rewards": [0.0] * count,
            "terminations": [False] * (count - 1) + [True],
            "truncations": [False] * count,
            "infos": {},
        }


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return values.to(torch.float32).numpy(force=True)


def _minari() -> Any:
    """The package; reject where it, or what it keeps files with, is missing."""
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise Refusal(
            f"a Minari data set needs the package minari ({error}). Run pip install 'dagdiff[minari]'."
        ) from None
    return minari
