"""An expert, a policy, an objective of one's own, from a file outside the package, in Python and as options."""

import dataclasses
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from dagdiff import Refusal
from dagdiff.cli import main
from dagdiff.envs.sets import Points
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run

TINY = "--updates 4 --rounds 2 --chains 8 --batch_size 16 --heldout 8 --samples 50 "
FRESH = "--policy fresh --policy.width 16 "
SMALL = {"updates": 4, "rounds": 2, "chains": 8, "batch_size": 16, "heldout": 8, "samples": 50}
PARTS = '''
"""Parts of a stranger's own."""

import torch
from torch import nn

from dagdiff.objectives import Loss, Objective


class Pull:
    """Names one and the same point, wherever it is asked.

    Args:
        strength: how far out the point lies.
    """

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    def __call__(self, x_t, t, condition=None):
        return torch.full_like(x_t, self.strength)


class Informed:
    """Is given the task, and names the centre of its world."""

    def __init__(self, task, scale: int):
        self.task, self.scale = task, scale

    def __call__(self, x_t, t, condition=None):
        return self.scale * self.task.world.mixture.means.mean(0).expand_as(x_t)


def pull(strength=2.0):
    """A function serves as well, typed or not."""
    return lambda x_t, t, condition=None: torch.full_like(x_t, strength)


class OneColumn:
    """Answers with half of the point."""

    def __call__(self, x_t, t, condition=None):
        return x_t[:, :1]


class NoTensor:
    """Answers with a list."""

    def __call__(self, x_t, t, condition=None):
        return x_t.tolist()


class NaNs:
    """Knows nothing."""

    def __call__(self, x_t, t, condition=None):
        return x_t / 0.0 * 0.0


class Linear(nn.Module):
    """A student of few words."""

    def __init__(self, hidden: int = 8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, x_t, t, condition=None):
        return self.net(torch.cat([x_t, t[:, None]], dim=1))


class Narrow(Linear):
    """A student who answers with half of the point."""

    def forward(self, x_t, t, condition=None):
        return super().forward(x_t, t)[:, :1]


class Regress(Objective):
    """Regress on the expert's guess."""

    def __init__(self, power: float = 2.0):
        self.power = power

    def annotate(self, expert, states):
        return states.set("guess", expert(states["x_t"], states["t"], states.get("condition")))

    def loss(self, student, batch):
        error = student(batch["x_t"], batch["t"], batch.get("condition")) - batch["guess"]
        loss = error.abs().pow(self.power).mean()
        return Loss(loss, {"mine": loss.detach()})


class Nothing:
    """Is no part of anything."""


def halved(progress: float) -> float:
    return 0.5


def half(value: float = 0.5):
    """A ramp of one's own."""
    return lambda progress: value
'''


