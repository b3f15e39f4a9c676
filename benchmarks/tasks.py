"""Tasks: a named world to distil in. It knows the whole law, the part of it the student is shown, and an expert.

The name is ``world-set`` or ``world-set-labelled``: ``grid25-biased`` shows the student one half of the 5 x 5 grid, and
``gaussians8-matched-labelled`` conditions every chain on its mode. The expert always knows the whole world. The world
may also be a data set of images (``digits-biased``), or the folder or file of your own (``photos/cats-matched``): see
:mod:`dagdiff.benchmarks.image_tasks`. The name ``pipeline`` is a diffusers pipeline's, which is named beside it: see
:mod:`dagdiff.benchmarks.pipeline_tasks`.

Below stand the parts that need a task in the plane to be built, as classes or functions whose first parameter is
``task``. Parts of your own follow the same rule.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from dagdiff.checkpoint import cache_folder, load_weights, save_weights
from dagdiff.checks import Refusal, check_at_least, check_in, check_seed
from dagdiff.envs import images
from dagdiff.envs.sets import SETS
from dagdiff.envs.toy2d import WORLDS, World, world
from dagdiff.expert import Expert
from dagdiff.identity import VERSIONS
from dagdiff.metrics.samples import energy_distance, score
from dagdiff.metrics.standing import Standing, compare
from dagdiff.parts import resolve
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.prediction import PREDICTIONS
from dagdiff.rollout import Data
from dagdiff.schedule import CosineSchedule, Schedule
from dagdiff.shapes import Condition, Denoiser, Times
from dagdiff.teacher import train_teacher
from dagdiff.threshold import DynamicThreshold, Fold, QuantileBox, StaticThreshold

if TYPE_CHECKING:  # it needs diffusers
    from dagdiff.benchmarks.pipeline_data import PipelineWorld


@dataclass(frozen=True)
class Task:
    """A world, the data the student is shown, the noise schedule, and whether chains are conditioned on labels."""

    name: str
    world: "World | images.ImageWorld | PipelineWorld"
    data: Data
    schedule: Schedule
    conditional: bool = False
    shape: tuple[int, ...] = (2,)
    nfes: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32, 64)
    """The numbers of steps at which a suite scores the expert's own chain."""
    kept: ClassVar[int | None] = None
    """How many of a run's samples a suite keeps on disk; None for all."""

    @property
    def labels(self) -> int:
        """Number of classes that condition a chain; 0 for unconditional tasks."""
        return self.world.labels if self.conditional else 0

    @property
    def conditions(self) -> Callable[[int, torch.Generator | None], Tensor] | None:
        """Draws the labels of new chains by the world's own weights; None for unconditional tasks."""
        return (lambda n, generator: self.world.sample_labelled(n, generator)[1]) if self.conditional else None

    def reference(self, n: int, generator: torch.Generator) -> Tensor:
        """Clean points of the whole law that samples are compared with, ``(n, *D)``, or fewer if there are no more."""
        return self.world.reference(n, generator)

    def judge(
        self,
        samples: Tensor,
        truth: torch.Generator,
        chance: torch.Generator,
        asked: Tensor | None = None,
        paired: Tensor | None = None,
    ) -> dict[str, float]:
        """Score samples by every metric of this kind of task.

        Args:
            samples: ``(n, *D)``.
            truth: draws the reference.
            chance: of what the metrics themselves draw.
            asked: the labels that the samples were to show, ``(n,)``.
            paired: the expert's samples from the same noise, ``(m, *D)`` with m at most n, of the first rows.
        """
        return score(samples, self.reference(len(samples), truth), self.world.mixture, chance)

    def stand(self, student: Tensor, teacher: Tensor, truth: torch.Generator, paired: Tensor | None) -> Standing:
        """Compare a student's samples with its teacher's in as many steps, by the metric that judges such tasks.

        Both are ``(n, *D)``, from the same noise; ``truth`` and ``paired`` as in :meth:`judge`.
        """
        return compare("energy", energy_distance, student, teacher, self.reference(len(student), truth))

    def real(self, n: int, generator: torch.Generator) -> Tensor:
        """Real points to be scored as if they were samples, ``(n, *D)``: the floor."""
        return self.world.sample(n, generator)

    def pair(self, expert: Expert, noise: Tensor, times: Times, condition: Condition) -> Tensor | None:
        """What the expert makes of the same noise, if samples are compared one by one; in the plane they are not."""
        return None

    def probes(self, samples: int) -> int:
        """How many chains measure the held-out losses, where so many samples are scored."""
        return samples // 2

    def pictures(self, points: Tensor) -> Tensor:
        """Return what points look like, for figures: themselves, unless they are latents."""
        return points


