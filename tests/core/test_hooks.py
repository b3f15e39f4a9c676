"""Hooks: what a user's code sees inside a round."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.hooks import Hook
from dagdiff.learner import Learning
from dagdiff.mixture import Shares
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.schedule import CosineSchedule, step_grid

COSINE, RING = CosineSchedule(), world("gaussians8")


class Seen(Hook):
    """Writes down what it is shown."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int, float]] = []
        self.losses: list[set[str]] = []
        self.entered: dict[tuple[int, str], int] = {}

    def gathered(self, loop: DAgger, source: str, records: TensorDict) -> None:
        key = len(loop.made) + 1, source
        assert {"x_t", "t", "s"} <= set(records.keys())
        self.entered[key] = self.entered.get(key, 0) + len(records)

    def updated(self, loop: DAgger, batch: TensorDict, losses: dict[str, Tensor]) -> None:
        self.updates.append((loop.update, len(batch), float(losses["loss"])))
        self.losses.append(set(losses))


def loop(objective: Any, hooks: list[Hook]) -> DAgger:
    torch.manual_seed(0)
    modes = RING.mixture
    expert = Expert(GaussianMixtureExpert(modes.means, modes.stds, modes.weights, COSINE), COSINE, 2)
    chains = torch.Generator().manual_seed(1)
    env = DenoisingEnv((2,), objective.sampler(COSINE), step_grid(2), 8, generator=chains)
    return DAgger(
        Student(MLP(width=8), COSINE), expert, objective, env, RING, shares=Shares(0.25, 0.5, 0.25), rounds=2,
        updates_per_round=[3, 2], learning=Learning(batch_size=16), hooks=hooks,
    )  # fmt: skip


@pytest.mark.parametrize("make", [Progressive, DistributionMatching])
def test_a_hook_sees_each_update_and_all_that_enters(make: Any) -> None:
    seen = Seen()
    made = loop(make(), [seen])
    rounds = list(made)
    assert [update[:2] for update in seen.updates] == [(number, 16) for number in range(1, 6)]
    losses = [update[2] for update in seen.updates]
    assert sum(losses[:3]) / 3 == pytest.approx(rounds[0].losses["loss"], rel=1e-5)
    assert sum(losses[3:]) / 2 == pytest.approx(rounds[1].losses["loss"], rel=1e-5)
    assert all(names == set(rounds[0].losses) for names in seen.losses)
    assert sum(count for (_, source), count in seen.entered.items() if source != "forward") == sum(
        len(made.aggregate.records(source)) for source in ("student", "expert")
    )


def test_a_hook_changes_nothing() -> None:
    plain, watched = loop(Progressive(), []), loop(Progressive(), [Seen(), Hook()])
    assert [done.losses for done in plain] == [done.losses for done in watched]


def test_what_a_hook_raises_ends_training() -> None:
    class Enough(Hook):
        def updated(self, loop: DAgger, batch: TensorDict, losses: dict[str, Tensor]) -> None:
            if loop.update == 4:
                raise KeyboardInterrupt

    made = loop(Progressive(), [Enough()])
    with pytest.raises(KeyboardInterrupt):
        list(made)
    assert len(made.made) == 1 and made.update == 4


def test_an_experiment_takes_hooks() -> None:
    settings = {"updates": 4, "rounds": 2, "chains": 4, "batch_size": 8, "heldout": 0, "policy": "fresh"}
    run = Experiment.build(configure(settings))
    seen = Seen()
    run.hooks.append(seen)
    list(run.rounds())
    assert [update[0] for update in seen.updates] == [1, 2, 3, 4]
