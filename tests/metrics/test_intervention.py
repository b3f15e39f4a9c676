"""The intervention curve: its ends are the student and the expert, and it finds the step that is broken."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers import seeded
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.metrics.intervention import (
    Intervention,
    Mixed,
    format_interventions,
    measure_interventions,
    only_at,
)
from dagdiff.metrics.samples import energy_distance
from dagdiff.report import figures
from dagdiff.report.shift import intervention_figure
from dagdiff.schedule import CosineSchedule, FlowSchedule, step_grid
from dagdiff.transition import Ddim, Renoise, Transition, sample

SHAPES = [(2,), (3, 4, 4)]
LAWS = {"ddim": Ddim(CosineSchedule()), "renoise": Renoise(FlowSchedule()), "eta": Ddim(CosineSchedule(), eta=0.5)}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def teacher(law: Transition) -> Callable:
    """The posterior mean of N(1, 0.5^2) in every coordinate, and its labels' sign where there are labels."""

    def guess(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = (part.reshape(-1, *[1] * (x_t.ndim - 1)) for part in law.schedule(t))
        mean = 1.0 if condition is None else condition.reshape(alpha.shape).to(x_t)
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    return guess


def student(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    return 0.5 * x_t


def clouds(shape: tuple[int, ...], n: int = 200) -> tuple[Tensor, Tensor]:
    """Start noise, and points of the true law."""
    generator = seeded(9)
    noise = torch.randn(n, *shape, generator=generator)
    return noise, 1.0 + 0.5 * torch.randn(n, *shape, generator=generator)


def kept() -> tuple[list[Tensor], Callable[[Tensor], float]]:
    """A scorer that keeps the samples it is shown."""
    seen: list[Tensor] = []

    def scorer(points: Tensor) -> float:
        seen.append(points)
        return float(points.mean())

    return seen, scorer


@every_law
@every_shape
def test_the_ends_are_the_student_and_the_expert_driven_chain(law: Transition, shape: tuple[int, ...]) -> None:
    expert, times, (noise, truth) = Expert(teacher(law), law.schedule, substeps=3), step_grid(4), clouds(shape)
    ends = dict(pairwise(times.tolist()))

    def driven(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        s = torch.full_like(t, ends[float(t[0])])
        return expert.target(x_t, t, law.horizon(s), condition)

    seen, scorer = kept()
    rows = measure_interventions(student, expert, law, times, noise, truth, seeded(), scorer=scorer)
    assert [(row.p, row.step) for row in rows] == [
        *((p, None) for p in (0.0, 0.25, 0.5, 0.75, 1.0)),
        *((1.0, k) for k in range(4)),
    ]
    assert torch.equal(seen[0], sample(student, law, times, noise, generator=seeded()))
    assert torch.equal(seen[4], sample(driven, law, times, noise, generator=seeded()))
    for row, points in zip(rows, seen, strict=True):
        assert row.energy == energy_distance(points, truth) and row.score == float(points.mean())
        assert row.gain == pytest.approx(rows[0].energy - row.energy)
    assert rows[0].gain == rows[0].error == 0.0 and rows[4].gain > 5.0 * rows[4].error > 0.0


@every_law
def test_only_at_a_step_the_expert_acts_there_and_nowhere_else(law: Transition) -> None:
    """The student's chain down to step k, the expert's guess there, and the student's again."""
    expert, times, (noise, truth) = Expert(teacher(law), law.schedule, substeps=2), step_grid(3), clouds((2,))
    seen, scorer = kept()
    rows = measure_interventions(student, expert, law, times, noise, truth, seeded(), steps=[1], scorer=scorer)
    assert [row.step for row in rows[5:]] == [1] and rows[5].t == pytest.approx(float(times[1]))
    fresh, x_t = seeded(), noise
    for k, (t, s) in enumerate(pairwise(times)):
        t, s = t.expand(200), s.expand(200)
        guess = expert.target(x_t, t, law.horizon(s)) if k == 1 else student(x_t, t)
        x_t = law(x_t, guess, t, s, torch.randn(x_t.shape, generator=fresh))
    assert torch.equal(seen[5], x_t)


def test_the_curve_finds_the_one_broken_step() -> None:
    law = LAWS["ddim"]
    good, times, (noise, truth) = teacher(law), step_grid(4), clouds((2,), 500)

    def broken(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return good(x_t, t) + 1.0 * (t[0] == times[2])

    rows = measure_interventions(broken, Expert(good, law.schedule), law, times, noise, truth, seeded())
    curve, alone = [row.energy for row in rows[:5]], rows[5:]
    assert curve == sorted(curve, reverse=True) and curve[0] > 10.0 * max(curve[4], 0.01)
    assert max(alone, key=lambda row: row.gain).step == 2
    assert alone[2].energy == pytest.approx(rows[4].energy), "that step repaired, all is repaired"
    assert all(row.gain == pytest.approx(0.0, abs=1e-6) for row in alone if row.step != 2)


def test_a_student_equal_to_the_expert_gains_nothing() -> None:
    law, (noise, truth) = LAWS["renoise"], clouds((2,))
    expert = Expert(teacher(law), law.schedule)
    rows = measure_interventions(teacher(law), expert, law, step_grid(4), noise, truth, seeded())
    assert all(abs(row.gain) < 1e-6 and row.error < 1e-6 for row in rows)


def test_the_error_is_the_spread_over_chains() -> None:
    """Of one experiment in 40 draws of noise, against one truth; with p between 0 and 1 it errs to the safe side."""
    law = LAWS["ddim"]
    expert, (_, truth) = Expert(teacher(law), law.schedule), clouds((2,), 400)
    runs = []
    for k in range(40):
        noise = torch.randn(100, 2, generator=seeded(k))
        runs.append(measure_interventions(student, expert, law, step_grid(2), noise, truth, seeded(k), None, [0.5], []))
    for place, p, most in ((1, 0.5, 2.0), (2, 1.0, 1.35)):
        found = [rows[place] for rows in runs]
        spread = float(torch.tensor([row.gain for row in found]).std())
        assert found[0].p == p
        assert 0.75 * spread < sum(row.error for row in found) / 40 < most * spread


def test_the_driven_rows_are_counted_nested_and_drawn_anew_each_step() -> None:
    law = LAWS["ddim"]
    times, noise = step_grid(3), torch.randn(40, 2, generator=seeded())
    order = torch.rand(3, 40, generator=seeded()).argsort(dim=1)
    expert = Expert(lambda x_t, t, condition=None: torch.full_like(x_t, 7.0), law.schedule)

    def driven(p: float, step: int) -> set[int]:
        mixed = Mixed(lambda x_t, t, condition=None: torch.zeros_like(x_t), expert, law, times, [p] * 3, order)
        guess = mixed(noise, times[step].expand(40))
        assert set(guess.flatten().tolist()) <= {0.0, 7.0}
        return set((guess[:, 0] == 7.0).nonzero().flatten().tolist())

    assert [len(driven(p, 1)) for p in (0.0, 0.25, 0.5, 1.0)] == [0, 10, 20, 40]
    assert driven(0.25, 1) < driven(0.5, 1) < driven(0.75, 1)
    assert len({frozenset(driven(0.5, k)) for k in range(3)}) == 3


def test_each_is_shown_its_own_rows_alone_and_labels_go_with_them() -> None:
    law, (noise, truth) = LAWS["ddim"], clouds((2,), 100)
    labels = torch.arange(100) % 2 * 2 - 1
    shown: list[int] = []

    def counted(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None
        shown.append(len(x_t))
        return teacher(law)(x_t, t, condition)

    expert, asked = Expert(counted, law.schedule), []

    def policy(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        asked.append(len(x_t))
        return teacher(law)(x_t, t, condition)

    seen, scorer = kept()
    rows = measure_interventions(
        policy,
        expert,
        law,
        step_grid(2),
        noise,
        truth,
        seeded(),
        labels,
        probabilities=[0.25],
        steps=[0],
        scorer=scorer,
    )
    assert [(row.p, row.step) for row in rows] == [(0.0, None), (0.25, None), (1.0, None), (1.0, 0)]
    assert shown == [25, 25, 100, 100, 100], "never at p = 0, a quarter twice, all twice, all at one step"
    assert asked == [100] * 7, (
        "the base and p = 0 and p = 0.25 twice each, once after the expert's step, never at p = 1"
    )
    assert all(torch.allclose(points, seen[0], atol=1e-5) for points in seen), "each row was given its own label"


def test_no_evaluation_is_charged_and_the_generator_is_all_the_chance_there_is() -> None:
    law, (noise, truth) = LAWS["eta"], clouds((2,), 50)
    expert = Expert(teacher(law), law.schedule, substeps=2)
    expert.nfe = 5
    state = torch.get_rng_state()
    runs = [measure_interventions(student, expert, law, step_grid(2), noise, truth, seeded(k)) for k in (0, 0, 1)]
    assert expert.nfe == 5 and torch.equal(torch.get_rng_state(), state)
    energies = [[row.energy for row in rows] for rows in runs]
    assert energies[0] == energies[1] != energies[2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": [4]}, r"steps must lie in \[0, 3\]; got 4"),
        ({"steps": [0, -1]}, r"steps must lie in \[0, 3\]; got -1"),
        ({"probabilities": [0.5, 1.5]}, r"probabilities must lie in \[0, 1\]; got 1.5"),
        ({"times": torch.tensor([0.0, 1.0])}, "times must fall"),
    ],
)
def test_refusals_come_before_any_evaluation(options: dict, match: str) -> None:
    def never(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        raise AssertionError("it was asked")

    law = LAWS["ddim"]
    given = {"times": step_grid(4), "noise": torch.zeros(9, 2), "reference": torch.zeros(9, 2), **options}
    with pytest.raises(Refusal, match=match):
        measure_interventions(never, Expert(never, law.schedule), law, generator=seeded(), **given)


def test_mixed_refuses_shares_that_do_not_fit() -> None:
    law = LAWS["ddim"]
    parts = student, Expert(teacher(law), law.schedule), law, step_grid(2)
    order = torch.arange(5).expand(2, 5)
    with pytest.raises(Refusal, match="one entry a step; got 3 and 2 for 2 steps"):
        Mixed(*parts, [0.0] * 3, order)
    with pytest.raises(Refusal, match=r"shares must lie in \[0, 1\]; got -0.5"):
        Mixed(*parts, [0.0, -0.5], order)
    assert only_at(1, 3) == [0.0, 1.0, 0.0]


ROWS = [
    Intervention(0.0, None, math.nan, 0.4, 0.0, 0.0),
    Intervention(0.25, None, math.nan, 0.3, 0.1, 0.02),
    Intervention(1.0, None, math.nan, 0.1, 0.3, 0.03),
    Intervention(1.0, 0, 1.0, 0.35, 0.05, 0.01),
    Intervention(1.0, 1, 0.5, 0.2, 0.2, 0.015),
]


def test_tables() -> None:
    header, *lines = format_interventions(ROWS).splitlines()
    assert "score" not in header and len({len(line) for line in (header, *lines)}) == 1 and len(header) <= 100
    assert [line[:25].strip() for line in lines] == [
        "never (p = 0)",
        "with p = 0.25 a step",
        "always (p = 1)",
        "only at step 0 (t = 1)",
        "only at step 1 (t = 0.5)",
    ]
    assert lines[1].split()[-4:] == ["0.3", "0.1", "±", "0.02"]
    scored = format_interventions([Intervention(0.0, None, math.nan, 0.4, 0.0, 0.0, score=0.125)])
    assert scored.splitlines()[0].endswith("score") and scored.endswith("0.125")
    found = [row.as_row() for row in ROWS]
    assert list(found[0]) == ["p", "step", "t", "energy", "gain", "error", "score"]
    assert [row["step"] for row in found] == [None, None, None, 0, 1] and found[4]["energy"] == 0.2


def test_figure() -> None:
    curve, alone = (figure := intervention_figure(ROWS)).axes
    assert curve.containers[0][0].get_xydata().tolist() == [[0.0, 0.4], [0.25, 0.3], [1.0, 0.1]]
    assert alone.containers[0][0].get_xydata().tolist() == [[0.0, 0.35], [1.0, 0.2]]
    low, high = curve.containers[0][2][0].get_segments()[1][:, 1]
    assert (float(low), float(high)) == pytest.approx((0.26, 0.34)), "two standard errors"
    lines = {line.get_label(): line.get_ydata()[0] for line in alone.lines}
    assert lines["student alone"] == 0.4 and lines["expert throughout"] == 0.1
    assert figures.to_data_uri(figure).startswith("data:image/png")
    assert len(intervention_figure(ROWS[:3]).axes) == 1
    with pytest.raises(Refusal, match="p = 0 and p = 1"):
        intervention_figure(ROWS[1:])
