"""Students that are broken on purpose are named: which step errs, or every one, or none."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from torch import Tensor, nn

import dagdiff
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.expert import Expert
from dagdiff.metrics.shift import Bracket, Shift
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policy import ExpertPolicy
from dagdiff.report.anatomy import conclusion, format_shift
from dagdiff.report.measured import Measured
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import save_student
from dagdiff.schedule import CosineSchedule, FlowSchedule, Schedule, VPSchedule, step_grid
from dagdiff.tasks.plane import exact_expert
from dagdiff.transition import Ddim, Renoise, Transition

K = 4
SCHEDULES: dict[str, Any] = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
BROKEN = {"first": (0,), "second": (1,), "third": (2,), "last": (3,), "everywhere": (0, 1, 2, 3), "nowhere": ()}
SAID = {
    "first": r"^the student errs at step 0 \(the first\) alone: by \d",
    "second": r"^the student errs at step 1 alone: by \d",
    "third": r"^the student errs at step 2 alone: by \d",
    "last": r"^the student errs at step 3 \(the last\) alone: by \d",
    "everywhere": r"^the student errs at every step",
    "nowhere": r"^the student acts as its teacher: at every step its error is below .* no shift to repair$",
}
FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "moved": lambda guess: guess + 0.4,
    "shrunk": lambda guess: 0.5 * guess,
    "silent": torch.zeros_like,
}


def points(rows: int = 150) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    modes = torch.tensor([[1.0, 0.3], [-1.0, -0.3]])[torch.randint(2, (rows,), generator=generator)]
    return modes + 0.25 * torch.randn(rows, 2, generator=generator)


def expert(schedule: Schedule) -> Expert:
    means = torch.tensor([[1.0, 0.3], [-1.0, -0.3]])
    exact = GaussianMixtureExpert(means, torch.full((2,), 0.25), torch.full((2,), 0.5), schedule)
    return Expert(exact, schedule, substeps=4)


class Broken(nn.Module):
    """The teacher in the student's place, but for some steps: a perfect imitator that was broken there."""

    def __init__(self, acting: Any, times: Tensor, steps: tuple[int, ...], fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.acting, self.times, self.steps, self.fault = acting, times, steps, fault

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        guess: Tensor = self.acting(x_t, t, condition)
        step = int((self.times[:-1] - t[0]).abs().argmin())
        return self.fault(guess) if step in self.steps else guess


def measured(
    law: Transition, steps: tuple[int, ...], fault: Callable[[Tensor], Tensor], beside: float = 0.0, seed: int = 1
) -> Measured:
    """A broken student of the plane; ``beside`` is an error that it makes everywhere, as trained students do."""
    times, teacher, noise = step_grid(K), expert(law.schedule), torch.Generator().manual_seed(seed)
    broken = Broken(ExpertPolicy(teacher, law, times), times, steps, fault)

    def student(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return broken(x_t, t) + beside * torch.randn(x_t.shape, generator=noise)

    draws = torch.Generator().manual_seed(seed)
    return dagdiff.measure(student, teacher, points(), law, times, generator=draws)


CASES = [("cosine", Ddim, fault) for fault in FAULTS] + [(schedule, Renoise, "moved") for schedule in SCHEDULES]


@pytest.mark.parametrize(("schedule", "law", "fault"), [*CASES, ("vp", Ddim, "moved"), ("flow", Ddim, "silent")])
@pytest.mark.parametrize("where", BROKEN)
def test_a_broken_student_is_named(where: str, schedule: str, law: Any, fault: str) -> None:
    found = measured(law(SCHEDULES[schedule]), BROKEN[where], FAULTS[fault])
    assert re.search(SAID[where], found.conclusion), found.conclusion


@pytest.mark.parametrize(("where", "name"), [("first", "step 0 (the first)"), ("last", "step 3 (the last)")])
@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_it_is_named_among_the_errors_that_every_student_makes(where: str, name: str, law: Any) -> None:
    found = measured(law(CosineSchedule()), BROKEN[where], FAULTS["moved"], beside=0.03)
    assert re.search(rf"^the student errs (at every step, )?most at {re.escape(name)}: by ", found.conclusion), (
        found.conclusion
    )
    everywhere = measured(law(CosineSchedule()), BROKEN["everywhere"], FAULTS["moved"], beside=0.03)
    assert everywhere.conclusion.startswith("the student errs at every step: by ")


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_no_step_is_accused_by_chance(law: Any) -> None:
    """Errors of one size at every step, from other noise each time."""
    for seed in range(12):
        said = measured(law(CosineSchedule()), (), FAULTS["moved"], beside=0.05, seed=seed).conclusion
        assert said.startswith("the student errs at every step: by "), said
        assert "own errors at" not in said and "data mismatch at" not in said


def test_the_step_that_makes_the_end_is_named_with_its_part() -> None:
    found = measured(Ddim(FlowSchedule()), (3,), FAULTS["moved"])
    assert found.rows[3].share == pytest.approx(1.0) and found.rows[0].share == pytest.approx(0.0)
    assert "step 3 (the last) makes 100 % [100, 100] of the distance of its ends" in found.conclusion
    assert "its states leave" not in found.conclusion, "it errs after the last state"
    first = measured(Ddim(FlowSchedule()), (0,), FAULTS["moved"])
    assert "step 0 (the first) makes 100 % [100, 100]" in first.conclusion
    moved = re.search(r"its states leave the teacher's by step 1 \(displacement (\S+) \[", first.conclusion)
    assert moved and float(moved[1]) == pytest.approx(0.4 * 0.25, rel=0.05), "alpha_s of what the guess is off"


def test_a_few_chains_do_not_accuse() -> None:
    """Ten chains, of which one errs: nothing is clear."""
    law, times = Ddim(CosineSchedule()), step_grid(K)
    teacher = expert(law.schedule)
    acting = ExpertPolicy(teacher, law, times)

    def student(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        guess = acting(x_t, t)
        guess[0] += 0.5
        return guess

    said = dagdiff.measure(student, teacher, points(10), law, times).conclusion
    assert said.startswith("whether any step errs is undecided: measure more chains")


def test_one_step_alone_is_its_only_one() -> None:
    law, times = Ddim(CosineSchedule()), step_grid(1)
    teacher = expert(law.schedule)
    found = dagdiff.measure(lambda x, t, c=None: torch.zeros_like(x), teacher, points(), law, times)
    assert found.conclusion.startswith("the student errs at its only step: by ")


# -- pipelines and runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", BROKEN)
def test_students_of_a_pipeline_are_named_too(where: str, tmp_path: Path) -> None:
    """Whatever trained them: a callable beside a pipeline's network."""
    path = pipelines.save(pipelines.seeded(pipelines.ddpm), tmp_path / "ddpm")
    loaded = DiffusersExpert.from_pretrained(path)
    law, times = Ddim(loaded.schedule), step_grid(K)
    teacher = Expert(loaded, loaded.schedule, substeps=2, threshold=loaded.threshold)
    broken = Broken(ExpertPolicy(teacher, law, times), times, BROKEN[where], lambda guess: guess + 0.4)
    data = torch.rand(24, *loaded.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = dagdiff.measure(broken, teacher, data, law, times)
    assert re.search(SAID[where], found.conclusion), found.conclusion
    figure = found.pictures()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "teacher", "student before step 1", "student before step 2", "student before step 3", "student",
    ]  # fmt: skip
    assert len(figure.axes[0].get_xticklabels()) == 8, "one noise a column"


class OfRun(nn.Module):
    """A student of a run that is its exact expert, but for one step."""

    def __init__(self, task: Any, step: int = 0) -> None:
        super().__init__()
        self.exact, self.step, self.size = exact_expert(task), step, nn.Parameter(torch.tensor(0.5))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        wrong = (1.0 - t[0]) * K == self.step
        return self.exact(x_t, t, condition) + self.size * wrong


OF_RUN = [(0, "step 0 (the first) alone", "progressive"), (3, "step 3 (the last) alone", "distribution")]


@pytest.mark.parametrize(("step", "said", "objective"), OF_RUN)
def test_the_command_names_the_step_of_a_run(
    step: int, said: str, objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"task": "gaussians8-matched", "steps": K, "substeps": 1, "solver": "ddim", "expert": "exact"}
    policy = {"policy": {"class": f"{__name__}.OfRun", "step": step}}
    it = Experiment.build(configure({**words, **policy, "objective": objective, "device": "cpu"}), training=False)
    save_student(it, tmp_path / "run")
    words_of_shift = ["shift", str(tmp_path / "run"), "--num", "300", "--trust_code", "--device", "cpu"]
    assert main(words_of_shift) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert f"the student errs at {said}: by " in told
    assert "error of the step: distance of the student's guess" in told, "a legend"
    assert ("note: this student was trained by distribution matching" in told) == (objective == "distribution")


# -- the call -------------------------------------------------------------------------------------------------------


def test_what_is_measured_prints_with_its_legend() -> None:
    found = measured(Ddim(CosineSchedule()), (1,), FAULTS["moved"])
    lines = str(found).splitlines()
    assert lines[0].split()[:2] == ["step", "t"]
    assert max(map(len, lines[: lines.index("")])) <= 110
    legend = ("error of the step: ", "displacement: ", "growth: ", "share of the end: ", "classifier: ", "ends: ")
    assert all(any(line.startswith(word) for line in lines) for word in legend)
    assert str(found) == f"{format_shift(found.shift)}\n\n{found.conclusion}"
    assert found.figure().axes
    with pytest.raises(Refusal, match="ends must be images"):
        found.pictures()


def test_data_may_be_drawn_and_a_plain_teacher_is_walked_in_sub_steps() -> None:
    law, times = Ddim(CosineSchedule()), step_grid(2)
    exact = expert(law.schedule).denoiser

    class Drawn:
        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            return points(n)

    found = dagdiff.measure(exact, exact, Drawn(), law, times, num=40, substeps=8)
    assert found.rows[0].loss_own > 1e-4, "one step is not eight"
    assert dagdiff.measure(exact, exact, Drawn(), law, times, num=40, substeps=1).rows[0].loss_own == 0.0
    again = dagdiff.measure(exact, exact, points(40), law, times, substeps=8, batch_size=7)
    assert again.rows[1].step_error == pytest.approx(found.rows[1].step_error, rel=1e-5)


def test_a_module_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.Identity()).train()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            assert not self.inner.training
            out: Tensor = self.inner(x_t)
            return out

    student = Net()
    dagdiff.measure(student, expert(CosineSchedule()), points(20), Ddim(CosineSchedule()), step_grid(2))
    assert student.training and network.training


def test_what_cannot_be_measured_is_refused() -> None:
    law, times, teacher = Ddim(CosineSchedule()), step_grid(2), expert(CosineSchedule())
    with pytest.raises(Refusal, match="times must fall"):
        dagdiff.measure(teacher, teacher, points(20), law, torch.arange(3.0))
    with pytest.raises(Refusal, match="can't be called with three arguments"):
        dagdiff.measure(lambda x: x, teacher, points(20), law, times)
    with pytest.raises(Refusal, match="NaN or infinity"):
        dagdiff.measure(lambda x, t, c=None: x * math.nan, teacher, points(20), law, times)
    with pytest.raises(Refusal, match="at least 2 points"):
        dagdiff.measure(teacher, teacher, points(1), law, times)
    with pytest.raises(Refusal, match="the data must have sample"):
        dagdiff.measure(teacher, teacher, "points", law, times)  # type: ignore[arg-type]


def test_rows_of_an_older_version_are_told_as_they_were() -> None:
    shift = measured(Ddim(CosineSchedule()), (1,), FAULTS["moved"]).shift
    from dataclasses import replace

    unknown = dict.fromkeys(("step_error_low", "step_error_high", "share", "share_low", "share_high"), math.nan)
    older = Shift([replace(row, **unknown) for row in shift.rows], Bracket(0.0, 1.0))
    assert "the student errs" not in conclusion(older)
    assert f"{shift.rows[1].step_error:.3g} " in format_shift(older)
    with pytest.raises(Refusal, match="older version"):
        Measured(older).pictures()