PIPELINE = "pipeline"
"""The name of the task whose teacher is a diffusers pipeline."""


def task_names() -> list[str]:
    """Every task's name, those of your own images and of pipelines apart."""
    toys = [f"{name}-{part}" for name in WORLDS for part in SETS]
    toys += [f"{name}-{part}-labelled" for name in WORLDS if world(name).labels for part in SETS]
    seen = [f"{name}-{part}" for name in images.WORLDS for part in images.SETS]
    return toys + seen + [f"{name}-labelled" for name in seen]


def shows_images(name: str) -> bool:
    """Whether the task of that name is one of images."""
    of = split_name(name)[0]
    return of in images.WORLDS or (bool(of) and of not in WORLDS and Path(of).exists())


def check_task(name: str) -> str:
    """Return a task's name; refuse an unknown one with the nearest name."""
    if shows_images(name):
        check_in("set", split_name(name)[1], images.SETS)
        return name
    return check_in("task", name, [*task_names(), PIPELINE])


def usual_parts(task: str, expert: str | None = None) -> dict[str, str]:
    """Return the parts that a run of a task takes when it names none.

    A student starts as its expert, where that is a network. Beside a closed form it starts from a learned teacher.

    Args:
        task: its name.
        expert: the one that the run names, if it does.
    """
    if task == PIPELINE:
        return {"expert": expert or "pipeline", "policy": "pipeline", "threshold": "teacher"}
    of = split_name(task)[0]
    learned, beside = ("unet", "unet") if shows_images(task) else ("learned", "teacher")
    mine = expert or ("exact" if of in WORLDS and world(of).mixture else learned)
    kind = resolve("expert", mine)
    network = mine == learned or (inspect.isclass(kind) and issubclass(kind, nn.Module))
    return {"expert": mine, "policy": "expert" if network else beside}


def split_name(name: str) -> tuple[str, str, bool]:
    """Split a task's name into world, set, and whether chains are labelled."""
    of, _, part = name.removesuffix("-labelled").rpartition("-")
    return of, part, name.endswith("-labelled")


def make_task(name: str, schedule: Schedule | None = None, settings: Namespace | None = None) -> Task:
    """Return the task of that name; refuse an unknown one with the nearest name.

    Args:
        name: of the task.
        schedule: of noise; None takes the task's usual one.
        settings: of the run; only a pipeline reads them.
    """
    of, part, labelled = split_name(check_task(name))
    if name == PIPELINE:
        from dagdiff.benchmarks.pipeline_tasks import pipeline_task  # only they need diffusers

        return pipeline_task(schedule, settings)
    schedule = schedule or CosineSchedule()
    if shows_images(name):
        from dagdiff.benchmarks.image_tasks import image_task  # only they need diffusers

        return image_task(name, of, part, schedule, labelled)
    law = world(of)
    return Task(name, law, SETS[part](law), schedule, conditional=labelled)


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
        check_seed("seed", seed)
        self.task, self.width, self.depth, self.updates, self.seed = task, width, depth, updates, seed
        self.prediction = prediction

    @property
    def path(self) -> Path:
        """Where the trained weights are, or will be, cached."""
        fields = ("width", "depth", "updates", "seed", "prediction")
        return teacher_path(
            self.task, {"version": VERSIONS["teacher"], **{field: getattr(self, field) for field in fields}}
        )

    def network(self) -> Student:
        """Return a fresh network, its weights fixed by the seed."""
        return _mlp(self.task, self.width, self.depth, self.prediction, self.seed)

    def train(self, device: torch.device | str = "cpu") -> Iterator[float]:
        """Train, yield the loss now and then, and cache the weights at the end."""
        network = self.network().to(device)
        generator = torch.Generator(device).manual_seed(self.seed)
        options: dict[str, Any] = {"conditional": self.task.conditional, "generator": generator}
        yield from train_teacher(network, self.task.world, self.task.schedule, self.updates, **options)
        save_weights(self.path, network)

    def load(self) -> Student:
        """Return the trained network, training it first where no cache has it."""
        if not self.path.exists():
            for _ in self.train():
                pass
        network = self.network()
        load_weights(self.path, network)
        return network


