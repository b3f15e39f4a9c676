"""The loop: its ledger, its seeds, its measurements, its best round, and how it stops."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import loop_options, same, state
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.learner import Learning, Loss
from dagdiff.mixture import Constant, ExponentialRamp, Indicator, LinearRamp, Shares
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.round import NonFiniteLoss, Round, updates_by_round
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.tasks.names import make_task
from dagdiff.transition import fresh_noise

SCHEDULE, DATA = CosineSchedule(), world("gaussians8")
OBJECTIVES = {"pd": Progressive, "lcm": Consistency, "dmd2": lambda: DistributionMatching(critic_updates=2)}
every_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)


class CountingStudent(Student):
    """Counts the rows it was asked about, in loss, roll-in or anywhere."""

    rows = 0

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        return super().forward(x_t, t, condition)


class CountingTeacher:
    """The exact expert of the data, counting rows."""

    def __init__(self) -> None:
        mixture = DATA.mixture
        assert mixture is not None
        self.rows, self.exact = 0, GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, SCHEDULE)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        return self.exact(x_t, t, condition)


def student(seed: int = 1, labels: int = 0) -> CountingStudent:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CountingStudent(MLP(width=16, labels=labels), SCHEDULE)


def loop(objective: Any = None, learner: nn.Module | None = None, seed: int = 0, **more: Any) -> DAgger:
    objective = Progressive() if objective is None else objective
    learner = student() if learner is None else learner
    law, steps = type(objective).sampler(SCHEDULE), more.pop("steps", 4)
    conditions, guidance = more.pop("conditions", None), more.pop("guidance", 1.0)
    env = DenoisingEnv((2,), law, step_grid(steps), 16, conditions, generator=torch.Generator().manual_seed(100 + seed))
    expert = more.pop("expert", None) or Expert(CountingTeacher(), SCHEDULE, 2, guidance)
    arguments = {"rounds": 3, "updates_per_round": 4, "batch_size": 24, **more}
    generator = torch.Generator().manual_seed(seed)
    return DAgger(learner, expert, objective, env, DATA, generator=generator, **loop_options(**arguments))


MIXED = {"shares": (0.4, 0.4, 0.2), "beta": Constant(0.3)}


# --- the ledger -------------------------------------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize("heldout", [0, 32])
@pytest.mark.parametrize("more", [MIXED, {"shares": (1, 0, 0)}, {"shares": (0, 1, 0), "beta": Indicator()}], ids=str)
def test_the_ledger_is_the_counted_calls(make: Callable, more: dict, heldout: int) -> None:
    run = loop(make(), heldout=heldout, **more)
    run.student.rows = run.expert.denoiser.rows = 0  # the few that tell whether the parts fit are nobody's
    at_no_cost = [0, 0]
    measure = run._measure

    def watched(number: int) -> dict[str, Any]:
        before = run.student.rows, run.expert.denoiser.rows
        measured = measure(number)
        at_no_cost[0] += run.student.rows - before[0]
        at_no_cost[1] += run.expert.denoiser.rows - before[1]
        return measured

    run._measure = watched
    for done in run:
        # Measured before the round is told, so both sides have seen the same calls.
        assert done.nfe_student == run.student.rows - at_no_cost[0]
        assert done.nfe_expert == run.expert.denoiser.rows - at_no_cost[1]
    assert (at_no_cost[0] > 0) == (heldout > 0)


def test_the_price_of_a_round_of_pd() -> None:
    """16 chains of 4 steps, 2 sub-steps, 4 updates of 24 rows: roll-in, labels of its states and of forward states.

    The collector tries its policy once when it is built: one more batch of 16, honestly charged to the student.
    """
    for reuse, forward in {1: 48, 2: 24, 3.5: 14, 8: 12}.items():  # the last: what one batch draws
        for done in loop(shares=(0.5, 0.5, 0.0), reuse=reuse):
            assert done.nfe_student == 16 + done.number * (16 * 4 + 4 * 24)
            assert done.nfe_expert == done.number * (16 * 4 * 2 + forward * 2)


def test_the_ledger_counts_since_training_began() -> None:
    """An expert that was asked before, by a notebook or by another run, owes that to somebody else."""
    fresh = [done.nfe_expert for done in loop(**MIXED)]
    expert = Expert(CountingTeacher(), SCHEDULE, 2)
    expert(torch.randn(1000, 2), torch.rand(1000))
    assert [done.nfe_expert for done in loop(expert=expert, **MIXED)] == fresh


@every_objective
def test_held_out_measurement_changes_neither_training_nor_ledger(make: Callable) -> None:
    ends = []
    for heldout in (0, 64):
        run = loop(make(), heldout=heldout, ema=0.9, **MIXED)
        rounds = list(run)
        ledger = [(done.nfe_student, done.nfe_expert, done.losses) for done in rounds]
        assert run.learner.averaged is not None
        ends.append((state(run.student), state(run.learner.averaged), ledger, run.generator.get_state()))
        laws = ("loss_forward", "loss_own", "loss_expert")
        assert all(len(getattr(done, law)) == (4 if heldout else 0) for done in rounds for law in laws)
        assert all(math.isnan(done.heldout) == (heldout == 0) for done in rounds)
    assert same(ends[0][0], ends[1][0]) and same(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    assert torch.equal(ends[0][3], ends[1][3])


# --- seeds ------------------------------------------------------------------------------------------------------------


def run_weights(make: Callable, seed: int, global_seed: int) -> dict[str, Tensor]:
    torch.manual_seed(global_seed)
    run = loop(make(), seed=seed, **MIXED)
    for _ in run:
        pass
    return state(run.student)


@pytest.mark.parametrize(
    "make", [*OBJECTIVES.values(), lambda: DistributionMatching(2, gan_weight=0.1)], ids=[*OBJECTIVES, "dmd2+gan"]
)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(make: Callable) -> None:
    first = run_weights(make, 0, global_seed=1)
    assert same(first, run_weights(make, 0, global_seed=2)), "no global seed has a say"
    assert not same(first, run_weights(make, 1, global_seed=1))


def test_without_a_generator_the_loop_is_seeded_with_zero() -> None:
    ends = []
    for generator in (None, torch.Generator().manual_seed(0)):
        learner, expert = student(), Expert(CountingTeacher(), SCHEDULE, 2)
        law = Progressive.sampler(SCHEDULE)
        env = DenoisingEnv((2,), law, step_grid(4), 16, generator=torch.Generator().manual_seed(3))
        learning = Learning(batch_size=8)
        run = DAgger(
            learner, expert, Progressive(), env, DATA, rounds=2, updates_per_round=3, learning=learning,
            generator=generator,
        )  # fmt: skip
        for _ in run:
            pass
        ends.append(state(learner))
    assert same(*ends)


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_a_round_says_what_it_did() -> None:
    run = loop(shares=(0.4, 0.4, 0.2), beta=ExponentialRamp(1, 0, 1 / 3), shares_ramp=LinearRamp(0, 1, 2 / 3))
    first, second, third = run
    assert [done.number for done in (first, second, third)] == [1, 2, 3]
    assert [done.updates for done in (first, second, third)] == [4, 8, 12]
    assert [done.beta for done in (first, second, third)] == pytest.approx([1.0, 0.5, 0.25])
    assert first.shares == Shares(1, 0, 0)
    assert second.shares == pytest.approx((0.7, 0.2, 0.1))
    assert third.shares == pytest.approx((0.4, 0.4, 0.2))
    assert [done.size for done in (first, second, third)] == [24, 128 + 17, 256 + 10], "forward states are replaced"
    assert 0 < first.seconds < second.seconds < third.seconds
    assert set(first.losses) == {"distance", "loss", "gradient_norm"}


@pytest.mark.parametrize(
    ("more", "sizes"), [({}, [64, 128, 192]), ({"rounds_kept": 1}, [64] * 3), ({"max_age": 8}, [64, 128, 128])]
)
def test_the_window_of_the_aggregate(more: dict, sizes: list[int]) -> None:
    run = loop(shares=(0.5, 0.5, 0.0), **more)
    assert [done.size - 12 for done in run] == sizes
    kept = run.aggregate.draw(500, Shares(0, 1, 0))["round"].unique().tolist()
    assert kept == list(range(4 - sizes[-1] // 64, 4))


def test_rounds_may_have_updates_of_their_own() -> None:
    run = loop(updates_per_round=[4, 3, 3], lr_ramp=LinearRamp(1, 0, 1), heldout=16, **MIXED)
    rates: list[float] = []
    group = run.learner.optimiser.param_groups[0]
    run.learner.optimiser.register_step_pre_hook(lambda *_: rates.append(group["lr"] / group["initial_lr"]))
    assert [done.updates for done in run] == [4, 7, 10]
    assert rates == pytest.approx([1 - update / 10 for update in range(10)])


def test_even_updates_are_those_of_one_number() -> None:
    one, other = loop(**MIXED), loop(updates_per_round=[4, 4, 4], **MIXED)
    assert [done.losses for done in one] == [done.losses for done in other]
    assert same(state(one.student), state(other.student))


@pytest.mark.parametrize("updates", range(3, 14))
def test_updates_are_spread_over_rounds(updates: int) -> None:
    spread = updates_by_round(updates, 3)
    assert sum(spread) == updates and len(spread) == 3
    assert spread == sorted(spread, reverse=True) and spread[0] - spread[-1] <= 1


class Watching(Progressive):
    """PD that keeps each update's batch, loss, learning rate and the weights after it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[TensorDict] = []
        self.losses: list[float] = []
        self.after: list[dict[str, Tensor]] = []

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        found = super().loss(student, batch)
        self.batches.append(batch)
        self.losses.append(found.loss.item())
        return found

    def follow(self, student: nn.Module) -> None:
        self.after.append(state(student))


