"""One student in any number of steps: what is made, kept and shown."""

import math
from pathlib import Path

import pytest
from helpers import ROOT

from dagdiff.benchmarks.measure import steps
from dagdiff.benchmarks.measure.steps import Options, Run
from dagdiff.cli import main

TINY = Options(["gaussians8-matched"], trained=[2], asked=[1, 4], seeds=1, updates=20)


def test_every_student_is_asked_in_every_number_of_steps(tmp_path: Path) -> None:
    told = steps.measure(TINY, tmp_path)
    rows = steps.read(tmp_path)
    assert [(row["trained"], row["asked"], row["metric"]) for row in rows] == [
        ("2", "1", "energy"),
        ("2", "4", "energy"),
    ]
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("distance", "expert"))
    assert float(rows[0]["distance"]) > float(rows[0]["expert"]), "20 updates leave a student behind its expert"
    assert told.splitlines()[0] == "| set | trained in | asked in 1 | asked in 4 |"
    assert [line.split("|")[2].strip() for line in told.splitlines()[2:]] == [
        "LCM, 2 steps",
        "the expert in LCM's place",
    ]


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Run, list[int]]] = []

    def faked(run: Run, asked: list[int]) -> list[dict[str, object]]:
        made.append((run, asked))
        return [
            {**run._asdict(), "asked": each, "metric": "energy", "distance": each / 1e3, "expert": 0.001}
            for each in asked
        ]

    monkeypatch.setattr(steps, "made", faked)
    steps.measure(TINY, tmp_path)
    more = Options(TINY.tasks, trained=[2], asked=[1, 4, 8], seeds=2, updates=20)
    table = steps.measure(more, tmp_path)
    assert [asked for _, asked in made] == [[1, 4], [8], [1, 4, 8]]
    assert "| gaussians8, matched | LCM, 2 steps | 1.0 | 4.0 | 8.0 |" in table


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--asked 0", "asked must be at least 1; got 0"),
        ("--objective gaussian-kl", "unknown objective 'gaussian-kl'"),
        ("--tasks nowhere", "nowhere"),
        ("--updates 1", "updates must be at least 20; got 1"),
    ],
)
def test_bad_options_are_refused(words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"bench steps {words} --out {tmp_path / 'out'}".split()) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_page_shows_what_is_kept() -> None:
    page = (ROOT / steps.PAGE).read_text(encoding="utf-8")
    assert steps.filled(page, ROOT / steps.KEPT) == page
