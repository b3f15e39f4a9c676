"""The parts of a run: classes or functions named by a short name, or by an import path such as ``mypkg.MyExpert``.

A part is imported when it is needed, and no sooner: names are listed and described before torch is loaded
(:mod:`dagdiff.runs.described`).
"""

import inspect
from collections.abc import Callable
from typing import Any

from dagdiff.checks import check_in
from dagdiff.importing import imported, reach_working_folder
from dagdiff.runs.installed import with_installed
from dagdiff.tasks.names import MIXTURES, PIPELINE, read_name

_RAMPS = {
    "constant": "dagdiff.mixture.Constant",
    "linear": "dagdiff.mixture.LinearRamp",
    "cosine": "dagdiff.mixture.CosineRamp",
    "exponential": "dagdiff.mixture.ExponentialRamp",
    "indicator": "dagdiff.mixture.Indicator",
}

RAMPS = ("beta", "shares_ramp", "lr_ramp")
"""The parts that are ramps; a number in the place of one is a constant."""

PARTS: dict[str, dict[str, str]] = {
    "objective": {
        "progressive": "dagdiff.objectives.Progressive",
        "consistency": "dagdiff.objectives.Consistency",
        "distribution": "dagdiff.objectives.DistributionMatching",
        "gaussian-kl": "dagdiff.objectives.GaussianKL",
    },
    "expert": {
        "exact": "dagdiff.tasks.plane.exact_expert",
        "learned": "dagdiff.tasks.plane.learned_expert",
        "unet": "dagdiff.tasks.images.unet_expert",
        "pipeline": "dagdiff.tasks.pipeline.pipeline_expert",
    },
    "policy": {
        "expert": "dagdiff.tasks.teachers.student_from_expert",
        "teacher": "dagdiff.tasks.plane.student_from_teacher",
        "fresh": "dagdiff.tasks.plane.fresh_student",
        "unet": "dagdiff.tasks.images.unet_student",
        "fresh-unet": "dagdiff.tasks.images.fresh_unet",
        "pipeline": "dagdiff.tasks.pipeline_students.pipeline_student",
        "lora": "dagdiff.tasks.pipeline_students.adapted_student",
        "few-step": "dagdiff.tasks.pipeline_students.few_step_student",
        "few-step-lora": "dagdiff.tasks.pipeline_students.adapted_few_step_student",
    },
    "data": {},
    "solver": {
        "ddim": "dagdiff.solvers.DdimSolver",
        "heun": "dagdiff.solvers.HeunSolver",
        "dpm": "dagdiff.solvers.DpmSolver",
    },
    "threshold": {
        "none": "dagdiff.threshold.NoThreshold",
        "box": "dagdiff.tasks.plane.box_threshold",
        "static": "dagdiff.threshold.StaticThreshold",
        "dynamic": "dagdiff.threshold.DynamicThreshold",
        "dynamic-box": "dagdiff.tasks.plane.dynamic_threshold",
        "quantile": "dagdiff.tasks.plane.quantile_threshold",
        "fold": "dagdiff.threshold.Fold",
        "fold-box": "dagdiff.tasks.plane.fold_threshold",
        "teacher": "dagdiff.tasks.pipeline.teacher_threshold",
    },
    "schedule": {
        "cosine": "dagdiff.schedule.CosineSchedule",
        "vp": "dagdiff.schedule.VPSchedule.linear",
        "flow": "dagdiff.schedule.FlowSchedule",
    },
    **dict.fromkeys(RAMPS, _RAMPS),
    "driver": {
        "mixture": "dagdiff.rollout.MixturePolicy",
        "dart": "dagdiff.strategies.drivers.Dart",
        "gate": "dagdiff.strategies.drivers.Gate",
    },
    "curriculum": {
        "plain": "dagdiff.strategies.curriculum.Plain",
        "forward-training": "dagdiff.strategies.curriculum.ForwardTraining",
        "coaching": "dagdiff.strategies.curriculum.Coaching",
        "cost-to-go": "dagdiff.strategies.curriculum.CostToGo",
        "adaptive": "dagdiff.strategies.curriculum.AdaptiveShares",
    },
}
"""What each part of dagdiff's own may be, by short name. Installed packages add names (:func:`names`); anything else is
an import path."""


