"""Tasks of images: a data set, the part of it the student is shown, and a U-Net teacher that has learned all of it.

The name's dataset is one of :data:`WORLDS` (``digits-biased``, ``fashion14-matched-labelled``, ``avatars-matched``), or
the path of your own pictures (``photos/cats-matched``): a folder of pictures, a folder that ``datasets`` saved, or a
.npy or .npz file.

Samples are compared with held-out images in the features of a classifier trained on the same data, and scores are means
over parts of the held-out split's size: a Frechet distance depends on the number of images, and a small split must not
limit the number of samples. Below stand the parts that need such a task, as in :mod:`dagdiff.tasks.plane`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dagdiff.checkpoint import cache_folder, content_hash
from dagdiff.checks import Refusal, check_in, check_seed
from dagdiff.envs.avatars import avatars, avatars_by_glasses
from dagdiff.envs.datasets import is_dataset
from dagdiff.envs.image_files import hugging_face, image_arrays, image_folder
from dagdiff.envs.images import SETS, ImageWorld, digits, fashion_mnist
from dagdiff.envs.sets import Points
from dagdiff.expert import Expert
from dagdiff.jobs.awaited import awaited
from dagdiff.metrics.base import Metric
from dagdiff.metrics.classifier import Classifier, kept_classifier
from dagdiff.metrics.images import Agreement, ClassCounts, Diversity, Frechet, Kernel, PairedGaps
from dagdiff.metrics.samples import Energy, Neighbours
from dagdiff.metrics.standing import Standing, compare
from dagdiff.metrics.truth import Truth
from dagdiff.policies.prediction import PREDICTIONS
from dagdiff.policies.student import Student
from dagdiff.policies.unet import image_unet
from dagdiff.schedule import CosineSchedule, Schedule
from dagdiff.shapes import Condition, Times
from dagdiff.tasks import teachers
from dagdiff.tasks.base import Task
from dagdiff.tasks.names import Name

WORLDS: dict[str, Callable[[], ImageWorld]] = {
    "digits": digits,
    "fashion14": lambda: fashion_mnist(size=14),
    "fashion28": fashion_mnist,
    "avatars": avatars,
    "avatars-glasses": avatars_by_glasses,
}
"""The datasets that have a name, in the order of :data:`dagdiff.tasks.names.PICTURES`."""


@dataclass(frozen=True)
class ImageTask(Task):
    """A dataset of images. Its expert is learned, and its student starts as that expert."""

    world: ImageWorld
    data: Points
    metrics: ClassVar[tuple[Metric, ...]] = (
        Energy(by_parts=True), Frechet(by_parts=True), Kernel(by_parts=True), Neighbours(by_parts=True),
        ClassCounts(), Diversity(), PairedGaps(), Agreement(),
    )  # fmt: skip
    looked: ClassVar[tuple[Metric, ...]] = (Energy(by_parts=True), Frechet(by_parts=True), Diversity())
    nfes: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16)
    saved: ClassVar[int | None] = 64

    @cached_property
    def missing(self) -> list[int]:
        """The classes that the student is not shown."""
        shown = set() if self.data.labels is None else set(self.data.labels.tolist())
        return [each for each in range(self.world.labels) if each not in shown]

    @cached_property
    def classifier(self) -> Classifier:
        """The eye of the scores: trained once on the training split, and cached."""
        train = self.world.train
        assert train.labels is not None
        folder = cache_folder() / "classifiers"
        with awaited(folder / "training"):
            return kept_classifier(folder, train.points, train.labels)

    def reference(self, n: int, generator: torch.Generator) -> Tensor:
        """Held-out images, as many different ones as asked for or as there are."""
        return self.world.reference(min(n, len(self.world.test.points)), generator)

    def truth(
        self,
        n: int,
        generator: torch.Generator,
        chance: torch.Generator | None = None,
        asked: Tensor | None = None,
        paired: Tensor | None = None,
    ) -> Truth:
        """Return held-out images, and the classifier where images have classes."""
        reference = self.reference(min(n, len(self.world.train.points)), generator)
        if not self.world.labels:
            return Truth(reference, None, None, asked, paired, generator=chance)
        classifier = self.classifier.to(generator.device)
        return Truth(reference, None, classifier, asked, paired, tuple(self.missing), chance)

    def stand(self, student: Tensor, teacher: Tensor, truth: Truth) -> Standing:
        """Compare by the Frechet distance of features; without a classifier by the energy distance of pixels."""
        distance = Frechet(by_parts=True) if truth.classifier else Energy(by_parts=True)
        return compare(distance, student, teacher, truth)

    def real(self, n: int, generator: torch.Generator) -> Tensor:
        """Training images, ``(n, C, H, W)``, all of them before one comes again."""
        train = self.world.train.points
        device = generator.device
        orders = [torch.randperm(len(train), generator=generator, device=device) for _ in range(-(-n // len(train)))]
        return train[torch.cat(orders)[:n].to(train.device)].to(device)

    def pair(self, expert: Expert, noise: Tensor, times: Times, condition: Condition) -> Tensor:
        """What the expert makes of the same noise on the student's grid; its evaluations are not charged."""
        with expert.ledger.free():
            return expert.walk(noise, times, condition)[-1]

    def probes(self, samples: int) -> int:
        """A U-Net is too slow to measure the losses on thousands of chains."""
        return min(samples // 2, 128)


def make(name: Name, schedule: Schedule | None = None, settings: Any = None) -> ImageTask:
    """Return the task of a name that was read; of a run's settings it takes how own images are read.

    Raises:
        Refusal: if labels are asked for and there are none, or too few images are held out to score samples.
    """
    options = () if settings is None else (settings.size, settings.skip_broken, _pair(settings.value_range))
    world = image_world(name.world, *options)
    if name.labelled and not world.labels:
        raise Refusal(f"{name.world} has no labels, so there is no task {name.text!r}. Leave -labelled away.")
    held = min(len(world.train.points), len(world.test.points))
    if settings is not None and held < _FEWEST:
        raise Refusal(
            f"{name.world} shows {len(world.train.points)} images and holds out {len(world.test.points)}; samples are "
            f"scored against at least {_FEWEST}. Give {5 * _FEWEST} images, or a split test of {_FEWEST}."
        )
    shown = SETS[name.set](world)
    return ImageTask(name.text, world, shown, schedule or CosineSchedule(), name.labelled, world.shape)


def _pair(value_range: Any) -> tuple[float, float] | None:
    """A range as a tuple, whatever sequence settings hold; None where there is none."""
    return None if value_range is None else (float(value_range[0]), float(value_range[1]))


_FEWEST = 10
"""Held-out images below which neighbours and classes say nothing."""


@cache
def image_world(
    of: str, size: int | None = None, skip_broken: bool = False, value_range: tuple[float, float] | None = None
) -> ImageWorld:
    """Return the data set of that name, or the pictures at that path, cropped and scaled to the square of ``size``.

    ``value_range`` is black and white of a file of arrays.
    """
    path = Path(of)
    arrays = of in WORLDS or path.is_file()
    if size is not None and arrays:
        raise Refusal(f"size={size} is for pictures in a folder or data set; {of} has its own. Leave --size away.")
    if value_range is not None and (of in WORLDS or not arrays):
        raise Refusal(f"value_range is for a .npy or .npz file; pictures in {of} have a range. Leave it away.")
    if arrays:
        return WORLDS[of]() if of in WORLDS else image_arrays(path, value_range=value_range)
    if is_dataset(path):
        return hugging_face(of, size=size, skip_broken=skip_broken)
    return image_folder(path, size, skip_broken=skip_broken)


class Teacher(teachers.Teacher):
    """A U-Net to be learned on the whole training split, cached by the content hash of data and configuration.

    Args:
        task: the task whose dataset, schedule and classes it learns.
        channels: of each level of the U-Net, comma-separated; null takes what suits the image's size.
        layers: residual blocks a level.
        updates: of training.
        batch_size: images an update.
        lr: learning rate of Adam; it falls to 0.
        ema: decay of the averaged weights, which are the ones kept.
        seed: of weights, data and noise.
        prediction: what the network predicts: x0, epsilon, v or flow.
    """

    def __init__(
        self,
        task: ImageTask,
        channels: tuple[int, ...] | None = None,
        layers: int = 1,
        updates: int = 2000,
        batch_size: int = 128,
        lr: float = 2e-3,
        ema: float = 0.995,
        seed: int = 0,
        prediction: str = "v",
    ) -> None:
        training = {"updates": updates, "batch_size": batch_size, "lr": lr, "ema": ema}
        super().__init__(task, {"channels": channels, "layers": layers}, training, seed, prediction)

    def network(self) -> Student:
        """Return a fresh network, its weights fixed by the seed."""
        return _unet(self.task, self.options, self.prediction, self.seed)

    @property
    def data(self) -> Points:
        """The training split."""
        world: Any = self.task.world
        train: Points = world.train
        return train

    @property
    def content(self) -> dict[str, Any]:
        """The digest of the images, and of their classes."""
        classes = [] if self.data.labels is None else [self.data.labels]
        return {"data": content_hash(self.data.points, *classes)}


def unet_expert(
    task: ImageTask,
    channels: tuple[int, ...] | None = None,
    layers: int = 1,
    updates: int = 2000,
    batch_size: int = 128,
    seed: int = 0,
) -> nn.Module:
    """A U-Net teacher learned on the whole training split, trained once and cached.

    Args:
        task: whose images they are.
        channels: of each level of the U-Net, comma-separated; null takes what suits the image's size.
        layers: residual blocks a level.
        updates: of its training.
        batch_size: images an update of its training.
        seed: of its weights, data and noise.
    """
    teacher = Teacher(task, channels, layers, updates, batch_size, seed=seed)
    return teacher.load().requires_grad_(False).eval()


def unet_student(
    task: ImageTask,
    channels: tuple[int, ...] | None = None,
    layers: int = 1,
    updates: int = 2000,
    batch_size: int = 128,
    teacher_seed: int = 0,
) -> Student:
    """A student that starts from a U-Net teacher's weights, for experts that are no network.

    Args:
        task: whose images they are.
        channels: of each level of the U-Net, comma-separated; null takes what suits the image's size.
        layers: residual blocks a level.
        updates: of the teacher's training.
        batch_size: images an update of the teacher's training.
        teacher_seed: of the teacher's weights, data and noise.
    """
    check_seed("teacher_seed", teacher_seed)
    return Teacher(task, channels, layers, updates, batch_size, seed=teacher_seed).load()


def fresh_unet(
    task: ImageTask, channels: tuple[int, ...] | None = None, layers: int = 1, prediction: str = "v", seed: int = 0
) -> Student:
    """A U-Net student with weights of its own.

    Args:
        task: whose images they are.
        channels: of each level of the U-Net, comma-separated; null takes what suits the image's size.
        layers: residual blocks a level.
        prediction: what the network predicts: x0, epsilon, v or flow.
        seed: of its weights.
    """
    check_in("prediction", prediction, PREDICTIONS)
    return _unet(task, {"channels": channels, "layers": layers}, prediction, seed)


def _unet(task: Task, options: dict[str, Any], prediction: str, seed: int) -> Student:
    if not isinstance(task, ImageTask):
        raise Refusal(f"{task.name!r} is of points, and a U-Net is for images. Leave --policy and --expert away.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_seed("seed", seed))
        network = image_unet(task.shape, task.labels, **options)
    return Student(network, task.schedule, PREDICTIONS[prediction])
