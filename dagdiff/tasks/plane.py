"""Tasks in 2-D: a dataset, the part of it the student is shown, and experts that are exact or learned.

Below stand the parts that need such a task to be built, as classes or functions whose first parameter is ``task``.
Parts of your own follow the same rule.
"""

from typing import Any

import torch
from torch import nn

from dagdiff.checks import Refusal, check_in, check_seed
from dagdiff.envs.sets import SETS
from dagdiff.envs.toy2d import world
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import PREDICTIONS
from dagdiff.policies.student import Student
from dagdiff.schedule import CosineSchedule, Schedule
from dagdiff.tasks import teachers
from dagdiff.tasks.base import Task
from dagdiff.tasks.names import Name
from dagdiff.threshold import DynamicThreshold, Fold, QuantileBox, StaticThreshold


def make(name: Name, schedule: Schedule | None = None, settings: Any = None) -> Task:
    """Return the task of a name that was read; it looks at no settings."""
    law = world(name.world)
    return Task(name.text, law, SETS[name.set](law), schedule or CosineSchedule(), conditional=name.labelled)


def exact_expert(task: Task) -> GaussianMixtureExpert:
    """The exact posterior mean of the dataset, closed form; only Gaussian mixtures have one."""
    mixture = task.world.mixture
    if mixture is None:
        raise Refusal(f"{task.name!r} has no exact expert: its world is not a Gaussian mixture. Use --expert learned.")
    return GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, task.schedule)


class Teacher(teachers.Teacher):
    """A small network to be learned on the whole dataset, cached by the content hash of its configuration.

    Args:
        task: the task whose dataset, schedule and classes it learns.
        width: units of each hidden layer.
        depth: hidden layers.
        updates: of training.
        seed: of weights, data and noise.
        prediction: what the network predicts: x0, epsilon, v or flow.
    """

    def __init__(
        self, task: Task, width: int = 128, depth: int = 3, updates: int = 4000, seed: int = 0, prediction: str = "v"
    ) -> None:
        super().__init__(task, {"width": width, "depth": depth}, {"updates": updates}, seed, prediction)

    def network(self) -> Student:
        """Return a fresh network, its weights fixed by the seed."""
        return _mlp(self.task, **self.options, prediction=self.prediction, seed=self.seed)


def learned_expert(task: Task, width: int = 128, depth: int = 3, updates: int = 4000, seed: int = 0) -> nn.Module:
    """A teacher network learned on the whole dataset by denoising score matching, trained once and cached.

    Args:
        task: whose dataset it is.
        width: units of each hidden layer.
        depth: hidden layers.
        updates: of its training.
        seed: of its weights, data and noise.
    """
    return Teacher(task, width, depth, updates, seed).load().requires_grad_(False).eval()


def student_from_teacher(
    task: Task, width: int = 128, depth: int = 3, updates: int = 4000, teacher_seed: int = 0
) -> Student:
    """A student that starts from a learned teacher's weights, for experts that are no network.

    Args:
        task: whose dataset it is.
        width: units of each hidden layer.
        depth: hidden layers.
        updates: of the teacher's training.
        teacher_seed: of the teacher's weights, data and noise.
    """
    return Teacher(task, width, depth, updates, check_seed("teacher_seed", teacher_seed)).load()


def fresh_student(task: Task, width: int = 128, depth: int = 3, prediction: str = "v", seed: int = 0) -> Student:
    """A student with weights of its own.

    Args:
        task: whose dataset it is.
        width: units of each hidden layer.
        depth: hidden layers.
        prediction: what the network predicts: x0, epsilon, v or flow.
        seed: of its weights.
    """
    check_in("prediction", prediction, PREDICTIONS)
    return _mlp(task, width, depth, prediction, seed)


def box_threshold(task: Task) -> StaticThreshold:
    """Clamp to the box in which the whole dataset lies."""
    return StaticThreshold(-task.world.box, task.world.box)


def dynamic_threshold(task: Task, quantile: float = 0.995) -> DynamicThreshold:
    """Clamp each row to its own quantile, the box in which the whole dataset lies at least, and rescale to the box.

    Args:
        task: whose dataset it is.
        quantile: of a row's absolute values.
    """
    return DynamicThreshold(quantile, task.world.box)


def fold_threshold(task: Task) -> Fold:
    """Reflect at the walls of the box in which the whole dataset lies."""
    return Fold(-task.world.box, task.world.box)


def quantile_threshold(task: Task, quantile: float = 0.999, points: int = 20_000) -> QuantileBox:
    """Clamp each axis to the central ``quantile`` of samples of the whole dataset."""
    return QuantileBox.estimate(task.world.sample(points, torch.Generator().manual_seed(0)), quantile)


def _mlp(task: Task, width: int, depth: int, prediction: str, seed: int) -> Student:
    if len(task.shape) > 1:
        raise Refusal(f"{task.name!r} is of images, an MLP is for points. Leave --policy and --expert away.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_seed("seed", seed))
        network = MLP(size=task.shape[0], width=width, depth=depth, labels=task.labels)
    return Student(network, task.schedule, PREDICTIONS[prediction])
