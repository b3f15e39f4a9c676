"""The curricula: what each changes between rounds, what it leaves alone, and what it costs."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import loop_options, weights
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.mixture import SOURCES, LinearRamp, Shares
from dagdiff.objectives.base import Loss
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.progressive import Progressive, unweighted
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Stepwise, Student
from dagdiff.rollout import MixturePolicy
from dagdiff.round import Round, updates_by_round
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.strategies.curriculum import AdaptiveShares, ByStep, Coaching, CostToGo, Curriculum, ForwardTraining, Plain
from dagdiff.strategies.drivers import Dart, Gate

SCHEDULE, DATA, CHAINS, STEPS = CosineSchedule(), world("gaussians8"), 16, 4


class Counting(nn.Module):
    """Counts the rows that a denoiser is asked about."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser, self.rows = denoiser, 0

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        answer: Tensor = self.denoiser(x_t, t, condition)
        return answer

    @property
    def networks(self) -> nn.ModuleList:
        found: nn.ModuleList = self.denoiser.networks
        return found


def student(seed: int = 1) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(MLP(width=16), SCHEDULE)


def teacher() -> Counting:
    mixture = DATA.mixture
    assert mixture is not None
    return Counting(GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, SCHEDULE))


class Watching(Progressive):
    """PD that keeps its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[TensorDict] = []

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        self.batches.append(batch)
        return super().loss(student, batch)


def loop(objective: Any = None, learner: nn.Module | None = None, **more: Any) -> DAgger:
    objective = Progressive() if objective is None else objective
    env = DenoisingEnv(
        (2,), objective.sampler(SCHEDULE), step_grid(STEPS), CHAINS, generator=torch.Generator().manual_seed(7)
    )
    arguments = {"rounds": 4, "updates_per_round": 3, "batch_size": 24, "shares": (0.25, 0.5, 0.25), **more}
    arguments["generator"] = torch.Generator().manual_seed(0)
    learner = Counting(student()) if learner is None else learner
    return DAgger(learner, Expert(teacher(), SCHEDULE, 2), objective, env, DATA, **loop_options(**arguments))


def stepwise() -> Counting:
    return Counting(Stepwise(student(), step_grid(STEPS)))


def trained(curriculum: Curriculum, run: DAgger) -> list[Tensor]:
    for _ in curriculum(run):
        pass
    return weights(run.student)


# --- a student a step -------------------------------------------------------------------------------------------------


def test_each_state_is_answered_by_the_network_of_its_step(generator: torch.Generator) -> None:
    several, times = Stepwise(student(), step_grid(STEPS)), step_grid(STEPS)
    for number, network in enumerate(several.networks):
        for parameter in network.parameters():
            parameter.data.add_(0.1 * number)
    x = torch.randn(STEPS, 2, generator=generator)
    found = several(x, times[:-1])
    for number, network in enumerate(several.networks):
        torch.testing.assert_close(found[number], network(x, times[:-1])[number])
    near = several(x, times[:-1] + 1e-4 * torch.randn(STEPS, generator=generator))
    torch.testing.assert_close(near, found, atol=0.05, rtol=0.05)


def test_copies_answer_as_their_original_and_share_no_weights(generator: torch.Generator) -> None:
    one = student()
    copies = Stepwise(one, step_grid(3))
    x, t = torch.randn(9, 2, generator=generator), torch.rand(9, generator=generator)
    torch.testing.assert_close(copies(x, t), one(x, t))
    assert len({parameter.data_ptr() for parameter in copies.parameters()}) == 3 * len(list(one.parameters()))
    assert copies.to("meta")(x.to("meta"), t.to("meta")).is_meta


# --- forward training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_only_the_network_of_the_stage_changes(ema: float) -> None:
    run = loop(learner=stepwise(), shares=(0, 1, 0), rounds=8, ema=ema)
    before = [weights(network) for network in run.student.networks]
    for done in ForwardTraining()(run):
        after = [weights(network) for network in run.student.networks]
        changed = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert changed == [step == (done.number - 1) // 2 for step in range(STEPS)]
        before = after
    assert done.number == 8
    assert all(parameter.requires_grad for parameter in run.student.parameters())
    assert not run.student._forward_hooks, "the loop came to its end"


def test_what_was_frozen_stays_frozen() -> None:
    """As the base of a student with adapters is."""
    student = stepwise()
    frozen = [next(network.parameters()).requires_grad_(False) for network in student.networks]
    before = [weight.clone() for weight in frozen]
    trained(ForwardTraining(), loop(learner=student, shares=(0, 1, 0), rounds=4))
    assert all(map(torch.equal, frozen, before)) and not any(weight.requires_grad for weight in frozen)
    assert sum(weight.requires_grad for weight in student.parameters()) == len(list(student.parameters())) - STEPS


@pytest.mark.parametrize("shares", [(0, 1, 0), (0.5, 0.25, 0.25)])
def test_a_stage_trains_on_the_states_of_its_step_alone(shares: tuple[float, float, float]) -> None:
    objective, times = Watching(), step_grid(STEPS)
    run = loop(objective, stepwise(), shares=shares, rounds=8)
    for done in ForwardTraining()(run):
        stage = (done.number - 1) // 2
        for batch in objective.batches:
            assert (batch["t"] == times[stage]).all() and (batch["s"] == times[stage + 1]).all()
            assert int(batch["round"].max()) <= done.number
            assert set(batch["round"].tolist()) <= {2 * stage + 1, 2 * stage + 2}
        objective.batches.clear()
        for source, share in zip(SOURCES, shares, strict=True):
            if share:
                assert (run.aggregate.records(source)["t"] == times[stage]).all(), "those of other stages are gone"


def test_the_states_of_a_stage_are_those_to_which_the_frozen_steps_lead() -> None:
    """No shift: what was gathered for the last step is what the finished student visits there, in law."""
    objective = Watching()
    run = loop(objective, stepwise(), shares=(0, 1, 0), rounds=4, batch_size=400)
    trained(ForwardTraining(), run)
    (roll,) = [run.sources.rollout(0.0)]
    gathered = run.aggregate.records("student")["x_t"]
    visited = roll.reshape(CHAINS, STEPS)[:, -1]["x_t"]
    assert len(gathered) == 25 * CHAINS, "one batch draws 400"
    torch.testing.assert_close(gathered.mean(0), visited.mean(0), atol=0.9, rtol=0)
    torch.testing.assert_close(gathered.std(0), visited.std(0), atol=0.5, rtol=0.5)


def rates_by_update(**updates: Any) -> list[float]:
    """The learning rate at each update of forward training, under a ramp that falls from 0.01 to 0."""
    rates: list[float] = []

    class Rates(Progressive):
        def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
            rates.append(run.learner.optimiser.param_groups[0]["lr"])
            return super().loss(student, batch)

    run = loop(
        Rates(),
        stepwise(),
        shares=(0, 1, 0),
        lr_ramp=LinearRamp(1, 0, 1),
        optimiser=lambda parameters: torch.optim.Adam(parameters, 0.01),
        **updates,
    )
    trained(ForwardTraining(), run)
    return rates


def test_each_stage_has_the_whole_learning_rate_ramp() -> None:
    assert rates_by_update() == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3] * STEPS, abs=1e-8)


def test_stages_of_uneven_rounds_have_the_whole_ramp_too() -> None:
    """Ten updates in four rounds, a stage each: 3, 3, 2 and 2, and the rate falls from the top to 0 in each."""
    rates = rates_by_update(updates_per_round=updates_by_round(10, 4))
    falls = [[1, 2 / 3, 1 / 3], [1, 2 / 3, 1 / 3], [1, 1 / 2], [1, 1 / 2]]
    assert rates == pytest.approx([0.01 * rate for fall in falls for rate in fall], abs=1e-8)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: loop(), "needs a student with a network for each of 4 steps"),
        (lambda: loop(learner=Stepwise(student(), step_grid(2))), "needs a student with a network for each of 4 steps"),
        (lambda: loop(learner=stepwise(), rounds=6), "rounds must divide by the 4 steps, a stage a step; got 6"),
        (lambda: loop(Consistency(), stepwise()), "Consistency takes 50 others. Use Progressive"),
    ],
)
def test_loops_that_cannot_be_trained_forward(make: Callable[[], DAgger], match: str) -> None:
    run = make()
    with pytest.raises(Refusal, match=match):
        next(ForwardTraining()(run))


# --- coaching ---------------------------------------------------------------------------------------------------------


def test_coaching_without_ease_is_pd_number_for_number() -> None:
    assert torch.equal(trained(Coaching(ease=0.0), loop()), trained(Plain(), loop()))
    assert torch.equal(trained(Plain(), loop()), trained(iter, loop()))
    assert not torch.equal(trained(Coaching(ease=0.5), loop()), trained(Plain(), loop()))


def test_an_eased_label_lies_between_the_experts_and_the_guess_of_then() -> None:
    objective, run = Progressive(), loop()
    records = run.sources.rollout(0.5)
    plain = objective.annotate(run.expert, records.clone())["target"]
    objective.ease = 0.3
    eased = objective.annotate(run.expert, records.clone())["target"]
    mixed = 0.7 * plain + 0.3 * records["action"]
    torch.testing.assert_close(eased, torch.where((records["actor"] == 0)[:, None], mixed, plain))
    forward = objective.annotate(run.expert, records.exclude("action"))["target"]
    assert torch.equal(forward, plain), "nobody acted at a forward state"


def test_the_ease_falls_to_nothing() -> None:
    run, told = loop(), []
    run.objective.follow = lambda student: told.append(run.objective.ease)  # type: ignore[method-assign]
    trained(Coaching(0.8, 0.5), run)
    assert told == pytest.approx([0.8] * 3 + [0.4] * 3 + [0.0] * 6)


# --- cost to go -------------------------------------------------------------------------------------------------------


def test_the_weights_of_the_steps_have_mean_one() -> None:
    run, told = loop(Progressive(unweighted)), []
    for _ in CostToGo(chains=8)(run):
        told.append(run.objective.by_time.weights)
    assert torch.equal(told[0], torch.ones(STEPS)), "nothing is known in the first round"
    for found in told[1:]:
        assert found.shape == (STEPS,) and (found > 0).all() and not torch.equal(found, told[0])
        assert float(found.mean()) == pytest.approx(1.0, abs=1e-5)


def test_a_weight_by_step_multiplies_the_loss_of_that_step() -> None:
    run = loop()
    batch = run.objective.annotate(run.expert, run.sources.rollout(0.0))
    plain, objective = Progressive(unweighted), Progressive(unweighted)
    for each in (plain, objective):
        each.schedule = SCHEDULE
    objective.by_time = ByStep(step_grid(STEPS), torch.tensor([0.0, 0.0, 3.0, 0.0]))
    there = batch[batch["t"] == 0.5]
    expected = 3.0 * plain.loss(run.student, there).loss / STEPS
    torch.testing.assert_close(objective.loss(run.student, batch).loss, expected)
    objective.by_time = ByStep(step_grid(STEPS), torch.ones(STEPS))
    assert torch.equal(objective.loss(run.student, batch).loss, plain.loss(run.student, batch).loss)


# --- adaptive shares --------------------------------------------------------------------------------------------------


def test_the_shares_sum_to_one_and_grow_with_the_gap() -> None:
    adaptive, most = AdaptiveShares(0.1), Shares(0.0, 0.6, 0.4)
    heights = [adaptive.height(1.0, own) for own in (0.0, 0.5, 1.0, 1.2, 2.0, 10.0, 1e9)]
    assert heights == pytest.approx([0.1, 0.1, 0.1, 1 - 1 / 1.2, 0.5, 0.9, 1.0])
    assert heights == sorted(heights)
    for height in heights:
        shares = most.ramped(height)
        assert sum(shares) == pytest.approx(1.0)
        assert shares.student / 0.6 == pytest.approx(shares.expert / 0.4)


def test_a_round_takes_the_shares_that_the_last_one_called_for() -> None:
    run, adaptive = loop(heldout=32), AdaptiveShares(0.2)
    rounds = list(adaptive(run))
    assert rounds[0].shares == pytest.approx(Shares(0.25, 0.5, 0.25).ramped(0.2))
    for before, after in itertools.pairwise(rounds):
        height = adaptive.height(sum(before.loss_forward), sum(before.loss_own))
        assert after.shares == pytest.approx(Shares(0.25, 0.5, 0.25).ramped(height))


# --- the ledger -------------------------------------------------------------------------------------------------------


def gate(*arguments: Any) -> MixturePolicy:
    return Gate(*arguments, threshold=0.2, budget=0.5)


@pytest.mark.parametrize(
    ("curriculum", "more"),
    [
        (Plain(), {"driver": Dart}),
        (Plain(), {"driver": gate}),
        (ForwardTraining(), {"learner": stepwise, "shares": (0, 1, 0)}),
        (Coaching(), {}),
        (CostToGo(chains=8), {}),
    ],
    ids=["dart", "gate", "forward-training", "coaching", "cost-to-go"],
)
def test_the_ledger_is_the_counted_calls(curriculum: Curriculum, more: dict[str, Any]) -> None:
    learner = more.pop("learner", lambda: Counting(student()))()
    run = loop(learner=learner, **more)
    run.student.rows = run.expert.denoiser.rows = 0  # the few that tell whether the parts fit are nobody's
    for done in curriculum(run):
        assert done.nfe_student == run.student.rows
        assert done.nfe_expert == run.expert.denoiser.rows


def test_cost_to_go_costs_what_it_says() -> None:
    plain, weighed = ([*curriculum(loop())][-1] for curriculum in (Plain(), CostToGo(chains=8)))
    assert weighed.nfe_student - plain.nfe_student == 3 * 8 * STEPS
    assert weighed.nfe_expert - plain.nfe_expert == 3 * 8 * STEPS**2 * 2


def test_adaptive_shares_charge_the_measurement_they_look_at() -> None:
    """The held-out measurement is free, but here it steers the training: chains and both losses are charged.

    The third loss, on the expert's own states, steers nothing and stays free: its guesses, labels, and the chains.
    """
    run = loop(heldout=32)
    assert run.heldout is not None
    imitation, counted = run.heldout.imitation, [0, 0]

    def watched(*arguments: Any) -> dict[str, list[float]]:
        before = run.student.rows, run.expert.denoiser.rows
        found = imitation(*arguments)
        counted[0] += run.student.rows - before[0]
        counted[1] += run.expert.denoiser.rows - before[1]
        return found

    run.heldout.imitation = watched  # type: ignore[method-assign]
    rounds = AdaptiveShares()(run)
    next(rounds)
    steps = len(run.env.times) - 1
    free = 32 * steps, 32 * 2 * steps * run.expert.substeps
    before, first = (run.ledger.nfe, run.expert.nfe), tuple(counted)
    charged = iter_one(rounds, run)
    assert charged == (before[0] + first[0] - free[0], before[1] + first[1] - free[1])


def iter_one(rounds: Iterator[Round], run: DAgger) -> tuple[int, int]:
    """What the ledger stands at when the next round begins."""
    seen: list[tuple[int, int]] = []
    gather = run.gather

    def watched(*arguments: Any) -> None:
        seen.append((run.ledger.nfe, run.expert.nfe))
        gather(*arguments)

    run.gather = watched  # type: ignore[method-assign]
    next(rounds)
    return seen[0]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curriculum", "objective", "match"),
    [
        (Coaching(), Consistency(), "coaching eases the labels of progressive distillation; got the objective Consist"),
        (CostToGo(), Consistency(), "cost-to-go weighs the labels of progressive distillation"),
        (AdaptiveShares(), Progressive(), "held-out loss gap; got heldout=0. Pass e.g. heldout=128"),
    ],
)
def test_loops_that_a_curriculum_cannot_change(curriculum: Curriculum, objective: Any, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        next(curriculum(loop(objective)))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Coaching(ease=2.0), r"ease must lie in \[0, 1\]"),
        (lambda: Coaching(until=0.0), "until must be above 0"),
        (lambda: CostToGo(chains=0), "chains must be at least 1"),
        (lambda: AdaptiveShares(least=math.nan), r"least must lie in \[0, 1\]"),
        (lambda: loop(input_perturbation=-0.1), "input_perturbation must be at least 0"),
    ],
)
def test_curricula_that_cannot_be(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        make()


def test_a_curriculum_stopped_early_leaves_the_student_trainable() -> None:
    run = loop(learner=stepwise(), shares=(0, 1, 0))
    rounds = ForwardTraining()(run)
    next(rounds)
    rounds.close()  # type: ignore[attr-defined]
    assert all(parameter.requires_grad for parameter in run.student.parameters())
    assert copy.deepcopy(run.student)(torch.zeros(1, 2), torch.ones(1)).shape == (1, 2)
