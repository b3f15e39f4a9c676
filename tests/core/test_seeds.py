"""Seeds: each is its own stream, those in use keep theirs, and the ones that would repeat another are refused."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dagdiff.checks import Refusal, check_seed
from dagdiff.cli import main
from dagdiff.envs.images import digits, scarce
from dagdiff.envs.sets import Scarce
from dagdiff.envs.toy2d import world
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import Teacher, fresh_student, student_from_teacher

LAST = 2**32 - 1
BAD = (-1, LAST + 1, 2**62)
SMALL: dict[str, Any] = {"policy": {"class": "fresh", "width": 8}, "updates": 2, "rounds": 1, "device": "cpu"}
TASK = make_task("gaussians8-biased")
every_bad = pytest.mark.parametrize("seed", BAD)


def first_draws(seed: int) -> list[tuple[float, ...]]:
    """What each stream of an experiment with that seed begins with."""
    it = Experiment.build(configure({**SMALL, "seed": seed}), training=False)
    return [tuple(torch.rand(4, generator=it.generator(stream)).tolist()) for stream in range(9)]


def test_no_two_seeds_share_a_stream() -> None:
    seeds = (0, 1, 2, 1000, 2**31, LAST - 1, LAST)
    drawn = [draws for seed in seeds for draws in first_draws(seed)]
    assert len(set(drawn)) == len(seeds) * 9


def test_the_streams_of_the_seeds_in_use_are_what_they_were() -> None:
    for seed, stream in product((0, 1, 7), (0, 3, 8)):
        expected = torch.Generator().manual_seed(1_000_003 * seed + stream)
        assert first_draws(seed)[stream] == tuple(torch.rand(4, generator=expected).tolist())


@pytest.mark.parametrize("seed", [0, 5, LAST])
def test_a_seed_is_returned(seed: int) -> None:
    assert check_seed("seed", seed) == seed


@every_bad
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda seed: configure({**SMALL, "seed": seed}), "seed"),
        (lambda seed: Experiment.build(configure(SMALL), training=False).sample(4, seed), "seed"),
        (lambda seed: Teacher(TASK, seed=seed), "seed"),
        (lambda seed: student_from_teacher(TASK, teacher_seed=seed), "teacher_seed"),
        (lambda seed: fresh_student(TASK, seed=seed), "seed"),
        (lambda seed: Scarce(world("moons"), seed=seed), "seed"),
        (lambda seed: scarce(digits(), seed=seed), "seed"),
        (lambda seed: digits(seed=seed), "seed"),
    ],
)
def test_a_seed_that_repeats_another_is_refused(make: Callable[[int], object], name: str, seed: int) -> None:
    with pytest.raises(Refusal, match=rf"^{name} must lie in \[0, 2\^32 - 1\].*; got {seed}\. Pass e\.g\. 0\.$"):
        make(seed)


@every_bad
@pytest.mark.parametrize(
    "words",
    [
        "distill --policy fresh --seed {seed} --out {place}/out",
        "distill --policy fresh --policy.seed {seed} --out {place}/out",
        "distill --policy.teacher_seed {seed} --out {place}/out",
        "distill --expert learned --policy fresh --expert.seed {seed} --out {place}/out",
        "teacher --task gaussians8-biased --seed {seed}",
        "teacher --task digits-biased --seed {seed}",
        "sample {place}/run --seed {seed} --out {place}/some.npz",
        "shift {place}/run --seed {seed}",
        "shift --expert {place}/some --student {place}/other --seed {seed}",
        "bench toy2d --verify 1 --verify_seed {seed} --out {place}/out",
    ],
)
def test_the_commands_refuse_it_in_one_line(words: str, seed: int, tmp_path: Path) -> None:
    out, told = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        status = main(words.format(seed=seed, place=tmp_path).split())
    assert status == 2 and out.getvalue() == ""
    assert f"got {seed}" in told.getvalue() and told.getvalue().count("\n") == 1
    assert list(tmp_path.iterdir()) == []