def teacher_of(name: str) -> Any:
    """Return the class of the teacher that a task of this name learns from."""
    if not shows_images(name):
        return Teacher
    from dagdiff.benchmarks.image_tasks import UNetTeacher  # only they need diffusers

    return UNetTeacher


def teacher_path(task: Task, options: dict[str, Any]) -> Path:
    """Return where the weights of a teacher with these options are cached: a content hash tells teachers apart."""
    kind = "labelled" if task.conditional else "plain"
    times = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    noise = [[f"{value:.4f}" for value in values.tolist()] for values in task.schedule(times)]
    key = {"world": task.world.name, "kind": kind, "schedule": noise, **options}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "teachers" / f"{task.world.name}-{kind}-{digest}.safetensors"


def learned_expert(task: Task, width: int = 128, depth: int = 3, updates: int = 4000, seed: int = 0) -> nn.Module:
    """A teacher network learned on the whole world by denoising score matching, trained once and cached.

    Args:
        task: whose world it is.
        width: units of each hidden layer.
        depth: hidden layers.
        updates: of its training.
        seed: of its weights, data and noise.
    """
    return Teacher(task, width, depth, updates, seed).load().requires_grad_(False).eval()


def student_from_expert(expert: Denoiser) -> nn.Module:
    """A student that starts from the expert's own network, as the methods do; the expert must be a network.

    Args:
        expert: the run's.
    """
    if not isinstance(expert, nn.Module):
        raise Refusal(
            f"the expert, a {type(expert).__name__}, is no torch.nn.Module, so no student can start from it. "
            "Pass --policy teacher, unet or fresh, or a policy of your own."
        )
    return copy.deepcopy(expert).requires_grad_(True).train()


def student_from_teacher(
    task: Task, width: int = 128, depth: int = 3, updates: int = 4000, teacher_seed: int = 0
) -> Student:
    """A student that starts from a learned teacher's weights, for experts that are no network.

    Args:
        task: whose world it is.
        width: units of each hidden layer.
        depth: hidden layers.
        updates: of the teacher's training.
        teacher_seed: of the teacher's weights, data and noise.
    """
    return Teacher(task, width, depth, updates, check_seed("teacher_seed", teacher_seed)).load()


def fresh_student(task: Task, width: int = 128, depth: int = 3, prediction: str = "v", seed: int = 0) -> Student:
    """A student with weights of its own.

    Args:
        task: whose world it is.
        width: units of each hidden layer.
        depth: hidden layers.
        prediction: what the network predicts: x0, epsilon, v or flow.
        seed: of its weights.
    """
    check_in("prediction", prediction, PREDICTIONS)
    return _mlp(task, width, depth, prediction, seed)


def box_threshold(task: Task) -> StaticThreshold:
    """Clamp to the box in which the whole world lies."""
    return StaticThreshold(-task.world.box, task.world.box)


def dynamic_threshold(task: Task, quantile: float = 0.995) -> DynamicThreshold:
    """Clamp each row to its own quantile, the box in which the whole world lies at least, and rescale to the box.

    Args:
        task: whose world it is.
        quantile: of a row's absolute values.
    """
    return DynamicThreshold(quantile, task.world.box)


def fold_threshold(task: Task) -> Fold:
    """Reflect at the walls of the box in which the whole world lies."""
    return Fold(-task.world.box, task.world.box)


def quantile_threshold(task: Task, quantile: float = 0.999, points: int = 20_000) -> QuantileBox:
    """Clamp each axis to the central ``quantile`` of samples of the whole world."""
    return QuantileBox.estimate(task.world.sample(points, torch.Generator().manual_seed(0)), quantile)


def _mlp(task: Task, width: int, depth: int, prediction: str, seed: int) -> Student:
    if len(task.shape) > 1:
        raise Refusal(f"{task.name!r} is of images, an MLP is for points. Leave --policy and --expert away.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_seed("seed", seed))
        network = MLP(size=task.shape[0], width=width, depth=depth, labels=task.labels)
    return Student(network, task.schedule, PREDICTIONS[prediction])
