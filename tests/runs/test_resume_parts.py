"""What a run needs beside its training is resumed too: classifiers, own samples; and a teacher is trained once."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import faults
import pipelines
import pytest
import torch
from helpers import same, state

from dagdiff.expert import Expert
from dagdiff.jobs.stops import Stopped
from dagdiff.metrics import classifier
from dagdiff.metrics.classifier import train_classifier
from dagdiff.objectives.progressive import Progressive
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.round import NonFiniteLoss
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run
from dagdiff.tasks.pipeline_data import own_samples


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))


def test_a_classifier_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 2
    told: dict[str, Any] = {"updates": 210, "batch_size": 6}
    whole = train_classifier(images, labels, **told)
    part, seen, plain = tmp_path / "a.part", 0, classifier.cross_entropy

    def stopping(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen > 130:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(classifier, "cross_entropy", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(images, labels, **told, keep=part)
    seen = 0
    again = train_classifier(images, labels, **told, keep=part)
    assert seen == 110, "the first hundred updates are not made again"
    assert same(state(again), state(whole))


def test_own_samples_are_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pipelines.save(pipelines.seeded(pipelines.ddpm), tmp_path / "teacher")
    teacher = DiffusersExpert.from_pretrained(str(path))
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "whole"))
    whole = own_samples(teacher, 12, 2, at_once=4)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "parted"))
    walks, plain = 0, Expert.walk

    def counted(*arguments: Any) -> Any:
        nonlocal walks
        walks += 1
        if walks == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    monkeypatch.setattr(Expert, "walk", counted)
    with pytest.raises(Stopped, match="stopped after 8 of 12 samples of the teacher; the same command resumes") as stop:
        own_samples(teacher, 12, 2, at_once=4)
    assert stop.value.status == 143 and walks == 2
    parted = own_samples(teacher, 12, 2, at_once=4)
    assert walks == 3, "what was drawn is not drawn again"
    assert all(torch.equal(one.points, two.points) for one, two in zip(whole, parted, strict=True))
    assert [each.suffix for each in (tmp_path / "parted/pipelines").iterdir()] == [".safetensors"]


def waited(done: Any) -> None:
    for _ in range(6000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come")


def test_a_second_process_waits_for_a_teacher_and_uses_it(tmp_path: Path) -> None:
    """The first is held still while the second comes."""
    words = faults.COMMANDS["teacher"].words
    (tmp_path / "second").mkdir()
    (tmp_path / "second/cache").symlink_to(tmp_path / "cache")
    started = [faults.child(words, tmp_path)]
    try:
        waited(lambda: any(lock.stat().st_size for lock in tmp_path.glob("cache/teachers/.*.lock")))
        os.kill(started[0], signal.SIGSTOP)
        started.append(faults.child(words, tmp_path / "second"))
        told_there = tmp_path / "second/told"
        waited(lambda: told_there.exists() and "waiting for it" in told_there.read_text())
    except BaseException:
        for process in started:
            os.kill(process, signal.SIGKILL)
        raise
    os.kill(started[0], signal.SIGCONT)
    assert [faults.ended(process) for process in started] == [0, 0]
    told = [(folder / "told").read_text() for folder in (tmp_path, tmp_path / "second")]
    assert f"is being made by process {started[0]} on" in told[1]
    assert "last loss" in told[0] and "last loss" not in told[1], "one of them has trained it"
    assert [each.suffix for each in (tmp_path / "cache/teachers").iterdir()] == [".safetensors"]


def test_the_best_round_stays_after_one_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is stopped in its third round; the best of the first two is that of a run which ends there."""
    small: dict[str, Any] = {
        "policy": {"class": "fresh", "width": 8, "depth": 2}, "rounds": 4, "updates": 8, "chains": 4, "batch_size": 8,
        "heldout": 4, "samples": 20, "device": "cpu", "lr_ramp": "constant",
    }  # fmt: skip
    calls, plain = 0, Progressive.loss

    def spoiled(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        found = plain(*arguments)
        return found._replace(loss=found.loss * float("nan")) if calls == 7 else found  # a round: two, and held out

    with monkeypatch.context() as patch:
        patch.setattr(Progressive, "loss", spoiled)
        with pytest.raises(NonFiniteLoss, match="not finite at update 5"):
            distil(Experiment.build(configure(small)), tmp_path / "out", progress=False)
    shorter = Experiment.build(configure({**small, "rounds": 2, "updates": 4}))
    distil(shorter, tmp_path / "shorter", progress=False)
    best = open_run(tmp_path / "shorter", "cpu", "best").student
    assert same(state(open_run(tmp_path / "out", "cpu", "best").student), state(best))
    assert all(values.isfinite().all() for values in state(open_run(tmp_path / "out", "cpu").student).values())
