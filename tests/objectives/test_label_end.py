"""Labels of any length: where the expert walks to, what the student is then asked, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from tensordict import TensorDict
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.objectives.consistency import Consistency, boundary, pseudo_huber
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.label_end import Ahead, Data, Uniform, as_label_end
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.transition import Ddim, Renoise

SCHEDULE, DATA = CosineSchedule(), world("gaussians8")


def expert(substeps: int = 4) -> Expert:
    mixture = DATA.mixture
    assert mixture is not None
    return Expert(GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, SCHEDULE), SCHEDULE, substeps)


def network(seed: int) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(MLP(width=16), SCHEDULE)


def annotated(objective: Any, advisor: Expert) -> TensorDict:
    objective.begin(network(0), advisor, None, seeded(0))
    grid, place = step_grid(10), torch.randint(10, (32,), generator=seeded(1))
    columns = {"x_t": torch.randn(32, 2, generator=seeded(2)), "t": grid[place], "s": grid[place + 1]}
    batch: TensorDict = objective.annotate(advisor, TensorDict(columns, [32]))
    return batch


@pytest.mark.parametrize(
    ("value", "law"),
    [
        ("step", Ahead(0.02)),
        ("data", Data()),
        (1.0, Data()),
        (0.25, Ahead(0.25)),
        ("0.25", Ahead(0.25)),
        ("uniform", Uniform(50)),
    ],
)
def test_words_and_numbers_name_laws(value: Any, law: Callable) -> None:
    assert as_label_end(value, 50) == law


def test_uniform_draws_times_of_the_grid_below_t_with_equal_chances() -> None:
    t = torch.tensor([0.1, 0.5, 1.0]).repeat(20_000)
    end = Uniform(10)(t, seeded(0))
    assert torch.equal((end * 10).round() / 10, end)
    assert ((end >= 0) & (end < t)).all()
    counts = torch.bincount((end[1::3] * 10).round().long(), minlength=5) / 20_000
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.02, rtol=0)


@pytest.mark.parametrize("value", ["data", 0.25, "uniform", lambda t, generator: t / 2])
def test_the_expert_walks_to_the_end_of_the_label(value: Any) -> None:
    advisor = expert()
    batch = annotated(Consistency(label_end=value), advisor)
    end = batch["end"]
    assert ((end >= 0) & (end < batch["t"])).all()
    torch.testing.assert_close(batch["x_next"], advisor.advance(batch["x_t"], batch["t"], end))
    if value == 0.25:
        torch.testing.assert_close(end, (batch["t"] - 0.25).clamp(min=0))


def test_a_published_label_is_one_question_whatever_the_substeps() -> None:
    advisor = expert(substeps=8)
    batch = annotated(Consistency(), advisor)
    assert advisor.nfe == len(batch)
    torch.testing.assert_close(batch["end"], batch["t"] - 0.02)


def test_a_label_that_ends_at_data_needs_no_target_network() -> None:
    advisor, student = expert(), network(3)
    objective = Consistency(label_end="data")
    batch = annotated(objective, advisor)
    assert objective.target is None
    objective.follow(student)
    answer = boundary(batch["x_t"], student(batch["x_t"], batch["t"]), batch["t"])
    walked = advisor.advance(batch["x_t"], batch["t"], torch.zeros(len(batch)))
    torch.testing.assert_close(objective.loss(student, batch).loss, pseudo_huber(answer, walked, 1e-3))


def test_pd_to_data_asks_for_the_end_of_the_walk_and_perturbs_afresh() -> None:
    advisor, objective = expert(), Progressive(label_end="data")
    batch = annotated(objective, advisor)
    walked = advisor.advance(batch["x_t"], batch["t"], torch.zeros(len(batch)))
    torch.testing.assert_close(batch["target"], walked, atol=1e-5, rtol=1e-5)
    assert (batch["end"] == 0).all()
    assert isinstance(objective.sampler(SCHEDULE), Renoise)
    assert isinstance(Progressive().sampler(SCHEDULE), Ddim)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Consistency(label_end="data"),
        lambda: Consistency(label_end="uniform"),
        lambda: Progressive(label_end="data"),
    ],
)
def test_the_loop_trains_on_them_and_a_seed_is_a_seed(make: Callable) -> None:
    students = [network(1), network(1)]
    for student in students:
        objective = make()
        env = DenoisingEnv((2,), objective.sampler(SCHEDULE), step_grid(4), 32, generator=seeded(8))
        loop = DAgger(student, expert(), objective, env, DATA, rounds=3, updates_per_round=20, generator=seeded(9))
        losses = [done.losses["loss"] for done in loop]
        assert losses[-1] < losses[0]
    assert all(torch.equal(*pair) for pair in zip(*(each.parameters() for each in students), strict=True))


@pytest.mark.parametrize("value", ["end", 0.0, -0.5, 1.5, float("nan"), None])
def test_another_label_end_is_refused(value: Any) -> None:
    with pytest.raises(Refusal, match=r"label_end must be .* got"):
        Consistency(label_end=value)


@pytest.mark.parametrize(
    "drawn",
    [lambda t, _: t + 0.1, lambda t, _: -t, lambda t, _: t * torch.nan, lambda t, _: t[:1], lambda *_: 0.5],
)
def test_a_law_that_draws_outside_the_chain_is_refused(drawn: Callable[[Tensor, Any], Tensor]) -> None:
    with pytest.raises(Refusal, match=r"label_end must lie in \[0, t\]"):
        annotated(Consistency(label_end=drawn), expert())


def test_a_law_of_ones_own_is_named_by_its_import_path(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that draws outside [0, t] is told before the first update."""
    (own_folder / "mylaws.py").write_text(
        "def half(t, generator): return t / 2\ndef twice(t, generator): return t * 2\n"
    )
    words = "distill --task gaussians8-biased --objective consistency --updates 40 --rounds 2 --objective.label_end"
    small = "--policy fresh --policy.width 8 --chains 8 --samples 50 --device cpu"
    assert main([*words.split(), "mylaws.half", *small.split(), "--out", "half"]) == 0
    assert main([*words.split(), "mylaws.twice", *small.split(), "--out", "twice"]) == 2
    assert main([*words.split(), "mylaws.halve", *small.split(), "--out", "halve"]) == 2
    told = capsys.readouterr().err
    assert "label_end must lie in [0, t], one for each state; got 0.12 at t=0.06" in told
    assert "unknown label_end in mylaws 'halve'. Did you mean 'half'?" in told