def test_losses_are_means_over_the_rounds_updates() -> None:
    objective = Watching()
    for done in loop(objective, **MIXED):
        assert done.losses["loss"] == pytest.approx(sum(objective.losses[-4:]) / 4, rel=1e-5)


def test_batches_have_their_shares_and_the_experts_labels() -> None:
    objective = Watching()
    run = loop(objective, shares=(0.25, 0.5, 0.25), beta=Constant(0.5))
    for _ in run:
        pass
    assert len(objective.batches) == 12
    for batch in objective.batches:
        assert torch.bincount(batch["source"], minlength=3).tolist() == [6, 12, 6]
        assert (batch["actor"][batch["source"] == 0] == -1).all()
        assert (batch["actor"][batch["source"] == 2] == 1).all()
        expected = run.expert.target(batch["x_t"], batch["t"], batch["s"])
        torch.testing.assert_close(batch["target"], expected, atol=1e-4, rtol=1e-4)
        assert not any(value.requires_grad for value in batch.values())
        assert "action" not in batch.keys(), "a loss sees labels, not what was done"  # noqa: SIM118
    actors = torch.cat([batch["actor"][batch["source"] == 1] for batch in objective.batches])
    assert 0.3 < float((actors == 1).double().mean()) < 0.7, "the expert drove half of the student's chains"


