"""The terms of the bench: what is frozen, and a card for each task. Whoever changes them raises :data:`VERSION`.

Rows of one version compare. Frozen are the seeds of noise, data and references, how many points are scored, and the
expert that a student is held against. The seeds are far from those of runs (0, 1, ...), by which students are trained
and chosen.
"""

from typing import Any, NamedTuple

from dagdiff.checks import Refusal, check_at_least, check_at_most, check_in
from dagdiff.tasks.names import PIPELINE, PLANE, Name, make_task, read_name

VERSION = 1
"""Of the bench; a row says of which it is."""

SEEDS = tuple(range(9001, 9011))
"""The frozen seeds, in the order in which they are taken."""

POINTS = 2000
"""Points that are scored for each seed, and chains and forward states of each step's shift."""

SUBSTEPS = 16
"""The expert's sub-steps: within a step under DDIM, and from noise to data under re-noising."""

LAWS = {"ddim": "step", "renoise": "data"}
"""The transitions by name -> where a prediction must be right, as PD's labels spell it."""

HEADLINE = ("gaussians8-biased", "imbalanced-biased")
"""The tasks of the table of entries."""


class Card(NamedTuple):
    """What a task of the bench is, in words.

    Args:
        task: its name.
        world: what its points are.
        size: of a state, and how many may be drawn.
        shown: what a student may be trained on.
        hidden: what it is scored on and was not shown.
        truth: where the reference and the expert come from.
    """

    task: str
    world: str
    size: str
    shown: str
    hidden: str
    truth: str


def check_task(task: str) -> str:
    """Return the name of a task that can be judged; reject another."""
    if read_name(task).kind is PIPELINE:
        raise Refusal(
            "--task pipeline has no truth to judge by: no samples of its law are known. Name another; "
            "`dagdiff shift --expert --student` measures the shift of pipelines."
        )
    return task


def check_seeds(seeds: int) -> tuple[int, ...]:
    """Return the first so many of the frozen seeds."""
    check_at_least("seeds", seeds, 1)
    check_at_most("seeds", seeds, len(SEEDS))
    return SEEDS[:seeds]


def settings(
    task: str, steps: int = 4, law: str = "ddim", schedule: Any = None, device: str = "auto"
) -> dict[str, Any]:
    """Return the settings of the experiment whose task and expert judge a student.

    Args:
        task: its name.
        steps: of the student.
        law: by which it moves, a key of :data:`LAWS`.
        schedule: of its states: a name or settings; None takes the task's usual one.
        device: auto, cpu, cuda, ...
    """
    check_task(task)
    check_at_least("steps", steps, 1)
    end = LAWS[check_in("law", law, LAWS)]
    fresh = "fresh" if read_name(task).kind is PLANE else "fresh-unet"  # nobody asks it
    chosen = {} if schedule is None else {"schedule": schedule}
    return {
        "task": task,
        "steps": steps,
        "objective": {"class": "progressive", "label_end": end},
        "substeps": SUBSTEPS,
        "policy": fresh,
        "samples": POINTS,
        "device": device,
        **chosen,
    }


def card(task: str) -> Card:
    """Return the card of a task; that of pictures is read from the pictures."""
    name = read_name(check_task(task))
    return _of_plane(name) if name.kind is PLANE else _of_pictures(name)


def _of_plane(name: Name) -> Card:
    from dagdiff.envs.toy2d import WORLDS, world

    shown = {
        "matched": "all of it, without end",
        "scarce": "16 fixed points",
        "biased": "its points with x > 0, without end",
    }
    hidden = {"matched": "nothing", "scarce": "all but these points", "biased": "the half with x <= 0"}
    law = world(name.world)
    says = (WORLDS[name.world].__doc__ or "").partition("\n")[0].removesuffix(".")
    exact = "closed form: the world is a Gaussian mixture, so density, reference and expert are exact"
    drawn = "the world's own sampler; the expert is a network that was trained on all of it"
    return Card(
        name.text,
        f"{says[:1].lower()}{says[1:]}",
        f"{law.sample(1).shape[1]} numbers; drawn without end",
        shown[name.set] + (", with the mode of each" if name.labelled else ""),
        hidden[name.set],
        drawn if law.mixture is None else exact,
    )


def _of_pictures(name: Name) -> Card:
    task: Any = make_task(name.text)
    world, missing = task.world, task.missing
    classes = len(world.classes)
    shape = " x ".join(map(str, world.shape))
    absent = ", ".join(world.classes[each] for each in missing)
    shown = {
        "matched": "all that are not held out",
        "scarce": f"{len(task.data.points)} fixed pictures",
        "biased": f"those of {classes - len(missing)} classes",
    }
    hidden = {"matched": "nothing", "scarce": "all but these pictures", "biased": f"{len(missing)} classes: {absent}"}
    features = "in the features of a classifier" if classes else "in pixels"
    return Card(
        name.text,
        f"pictures of {classes} classes" if classes else "pictures without classes",
        f"{shape} numbers; {len(world.train.points):,}, {len(world.test.points):,} held out",
        shown[name.set] + (", with the class of each" if name.labelled else ""),
        hidden[name.set],
        f"the pictures held out, {features}; what is learned, the expert (a U-Net) too, is learned on the machine that "
        "judges, so rows of one machine compare",
    )
