"""The image suite: what is run, what a record holds, and a report with pictures."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dagdiff.benchmarks.suites import images
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.report.results import Results
from dagdiff.report.terminal import table
from dagdiff.runs.config import configure
from dagdiff.tasks.images import image_world

SMALL = {"rounds": 1, "chains": 4, "batch_size": 4, "samples": 12, "substeps": 1}
NETWORK = {"channels": [8, 16], "updates": 2, "batch_size": 4}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with sixty pictures of four classes."""
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    image_world.cache_clear()
    rng, labels = np.random.default_rng(0), np.arange(60) % 4
    pictures = rng.integers(0, 40, (60, 8, 8)).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[:, 2 * label : 2 * label + 2] += 200
    np.savez("bars.npz", images=pictures, labels=labels)
    yield tmp_path
    image_world.cache_clear()


def test_the_full_suite_is_the_grid_of_the_digits() -> None:
    found = list(images.cells(images.Suite()))
    assert len(found) == 2 * 3 * 4 * 2 * 3 and len({cell.entry for cell in found}) == len(found)
    assert {cell.labels["data"] for cell in found} == {"matched", "biased"}
    first = found[: len(found) // 3]
    assert {cell.config["seed"] for cell in first} == {0}, "whole comparisons come first"
    reflected = next(cell for cell in found if cell.variant == "mixture-box")
    assert reflected.config["threshold"] == {"class": "box"} and reflected.config["policy"]["class"] == "expert"


@pytest.mark.parametrize(
    ("objective", "published", "mixture"),
    [
        ("progressive", [1.0, 0.0, 0.0], [0.25, 0.5, 0.25]),
        ("consistency", [1.0, 0.0, 0.0], [0.25, 0.5, 0.25]),
        ("distribution", [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]),
    ],
)
def test_mixture_is_one_and_the_one_that_a_run_of_images_takes_if_that_is_one(
    objective: str, published: list[float], mixture: list[float]
) -> None:
    found = images.cells(images.Suite(objectives=[objective], steps=[4], seeds=1))
    shares = {cell.variant: cell.config["shares"] for cell in found}
    assert shares == {"forward": [1.0, 0.0, 0.0], "published": published, "mixture": mixture, "mixture-box": mixture}
    taken = configure({"task": "digits-biased", "objective": objective})["shares"]
    assert taken in (None, published, mixture)


def test_quick_is_the_main_contrast() -> None:
    found = list(images.cells(images.QUICK))
    assert {(cell.variant, cell.config["task"]) for cell in found} == {
        ("forward", "digits-biased"),
        ("mixture", "digits-biased"),
    }
    assert len(found) == 6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": ["digit-biased"]}, "unknown task 'digit-biased'"),
        ({"variants": ["student"]}, "unknown variant 'student'"),
        ({"steps": [0]}, "steps must be at least 1"),
        ({"settings": {"device": "cuda"}}, "--settings may not hold 'device'.*Use --device"),
        ({"objectives": []}, "--objectives is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_run(change: dict[str, object], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        list(images.cells(images.Suite(**change)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_small_suite_from_command_to_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SMALL, "expert": {"class": "unet", **NETWORK}}
    words = ["bench", "images", "--tasks", "bars.npz-biased", "--objectives", "consistency", "--steps", "2"]
    words += ["--variants", "forward,mixture", "--seeds", "2", "--updates", "2", "--settings", json.dumps(settings)]
    assert main([*words, "--out", "out"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "FD-cnn" in told and "report: out/report.html" in told
    results = Results.load(Path("out"))
    assert results.judged_by == "fd"
    rows = {row.variant: row for row in results.rows}
    forward = rows["forward"]
    expert = results.references["bars.npz-biased"]["expert_by_nfe"][2]["fd"]
    mean = np.mean([record.metrics["fd"] for record in forward.records])
    assert forward.excess["fd"] == pytest.approx(mean - expert)
    assert all(0.0 <= record.metrics["missing"] <= 1.0 for record in forward.records)
    assert np.isfinite([record.metrics["pixel_gap"] for record in forward.records]).all()
    assert rows["mixture"].minus("forward") is not None
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "missing classes" in page and page.count("data:image/png") >= 5
    kept = results.arrays(forward.records[0].samples)
    assert kept["x"].shape == (12, 1, 8, 8) and kept["chains"].shape[1:] == (3, 1, 8, 8)
    assert table(results).count("forward") >= 1
    assert main(["bench", "images", "--verify", "1", "--out", "out"]) == 0, capsys.readouterr().err
    assert "equal" in capsys.readouterr().out


def test_each_seed_has_a_teacher_of_its_own_unless_the_settings_name_one() -> None:
    cells = list(images.cells(images.Suite(tasks=["digits-biased"], seeds=3)))
    assert {(cell.config["seed"], cell.config["expert"]["seed"]) for cell in cells} == {(0, 0), (1, 1), (2, 2)}
    assert len({cell.setup for cell in cells}) == 3, "an objective each: teachers do not set runs apart"
    for named in ({"expert": {"class": "unet", "seed": 5}}, {"expert.seed": 5}):
        cells = list(images.cells(images.Suite(tasks=["digits-biased"], seeds=2, settings=named)))
        assert {cell.config["expert"]["seed"] for cell in cells} == {5}