def test_one_step_chains_make_all_sources_alike() -> None:
    """K = 1: every state of every source stands at t = 1, noise up to the terminal alpha, and labels agree."""
    seen = []
    for share in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        objective = Watching()
        run = loop(objective, shares=share, steps=1, rounds=30, updates_per_round=1, batch_size=64)
        for _ in run:
            pass
        batch = torch.cat([batch.select("x_t", "t", "s", "target") for batch in objective.batches])
        assert (batch["t"] == 1).all() and (batch["s"] == 0).all()
        seen.append((batch["x_t"].std(), batch["target"].mean(0), batch["target"].std()))
    for on_policy in seen[1:]:
        for found, expected in zip(on_policy, seen[0], strict=True):
            torch.testing.assert_close(found, expected, atol=0.2, rtol=0)


def test_training_brings_the_student_to_the_expert() -> None:
    run = loop(
        heldout=128, rounds=8, updates_per_round=40, batch_size=128, optimiser=lambda p: torch.optim.Adam(p, 1e-2)
    )
    rounds = list(run)
    assert rounds[-1].heldout < 0.25 * rounds[0].heldout
    assert sum(rounds[-1].loss_own) < 0.5 * sum(rounds[0].loss_own)


@every_objective
def test_the_expert_states_are_those_of_the_expert_in_the_students_place(make: Callable) -> None:
    """By hand: the expert acts from the held-out noise on, and on its way the student is asked what the expert is."""
    run = loop(make(), heldout=32)
    (*_, last), times, asked = run, run.env.times, run.expert
    assert run.heldout is not None
    x_t, expected, law = run.heldout.noise, [], run.env.transition
    generator = torch.Generator().manual_seed(run.heldout.seed)
    for t, s in itertools.pairwise(times.expand(32, -1).T):
        target = asked.target(x_t, t, law.horizon(s))
        with torch.no_grad():
            expected.append(float((run.student(x_t, t) - target).square().mean()))
        x_t = law(x_t, target, t, s, fresh_noise(law, x_t, generator))
    assert last.loss_expert == pytest.approx(expected, rel=1e-5)
    assert last.loss_expert[0] == last.loss_own[0] != last.loss_forward[0], "both start from that noise"
    assert last.loss_expert[1:] != last.loss_own[1:]


