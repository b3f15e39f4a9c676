"""The measurement of re-use: what it runs, what it keeps, and its table."""

import csv
from pathlib import Path

import pytest

from dagdiff.benchmarks.measure import reuse
from dagdiff.checks import Refusal

SMALL = {"policy": "fresh", "policy.width": 8, "updates": 12, "rounds": 2, "chains": 8, "batch_size": 32, "samples": 50}


def test_less_re_use_buys_more_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measure = reuse.measure
    monkeypatch.setattr(reuse, "measure", lambda run: measure(run, **SMALL))
    words = [str(tmp_path / "found.csv"), "tasks=gaussians8-biased", "objectives=progressive", "seeds=2", "reuse=1,3"]
    reuse.main(words)
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert [(row["reuse"], row["seed"]) for row in rows] == [("1.0", "0"), ("3.0", "0"), ("1.0", "1"), ("3.0", "1")]
    often, seldom = (int(row["nfe_expert"]) for row in rows[:2])
    assert often == 2 * (48 + 96 + 2 * 48) * 8, "labels of forward, own and expert states, and the expert's chains"
    assert seldom == 2 * (16 + 32 + 2 * 32) * 8, "no fewer than a batch of chains"
    assert float(rows[0]["forward_part"]) == pytest.approx(48 / 240, abs=1e-3) and rows[0]["fd"] == ""
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| gaussians8-biased | progressive | 1 | 2 | 4 k | 20 % |")
    monkeypatch.setattr(reuse, "measure", None)
    reuse.main(words)  # all is there
    with pytest.raises(Refusal, match="unknown option 'seed'"):
        reuse.main(["seed=1"])
