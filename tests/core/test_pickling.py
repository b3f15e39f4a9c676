"""All public classes pickle, as processes, checkpoints of other libraries and job queues ask; a copy does the same."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.collectors import MultiSyncCollector

from dagdiff.average import Average
from dagdiff.buffers import ByLoss
from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.gymnasium import DenoisingGymEnv, DenoisingVectorEnv
from dagdiff.envs.sets import SETS, Points
from dagdiff.envs.toy2d import WORLDS, world
from dagdiff.expert import Expert
from dagdiff.gathering import Gathering
from dagdiff.hooks import Hook
from dagdiff.learner import Learner, Learning
from dagdiff.mixture import Constant, CosineRamp, ExponentialRamp, Indicator, LinearRamp, Shares
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.gaussian import GaussianKL
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import PREDICTIONS
from dagdiff.policies.student import Stepwise, Student
from dagdiff.policy import StudentPolicy
from dagdiff.rollout import MixturePolicy, Rollout
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.strategies.drivers import Dart, Gate
from dagdiff.tasks.names import make_task
from dagdiff.threshold import DynamicThreshold, Fold, NoThreshold, QuantileBox
from dagdiff.transition import Ddim, EpsilonScaling, Renoise

COSINE, T, S = CosineSchedule(), torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.5, 0.2, 0.0])
X = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.7, 0.4]])
RING = world("gaussians8")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student() -> Student:
    torch.manual_seed(0)
    return Student(MLP(width=8), COSINE)


def expert() -> Expert:
    modes = RING.mixture
    return Expert(GaussianMixtureExpert(modes.means, modes.stds, modes.weights, COSINE), COSINE, 2)


def env(objective: Any = None) -> DenoisingEnv:
    law = Ddim(COSINE) if objective is None else objective.sampler(COSINE)
    return DenoisingEnv((2,), law, step_grid(2), 8, generator=seeded())


def loop(objective: Any, rounds: int) -> DAgger:
    """A loop that has run for so many rounds."""
    made = DAgger(
        student(), expert(), objective, env(objective), RING, rounds=max(rounds, 1), updates_per_round=1,
        gathering=Gathering(beta=0.5), learning=Learning(batch_size=8, ema=0.9), heldout=8,
    )  # fmt: skip
    if rounds:
        list(made)
    return made


def experiment() -> Experiment:
    made = Experiment.build(configure({"task": "gaussians8-biased"}))
    assert made.expert
    return made


def at_times(schedule: Any) -> Tensor:
    return torch.stack(schedule(T))


def answer(denoiser: Any) -> Tensor:
    guess: Tensor = denoiser(X, T).detach()
    return guess


def step(law: Any) -> Tensor:
    moved: Tensor = law(X, X / 2, T, S, X.flip(0))
    return moved


def first_state(chains: DenoisingEnv) -> Tensor:
    state = chains.reset()
    moved: Tensor = chains.step(state.set("action", state["x_t"] / 2))["next", "x_t"]
    return moved


def moved(chains: Any) -> Any:
    start = chains.reset(seed=5)[0]["x_t"]
    return torch.from_numpy(chains.step(start / 2)[0]["x_t"])


def drawn(data: Any) -> Tensor:
    points: Tensor = data.sample(5, seeded(1))
    return points


def roll(rollout: Rollout) -> Tensor:
    states: Tensor = rollout(0.0)["x_t"]
    rollout.env.set_seed(3)
    return states[:0]


def weights(made: DAgger) -> Tensor:
    """What one more update makes of the student; the loop's own draws are the same."""
    made.improve(1, Shares(0.0, 1.0, 0.0))
    return torch.cat([weight.detach().flatten() for weight in made.student.parameters()])


