"""The registry of tasks: what a name means, and what kind of task it is.

A name is ``WORLD-SET`` or ``WORLD-SET-labelled``: a world of :data:`dagdiff.envs.toy2d.WORLDS` with a set of
:data:`dagdiff.envs.sets.SETS`, or images (:data:`dagdiff.envs.images.WORLDS`, or a path of your own pictures) with one
of :data:`dagdiff.envs.images.SETS`. ``pipeline`` is a diffusers pipeline, which is named beside it. A new kind is a
module like :mod:`dagdiff.tasks.plane` and an entry here.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dagdiff.checks import Refusal, check_in
from dagdiff.envs import images, sets, toy2d
from dagdiff.schedule import Schedule
from dagdiff.tasks.base import Task


class Kind(NamedTuple):
    """A kind of task, and what a run of it takes where its user names nothing.

    Args:
        module: holds ``make(name, schedule, settings) -> Task`` and, where teachers are learned, ``Teacher``.
        recipe: its entry of :data:`dagdiff.runs.recipes.RECIPES`.
        expert: the short name of its learned expert; the student starts as that.
        policy: the student's short name beside an expert that is no network.
        threshold: its short name, where it is not the usual one.
        settings: the class in that module whose options are spelled ``--pipeline.path`` and so on.
    """

    module: str
    recipe: str
    expert: str
    policy: str
    threshold: str = ""
    settings: str = ""

    def imported(self) -> Any:
        """Return the module; only some kinds need diffusers."""
        return import_module(self.module)

    def teacher(self) -> Any:
        """Return the class of its teachers; refuse a kind that learns none."""
        found = getattr(self.imported(), "Teacher", None)
        if found is None:
            raise Refusal(f"a {self.expert} is its own teacher: there is none to train. Use dagdiff distill.")
        return found


PLANE = Kind("dagdiff.tasks.plane", "plane", expert="learned", policy="teacher")
IMAGES = Kind("dagdiff.tasks.images", "images", expert="unet", policy="unet")
PIPELINE = Kind(
    "dagdiff.tasks.pipeline", "latents", "pipeline", "pipeline", threshold="teacher", settings="PipelineSettings"
)


class Name(NamedTuple):
    """A task's name, read: its kind, its world, the set the student is shown, and whether chains have a condition."""

    text: str
    kind: Kind
    world: str = ""
    set: str = ""
    labelled: bool = False


def read_name(text: str) -> Name:
    """Read a task's name; refuse an unknown one with the nearest name."""
    if text == "pipeline":
        return Name(text, PIPELINE)
    world, _, shown = text.removesuffix("-labelled").rpartition("-")
    labelled = text.endswith("-labelled")
    if world in images.WORLDS or (world and world not in toy2d.WORLDS and Path(world).exists()):
        return Name(text, IMAGES, world, check_in("set", shown, images.SETS), labelled)
    check_in("task", text, task_names())
    return Name(text, PLANE, world, shown, labelled)


def task_names() -> list[str]:
    """Every task's name, apart from those of your own images."""
    toys = [f"{world}-{shown}" for world in toy2d.WORLDS for shown in sets.SETS]
    toys += [f"{of}-{shown}-labelled" for of in toy2d.WORLDS if toy2d.world(of).labels for shown in sets.SETS]
    seen = [f"{world}-{shown}" for world in images.WORLDS for shown in images.SETS]
    return [*toys, *seen, *(f"{name}-labelled" for name in seen), "pipeline"]


def make_task(name: str, schedule: Schedule | None = None, settings: Any = None) -> Task:
    """Return the task of that name.

    Args:
        name: of the task.
        schedule: of noise; None takes the task's usual one.
        settings: of the run; only a pipeline reads them.

    Raises:
        Refusal: for an unknown name, or what the kind of task can't be.
    """
    found = read_name(name)
    task: Task = found.kind.imported().make(found, schedule, settings)
    return task
