"""Metrics as objects: found by name, described, scored whole or in parts, named by users, kept in files."""

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.envs.toy2d import world
from dagdiff.metrics.base import Metric, Number, numbers_of, score
from dagdiff.metrics.names import all_numbers, metric_paths
from dagdiff.metrics.truth import Truth
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import digest
from dagdiff.runs.parts import resolve
from dagdiff.runs.trust import check_registered
from dagdiff.runs.words import spell
from dagdiff.tasks.base import Task
from dagdiff.tasks.images import ImageTask

TINY = "--updates 4 --rounds 2 --chains 8 --batch_size 16 --heldout 8 --samples 50 --device cpu"
SMALL: dict[str, Any] = {"policy": {"class": "fresh", "width": 8}, "samples": 50, "rounds": 2, "chains": 8}
SMALL |= {"batch_size": 16, "device": "cpu"}
MINE = """
from dagdiff.metrics.base import Metric, Number


class Round(Metric):
    name = "round"
    numbers = {"roundness": Number("How round the samples are.", larger_is_better=True, compared=True)}

    def __init__(self, task):
        self.size = task.shape[0]

    def __call__(self, samples, truth):
        return {"roundness": float(samples.norm(dim=1).mean()) / self.size}


def bare(samples, truth):
    return {"reach": float(samples.abs().max() / truth.reference.abs().max())}


def wrong(samples, truth):
    return samples.mean()


nothing = 3
"""


@pytest.fixture
def mine(own_folder: Path) -> Path:
    (own_folder / "mine.py").write_text(MINE)
    return own_folder


class Seen(Metric):
    """How many rows it is shown, and of what it is told."""

    name = "seen"
    numbers: ClassVar = {"rows": Number("Rows.")}

    def __init__(self, by_parts: bool) -> None:
        self.by_parts = by_parts

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        assert (truth.asked is None) == self.by_parts == (truth.paired is None)
        return {"rows": float(len(samples))}


def test_every_metric_is_found_by_its_name_and_describes_what_it_returns() -> None:
    for name, path in metric_paths().items():
        kind = resolve("metric", name)
        assert f"{kind.__module__}.{kind.__name__}" == path and kind.name == name  # type: ignore[attr-defined]
    measured = {kind.name for metrics in (Task.metrics, ImageTask.metrics) for kind in metrics}
    assert measured < set(metric_paths())
    ring, x = world("gaussians8"), torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    truth = Truth(ring.reference(50), ring.mixture)
    for metric in Task.metrics:
        assert list(score([metric], x, truth)) == list(metric.numbers)
    assert all(number.meaning for number in all_numbers().values())
    with pytest.raises(Refusal, match=r"unknown metric 'enrgy'\. Did you mean 'energy'"):
        resolve("metric", "enrgy")


def test_samples_are_scored_whole_or_in_parts_as_large_as_the_reference() -> None:
    x = torch.zeros(25, 2)
    truth = Truth(torch.zeros(10, 2), asked=torch.zeros(25), paired=x)
    assert score([Seen(False)], x, truth) == {"rows": 25.0} and score([Seen(True)], x, truth) == {"rows": 10.0}
    assert numbers_of(Seen(True)) == {"rows": Number("Rows.")} and numbers_of(lambda samples, truth: {}) == {}


def test_what_is_no_number_or_is_measured_twice_is_refused() -> None:
    x = torch.zeros(5, 2)
    with pytest.raises(Refusal, match=r"metric .*lambda.* must return a dict of floats by name; got tensor"):
        score([lambda samples, truth: samples.sum()], x, Truth(x))  # type: ignore[list-item,return-value]
    with pytest.raises(Refusal, match=r"metric Seen returns 'rows', which is measured already\. Leave it away"):
        score([Seen(False), Seen(False)], x, Truth(x, asked=x, paired=x))
    with pytest.raises(Refusal, match="samples holds 10 values that are NaN"):
        score([], torch.full((5, 2), torch.nan), Truth(x))


def test_metrics_are_repeated_or_separated_by_commas_and_are_part_of_what_a_run_is(mine: Path) -> None:
    line = "--metric mine.Round --lr 1e-3 --metric=kd,mine.bare --metric dagdiff.metrics.images.Kernel"
    assert spell(line.split()) == {"lr": "1e-3", "metric": ["mine.Round", "kd", "mine.bare"]}
    chosen = configure({**SMALL, "metric": ["mine.Round", "mine.bare"]})
    assert chosen["metric"] == ["mine.Round", "mine.bare"] and configure(SMALL)["metric"] == []
    assert digest(chosen) != digest(configure(SMALL))
    assert [type(each).__name__ for each in Experiment.build(chosen).metrics] == ["Round", "function"]


def test_a_run_measures_what_is_its_user_s_own(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"distill --policy fresh --policy.width 8 {TINY} --metric mine.Round,mine.bare --out run"
    assert main(line.split()) == 0, capsys.readouterr().err
    found = json.loads((mine / "run/metrics.json").read_text())["metrics"]
    assert f"roundness {found['roundness']:.4g}, reach {found['reach']:.4g}" in capsys.readouterr().out
    assert {"energy", "w2", "loss_own"} < set(found)
    kept = yaml.safe_load((mine / "run/config.yaml").read_text())
    with pytest.raises(Refusal, match=r"names metric 'mine\.Round', which is not among dagdiff's own parts"):
        check_registered(kept, Path("config.yaml"))
    check_registered({"metric": ["kd", "sliced_w2"]}, Path("config.yaml"))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("mine.wrong", "metric wrong must return a dict of floats by name"),
        ("mine.nothing", "is not a class or a function"),
        ("mine.roun", "unknown metric in mine 'roun'"),
        ("energy", "metric Energy returns 'energy', which is measured already"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_before_training(
    name: str, match: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"distill --policy fresh --policy.width 8 {TINY} --metric {name} --out run".split()) == 2
    assert match in capsys.readouterr().err and not (mine / "run").exists()


def test_a_suite_keeps_sums_up_and_shows_numbers_of_one_s_own(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench toy2d --tasks gaussians8-biased --objectives progressive --variants forward,mixture --seeds 2"
    words += " --updates 4 --metric mine.Round --metric mine.bare --out out --settings"
    assert main([*words.split(), json.dumps(SMALL)]) == 0, capsys.readouterr().err
    content = json.loads((mine / "out/results.json").read_text())
    assert content["numbers"]["roundness"]["meaning"] == "How round the samples are."
    assert {"roundness", "reach"} < set(content["references"]["gaussians8-biased"]["floor"])
    lines = list(csv.DictReader((mine / "out/summary.csv").read_text().splitlines()))
    (mixture,) = (line for line in lines if (line["variant"], line["metric"]) == ("mixture", "roundness"))
    assert mixture["pairs_forward"] == "2" and mixture["expert"]
    page = (mine / "out/report.html").read_text()
    assert "<b>roundness</b></td><td>How round the samples are." in page and "<b>reach</b>" in page