def test_the_best_round_has_the_least_held_out_loss() -> None:
    run = loop(heldout=32, rounds=8, optimiser=lambda p: torch.optim.SGD(p, 2.0, momentum=0.9), **MIXED)
    told, kept = [], []
    for done in run:
        told.append(done.heldout)
        kept.append(state(run.student))
    best = min(range(8), key=told.__getitem__)
    assert told != sorted(told, reverse=True), "the last round is not meant to be the best here"
    assert run.best is not None
    assert run.best[0] == best + 1
    assert run.best[1] == told[best]
    assert same(run.best[2], kept[best])


def test_nothing_measured_has_no_best() -> None:
    run = loop()
    for _ in run:
        pass
    assert run.best is None


# --- optimisation -----------------------------------------------------------------------------------------------------


def test_the_learning_rate_follows_its_ramp() -> None:
    rates: list[float] = []

    class Rates(Progressive):
        def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
            rates.append(run.learner.optimiser.param_groups[0]["lr"])
            return super().loss(student, batch)

    run = loop(Rates(), optimiser=lambda p: torch.optim.Adam(p, 0.01), lr_ramp=LinearRamp(1, 0, 1))
    for _ in run:
        pass
    assert rates == pytest.approx([0.01 * (1 - update / 12) for update in range(12)])


@pytest.mark.parametrize("decay", [0.1, 0.5, 1.0])
def test_the_averaged_student_is_the_closed_formula(decay: float) -> None:
    objective = Watching()
    run = loop(objective, ema=decay, optimiser=lambda p: torch.optim.Adam(p, 0.05), **MIXED)
    for _ in run:
        pass
    assert run.learner.averaged is not None
    first, *later = objective.after
    for key, value in run.learner.averaged.module.state_dict().items():
        expected = first[key]
        for updates, one in enumerate(later, 1):
            warm = min(decay, (1 + updates) / (10 + updates))
            expected = warm * expected + (1 - warm) * one[key]
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    assert not same(run.learner.averaged.module.state_dict(), state(run.student))
    assert loop().learner.averaged is None


@pytest.mark.parametrize("clip", [1e-3, 0.05])
def test_gradients_are_clipped(clip: float) -> None:
    objective = Watching()
    run = loop(objective, clip=clip, optimiser=lambda p: torch.optim.SGD(p, 1.0), shares=(1, 0, 0))
    start = state(run.student)
    for _ in run:
        pass
    for before, after in itertools.pairwise([start, *objective.after]):
        moved = math.sqrt(sum(float((after[key] - before[key]).square().sum()) for key in before))
        assert moved <= clip * 1.01


# --- trouble ----------------------------------------------------------------------------------------------------------


class Exploding(Progressive):
    """PD whose loss is not finite from the given update on; or only its gradient is, at that one update."""

    def __init__(self, at: int, value: float = math.nan, gradient_only: bool = False) -> None:
        super().__init__()
        self.at, self.value, self.gradient_only, self.seen = at, value, gradient_only, 0

    def loss(self, student: nn.Module, batch: TensorDict) -> Loss:
        loss, parts = super().loss(student, batch)
        self.seen += 1
        if self.gradient_only and self.seen == self.at:
            # sqrt has an infinite slope at 0: a finite value with a gradient of 0 * inf = nan.
            loss = loss + sum((parameter * 0.0).sqrt().sum() for parameter in student.parameters())
        elif not self.gradient_only and self.seen >= self.at:
            loss = loss * self.value
        return Loss(loss, parts)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("at", "back"), [(1, 0), (4, 0), (5, 4), (7, 4), (12, 8)])
def test_a_loss_that_is_not_finite_stops_the_run_at_the_last_good_round(at: int, back: int, value: float) -> None:
    run = loop(Exploding(at, value), **MIXED)
    kept = {0: state(run.student)}
    with pytest.raises(
        NonFiniteLoss, match=rf"not finite at update {at}; the student is back at update {back}\. Lower the"
    ):
        for done in run:
            kept[done.updates] = state(run.student)
    assert same(state(run.student), kept[back])
    assert not run.student._forward_hooks


@pytest.mark.parametrize("at", [4, 8, 12])
def test_a_gradient_that_is_not_finite_never_becomes_the_last_good_student(at: int) -> None:
    """The last update of a round: its loss is finite, but its step has ruined the weights."""
    run, spoilt = loop(Exploding(at, gradient_only=True), **MIXED), False
    try:
        for _ in run:
            spoilt = not all(value.isfinite().all() for value in run.student.state_dict().values())
            assert not spoilt, "a round was told as good whose student is NaN"
    except NonFiniteLoss:
        pass
    assert all(value.isfinite().all() for value in run.student.state_dict().values())


