"""The one-file example is the loop, number for number, and needs nothing of it."""

import copy
import importlib.util
import subprocess
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from helpers import ROOT

from dagdiff import CosineSchedule, DAgger, Ddim, Expert, Progressive, Shares
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.mixture import LinearRamp
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.schedule import step_grid

FILE = ROOT / "examples" / "minimal.py"
SCHEDULE = CosineSchedule()


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_one_short_file_of_plain_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({str(FILE)!r})"
    code += "; assert not {'dagdiff', 'torchrl', 'tensordict'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert len(FILE.read_text().splitlines()) <= 150


def test_its_teacher_and_label_are_the_expert_s(minimal: ModuleType, generator: torch.Generator) -> None:
    modes = minimal.MODES
    exact = GaussianMixtureExpert(modes, torch.full((8,), minimal.WIDTH), torch.full((8,), 1 / 8), SCHEDULE)
    x, t = torch.randn(50, 2, generator=generator), torch.rand(50, generator=generator).clamp(min=0.05)
    torch.testing.assert_close(minimal.teacher(x, t), exact(x, t), atol=1e-4, rtol=1e-4)
    target = Expert(exact, SCHEDULE, substeps=minimal.SUBSTEPS).target(x, t, t / 2)
    torch.testing.assert_close(minimal.label(x, t, t / 2), target, atol=1e-3, rtol=1e-3)


def test_it_makes_the_loop_s_student_number_for_number(minimal: ModuleType) -> None:
    torch.manual_seed(0)
    student, rounds = minimal.Student(32), 3
    twin = copy.deepcopy(student)
    noise, states = (torch.Generator().manual_seed(0) for _ in range(2))
    loop = DAgger(
        twin,
        Expert(lambda x_t, t, condition: minimal.teacher(x_t, t), SCHEDULE, substeps=minimal.SUBSTEPS),
        Progressive(),
        DenoisingEnv((2,), Ddim(SCHEDULE), step_grid(minimal.STEPS), minimal.CHAINS, generator=noise),
        minimal.RightHalf(),
        shares=Shares(*minimal.SHARES.values()),
        rounds=rounds,
        updates_per_round=minimal.UPDATES,
        gathering=Gathering(reuse=minimal.REUSE),
        learning=Learning(partial(torch.optim.Adam, lr=2e-3), LinearRamp(1.0, 0.0, 1.0), batch_size=minimal.BATCH),
        generator=states,
    )
    for loss, done in zip(minimal.train(student, rounds), loop, strict=True):
        assert loss == pytest.approx(done.losses["loss"], rel=1e-5)
    torch.testing.assert_close(list(student.parameters()), list(twin.parameters()), atol=1e-5, rtol=1e-5)