class Ran(NamedTuple):
    """A finished command: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def dagdiff(line: str) -> Ran:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(shlex.split(line))
        except SystemExit as end:  # --help
            status = int(end.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the current folder, unknown to Python's path; its name."""
    name = "strangers_parts"
    (tmp_path / f"{name}.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    yield name
    sys.modules.pop(name, None)


def test_an_expert_of_one_s_own(mine: str) -> None:
    """The student follows it: all its points come to lie where this expert points."""
    words = "--updates 300 --rounds 3 --samples 50 --heldout 0 --lr 1e-2"
    ran = dagdiff(f"distill {FRESH}{words} --expert {mine}.Pull --expert.strength 2 --out out")
    assert ran.status == 0, ran.err
    assert yaml.safe_load(Path("out/config.yaml").read_text())["expert"] == {"class": f"{mine}.Pull", "strength": 2.0}
    assert dagdiff("sample out --num 50 --out out.npz --trust_code").status == 0
    assert np.abs(np.load("out.npz")["x"] - 2.0).max() < 0.5


@pytest.mark.parametrize(
    "words",
    [
        "--expert {}.Informed --expert.scale 2",
        "--expert {}.pull --expert.strength 3",
        "--expert={}.pull",
        "--policy {}.Linear --policy.hidden 4",
        "--objective {}.Regress --objective.power 1",
        "--beta {}.half --beta.value 0.25",
        "--lr_ramp {}.half",
        "--expert {0}.Pull --policy {0}.Linear --objective {0}.Regress",
        "--objective {0}.Regress --task gaussians8-biased-labelled --guidance 2",
    ],
)
def test_parts_of_one_s_own_from_the_command_line(words: str, mine: str) -> None:
    fresh = "" if "--policy" in words else FRESH
    ran = dagdiff(f"distill {fresh}{TINY}{words.format(mine)} --out out")
    assert ran.status == 0, ran.err
    if "Regress" in words:
        assert "train_mine" in Path("out/rounds.csv").read_text().splitlines()[0]
    assert dagdiff("sample out --num 5 --out out.npz --trust_code").status == 0
    assert dagdiff("shift out --num 20 --trust_code").status == 0
    assert dagdiff("distill --config out/config.yaml --out again").status == 0
    assert Path("again/student.safetensors").read_bytes() == Path("out/student.safetensors").read_bytes()


def test_parts_of_one_s_own_from_yaml(mine: str) -> None:
    content = {"expert": {"class": f"{mine}.Pull", "strength": 2}, "policy": f"{mine}.Linear", **SMALL}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    assert dagdiff("distill --config mine.yaml --expert.strength 3 --out out").status == 0
    kept = yaml.safe_load(Path("out/config.yaml").read_text())
    assert kept["expert"] == {"class": f"{mine}.Pull", "strength": 3.0}
    assert kept["policy"] == {"class": f"{mine}.Linear", "hidden": 8}


def test_parts_of_one_s_own_from_python(mine: str, tmp_path: Path) -> None:
    """As the command does, and then with objects in hand."""
    sys.path.insert(0, str(tmp_path))
    config = configure(
        {
            "expert": {"class": f"{mine}.Pull", "strength": 2.0},
            "policy": f"{mine}.Linear",
            "objective": f"{mine}.Regress",
            "device": "cpu",
            **SMALL,
        }
    )
    experiment = Experiment.build(config)
    report = distil(experiment, tmp_path / "out", progress=False)
    assert report["nfe_expert"] > 0
    loaded = open_run(tmp_path / "out", "cpu", trust_code=True)
    assert torch.equal(loaded.sample(9, seed=1), experiment.sample(9, seed=1))
    data = Points(torch.randn(20, 2))
    other = Experiment.build(config)
    other.task = dataclasses.replace(other.task, data=data)
    assert [done.number for _, done in other.rounds()] == [1, 2]


def test_their_arguments_are_in_the_help(mine: str) -> None:
    status, out, _ = dagdiff(f"distill --expert {mine}.Pull --policy {mine}.Linear --help")
    assert status == 0
    text = " ".join(out.split())
    assert re.search(r"--expert.strength X How far out the point lies. Default: 1.0.", text)
    assert re.search(r"--policy.hidden N Default: 8.", text)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--expert {}.Pull --expert.strength x", "expert.strength"),
        ("--expert {}.Pull --expert.strenght 2", "expert.strenght"),
        ("--expert {}.Informed", "expert.scale"),
        ("--expert {}.Pul", "Did you mean 'Pull'"),
        ("--expert {}", "strangers_parts"),
        ("--expert {}.PARTS", "PARTS"),
        ("--policy {}.Linear --policy.hidden 2.5", "policy.hidden"),
        ("--policy {}.Nothing", "policy"),
        ("--objective {}.Nothing", "objective"),
        ("--expert {}.Nothing", "expert"),
        ("--expert {}.OneColumn", r"the expert must answer with the shape of the states, \(\d+, 2\); got \(\d+, 1\)"),
        ("--expert {}.NoTensor", "the expert must answer with"),
        ("--policy {}.Narrow", r"the student must answer with the shape of the states, \(\d+, 2\); got \(\d+, 1\)"),
        ("--policy {}.Narrow --shares 1,0,0 --heldout 0", "the student must answer with the shape of the states"),
    ],
)
def test_mistakes_in_parts_of_one_s_own(words: str, match: str, mine: str) -> None:
    fresh = "" if "--policy" in words else FRESH
    status, _, err = dagdiff(f"distill {fresh}{TINY}{words.format(mine)} --out out")
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("dagdiff: error: ")
    assert re.search(match, err), err
    assert not Path("out").exists()


def test_an_expert_that_answers_nan_is_stopped_at_the_first_update(mine: str) -> None:
    """Nothing was learned, so the student that is kept is the untrained one."""
    status, _, err = dagdiff(f"distill {FRESH}{TINY} --expert {mine}.NaNs --out out")
    assert status in (2, 3)
    assert re.fullmatch(r"dagdiff: error: .*(NaN|not finite at update 1\b).*\n", err)


def test_a_module_that_needs_a_missing_package_says_which() -> None:
    Path("strangers_needy.py").write_text("import nosuchpackage\n")
    status, _, err = dagdiff(f"distill {FRESH}{TINY} --expert strangers_needy.Expert --out out")
    assert status == 2
    assert "needs the package 'nosuchpackage', which is not installed" in err


@pytest.mark.parametrize("shares", [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
def test_data_of_one_s_own_that_holds_nan_are_refused(shares: list[float]) -> None:
    """The message is about the data, not about a learning rate."""

    class Spoilt:
        def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
            points = torch.randn(n, 2, generator=generator)
            points[0, 1] = torch.nan
            return points

    policy = {"class": "fresh", "width": 16}
    experiment = Experiment.build(configure({"policy": policy, "device": "cpu", "shares": shares, **SMALL}))
    experiment.task = dataclasses.replace(experiment.task, data=Spoilt())
    with pytest.raises(Refusal, match=r"data.*NaN"):
        list(experiment.rounds())


def test_points_that_hold_nan_are_refused() -> None:
    points = torch.randn(5, 2)
    points[3, 1] = torch.nan
    with pytest.raises(Refusal, match="points holds 1 values that are NaN or infinite, of 10"):
        Points(points)


def test_a_run_with_parts_of_one_s_own_says_so_when_they_are_out_of_reach(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dagdiff(f"distill {FRESH}{TINY} --expert {mine}.Pull --out out").status == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    sys.modules.pop(mine)
    status, _, err = dagdiff("sample ../out --num 5 --trust_code")
    assert status == 2
    assert f"no module named '{mine}'. Run from its folder, or install it." in err
    assert json.loads((tmp_path / "out/student.json").read_text())["times"][0] == 1.0