def test_the_generator_can_be_stopped_early() -> None:
    whole, run = loop(**MIXED), loop(**MIXED)
    kept = []
    for _ in whole:
        kept.append(state(whole.student))
    rounds = iter(run)
    assert isinstance(next(rounds), Round)
    rounds.close()
    assert same(state(run.student), kept[0])
    assert not run.student._forward_hooks, "the counter is taken off"
    before = run.ledger.nfe
    assert before > 0
    run.student(torch.randn(5, 2), torch.rand(5))
    assert run.ledger.nfe == before


def test_a_loop_of_ones_own_may_use_its_pieces() -> None:
    """Updates made by hand, counted and closed, are the loop's own, bit for bit."""
    whole, own = (loop(shares=(1, 0, 0)) for _ in range(2))
    for done in whole:
        losses = []
        with own.ledger.counting("the student", own.student):
            own.gather(done.number, own.shares)
            for _ in range(own.updates_by_round[done.number - 1]):
                batch = own.aggregate.draw(24, own.shares)
                losses.append(own.objective.loss(own.student, batch).loss)
                own.learner.update(losses[-1])
        assert own.learner.close({"loss": torch.stack(losses).detach()})["loss"] == done.losses["loss"]
        assert own.ledger.nfe == done.nfe_student
        own.student(torch.randn(5, 2), torch.rand(5))  # nobody counts now
    assert same(state(own.student), state(whole.student))
    with pytest.raises(NonFiniteLoss, match="is not finite at update 14; the student is back at update 12"):
        own.learner.close({"loss": torch.tensor([0.0, math.nan, 0.0, 0.0])})


def test_the_loop_is_lazy() -> None:
    run = loop(**MIXED)
    start, rounds, asked = state(run.student), iter(run), run.expert.denoiser.rows
    assert asked <= 4 and run.expert.nfe == 0
    next(rounds)
    moved = state(run.student)
    assert not same(start, moved)
    assert run.learner.updates == 4, "no round is run ahead of being asked for"


def test_a_list_of_updates_that_is_no_list_of_rounds_is_refused() -> None:
    with pytest.raises(Refusal, match="updates_per_round must be one number or 3, one a round; got 2 of them"):
        loop(updates_per_round=[4, 4])
    with pytest.raises(Refusal, match="updates_per_round must be at least 1; got 0"):
        loop(updates_per_round=[4, 4, 0])


@pytest.mark.parametrize("name", ["rounds", "updates_per_round", "batch_size"])
def test_refusals(name: str) -> None:
    with pytest.raises(Refusal, match=f"{name} must be at least 1; got 0. Pass e.g. {name}=1"):
        loop(**{name: 0})
    with pytest.raises(Refusal, match="shares must sum to 1; got"):
        loop(shares=(0.5, 0.1, 0.1))
    with pytest.raises(Refusal, match=r"ema must lie in \[0, 1\]; got 2"):
        loop(ema=2)


def test_shares_whose_rest_rounds_below_zero_train() -> None:
    """1 - 0.9 - 0.1 is -2.8e-17 in floating point; no user's mistake."""
    assert len(list(loop(shares=(0.0, 0.9, 0.1), rounds=1))) == 1


# --- conditional ------------------------------------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_labelled_run(make: Callable, guidance: float) -> None:
    task = make_task("gaussians8-matched-labelled", SCHEDULE)
    learner = student(labels=task.labels)
    run = loop(make(), learner, conditions=task.conditions, guidance=guidance, heldout=16, **MIXED)
    rounds = list(run)
    assert len(rounds) == 3 and all(math.isfinite(done.heldout) for done in rounds)
    batch = run.aggregate.draw(30, Shares(1 / 3, 1 / 3, 1 / 3))
    assert batch["condition"].dtype == torch.int64
    assert set(batch["condition"].tolist()) <= set(range(8))
    plain = [done.nfe_expert for done in loop(make(), student(labels=8), conditions=task.conditions, **MIXED)]
    assert [done.nfe_expert for done in rounds] == [nfe * (2 if guidance != 1.0 else 1) for nfe in plain]
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    answers = [learner(x, t, torch.full((4,), label)) for label in (0, 1)]
    assert not torch.allclose(*answers)


def test_a_labelled_run_needs_labelled_data() -> None:
    class Bare:
        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            return torch.zeros(n, 2)

    env = DenoisingEnv(
        (2,), Progressive.sampler(SCHEDULE), step_grid(2), 4, lambda n, g: torch.zeros(n, dtype=torch.int64)
    )
    expert = Expert(CountingTeacher(), SCHEDULE)
    with pytest.raises(Refusal, match="sample_labelled"):
        DAgger(student(labels=8), expert, Progressive(), env, Bare(), rounds=1, updates_per_round=1)
