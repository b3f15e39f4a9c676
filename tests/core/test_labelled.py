"""Labelled states for other loops: exact shares, the expert's labels, and a student that is rolled in anew."""

import re
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT, seeded, weights
from torch import Tensor

import dagdiff
from dagdiff.checks import Refusal
from dagdiff.labelled import Labelled, states
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

PAGE = (ROOT / "docs/states.md").read_text(encoding="utf-8")


@pytest.fixture(params=["step", "data"])
def it(request: pytest.FixtureRequest) -> Experiment:
    """A task with a fresh student; labels end where a step lands (DDIM), or at data (re-noising)."""
    chosen = {
        "objective": {"class": "progressive", "label_end": request.param},
        "policy": {"class": "fresh", "width": 16},
    }
    return Experiment.build(
        configure({"task": "imbalanced-biased", "steps": 3, "substeps": 2, "device": "cpu", **chosen})
    )


def stream(it: Experiment, student: Any = None, **options: Any) -> Iterator[Labelled]:
    sizes = {"batch_size": 32, "batches": 3, "chains": 16, **options}
    return states(student or it.student, it.expert, it.task.data, it.transition, it.times, **sizes)


def test_batches_hold_exact_shares_and_the_experts_labels(it: Experiment) -> None:
    for x_t, t, condition, label, source in islice(stream(it), 7):
        assert source.bincount().tolist() == [8, 16, 8] and condition is None
        landing = it.times[1:][(it.times[:-1] - t[:, None]).abs().argmin(1)]
        wanted = it.expert.target(x_t, t, it.transition.horizon(landing))
        assert torch.allclose(label, wanted, atol=1e-4)
        first = (t == 1.0) & (source > 0)
        assert abs(float(x_t[first].mean())) < 1.5  # noise


def test_the_student_is_rolled_in_anew_each_round(it: Experiment) -> None:
    """A student that answers with 100 from the second round on is seen in the states of that round and not before."""
    far = SimpleNamespace(at=0.0)

    def student(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return torch.full_like(x_t, far.at)

    batches = stream(it, student, shares=(0.0, 1.0, 0.0), rounds_kept=1)
    near = [next(batches) for _ in range(3)]
    far.at = 100.0
    moved = [next(batches) for _ in range(3)]
    assert max(float(batch.x_t.abs().max()) for batch in near) < 10.0
    assert max(float(batch.x_t.abs().max()) for batch in moved) > 10.0


def test_a_training_module_stays_in_training(it: Experiment) -> None:
    before = weights(it.student)
    it.student.train()
    next(stream(it))
    assert it.student.training and torch.equal(weights(it.student), before)


def test_conditions_come_along() -> None:
    chosen = {"task": "gaussians8-matched-labelled", "policy": "fresh", "device": "cpu"}
    it = Experiment.build(configure(chosen))
    batch = next(stream(it, conditions=it.task.conditions))
    assert batch.condition is not None and batch.condition.shape == (32,)


def test_the_same_generator_gives_the_same_batches(it: Experiment) -> None:
    one, two = (next(stream(it, generator=seeded(3))) for _ in range(2))
    assert torch.equal(one.x_t, two.x_t) and torch.equal(one.label, two.label)


@pytest.mark.parametrize(
    ("student", "told"),
    [
        (lambda x_t, t, condition: x_t[:, :1], "must answer with the shape of the states"),
        (lambda x_t, t, condition: x_t * float("nan"), "answers with NaN or infinity at t = 1"),
        (lambda x_t, t: x_t, "can't be called with three arguments"),
        (7, "can't be called"),
    ],
)
def test_a_student_that_can_not_be_is_refused_before_anything_is_drawn(it: Experiment, student: Any, told: str) -> None:
    with pytest.raises(Refusal, match=told):
        stream(it, student)


def test_a_student_that_goes_wrong_later_is_named(it: Experiment) -> None:
    wrong = SimpleNamespace(value=0.0)
    batches = stream(it, lambda x_t, t, condition: x_t + wrong.value)
    next(batches)
    wrong.value = float("inf")
    with pytest.raises(Refusal, match="the student answers with NaN or infinity"):
        list(islice(batches, 4))


def test_options_are_checked_at_once(it: Experiment) -> None:
    with pytest.raises(Refusal, match="shares must sum to 1"):
        stream(it, shares=(0.5, 0.0, 0.0))
    with pytest.raises(Refusal, match="batches must be at least 1"):
        stream(it, batches=0)


def block(title: str) -> str:
    """A code block of the page, by its title; under 15 lines without imports and blank lines."""
    (code,) = re.findall(rf"```python{title}\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not re.match(r"(import|from) ", line)]
    assert len(lines) < 15
    return code


@pytest.mark.parametrize("title", ["", ' title="modelopt"'])
def test_the_loops_of_the_page_are_short(title: str) -> None:
    assert block(title)


def test_the_plain_loop_of_the_page_trains() -> None:
    names: dict[str, Any] = {}
    exec(compile(block(""), "states.md", "exec"), names)
    student, it = names["student"], names["it"]
    batch = next(names["batches"])
    own = float((student(*batch[:3]).detach() - batch.label).square().mean())
    assert own < 0.5 * float(batch.label.square().mean()) and it.expert.nfe > 0


def test_the_modelopt_loop_of_the_page_trains_on_these_states() -> None:
    fastgen = pytest.importorskip("modelopt.torch.fastgen", exc_type=ImportError)
    from dagdiff.benchmarks.suites import modelopt_dmd2

    names: dict[str, Any] = {}
    exec(compile(block(' title="modelopt"'), "states.md", "exec"), names)
    chosen = {"task": "gaussians8-biased", "schedule": "flow", "objective": "distribution", "policy": "fresh"}
    it = Experiment.build(configure({**chosen, "device": "cpu", "steps": 4}))
    fake = Experiment.build(configure({**chosen, "device": "cpu", "seed": 1})).student
    asked = [modelopt_dmd2.Asked(part) for part in (it.student, it.expert, fake)]
    pipeline = names["OnStates"](*asked, modelopt_dmd2.configuration(it, backward_simulation=False))
    assert isinstance(pipeline, fastgen.DMDPipeline)
    seen: list[float] = []

    def updating(network: torch.nn.Module) -> Any:
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)

        def update(loss: Tensor) -> None:
            seen.append(float(loss))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return update

    before = weights(it.student), weights(fake)
    names["train"](pipeline, it, updating(it.student), updating(fake), updates=3)
    assert len(seen) == 6 and all(torch.tensor(seen).isfinite())
    assert not torch.equal(weights(it.student), before[0]) and not torch.equal(weights(fake), before[1])
    times = set(pipeline.t.tolist())
    assert times <= set(it.times[:-1].tolist()) and len(times) > 1  # one batch holds many times of the grid


def test_the_public_name() -> None:
    assert dagdiff.states is states
