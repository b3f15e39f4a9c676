"""The identity of a run: every default in the configuration, one spelling, one key on every processor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dagdiff.benchmarks.suites import toy2d
from dagdiff.checks import Refusal
from dagdiff.objectives import Consistency, Progressive
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import digest
from dagdiff.runs.recipes import RECIPES, Recipe, pipeline_kind, recipe
from dagdiff.versions import CODE

SMALL: dict[str, Any] = {"chains": 8, "batch_size": 8, "updates": 2, "rounds": 1, "samples": 20, "heldout": 0}
KEYS = """
import hashlib
from dagdiff.benchmarks.suites import images
from dagdiff.benchmarks.suites import study
from dagdiff.benchmarks.suites import toy2d
suites = (toy2d, toy2d.QUICK), (study, study.Suite(seeds=1, few_seeds=1)), (images, images.QUICK)
keys = [(cell.key, cell.setup) for module, suite in suites for cell in module.cells(suite)]
print(len(keys), hashlib.sha256(repr(keys).encode()).hexdigest())
"""
PROCESSORS = ({}, {"MKL_CBWR": "COMPATIBLE"}, {"ATEN_CPU_CAPABILITY": "default"}, {"ATEN_CPU_CAPABILITY": "avx2"})


class MyConsistency(Consistency):
    pass


class MyNetwork(nn.Module):
    """A teacher that is a network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: object = None) -> torch.Tensor:
        return self.weight * x_t


def test_keys_are_the_same_on_every_processor() -> None:
    """The settings stand in for other processors; each must be made before torch is loaded."""
    started = [
        subprocess.Popen([sys.executable, "-c", KEYS], env=os.environ | setting, stdout=subprocess.PIPE, text=True)
        for setting in PROCESSORS
    ]
    told = {process.communicate()[0] for process in started}
    assert len(told) == 1 and int(told.pop().split()[0]) > 300


@pytest.mark.parametrize(
    ("short", "path"),
    [
        ({"objective": "progressive"}, {"objective": "dagdiff.objectives.Progressive"}),
        ({"objective": "progressive"}, {"objective": "dagdiff.objectives.progressive.Progressive"}),
        ({"threshold": "box"}, {"threshold": "dagdiff.tasks.plane.box_threshold"}),
        ({"schedule": "vp"}, {"schedule": "dagdiff.schedule.VPSchedule.linear"}),
        ({}, {"expert": "exact", "lr": "2e-3", "shares": [0.25, 0.5, 0.25]}),
    ],
)
def test_one_run_has_one_spelling(short: dict[str, Any], path: dict[str, Any]) -> None:
    assert configure(short) == configure(path)
    assert digest(configure(short)) == digest(configure(path))


def test_a_recipe_s_change_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(configure({}))
    changed = Recipe({**RECIPES["plane"].settings, "lr": 3e-3}, RECIPES["plane"].objectives)
    monkeypatch.setitem(RECIPES, "plane", changed)
    assert configure({})["lr"] == 3e-3 and digest(configure({})) != before


def test_a_version_s_change_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure({})
    before = digest(config)
    monkeypatch.setattr(Progressive, "version", Progressive.version + 1)
    after = digest(config)
    monkeypatch.setitem(CODE, "expert", 99)
    assert len({before, after, digest(config)}) == 3
    assert digest(configure({"objective": "consistency"})) != digest(config)


@pytest.mark.parametrize("change", [{"updates": 1220}, {"betas": [0.5, 0.9]}, {"device": "cpu"}, {"bf16": True}])
def test_every_setting_counts(change: dict[str, Any]) -> None:
    assert digest(configure(change)) != digest(configure({}))


def test_where_things_are_kept_does_not_count() -> None:
    assert digest(configure({"memmap": "somewhere"})) == digest(configure({}))


def test_a_part_of_one_s_own_takes_the_recipe_of_its_kind() -> None:
    own = f"{MyConsistency.__module__}.MyConsistency"
    for task in ("digits-biased", "moons-biased"):
        mine, theirs = (configure({"task": task, "objective": name}) for name in (own, "consistency"))
        assert {**mine, "objective": 0} == {**theirs, "objective": 0}
        assert mine["objective"] == {**theirs["objective"], "class": own}


def test_recipes_of_pipelines(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for index, side, kind in (("{}", 8, "latents"), ('{"unet": []}', 8, "pixels"), ('{"unet": []}', 256, "latents"),
                              ('{"unet": [], "vae": []}', 8, "latents"), ("[", 8, "latents")):  # fmt: skip
        (tmp_path / "model_index.json").write_text(index)
        (tmp_path / "unet/config.json").write_text(f'{{"sample_size": {side}}}')
        assert pipeline_kind(str(tmp_path), "pipeline") == kind
        assert pipeline_kind(str(tmp_path), "lora") == "lora"
    assert pipeline_kind(None, "pipeline") == "latents"
    with pytest.raises(Refusal, match=r"unknown recipe 'pixel'\. Did you mean 'pixels'"):
        recipe("pixel", "progressive")


# The student starts from its expert.


def test_the_student_of_a_learned_expert_is_that_expert() -> None:
    teacher = {"class": "learned", "width": 8, "depth": 2, "updates": 3}
    run = Experiment.build(configure({**SMALL, "task": "gaussians8-biased", "expert": teacher}))
    theirs, ours = run.expert.denoiser.state_dict(), run.student.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs) and theirs.keys() == ours.keys()
    assert all(weight.requires_grad for weight in run.student.parameters())
    assert not any(weight.requires_grad for weight in run.expert.denoiser.parameters())  # type: ignore[attr-defined]
    assert {id(each) for each in run.student.parameters()}.isdisjoint(
        id(each)
        for each in run.expert.denoiser.parameters()  # type: ignore[attr-defined]
    )


def test_a_network_of_one_s_own_is_an_expert_to_start_from() -> None:
    config = configure({**SMALL, "expert": f"{MyNetwork.__module__}.MyNetwork"})
    assert config["policy"] == {"class": "expert"}
    assert isinstance(Experiment.build(config).student, MyNetwork)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"expert": "learned", "policy": "teacher"}, "second teacher beside the expert 'learned'"),
        ({"expert": "learned", "policy.width": 64}, r"--policy.width: .* Pass --expert.width"),
        ({"task": "digits-biased", "policy": "unet"}, "second teacher beside the expert 'unet'"),
    ],
)
def test_a_teacher_is_described_once(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        configure(settings)


def test_a_closed_form_is_nothing_to_start_from() -> None:
    with pytest.raises(Refusal, match=r"is no torch\.nn\.Module"):
        Experiment.build(configure({**SMALL, "policy": "expert"}))


def test_committed_suites_take_the_box_from_their_task() -> None:
    (cell,) = toy2d.cells(toy2d.Suite(["imbalanced-biased"], ["progressive"], ["mixture-box"], seeds=1))
    assert cell.config["threshold"] == {"class": "box"}
