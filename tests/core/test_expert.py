"""The expert: where its targets land, guidance, thresholds at every sub-step, and the NFE ledger."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.expert import Expert, no_label
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, refine, step_grid
from dagdiff.shapes import column
from dagdiff.threshold import StaticThreshold
from dagdiff.transition import Ddim, chain, ddim

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_shape = pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)


class Counting:
    """A smooth denoiser of any shape that keeps every question."""

    def __init__(self) -> None:
        self.asked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    @property
    def rows(self) -> int:
        return sum(len(x_t) for x_t, _, _ in self.asked)

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.asked.append((x_t, t, condition))
        guess = torch.sin(2 * x_t) + column(t, x_t)
        return guess if condition is None else guess + column(condition.float(), x_t)


def states(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    return x_t, torch.tensor([1.0, 0.7, 0.4]), torch.tensor([0.6, 0.1, 0.0])


@every_shape
@every_schedule
@pytest.mark.parametrize("substeps", [1, 2, 5])
def test_one_step_with_the_target_lands_where_the_substeps_land(
    schedule: Callable, shape: tuple[int, ...], substeps: int
) -> None:
    x_t, t, s = states(*shape)
    x_s, expert = x_t, Expert(Counting(), schedule, substeps)
    for i in range(substeps):
        start, end = t + (s - t) * i / substeps, t + (s - t) * (i + 1) / substeps
        x_s = ddim(x_s, expert.denoiser(x_s, start), start, end, schedule)
    torch.testing.assert_close(expert.advance(x_t, t, s), x_s, atol=1e-4, rtol=1e-4)
    target = expert.target(x_t, t, s)
    torch.testing.assert_close(ddim(x_t, target, t, s, schedule), x_s, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target[2], x_s[2], atol=1e-5, rtol=1e-5)  # s = 0: the target is the end itself


@given(st.integers(1, 6), st.floats(0.3, 1.0), st.floats(0.0, 0.2), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_the_target_in_any_shape_and_number_of_substeps(k: int, t: float, s: float, shape: list[int]) -> None:
    expert, x_t = Expert(Counting(), CosineSchedule(), k), torch.randn(2, *shape)
    start, end = torch.full((2,), t), torch.full((2,), s)
    landed = ddim(x_t, expert.target(x_t, start, end), start, end, expert.schedule)
    torch.testing.assert_close(landed, expert.advance(x_t, start, end), atol=1e-3, rtol=1e-3)
    assert expert.nfe == 2 * 2 * k


@every_shape
def test_one_substep_is_the_plain_guess(shape: tuple[int, ...]) -> None:
    x_t, t, s = states(*shape)
    expert = Expert(Counting(), CosineSchedule())
    assert torch.equal(expert.target(x_t, t, s), expert(x_t, t))
    assert torch.equal(expert(x_t, t), Counting()(x_t, t))


@every_schedule
def test_walk_is_the_ddim_chain_on_the_refined_grid(schedule: Callable) -> None:
    noise, grid = torch.randn(5, 2), step_grid(4)
    walked = Expert(Counting(), schedule, 3).walk(noise, grid)
    fine = [noise, *(step.x_s for step in chain(Counting(), Ddim(schedule), refine(grid, 3), noise))]
    assert len(walked) == 5
    for state, expected in zip(walked, fine[::3], strict=True):
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_rows_walk_their_own_ways() -> None:
    x_t, t, s = states(2)
    expert = Expert(Counting(), CosineSchedule(), 3)
    together = expert.target(x_t, t, s)
    for i in range(3):
        torch.testing.assert_close(expert.target(x_t[i : i + 1], t[i : i + 1], s[i : i + 1])[0], together[i])


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.5])
def test_guidance_is_the_formula_and_its_price(guidance: float) -> None:
    x_t, t, _ = states(2)
    labels, denoiser = torch.tensor([0, 1, 2]), Counting()
    expert = Expert(denoiser, CosineSchedule(), guidance=guidance)
    found = expert(x_t, t, labels)
    conditional, free = Counting()(x_t, t, labels), Counting()(x_t, t, no_label(labels))
    torch.testing.assert_close(found, free + guidance * (conditional - free))
    assert expert.nfe == denoiser.rows == (3 if guidance == 1.0 else 6)


def test_without_condition_guidance_is_free() -> None:
    x_t, t, _ = states(2)
    expert = Expert(Counting(), CosineSchedule(), guidance=5.0)
    assert torch.equal(expert(x_t, t), Counting()(x_t, t))
    assert expert.nfe == 3


def test_a_null_of_ones_own() -> None:
    x_t, t, _ = states(2)
    denoiser = Counting()
    Expert(denoiser, CosineSchedule(), guidance=2.0, null=lambda labels: labels + 10)(x_t, t, torch.tensor([0, 1, 2]))
    asked = [condition.tolist() for _, _, condition in denoiser.asked if condition is not None]
    assert sorted(asked) == [[0, 1, 2], [10, 11, 12]]


@pytest.mark.parametrize("substeps", [1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_ledger_is_the_counted_calls(substeps: int, guidance: float, labelled: bool) -> None:
    x_t, t, s = states(2)
    denoiser, labels = Counting(), torch.tensor([0, 1, 2]) if labelled else None
    expert = Expert(denoiser, CosineSchedule(), substeps, guidance)
    price = 2 if labelled and guidance != 1.0 else 1
    expert(x_t, t, labels)
    assert expert.nfe == denoiser.rows == 3 * price
    expert.target(x_t, t, s, labels)
    assert expert.nfe == denoiser.rows == 3 * price * (1 + substeps)
    expert.walk(x_t, step_grid(4), labels)
    assert expert.nfe == denoiser.rows == 3 * price * (1 + substeps + 4 * substeps)


@pytest.mark.parametrize("substeps", [1, 3])
def test_the_threshold_is_applied_at_every_substep(substeps: int) -> None:
    x_t, t, s = states(2)
    bound, seen = StaticThreshold(-0.1, 0.1), []

    def watched(x0: torch.Tensor) -> torch.Tensor:
        seen.append(x0)
        return bound(x0)

    schedule = CosineSchedule()
    expert = Expert(Counting(), schedule, substeps, threshold=watched)
    target = expert.target(x_t, t, s)
    assert len(seen) == substeps + (substeps > 1), "every sub-step's guess, and the target they amount to"
    assert target.abs().max() <= 0.1
    x_s = x_t
    for i in range(substeps):
        start, end = t + (s - t) * i / substeps, t + (s - t) * (i + 1) / substeps
        x_s = ddim(x_s, bound(Counting()(x_s, start)), start, end, schedule)
    torch.testing.assert_close(Expert(Counting(), schedule, substeps, threshold=bound).advance(x_t, t, s), x_s)


def test_the_threshold_comes_after_guidance() -> None:
    x_t, t, _ = states(2)
    labels = torch.tensor([5, 6, 7])
    expert = Expert(Counting(), CosineSchedule(), guidance=3.0, threshold=StaticThreshold(-1, 1))
    plain = Expert(Counting(), CosineSchedule(), guidance=3.0)
    assert torch.equal(expert(x_t, t, labels), plain(x_t, t, labels).clamp(-1, 1))


def test_advice_carries_no_gradient() -> None:
    layer = torch.nn.Linear(2, 2)
    expert = Expert(lambda x, t, c=None: layer(x), CosineSchedule(), 2)
    x_t, t, s = states(2)
    assert not expert.target(x_t, t, s).requires_grad
    assert not expert(x_t, t).requires_grad


def test_a_denoiser_of_another_shape_is_refused() -> None:
    x_t, t, s = states(3, 4, 4)
    expert = Expert(lambda x, t, c=None: x[:, :1], CosineSchedule(), 2)
    with pytest.raises(
        Refusal, match=r"the expert must answer .*\(3, 3, 4, 4\); got \(3, 1, 4, 4\).*one prediction of x0 per row"
    ):
        expert.target(x_t, t, s)
    with pytest.raises(Refusal, match="substeps must be at least 1; got 0"):
        Expert(Counting(), CosineSchedule(), 0)


@pytest.mark.parametrize("substeps", [1, 3])
def test_the_exact_expert_runs_on_meta(substeps: int) -> None:
    denoiser = GaussianMixtureExpert(torch.randn(3, 2), torch.ones(3), torch.full((3,), 1 / 3), CosineSchedule())
    denoiser.means, denoiser.stds, denoiser.weights = (
        part.to("meta") for part in (denoiser.means, denoiser.stds, denoiser.weights)
    )
    expert = Expert(denoiser, CosineSchedule(), substeps, guidance=2.0, threshold=StaticThreshold())
    x_t, t = torch.empty(4, 2, device="meta"), torch.empty(4, device="meta")
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    for answer in (expert(x_t, t), expert.target(x_t, t, t), expert.target(x_t, t, t, labels)):
        assert answer.is_meta
        assert answer.shape == (4, 2)
    assert len(expert.walk(x_t, torch.empty(3, device="meta"))) == 3
