"""The registry of tasks: what a name means, and what kind of task it is.

A name is ``WORLD-SET`` or ``WORLD-SET-labelled``: a dataset with a set of its points that the student is trained on.
The datasets are those of :data:`dagdiff.envs.toy2d.WORLDS` or :data:`dagdiff.tasks.images.WORLDS`, or a path of your
own pictures. ``pipeline`` is a diffusers pipeline, which is named beside it. A new kind is a module like
:mod:`dagdiff.tasks.plane` and an entry here. Names stand here as text, so that they are read before torch is loaded.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dagdiff.checks import Refusal, check_in

if TYPE_CHECKING:
    from dagdiff.schedule import Schedule
    from dagdiff.tasks.base import Task

MIXTURES = ("gaussians8", "grid25", "imbalanced")
"""Worlds in 2-D that are Gaussian mixtures: they have labels, and an expert in closed form."""

CURVES = ("moons", "rings", "checkerboard", "spirals", "pinwheel")
"""Worlds in 2-D that have neither."""

PICTURES = ("digits", "fashion14", "fashion28", "avatars", "avatars-glasses")
"""Worlds of images, all with labels."""

SETS = ("matched", "scarce", "biased")
"""The points of a dataset that a student is trained on: all, few, or a part of the dataset."""


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
        """Return the class of its teachers; reject a kind that learns none."""
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
    """A task's name, read: its kind, its dataset, the set the student is shown, and whether chains have a condition."""

    text: str
    kind: Kind
    world: str = ""
    set: str = ""
    labelled: bool = False


def read_name(text: str) -> Name:
    """Read a task's name; reject an unknown one with the nearest name."""
    if text == "pipeline":
        return Name(text, PIPELINE)
    world, _, shown = text.removesuffix("-labelled").rpartition("-")
    labelled = text.endswith("-labelled")
    if world in PICTURES or (world and world not in (*MIXTURES, *CURVES) and Path(world).exists()):
        return Name(text, IMAGES, world, check_in("set", shown, SETS), labelled)
    check_in("task", text, task_names())
    return Name(text, PLANE, world, shown, labelled)


def task_names() -> list[str]:
    """Every task's name, apart from those of your own images."""
    plain = [f"{world}-{shown}" for world in (*MIXTURES, *CURVES) for shown in SETS]
    labelled = [f"{world}-{shown}-labelled" for world in MIXTURES for shown in SETS]
    seen = [f"{world}-{shown}" for world in PICTURES for shown in SETS]
    return [*plain, *labelled, *seen, *(f"{name}-labelled" for name in seen), "pipeline"]


def make_task(name: str, schedule: "Schedule | None" = None, settings: Any = None, training: bool = True) -> "Task":
    """Return the task of that name.

    Args:
        name: of the task.
        schedule: of noise; None takes the task's usual one.
        settings: of the run; only a pipeline reads them.
        training: whether a student is to be trained; a pipeline is then ready for all of its prompts.

    Raises:
        Refusal: for an unknown name, or what the kind of task can't be.
    """
    found = read_name(name)
    told = {"training": training} if found.kind is PIPELINE else {}
    task: Task = found.kind.imported().make(found, schedule, settings, **told)
    return task
