"""Compiled networks: the same answers, the same names, in every copy; a machine without a compiler is refused."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dagdiff.checkpoint import load_weights, save_weights
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.compiled import check_compiled, compiled
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Stepwise, Student
from dagdiff.runs import experiment
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import digest
from dagdiff.schedule import CosineSchedule, step_grid

SMALL = {
    "task": "gaussians8-biased", "policy": "fresh", "policy.width": 8, "updates": 4, "rounds": 2, "chains": 8,
    "batch_size": 16, "samples": 50, "heldout": 0, "device": "cpu",
}  # fmt: skip


class Backend:
    """Runs a graph as it is, and counts the graphs that it was given."""

    graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        forward: Callable[..., Any] = graph.forward
        return forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backend":
        return self


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """What experiments compile with, in place of a C++ compiler."""
    made = Backend()
    monkeypatch.setattr(experiment, "check_compiler", lambda device: None)
    monkeypatch.setattr(experiment, "compiled", lambda part: compiled(part, made))  # type: ignore[arg-type]
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def student() -> Student:
    torch.manual_seed(0)
    return Student(MLP(width=8), CosineSchedule())


def test_answers_and_names_stay_as_they_are(backend: Backend, tmp_path: Path) -> None:
    plain, made = student(), compiled(student(), backend)  # type: ignore[arg-type]
    x, t = torch.randn(6, 2), torch.rand(6)
    assert torch.allclose(made(x, t), plain(x, t), rtol=1e-5, atol=1e-6) and backend.graphs == 1
    assert list(made.state_dict()) == list(plain.state_dict())
    save_weights(tmp_path / "student.safetensors", made)
    other = Student(MLP(width=8), CosineSchedule())
    load_weights(tmp_path / "student.safetensors", other)
    assert torch.equal(other(x, t), plain(x, t))


def test_an_update_is_seen_and_other_sizes_compile_nothing_new(backend: Backend) -> None:
    made = compiled(student(), backend)  # type: ignore[arg-type]
    x, t = torch.randn(6, 2), torch.rand(6)
    before = made(x, t)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(2.0)
    assert not torch.allclose(made(x, t), before)
    made(torch.randn(7, 2), torch.rand(7))
    assert backend.graphs == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, Student.with_origin], ids=["copy", "with an origin"])
def test_copies_are_compiled_too_and_keep_their_precision(backend: Backend, copied: Callable[..., Any]) -> None:
    made = in_bfloat16(compiled(student(), backend))  # type: ignore[arg-type]
    twin = copied(made)
    x, t = torch.randn(6, 2), torch.rand(6)
    with torch.no_grad():
        answer = twin(x, t)
        assert backend.graphs == 1
        assert torch.allclose(answer, in_bfloat16(student())(x, t), atol=1e-3), "the copy computes in bfloat16"
        assert not torch.allclose(answer, student()(x, t), rtol=0.0, atol=1e-7)


def test_every_step_of_a_student_that_is_not_stationary_is_compiled(backend: Backend) -> None:
    made = compiled(Stepwise(student(), step_grid(3)), backend)  # type: ignore[arg-type]
    x, t = torch.randn(6, 2), torch.rand(6)
    assert torch.allclose(made(x, t), Stepwise(student(), step_grid(3))(x, t), rtol=1e-5, atol=1e-6)
    assert backend.graphs >= 1


def test_what_holds_no_network_is_left_alone() -> None:
    def closed(x: Any, t: Any, condition: Any = None) -> Any:
        return x

    assert compiled(closed) is closed


@pytest.mark.parametrize("objective", ["progressive", "consistency", "distribution"])
def test_a_compiled_run_is_the_plain_one_within_rounding(backend: Backend, objective: str) -> None:
    found = []
    for switch in (False, True):
        it = Experiment.build(configure({**SMALL, "objective": objective, "compile": switch}))
        *_, (_, last) = it.rounds()
        found.append((it.student.state_dict(), last.nfe_student, last.nfe_expert))
        assert (backend.graphs > 0) is switch
    (plain, *asked), (made, *again) = found
    assert asked == again and list(plain) == list(made)
    for name, value in plain.items():
        assert torch.allclose(made[name], value, rtol=1e-3, atol=1e-4), name


class Faulty(Backend):
    """A compiler whose answers are right, and whose gradients, or answers too, are not."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*values: Any) -> Any:
            scale = 0.0 if self.fault == "answers" else 1.0
            return tuple(scale * (0.5 * found + 0.5 * found.detach()) for found in graph.forward(*values))

        return run


@pytest.mark.parametrize("fault", ["gradients", "answers"])
def test_a_compiler_at_fault_is_named_before_the_first_update(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = Faulty(fault)
    monkeypatch.setattr(experiment, "check_compiler", lambda device: None)
    monkeypatch.setattr(experiment, "compiled", lambda part: compiled(part, made))
    torch._dynamo.reset()
    run = Experiment.build(configure({**SMALL, "compile": True}))
    before = copy.deepcopy(run.student.state_dict())
    with pytest.raises(Refusal, match=rf"the student's {fault} are off by 0\.\d+ of their size.*Leave --compile away"):
        next(run.rounds())
    assert all(torch.equal(value, before[name]) for name, value in run.student.state_dict().items())
    torch._dynamo.reset()


def test_a_compiled_student_that_is_right_passes_and_keeps_no_gradient(backend: Backend) -> None:
    made: Any = compiled(student(), backend)  # type: ignore[arg-type]
    check_compiled(made, torch.randn(4, 2), torch.full((4,), 0.5))
    assert backend.graphs > 0 and all(weight.grad is None for weight in made.parameters())


def test_a_run_that_is_not_compiled_is_what_it_was() -> None:
    config = configure(SMALL)
    assert config["compile"] is False
    assert digest(config) == digest({name: value for name, value in config.items() if name != "compile"})
    assert digest(config) != digest({**config, "compile": True})


def test_without_a_compiler_a_run_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin all places")

    monkeypatch.setattr(torch, "compile", missing)
    words = ["distill", "--task", "gaussians8-biased", "--policy", "fresh", "--updates", "20", "--compile"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "C++ compiler" in told and "Install g++" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_module_of_ones_own_is_compiled_as_it_is(backend: Backend) -> None:
    class Own(nn.Module):
        def forward(self, x: Any, t: Any, condition: Any = None) -> Any:
            return 0.5 * x

    made = compiled(Own(), backend)  # type: ignore[arg-type]
    assert torch.equal(made(torch.ones(4, 2), torch.ones(4)), torch.full((4, 2), 0.5)) and backend.graphs == 1
