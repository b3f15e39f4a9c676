"""Tasks: their names, what the student is shown, their usual parts, and the cached teacher."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import weights

from dagdiff.checkpoint import cache_folder
from dagdiff.checks import Refusal
from dagdiff.envs import sets, toy2d
from dagdiff.envs.images import SETS as PICTURE_SETS
from dagdiff.runs.parts import usual_parts
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule
from dagdiff.tasks import images
from dagdiff.tasks import names as registry
from dagdiff.tasks.names import PLANE, make_task, read_name, task_names
from dagdiff.tasks.plane import (
    Teacher,
    box_threshold,
    exact_expert,
    fresh_student,
    learned_expert,
    quantile_threshold,
    student_from_teacher,
)

TINY = {"width": 8, "depth": 2, "updates": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


TOYS = [name for name in task_names() if read_name(name).kind is PLANE]


def test_every_world_has_three_sets_and_mixtures_have_labels() -> None:
    names = TOYS
    assert len(names) == len(set(names)) == 8 * 3 + 3 * 3
    assert {name.split("-")[1] for name in names} == {"matched", "scarce", "biased"}
    assert {name.split("-")[0] for name in names if name.endswith("-labelled")} == {
        "gaussians8",
        "grid25",
        "imbalanced",
    }


def test_the_registry_names_the_worlds_and_sets_that_there_are() -> None:
    """Names stand there as text, to be read before torch is loaded."""
    worlds = {name: toy2d.world(name) for name in toy2d.WORLDS}
    assert [*registry.MIXTURES, *registry.CURVES] == list(worlds)
    assert {name for name, world in worlds.items() if world.mixture is not None} == set(registry.MIXTURES)
    assert {name for name, world in worlds.items() if world.labels} == set(registry.MIXTURES)
    assert list(registry.PICTURES) == list(images.WORLDS)
    assert set(registry.SETS) == set(sets.SETS) == set(PICTURE_SETS)


@pytest.mark.parametrize("name", TOYS)
def test_every_task_can_be_made(name: str, generator: torch.Generator) -> None:
    task = make_task(name)
    assert task.name == name and task.world.name == name.split("-")[0]
    assert task.data.sample(7, generator).shape == (7, 2)
    assert task.conditional == name.endswith("-labelled")
    exact = {"expert": "exact", "policy": "teacher"}
    assert usual_parts(name) == (exact if task.world.mixture else {"expert": "learned", "policy": "expert"})
    assert isinstance(task.schedule, CosineSchedule)
    if task.conditional:
        assert task.conditions is not None and task.labels == task.world.labels > 0
        labels = task.conditions(50, generator)
        assert labels.shape == (50,) and labels.min() >= 0 and labels.max() < task.labels
    else:
        assert task.conditions is None and task.labels == 0


@pytest.mark.parametrize(
    ("name", "near"),
    [("grid25-biasd", "grid25-biased"), ("moon-matched", "moons-matched"), ("grid25biased", "grid25-")],
)
def test_unknown_tasks_get_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(Refusal, match=f"unknown task '{name}'. Did you mean '{near}"):
        make_task(name)


def test_what_the_student_is_shown(generator: torch.Generator) -> None:
    assert (make_task("grid25-biased").data.sample(500, generator)[:, 0] > 0).all()
    assert (make_task("grid25-matched").data.sample(500, generator)[:, 0] < 0).any()
    assert len(make_task("grid25-scarce").data.sample(500, generator).unique(dim=0)) == 16


def test_labels_come_by_the_world_s_own_weights_even_where_the_data_are_biased(generator: torch.Generator) -> None:
    """The student is asked for every mode, also for those that it was not shown."""
    task = make_task("gaussians8-biased-labelled")
    assert task.conditions is not None
    assert set(task.conditions(500, generator).tolist()) == set(range(8))


def test_the_exact_expert_is_for_mixtures() -> None:
    guess = exact_expert(make_task("grid25-biased"))(torch.zeros(3, 2), torch.full((3,), 0.5))
    assert guess.shape == (3, 2)
    with pytest.raises(Refusal, match=r"'moons-biased' has no exact expert.*Use --expert learned"):
        exact_expert(make_task("moons-biased"))


def test_thresholds_hold_the_whole_world(generator: torch.Generator) -> None:
    task = make_task("pinwheel-biased")
    x = task.world.sample(2000, generator)
    assert torch.equal(box_threshold(task)(x), x)
    assert ((quantile_threshold(task)(x) == x).all(dim=1).float().mean()) > 0.99
    assert box_threshold(task)(10.0 * torch.ones(1, 2)).tolist() == [[pytest.approx(task.world.box)] * 2]


# Teachers


def test_a_teacher_is_trained_once_and_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("moons-biased")
    first = learned_expert(task, **TINY)
    (file,) = (cache / "teachers").iterdir()
    assert file.name.startswith("moons-plain-") and file.suffix == ".safetensors"

    def no_training(*_: object, **__: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("dagdiff.tasks.teachers.train_teacher", no_training)
    for again in (learned_expert(task, **TINY), learned_expert(make_task("moons-matched"), **TINY)):
        assert torch.equal(weights(again), weights(first))
    student = student_from_teacher(task, **TINY)
    assert torch.equal(weights(student), weights(first))
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in first.parameters())
    with pytest.raises(AssertionError, match="trained again"):
        learned_expert(task, **{**TINY, "updates": 4})


def test_the_cache_key_holds_all_that_matters() -> None:
    paths = [
        Teacher(make_task("moons-matched")).path,
        Teacher(make_task("moons-matched"), width=64).path,
        Teacher(make_task("moons-matched"), depth=2).path,
        Teacher(make_task("moons-matched"), updates=7).path,
        Teacher(make_task("moons-matched"), seed=1).path,
        Teacher(make_task("moons-matched"), prediction="x0").path,
        Teacher(make_task("rings-matched")).path,
        Teacher(make_task("moons-matched", FlowSchedule())).path,
        Teacher(make_task("moons-matched", CosineSchedule(terminal_alpha=0.01))).path,
        Teacher(make_task("moons-matched", VPSchedule.linear())).path,
        Teacher(make_task("moons-matched", VPSchedule.linear(beta_end=0.03))).path,
        Teacher(make_task("gaussians8-matched")).path,
        Teacher(make_task("gaussians8-matched-labelled")).path,
    ]
    assert len(set(paths)) == len(paths)
    assert Teacher(make_task("moons-matched")).path == Teacher(make_task("moons-scarce")).path


def test_schedules_that_differ_anywhere_do_not_share_a_teacher() -> None:
    """Two tables that differ only in the middle, where a printed tensor shows dots."""
    first = VPSchedule.linear(steps=2000).alphas_cumprod
    second = first.clone()
    second[900:1100] = second[900]
    teachers = [Teacher(make_task("moons-matched", VPSchedule(table))) for table in (first, second)]
    assert teachers[0].path != teachers[1].path


def test_a_broken_cache_is_refused_with_its_path(cache: Path) -> None:
    teacher = Teacher(make_task("moons-matched"), **TINY)
    teacher.load()
    teacher.path.write_text("{")
    with pytest.raises(Refusal, match=f"{teacher.path.name} does not hold the weights of this network.*Delete it"):
        teacher.load()


@pytest.mark.parametrize(
    ("change", "match"), [({"updates": 0}, "updates"), ({"width": 0}, "width"), ({"prediction": "z"}, "prediction 'z'")]
)
def test_teachers_that_cannot_be(change: dict[str, object], match: str, cache: Path) -> None:
    with pytest.raises(Refusal, match=match):
        Teacher(make_task("moons-matched"), **{**TINY, **change}).load()  # type: ignore[arg-type]
    assert not cache.exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("DAGDIFF_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "dagdiff"


def test_fresh_students_are_fixed_by_their_seed_and_leave_the_global_one_alone() -> None:
    task = make_task("gaussians8-biased-labelled")
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    first, same, other = (fresh_student(task, width=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), wanted)
    assert torch.equal(weights(first), weights(same))
    assert not torch.equal(weights(first), weights(other))
    assert first(torch.zeros(4, 2), torch.full((4,), 0.5), torch.tensor([0, 7, -1, 3])).shape == (4, 2)


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v", "flow"])
def test_every_prediction_makes_a_student(prediction: str) -> None:
    student = fresh_student(make_task("moons-matched"), width=8, prediction=prediction)
    assert student(torch.zeros(4, 2), torch.full((4,), 0.5)).isfinite().all()
