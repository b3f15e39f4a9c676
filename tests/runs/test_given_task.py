"""What a part of one's own is given: the task, whatever part it is; and a number that stands for a ramp."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagdiff.checks import Refusal
from dagdiff.mixture import Constant
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.parts import PARTS, RAMPS

SMALL = {
    "updates": 2, "rounds": 1, "chains": 4, "batch_size": 4, "heldout": 0, "policy": {"class": "fresh", "width": 8}
}  # fmt: skip
MODULE = '''
"""Parts that ask for the task; each counts for how many it was asked."""

from dagdiff.objectives import Progressive
from dagdiff.policies.student import Student
from dagdiff.policies.networks import MLP
from dagdiff.rollout import MixturePolicy
from dagdiff.schedule import CosineSchedule
from dagdiff.solvers import DdimSolver

ASKED = []


def seen(part, task, scale):
    ASKED.append((part, task.name, tuple(task.shape), scale))


def objective(task, scale: float = 1.0):
    seen("objective", task, scale)
    return Progressive()


def expert(task, scale: float = 1.0):
    seen("expert", task, scale)
    return lambda x_t, t, condition=None: x_t


def policy(task, scale: float = 1.0):
    seen("policy", task, scale)
    return Student(MLP(width=8), task.schedule)


class data:
    def __init__(self, task, scale: float = 1.0):
        seen("data", task, scale)
        self.world = task.world

    def sample(self, n, generator=None):
        return self.world.sample(n, generator)


def solver(task, scale: float = 1.0):
    seen("solver", task, scale)
    return DdimSolver()


def threshold(task, scale: float = 1.0):
    seen("threshold", task, scale)
    return lambda x0: x0


def schedule(task, scale: float = 1.0):
    seen("schedule", task, scale)
    return CosineSchedule()


def ramp(part):
    def make(task, scale: float = 1.0):
        seen(part, task, scale)
        return lambda progress: 0.5
    return make


beta, shares_ramp, lr_ramp = ramp("beta"), ramp("shares_ramp"), ramp("lr_ramp")


class driver(MixturePolicy):
    def __init__(self, *given, task, scale: float = 1.0):
        super().__init__(*given)
        seen("driver", task, scale)


def curriculum(task, scale: float = 1.0):
    seen("curriculum", task, scale)
    return iter
'''


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the current folder; its name."""
    (tmp_path / "asking_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "asking_parts"
    sys.modules.pop("asking_parts", None)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_may_ask_for_the_task(part: str, asking: str) -> None:
    """Its other arguments stay options; the task is none."""
    made = Experiment.build(configure({**SMALL, part: {"class": f"{asking}.{part}", "scale": 3.0}}))
    list(made.rounds())
    asked = set(sys.modules[asking].ASKED)
    assert asked == {(part, "gaussians8-biased", (2,), 3.0)}


@pytest.mark.parametrize("part", RAMPS)
@pytest.mark.parametrize("number", [0, 0.5, "0.5", ".5", "5e-1", 1], ids=repr)
def test_a_number_is_a_constant_ramp(part: str, number: object) -> None:
    config = configure({part: number})
    assert config == configure({part: {"class": "constant", "value": float(str(number))}})
    made = Experiment.build(configure({**SMALL, part: number}))
    ramps = {"beta": made.gathering().beta, "shares_ramp": made.gathering().shares_ramp}
    assert {**ramps, "lr_ramp": made.learning().lr_ramp}[part] == Constant(float(str(number)))


@pytest.mark.parametrize(
    ("value", "match"),
    [(True, "--beta needs a name; got True"), ("0.5x", "unknown beta '0.5x'|no module"), (2, r"in \[0, 1\]; got 2")],
)
def test_what_is_no_ramp(value: object, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        Experiment.build(configure({**SMALL, "beta": value}))


def test_a_ramp_that_cannot_be_is_refused_before_a_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path))
    with pytest.raises(Refusal, match=r"must lie in \[0, 1\]; got 7"):
        Experiment.build(configure({"task": "moons-biased", "shares_ramp": 7}))
    assert not list(tmp_path.iterdir())
