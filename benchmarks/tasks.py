"""Tasks: a named world to distil in. It knows the whole law, the part of it the student is shown, and an expert.

The name is ``world-set`` or ``world-set-labelled``: ``grid25-biased`` shows the student one half of the 5 x 5 grid, and
``gaussians8-matched-labelled`` conditions every chain on its mode. The expert always knows the whole world.

Below stand the parts that need a task to be built, as classes or functions whose first parameter is ``task``. Parts of
your own follow the same rule.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checkpoint import cache_folder, load_weights, save_weights
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.envs.toy2d import SETS, WORLDS, Matched, World, world
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.prediction import PREDICTIONS
from dagdiff.rollout import Data
from dagdiff.schedule import CosineSchedule, Schedule
from dagdiff.shapes import Denoiser
from dagdiff.teacher import train_teacher
from dagdiff.threshold import QuantileBox, StaticThreshold


@dataclass(frozen=True)
class Task:
    """A world, the data the student is shown, the noise schedule, and whether chains are conditioned on labels."""

    name: str
    world: World
    data: Data
    schedule: Schedule
    conditional: bool = False
    shape: tuple[int, ...] = (2,)

    @property
    def labels(self) -> int:
        """Number of classes that condition a chain; 0 for unconditional tasks."""
        return self.world.labels if self.conditional else 0

    @property
    def usual(self) -> dict[str, str]:
        """The parts that a run of this task takes when it names none."""
        return {"expert": "exact" if self.world.mixture else "learned"}

    @property
    def conditions(self) -> Callable[[int, torch.Generator | None], Tensor] | None:
        """Draws the labels of new chains by the world's own weights; None for unconditional tasks."""
        if not self.conditional:
            return None
        return self._labels

    def _labels(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.world.sample_labelled(n, generator)[1]


def task_names() -> list[str]:
    """Every task's name."""
    plain = [f"{name}-{part}" for name in WORLDS for part in SETS]
    return plain + [f"{name}-{part}-labelled" for name in WORLDS if world(name).labels for part in SETS]


def make_task(name: str, schedule: Schedule | None = None) -> Task:
    """Return the task of that name; refuse an unknown one with the nearest name."""
    check_in("task", name, task_names())
    of, part, *labelled = name.split("-")
    law = world(of)
    return Task(name, law, SETS[part](law), schedule or CosineSchedule(), conditional=bool(labelled))


def exact_expert(task: Task) -> Denoiser:
    """The exact posterior mean of the world, closed form; only Gaussian mixtures have one."""
    mixture = task.world.mixture
    if mixture is None:
        raise Refusal(f"{task.name!r} has no exact expert: its world is not a Gaussian mixture. Use --expert learned.")
    return GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, task.schedule)


class Teacher:
    """A teacher to be learned on the whole world, cached by the content hash of its configuration.

    Args:
        task: the task whose world, schedule and labels it learns.
        width, depth: of the MLP.
        updates: of training.
        seed: of weights, data and noise.
        prediction: what the network predicts: x0, epsilon, v or flow.
    """

    def __init__(
        self, task: Task, width: int = 128, depth: int = 3, updates: int = 4000, seed: int = 0, prediction: str = "v"
    ) -> None:
        check_in("prediction", prediction, PREDICTIONS)
        check_at_least("updates", updates, 1)
        self.task, self.width, self.depth, self.updates, self.seed = task, width, depth, updates, seed
        self.prediction = prediction

    @property
    def path(self) -> Path:
        """Where the trained weights are, or will be, cached."""
        kind = "labelled" if self.task.conditional else "plain"
        name = self.task.world.name
        noise = torch.stack(self.task.schedule(torch.linspace(0.0, 1.0, 4001))).numpy().tobytes()
        key: dict[str, Any] = {"world": name, "kind": kind, "schedule": hashlib.sha256(noise).hexdigest(), "version": 1}
        key |= {field: getattr(self, field) for field in ("width", "depth", "updates", "seed", "prediction")}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "teachers" / f"{name}-{kind}-{digest}.safetensors"

    def network(self) -> Student:
        """Return a fresh network, its weights fixed by the seed."""
        return _mlp(self.task, self.width, self.depth, self.prediction, self.seed)

    def train(self) -> Iterator[float]:
        """Train, yield the loss now and then, and cache the weights at the end."""
        network = self.network()
        generator = torch.Generator().manual_seed(self.seed)
        world = Matched(self.task.world)
        options: dict[str, Any] = {"conditional": self.task.conditional, "generator": generator}
        yield from train_teacher(network, world, self.task.schedule, self.updates, **options)
        save_weights(self.path, network)

    def load(self) -> Student:
        """Return the trained network, training it first where no cache has it."""
        if not self.path.exists():
            for _ in self.train():
                pass
        network = self.network()
        load_weights(self.path, network)
        return network


def learned_expert(task: Task, width: int = 128, depth: int = 3, updates: int = 4000, seed: int = 0) -> nn.Module:
    """A teacher network learned on the whole world by denoising score matching, trained once and cached."""
    return Teacher(task, width, depth, updates, seed).load().requires_grad_(False).eval()


def student_from_teacher(
    task: Task, width: int = 128, depth: int = 3, updates: int = 4000, teacher_seed: int = 0
) -> Student:
    """A student that starts from the learned teacher's weights, as the methods do; ``updates`` are the teacher's."""
    return Teacher(task, width, depth, updates, teacher_seed).load()


def fresh_student(task: Task, width: int = 128, depth: int = 3, prediction: str = "v", seed: int = 0) -> Student:
    """A student with weights of its own."""
    check_in("prediction", prediction, PREDICTIONS)
    return _mlp(task, width, depth, prediction, seed)


def box_threshold(task: Task) -> StaticThreshold:
    """Clamp to the box in which the whole world lies."""
    return StaticThreshold(-task.world.box, task.world.box)


def quantile_threshold(task: Task, quantile: float = 0.999, points: int = 20_000) -> QuantileBox:
    """Clamp each axis to the central ``quantile`` of samples of the whole world."""
    return QuantileBox.estimate(task.world.sample(points, torch.Generator().manual_seed(0)), quantile)


def _mlp(task: Task, width: int, depth: int, prediction: str, seed: int) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(size=task.shape[0], width=width, depth=depth, labels=task.labels)
    return Student(network, task.schedule, PREDICTIONS[prediction])
