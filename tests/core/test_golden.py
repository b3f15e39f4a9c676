"""One small fixed run of each objective, against recorded numbers: a change of the mathematics shows here first.

Recorded with torch 2.13 on an x86 CPU. The generators' streams belong to torch; should a new version draw other
numbers, run ``python tests/core/test_golden.py`` and look hard at what else changed before recording anew. The
tolerance leaves room for other CPUs' order of summation (weights moved by 3e-7 of themselves move the numbers by 5e-6),
not for another formula.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.mixture import LinearRamp
from dagdiff.objectives.base import Objective
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policy import StudentPolicy
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.threshold import StaticThreshold
from dagdiff.transition import sample

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "pd": Progressive,
    "lcm": Consistency,
    "dmd2": lambda: DistributionMatching(critic_updates=2),
}
GOLDEN: dict[str, tuple[float, float, float, float, float]] = {
    "pd": (0.206346, 0.277751, -0.075710, 0.014374, 0.745266),
    "lcm": (0.015824, 0.014998, 0.043194, -0.424229, 0.664160),
    "dmd2": (0.833748, 0.333026, 0.610295, 0.793646, 0.601127),
}
"""Loss of round 2, held-out loss after it, and the samples' mean x, mean y and standard deviation."""


def run(name: str) -> tuple[float, float, float, float, float]:
    """Train 2 rounds of 5 updates on all three sources, the expert driving a part, and draw 256 samples."""
    schedule, data = CosineSchedule(), world("gaussians8")
    mixture = data.mixture
    assert mixture is not None
    teacher = GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, schedule)
    expert = Expert(teacher, schedule, substeps=2, threshold=StaticThreshold(-data.box, data.box))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Student(MLP(width=16), schedule)
    objective = OBJECTIVES[name]()
    law = type(objective).sampler(schedule)
    env = DenoisingEnv((2,), law, step_grid(4), 32, generator=torch.Generator().manual_seed(1))
    loop = DAgger(
        student,
        expert,
        objective,
        env,
        data,
        shares=(0.5, 0.25, 0.25),
        rounds=2,
        updates_per_round=5,
        gathering=Gathering(beta=LinearRamp(0.75, 0.25, 0.5), reuse=2.0),
        learning=Learning(partial(torch.optim.Adam, lr=0.01), batch_size=32),
        heldout=64,
        generator=torch.Generator().manual_seed(2),
    )
    *_, last = loop
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(256, 2, generator=generator)
    x = sample(StudentPolicy(student, expert.threshold), law, step_grid(4), noise, generator=generator)
    return last.losses["loss"], last.heldout, *x.mean(0).tolist(), float(x.std())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_numbers_are_the_recorded_ones(name: str) -> None:
    assert run(name) == pytest.approx(GOLDEN[name], abs=1e-4)


if __name__ == "__main__":
    for each in OBJECTIVES:
        print(f'    "{each}": ({", ".join(f"{value:.6f}" for value in run(each))}),')