HELP = {
    "objective": "what the student is asked to match",
    "expert": "the teacher; by default exact for mixtures, else learned; unet or pipeline for such tasks",
    "policy": "the student's network; by default expert, where that is a network, else teacher or unet; or pipeline; "
    "or the folder of a run or of a few-step pipeline to start from",
    "data": "what forward states are made of, anything with sample(n, generator); by default the task's set",
    "solver": "how the expert makes a sub-step",
    "threshold": "the reflected operator, on expert, targets and rollouts; by default of pipelines teacher",
    "schedule": "the noise schedule; a pipeline keeps its own",
    "beta": "share of rollout steps that the expert drives, by progress; or a number",
    "shares_ramp": "scales the student and expert shares, by progress; or a number",
    "lr_ramp": "scales the learning rate, by progress; or a number",
    "driver": "who acts in the rollouts",
    "curriculum": "what changes between rounds",
}
"""What each part is, in a line of help."""


DEFAULTS: dict[str, dict[str, Any]] = {
    "objective": {"class": "progressive"},
    "solver": {"class": "ddim"},
    "threshold": {"class": "none"},
    "schedule": {"class": "cosine"},
    "beta": {"class": "constant", "value": 0.0},
    "shares_ramp": {"class": "constant"},
    "lr_ramp": {"class": "linear", "start": 1.0, "end": 0.0, "until": 1.0},
    "driver": {"class": "mixture"},
    "curriculum": {"class": "plain"},
}
"""What a run takes if it does not name the part; a part that is missing here is the task's to choose."""


EXECUTORS = {
    "processes": "dagdiff.jobs.workers.Workers",
    "dask": "dagdiff.jobs.cluster.dask",
    "submitit": "dagdiff.jobs.cluster.submitit",
}
"""What runs a suite, by short name; named like a part, and no part of a run."""


GIVEN = {
    "executor": ("workers", "out"),
    "driver": ("student", "expert", "transition", "per_chain", "generator", "conditional"),
    "policy": ("expert",),
}
"""Parameters of a part that the loop fills in; they are no options. An executor's are
those of its command. Every part may also ask for ``task``, a policy for
``expert``, the teacher that the run has built."""


def names(part: str) -> dict[str, str]:
    """Return short name -> import path of all that a part may be: dagdiff's own, and what is installed beside it.

    A metric is named like a part. A run may take several, so it is a setting, and its names are found in their room. So
    is an executor, which is no part of a run.
    """
    metrics = _metrics() if part == "metric" else {}
    return with_installed({**PARTS, "metric": metrics, "executor": EXECUTORS})[part]


def path_of(part: str, name: str) -> str:
    """Return the import path of a part's short name, or the import path itself; reject with the near miss."""
    registered = names(part)
    path = registered.get(name, name)
    if "." not in path.strip("."):
        check_in(part, name, registered)
    return path


def resolve(part: str, name: str) -> Callable[..., Any]:
    """Return the class or function that a part's short name or import path names; reject with the near miss."""
    path = path_of(part, name)
    if path == name:
        reach_working_folder()
    return imported(part, path)


def canonical(part: str, name: str) -> str:
    """Return the short name of what ``name`` names, where it has one, so that a run is spelled in one way."""
    _, dot, last = name.rpartition(".")
    same = {short: path for short, path in names(part).items() if dot and path.rpartition(".")[2] == last}
    return next((short for short, path in same.items() if resolve(part, name) == resolve(part, path)), name)


def usual_parts(task: str, expert: str | None = None) -> dict[str, str]:
    """Return the parts that a run of a task takes when it names none.

    A student starts as its expert, where that is a network. Beside a closed form it starts from a learned teacher.

    Args:
        task: its name.
        expert: the one that the run names, if it does.
    """
    name = read_name(task)
    if name.kind is PIPELINE:
        return {"expert": expert or PIPELINE.expert, "policy": PIPELINE.policy, "threshold": PIPELINE.threshold}
    mine = expert or ("exact" if name.world in MIXTURES else name.kind.expert)
    network = mine == name.kind.expert or (mine not in PARTS["expert"] and _is_network(resolve("expert", mine)))
    return {"expert": mine, "policy": "expert" if network else name.kind.policy}


def known(part: str) -> str:
    """What may be named, for help and errors."""
    registered = names(part)
    return " ".join([", ".join(registered), "or" if registered else "", "an import path"]).strip()


def _metrics() -> dict[str, str]:
    from dagdiff.metrics.names import metric_paths  # it loads torch

    return metric_paths()


def _is_network(kind: Any) -> bool:
    from torch import nn

    return inspect.isclass(kind) and issubclass(kind, nn.Module)
