"""True progressive distillation: each stage's student teaches the next."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.dagger import DAgger
from dagdiff.expert import Expert
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.strategies.halving import Halving, check_stages
from dagdiff.threshold import NoThreshold

SMALL = {
    "policy": {"class": "fresh", "width": 16},
    "updates": 4,
    "rounds": 2,
    "chains": 8,
    "batch_size": 16,
    "heldout": 8,
    "samples": 50,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path


@pytest.mark.parametrize("stages", [[4], [8, 4], [16, 8, 4, 2, 1], [12, 4, 2]])
def test_stages_that_fall_and_divide(stages: list[int]) -> None:
    check_stages(stages)


@pytest.mark.parametrize("stages", [[], [8, 3], [4, 8], [4, 4], [8, 4, 3]])
def test_stages_that_do_not(stages: list[int]) -> None:
    with pytest.raises(Refusal, match="stages must fall, each dividing the one before; got "):
        check_stages(stages)


@pytest.mark.parametrize("stages", [[0], [4, 0], [4, -2]])
def test_stages_without_a_step(stages: list[int]) -> None:
    with pytest.raises(Refusal, match="stages must be at least 1"):
        check_stages(stages)


def test_each_stage_s_expert_is_the_last_stage_s_student() -> None:
    """Its expert takes as many sub-steps as make one step of the new grid, and is a frozen copy."""
    experiment = Experiment.build(configure({**SMALL, "stages": [12, 4, 2], "threshold": "box"}))
    loops: list[DAgger] = []
    probe = torch.randn(5, 2), torch.full((5,), 0.5)
    answers = []

    def make(expert: Expert, steps: int) -> DAgger:
        loops.append(experiment.loop(expert, steps))
        with torch.no_grad():
            answers.append((expert.denoiser(*probe), experiment.policy(*probe)))
        return loops[-1]

    rounds = [(loop, done.number) for loop, done in Halving([12, 4, 2], experiment.student, experiment.expert, make)]
    assert [len(loop.env.times) - 1 for loop in loops] == [12, 4, 2]
    assert [loop.expert.substeps for loop in loops] == [8, 3, 2]
    assert rounds == [(loop, number) for loop in loops for number in (1, 2)]
    assert loops[0].expert is experiment.expert
    for loop, (advice, start) in zip(loops[1:], answers[1:], strict=True):
        assert torch.equal(advice, start)  # it starts where its teacher stands
        assert not any(parameter.requires_grad for parameter in loop.expert.denoiser.student.parameters())
        with torch.no_grad():
            assert torch.equal(loop.expert.denoiser(*probe), advice)  # and the teacher stays there
        assert loop.expert.threshold is experiment.threshold and not isinstance(loop.expert.threshold, NoThreshold)
    assert not torch.equal(experiment.policy(*probe), answers[-1][0])


def test_the_command(place: Path) -> None:
    words = "distill --policy fresh --policy.width 16 --updates 4 --rounds 2 --chains 8 --batch_size 16 --heldout 8"
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = main([*words.split(), "--samples", "50", "--stages", "8,4", "--out", str(place / "out")])
    assert status == 0, out.getvalue()
    assert json.loads((place / "out/student.json").read_text())["times"] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert len((place / "out/rounds.csv").read_text().splitlines()) == 5  # a head, and two rounds in each stage


def test_each_stage_makes_the_updates_asked_for() -> None:
    experiment = Experiment.build(configure({**SMALL, "stages": [4, 2], "updates": 7, "rounds": 3}))
    assert [done.updates for _, done in experiment.rounds()] == [3, 5, 7, 10, 12, 14]


def test_the_cost_is_that_of_all_stages() -> None:
    """The ledgers count since training began, not since the last stage did."""
    experiment = Experiment.build(configure({**SMALL, "stages": [8, 4]}))
    calls = {"student": 0, "teacher": 0}
    ask = experiment.expert.denoiser

    def counted(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        calls["teacher"] += len(x_t)
        return ask(x_t, t, condition)

    experiment.expert.denoiser = counted
    done = [done for _, done in experiment.rounds()]
    assert len(done) == 4
    assert [later.nfe_expert > former.nfe_expert for former, later in pairwise(done)] == [True] * 3
    assert [later.updates for later in done] == [2, 4, 6, 8]
    assert calls["teacher"] > 0