def act(policy: MixturePolicy) -> Tensor:
    state = env().reset()
    policy.beta, policy.generator = 0.5, seeded(2)
    action: Tensor = policy(state)["action"].detach()
    return action


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    **{f"schedule {type(each).__name__}": (lambda each=each: each, at_times)  # type: ignore[misc]
       for each in (COSINE, FlowSchedule(), VPSchedule.linear())},
    **{f"law {type(each).__name__}": (lambda each=each: each, step)  # type: ignore[misc]
       for each in (Ddim(COSINE, 0.5), Renoise(COSINE), EpsilonScaling(Ddim(COSINE), 1.1))},
    **{f"ramp {type(each).__name__}": (lambda each=each: each, lambda ramp: ramp(0.1))  # type: ignore[misc]
       for each in (Constant(0.3), LinearRamp(), CosineRamp(), ExponentialRamp(), Indicator())},
    **{f"threshold {type(each).__name__}": (lambda each=each: each, lambda box: box(3 * X))  # type: ignore[misc]
       for each in (NoThreshold(), DynamicThreshold(), Fold(), QuantileBox.estimate(X))},
    **{f"prediction {name}": (lambda each=each: each, lambda kind: kind.guess(X, X / 2, T, COSINE))  # type: ignore[misc]
       for name, each in PREDICTIONS.items()},
    **{f"world {name}": (make, drawn) for name, make in WORLDS.items()},
    **{f"set {name}": (lambda make=make: make(RING), drawn) for name, make in SETS.items()},  # type: ignore[misc]
    "shares": (Shares, tuple),
    "points": (lambda: Points(X, torch.tensor([0, 1, 2])), drawn),
    "task": (lambda: make_task("gaussians8-biased-labelled"), lambda task: task.conditions(5, seeded(1))),
    "expert": (expert, lambda teacher: teacher.target(X, T, S)),
    "student": (student, answer),
    "student in bfloat16": (lambda: in_bfloat16(student()), answer),
    "stepwise": (lambda: Stepwise(student(), step_grid(2)), answer),
    "policy": (lambda: StudentPolicy(student(), Fold()), answer),
    "average": (lambda: Average(student(), 0.9), lambda mean: answer(mean.module)),
    "native env": (env, first_state),
    "labelled env": (
        lambda: DenoisingEnv((2,), Ddim(COSINE), step_grid(2), 8, make_task("gaussians8-biased-labelled").conditions,
                             expert(), seeded()),
        first_state,
    ),
    "gymnasium env": (lambda: DenoisingGymEnv(expert=expert(), render_mode="rgb_array"), moved),
    "vector env": (lambda: DenoisingVectorEnv(3, labels=4), moved),
    **{f"driver {kind.__name__}": (lambda kind=kind: kind(student(), expert(), Ddim(COSINE)), act)  # type: ignore[misc]
       for kind in (MixturePolicy, Dart, Gate)},
    "rollout": (lambda: Rollout(env(), MixturePolicy(student(), expert(), Ddim(COSINE))), roll),
    "learner": (lambda: Learner(student(), Learning(ema=0.9), 10), lambda learner: learner.rates.get_last_lr()),
    "gathering": (lambda: Gathering(beta=0.5), lambda chosen: chosen.beta),
    "sampling by loss": (lambda: ByLoss(5), lambda make: make("student").sampler.priorities),
    "hook": (Hook, lambda hook: hook.updated(None, None, {})),
    "experiment": (experiment, lambda made: answer(made.student)),
    **{f"loop {kind.__name__}, {rounds} rounds": (lambda kind=kind, rounds=rounds: loop(kind(), rounds), weights)  # type: ignore[misc]
       for kind in (Progressive, Consistency, DistributionMatching, GaussianKL) for rounds in (1,)},
    "new loop": (lambda: loop(Progressive(), 0), lambda made: answer(made.policy)),
    "refusal": (lambda: Refusal("t=3 is no time. Pass 0."), str),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_pickled_twin_does_the_same(name: str) -> None:
    make, use = CASES[name]
    made = make()
    twins = [pickle.loads(pickle.dumps(made)), copy.deepcopy(made)]
    assert all(type(twin) is type(made) for twin in twins)
    expected = use(made)
    for twin in twins:
        got = use(twin)
        assert torch.allclose(got, expected) if isinstance(expected, Tensor) else got == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TorchRL's own, of its own future
def test_a_student_acts_in_a_process_of_torchrl_s() -> None:
    """TorchRL's collectors of several processes take env and policy of ours; the chains are those of a student."""
    acting = MixturePolicy(student(), expert(), Ddim(COSINE))
    collector = MultiSyncCollector(
        [partial(DenoisingEnv, (2,), Ddim(COSINE), step_grid(2), 8)], policy=acting, frames_per_batch=16,
        total_frames=32, trust_policy=True, auto_register_policy_transforms=False,
    )  # fmt: skip
    try:
        batches = [batch.clone().reshape(-1) for batch in collector]
    finally:
        collector.shutdown()
    assert [len(batch) for batch in batches] == [16, 16]
    for batch in batches:
        guess = acting.student(batch["x_t"], batch["t"].squeeze(-1))
        torch.testing.assert_close(batch["action"], guess.detach(), rtol=1e-4, atol=1e-4)
