"""Retuning of few-step models: its runs, one small one of each way, and the page that is made of what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT

from dagdiff.benchmarks.measure import retune
from dagdiff.checks import Refusal

ROWS: list[dict[str, Any]] = [
    {"steps": "4", "data": "half", "way": way, "updates": updates, "seed": str(seed), "fd": str(fd + 0.1 * seed)}
    for seed in range(3)
    for way, updates, fd in (("kept", "0", 20.0), ("retuned", "50", 3.0), ("scratch", "50", 2.0), ("plain", "50", 30.0))
]


def test_every_way_is_run_at_every_number_of_updates_seed_by_seed() -> None:
    found = list(retune.runs({**retune.CHOSEN, "steps": "4", "data": "half", "updates": "50,200", "seeds": "2"}))
    assert len(found) == len({tuple(run.values()) for run in found}) == 2 * (2 + 2 * 4) + 1
    assert [run["way"] for run in found[:3]] == ["kept", "teacher", "teacher-50"]
    with pytest.raises(Refusal, match="unknown way 'retund'"):
        list(retune.runs({**retune.CHOSEN, "ways": "retund"}))


def test_the_table_and_the_differences_are_those_of_the_rows() -> None:
    lines = retune.table(ROWS).splitlines()
    assert lines[0] == "| FD-cnn to the new digits | half of the classes, 50 updates, 4 steps |"
    assert "| the few-step model as it was | 20.10 [20.00, 20.20] |" in lines
    assert "| **retuned on its own chains** | 3.10 [3.00, 3.20] |" in lines
    assert "| retuned on noised new pictures | - |" in lines
    told = retune.differences(ROWS)
    assert told.startswith("- half of the classes, 50 updates, 4 steps: scratch +1.00 [")
    assert "plain -27.00 [" in told and "(open)" not in told
    assert retune.differences(ROWS[:8]) == "", "two seeds are no interval"


def test_new_digits_are_half_of_the_classes_or_inverted() -> None:
    old, half, inverted = retune.Digits(), retune.Digits("half"), retune.Digits("inverted")
    assert torch.equal(inverted.train, -old.train) and len(half.train) < 0.6 * len(old.train)


@pytest.mark.slow
def test_each_way_makes_samples_of_its_few_step_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retune, "SAMPLES", 440)
    new = retune.Digits("half")
    teacher = retune.trained(tmp_path / "old", retune.Digits().train, None, 2)
    images = new.file(tmp_path)
    it = retune.distilled(retune.settings(teacher, images, 2, 0, 10))
    made = retune.build_pipeline(it.student, it.sampler, it.times, it.threshold, str(teacher))
    made.save_pretrained(tmp_path / "few")
    tuned = retune.trained(tmp_path / "half", new.train, teacher, 2)
    places = {"teacher": tuned, "images": images, "few": tmp_path / "few"}
    found = {}
    for way in ("kept", "teacher", "retuned", "scratch", "plain"):
        row = retune.measure({"steps": 2, "data": "half", "way": way, "updates": 10, "seed": 0}, places, new)
        found[way] = float(row["fd"])
    assert all(distance > 0.0 for distance in found.values())
    assert len(set(found.values())) == 5, "no two ways are one"


def test_the_page_is_made_of_what_is_kept() -> None:
    text = (ROOT / retune.PAGE).read_text(encoding="utf-8")
    assert retune.filled(text, retune.FOLDER) == text, "run: python -m dagdiff.benchmarks.measure.retune"