def test_pd_knows_two_ends() -> None:
    with pytest.raises(Refusal, match=r"unknown label_end 'uniform'\. Known: data, step"):
        Progressive(label_end="uniform")


# --- DMD2 with labels, and with tau in its step -----------------------------------------------------------------------


def test_dmd2_adds_the_distance_to_the_label_by_its_weight() -> None:
    advisor, student = expert(), network(0)
    found = {}
    for weight in (0.0, 0.5):
        objective = DistributionMatching(label_weight=weight)
        batch = annotated(objective, advisor)
        found[weight] = objective.loss(student, batch)
    walked = advisor.advance(batch["x_t"], batch["t"], torch.zeros(len(batch)))
    label = (student(batch["x_t"], batch["t"]) - walked).square().mean()
    torch.testing.assert_close(found[0.5].parts["label"], label.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0.5].loss, found[0.0].loss + 0.5 * label, rtol=1e-4, atol=1e-6)
    assert set(found[0.0].parts) == {"matching"}


def test_dmd2_without_a_weight_buys_no_labels() -> None:
    advisor = expert()
    annotated(DistributionMatching(), advisor)
    assert advisor.nfe == 0


def test_tau_by_step_lies_between_the_steps_end_and_start_within_the_range() -> None:
    objective = DistributionMatching(tau_by_step=True, tau=(0.05, 0.95))
    batch = torch.cat([annotated(objective, expert()) for _ in range(50)])
    asked: list[Tensor] = []
    objective.expert.denoiser = lambda x_t, t, condition: asked.append(t) or torch.zeros_like(x_t)
    objective.loss(network(0), batch)
    (tau,) = asked
    low, high = batch["s"].clamp(0.05, 0.95), batch["t"].clamp(0.05, 0.95)
    assert ((tau >= low - 1e-6) & (tau <= high + 1e-6)).all()
    part = (tau - low) / (high - low)
    assert 0.4 < part.mean() < 0.6 and part.min() < 0.05 and part.max() > 0.95


def test_a_negative_label_weight_is_refused() -> None:
    with pytest.raises(Refusal, match="label_weight must be at least 0"):
        DistributionMatching(label_weight=-1.0)
