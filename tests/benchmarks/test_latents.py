"""Labels of a small latent pipeline: runs, equal costs, one small run, and the page made of what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import ROOT

from dagdiff.benchmarks.measure import latents
from dagdiff.benchmarks.running.nfe import predict_nfe, updates_for
from dagdiff.checks import Refusal

ROWS: list[dict[str, Any]] = [
    {"price": price, "label": label, "seed": str(seed), "updates": updates, "fd": str(fd + 0.2 * seed)}
    for seed in range(2)
    for price, label, updates, fd in (
        ("1/3", "one step", "900", 3.0), ("1/3", "data, 16", "400", 2.0), ("3", "one step", "2500", 4.0),
    )
]  # fmt: skip


def test_every_label_is_run_at_every_price_seed_by_seed() -> None:
    found = list(latents.runs({**latents.CHOSEN, "seeds": "2"}))
    assert len(found) == len({tuple(run.values()) for run in found}) == 2 * 3 * 4
    assert found[3] == {"price": "1/3", "label": "data, 16", "seed": 0}
    with pytest.raises(Refusal, match="unknown label 'dat' or price '1/3'"):
        list(latents.runs({**latents.CHOSEN, "labels": "dat"}))


def test_the_table_is_that_of_the_rows() -> None:
    lines = latents.table(ROWS).splitlines()
    assert lines[0] == "| label walks to | 1/3: the student's size | 3: nine times as dear |"
    assert lines[2] == "| one step | 3.10 [3.00, 3.20], 900 updates | 4.10 [4.00, 4.20], 2,500 updates |"
    assert lines[3] == "| data, 16 | 2.10 [2.00, 2.20], 400 updates | - |"


def test_a_run_of_a_small_pipeline_spends_what_its_budget_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "CODER_UPDATES", 2)
    monkeypatch.setattr(latents, "TEACHER_UPDATES", 2)
    monkeypatch.setattr(latents, "SAMPLES", 440)
    teacher, images = latents.pipeline(tmp_path)
    assert latents.pipeline(tmp_path) == (teacher, images), "made once"
    network = DiffusionPipeline.from_pretrained(teacher).transformer
    untrained = DiffusionPipeline.from_pretrained(tmp_path / "untrained").transformer
    assert not torch.equal(*(next(each.parameters()) for each in (network, untrained)))

    base = latents.settings(teacher, images, seed=0, updates=20)
    budget = predict_nfe(latents.labelled(latents.LONGEST, base)).at(2 / 3)
    row = latents.measure({"price": "2/3", "label": "one step", "seed": 0}, teacher, images, 20)
    spent = row["nfe_student"] + 2 / 3 * row["nfe_expert"]
    assert row["updates"] == updates_for(latents.labelled("one step", base), budget, 2 / 3) > 20
    assert abs(spent - budget) < 0.1 * budget and float(row["fd"]) > 0.0


def test_the_page_holds_the_table_of_what_is_kept() -> None:
    text = (ROOT / latents.PAGE).read_text(encoding="utf-8")
    assert latents.filled(text, latents.FOLDER) == text
