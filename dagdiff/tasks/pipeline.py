"""The task ``pipeline``: distil a diffusers pipeline that somebody has trained, from a folder or from the hub.

The pipeline's network is the expert, and the student starts as a copy of it (``--policy pipeline``), as that network
with low-rank adapters (``--policy lora``), or as a few-step model that is there already (``--policy FOLDER``). Schedule
and threshold are the teacher's own; states are its pixels or latents, conditions its classes or the prompts that are
given; what stands for data is said in :mod:`dagdiff.tasks.pipeline_data`. The pipeline is read once in a process.

There is no labelled test set, so samples are scored by the teacher: ``state_gap`` is the mean squared distance to what
it makes of the same noise, and ``energy`` the energy distance to its samples from other noise. The gap suits students
that follow the expert's path; those of Renoise laws (LCM, DMD2) add noise of their own on the way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.engine import find_device
from dagdiff.expert import Guide
from dagdiff.metrics.base import Metric
from dagdiff.metrics.samples import Energy
from dagdiff.metrics.standing import Standing, compare
from dagdiff.metrics.teacher import TeacherSamples
from dagdiff.metrics.truth import Truth
from dagdiff.pipelines.families.named import named_family
from dagdiff.pipelines.few_step import with_lora
from dagdiff.pipelines.fingerprint import fingerprint
from dagdiff.pipelines.latents import Pixels
from dagdiff.pipelines.pictures import is_arrays, told_prompts
from dagdiff.pipelines.pretrained import DiffusersExpert, as_prompts
from dagdiff.pipelines.schedulers import usual_times
from dagdiff.pipelines.suited import check_many_steps
from dagdiff.pipelines.weights import Range, WeightedBank, guided_in
from dagdiff.policies.student import Student
from dagdiff.schedule import Schedule
from dagdiff.shapes import Condition, Times
from dagdiff.tasks.base import Task
from dagdiff.tasks.images import ImageTask
from dagdiff.tasks.names import Name
from dagdiff.tasks.pipeline_data import PipelineWorld, own_samples
from dagdiff.tasks.pipeline_images import encoded_images
from dagdiff.threshold import Threshold
from dagdiff.transition import Transition


@dataclass
class PipelineSettings:
    """What is distilled.

    Args:
        path: a folder that save_pretrained wrote, or a hub id.
        prompts: of a text-to-image pipeline: a file with a prompt a line, a table (.csv, .tsv, .jsonl), or a saved bank
            of embeddings (.safetensors); null takes the captions of the images, or the names of their classes.
        prompt_column: of a table of prompts, or of the captions in metadata.jsonl; null takes prompt, caption or text.
        images: pictures for forward states: a folder, a file of arrays, webdataset shards (x.tar, a folder of such, or
            shards/{000..003}.tar), or hf:SOURCE of a data set to be streamed; null takes the teacher's own samples.
        dtype: of the expert's weights: float32, bfloat16 or float16; the autoencoder's stay in float32.
        variant: of the weight files, such as fp16.
        allow_pickle: read weights from pickles (.bin) where there are no safetensors; a pickle can run code.
        sample_size: the side of the states, where it is not the network's usual one.
        null_class: the class that stands for none, where the network was trained with one.
        own_samples: how many samples the teacher draws where there are no images.
        own_steps: the steps of each of them.
        timesteps: at which the student asks its network, falling, e.g. 999,749,499,249; null takes those that its
            pipeline's own call will run. Not named, a few-step start keeps its own.
        family: how its network is asked: the class of a network that dagdiff serves, or the import path of a family of
            your own; null finds it by the network's class.
        few_step: take a teacher that seems to be a few-step model itself.
        lora: a file or folder of adapters that are added to the expert's weights, e.g. a style that was trained on it.
    """

    path: str | None = None
    prompts: str | None = None
    prompt_column: str | None = None
    images: str | None = None
    dtype: str = "float32"
    variant: str | None = None
    allow_pickle: bool = False
    sample_size: int | None = None
    null_class: int | None = None
    own_samples: int = 256
    own_steps: int = 50
    timesteps: list[float] | None = None
    family: str | None = None
    few_step: bool = False
    lora: str | None = None


@dataclass(frozen=True)
class PipelineTask(Task):
    """A pipeline to be distilled."""

    world: PipelineWorld
    data: PipelineWorld
    teacher: DiffusersExpert = field(kw_only=True)
    timesteps: tuple[float, ...] | None = field(default=None, kw_only=True)
    few_step: bool = field(default=False, kw_only=True)
    path: str = field(default="", kw_only=True)
    images: str | None = field(default=None, kw_only=True)
    metrics: ClassVar[tuple[Metric, ...]] = (TeacherSamples(),)
    looked: ClassVar[tuple[Metric, ...]] = (Energy(),)
    nfes: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16)
    saved: ClassVar[int | None] = 64
    pair = ImageTask.pair

    @property
    def conditions(self) -> Any:
        """Draws the prompts or classes of new chains, each as likely; None for unconditional pipelines."""
        return self.world.conditions if self.conditional else None

    @property
    def base(self) -> dict[str, str]:
        """Hashes of the pipeline's network and autoencoder, the same on every device."""
        network, autoencoder = self.teacher.network.body, self.teacher.autoencoder
        parts = {"network": network} | ({} if isinstance(autoencoder, Pixels) else {"autoencoder": autoencoder.vae})
        return {name: fingerprint(part) for name, part in parts.items()}

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the bank, by their numbers; none of a bank of embeddings alone."""
        return getattr(self.teacher.network.conditions, "prompts", ())

    def reference(self, n: int, generator: torch.Generator) -> Tensor:
        """Held-out points, as many different ones as asked for or as there are."""
        return self.world.reference(min(n, len(self.world.splits[1].points)), generator)

    def stand(self, student: Tensor, teacher: Tensor, truth: Truth) -> Standing:
        """Compare by the energy distance to the teacher's long chains from other noise, as the samples' score does."""
        if truth.paired is None:
            return super().stand(student, teacher, truth)
        p, reference = len(truth.paired), truth.paired.to(student.device)
        return compare(Energy(), student[p:], teacher[p:], replace(truth, reference=reference, paired=None))

    def check_training(self) -> None:
        """Refuse a few-step model as the teacher, and prompts that are too long for its encoders."""
        if not self.few_step:
            check_many_steps(self.path, self.teacher.few_step, "--pipeline.few_step")
        if self.teacher.cut_off is not None:
            raise Refusal(self.teacher.cut_off)

    @property
    def real_data(self) -> bool:
        """Pictures, or data of another kind that a run names."""
        return self.images is not None or self.data is not self.world

    @property
    def guide(self) -> Guide:
        """As the pipeline's own call guides."""
        return self.teacher.guide

    def unmet(self, guidance: float | Range) -> float | Callable[[Tensor], Tensor]:
        """Return 1 of a network that is told the weight itself, and of a range what tells the weights of conditions."""
        return self.teacher.unmet(guidance)

    def numbers(self, condition: Tensor) -> Tensor:
        """Return the prompts' numbers without the weights of guidance beside them."""
        bank = self.teacher.network.conditions
        return bank.numbers(condition) if isinstance(bank, WeightedBank) else condition

    def weights(self, condition: Tensor) -> Tensor | None:
        """Return the weights of guidance that conditions hold, if the student is told any."""
        bank = self.teacher.network.conditions
        return bank.weights(condition) if isinstance(bank, WeightedBank) else None

    def weighted(self, condition: Condition, weight: float) -> Condition:
        """Return the same prompts at one weight of guidance."""
        bank = self.teacher.network.conditions
        if condition is None or not isinstance(bank, WeightedBank):
            return super().weighted(condition, weight)
        low, high = bank.range
        if not low <= float(torch.tensor(weight)) <= high:
            raise Refusal(
                f"--guidance {weight:g} lies outside {low:g},{high:g}, for which this student was trained. Pass one "
                "between."
            )
        return bank.at(self.numbers(condition), weight)

    def probes(self, samples: int) -> int:
        """Half of the samples are paired with the teacher's, 32 at most."""
        return min(samples // 2, 32)

    def grid(self, steps: int, transition: Transition) -> Times:
        """The times that the exported student's pipeline will visit: the teacher's own grid, or the named one."""
        return usual_times(transition, self.teacher.network.law, steps, self.timesteps)

    @torch.no_grad()
    def pictures(self, points: Tensor) -> Tensor:
        """Return what states look like: images ``(B, C, H, W)``, decoded where they are latents."""
        teacher = self.teacher.to(points.device)
        return teacher.autoencoder.decode(points)


def make(name: Name, schedule: Schedule | None, settings: Any, training: bool = True) -> PipelineTask:
    """Return the task of a run's settings (``settings.pipeline``, ``guidance`` and ``device`` are read).

    Args:
        name: of the task.
        schedule: of noise; it must be None.
        settings: of the run.
        training: whether all prompts are embedded now; else each is when a network is asked with it.

    Raises:
        Refusal: if the pipeline is not named or can't be had, is told a schedule, or lacks prompts or images.
    """
    if settings is None:
        raise Refusal("a pipeline is its own teacher: there is none to train. Use dagdiff distill --task pipeline.")
    chosen: Any = settings.pipeline
    if settings.size is not None:
        raise Refusal(
            "--size is not for a pipeline: pictures take its own size. Pass --pipeline.sample_size, or nothing."
        )
    if schedule is not None:
        raise Refusal("--schedule is not for a pipeline: its network knows one schedule, its own. Leave it away.")
    teacher = load_teacher(chosen, settings.device, settings.guidance, training)
    conditions: Any = teacher.network.conditions
    probe = conditions.draw(1)
    if probe is not None and int(probe) < 0:
        raise Refusal(
            f"{chosen.path!r} is asked with prompts. Give a file of them: --pipeline.prompts prompts.txt, or "
            "pictures with captions or in folders of classes: --pipeline.images FOLDER."
        )
    if probe is None and settings.guidance != 1.0:
        raise Refusal(f"{chosen.path!r} takes no condition, so guidance has nothing to weigh. Leave --guidance away.")
    reach = settings.value_range
    if reach is not None and (chosen.images is None or not is_arrays(chosen.images)):
        raise Refusal("value_range is for --pipeline.images with a .npy or .npz file. Leave it away.")
    if chosen.images is None:
        weight = teacher.unmet(settings.guidance)
        read = partial(own_samples, teacher, chosen.own_samples, chosen.own_steps, weight)
    else:
        told = chosen.images, chosen.prompt_column, settings.skip_broken, reach and (reach[0], reach[1])
        read = partial(encoded_images, teacher, *told)
    world = PipelineWorld(
        Path(chosen.path).name, conditions.draw, read, latent=not isinstance(teacher.autoencoder, Pixels),
        told=getattr(conditions, "told", None),
    )  # fmt: skip
    return PipelineTask(
        name.text, world, world, teacher.schedule, probe is not None, tuple(teacher.shape), teacher=teacher,
        timesteps=None if chosen.timesteps is None else tuple(chosen.timesteps), few_step=chosen.few_step,
        path=chosen.path, images=chosen.images,
    )  # fmt: skip


def load_teacher(chosen: Any, device: str, guidance: float | Range = 1.0, training: bool = True) -> DiffusersExpert:
    """Return the teacher that :class:`PipelineSettings` name, on the device of that name; each is read only once.

    A network that is told a weight of guidance is told ``guidance``; of a range, conditions hold a weight each. A run
    that is not to be trained keeps its prompts, captions among them, in its folder: pictures are not asked again, and
    prompts are embedded as they are asked for.
    """
    if not chosen.path:
        raise Refusal("no pipeline is named. Pass --pipeline.path FOLDER, or a hub id.")
    kept = not training and chosen.prompts
    images = None if kept else chosen.images
    captions = tuple(told_prompts(images, chosen.prompt_column, classes=not chosen.prompts))
    text = (chosen.prompts, chosen.prompt_column, captions)
    told = (chosen.sample_size, chosen.null_class, chosen.dtype, chosen.variant, chosen.allow_pickle)
    more = (str(find_device(device)), chosen.family, guidance, chosen.lora, not training)
    return _loaded(chosen.path, *text, *told, *more)


@lru_cache(maxsize=2)
def _loaded(
    path: str, prompts: str | None, column: str | None, captions: tuple[str, ...], sample_size: int | None,
    null_class: int | None, dtype: str, variant: str | None, allow_pickle: bool, device: str,
    family: str | None = None, guidance: float | Range = 1.0, lora: str | None = None, asked: bool = False,
) -> DiffusersExpert:  # fmt: skip
    wanted = () if prompts is None else as_prompts(Path(prompts), column)
    teacher = DiffusersExpert.from_pretrained(
        path, wanted, sample_size, null_class, dtype, device, variant,
        None if family is None else named_family(family), allow_pickle, captions, asked,
    )  # fmt: skip
    if isinstance(guidance, tuple):
        guided_in(teacher, guidance, path)
    else:
        teacher.guided(guidance)
    return with_lora(teacher, path, lora, variant, allow_pickle) if lora else teacher


def pipeline_expert(task: Task) -> nn.Module:
    """The pipeline's own network, frozen: the very one that the student was copied from."""
    teacher = teacher_of(task)
    return Student(teacher.network, teacher.schedule, teacher.prediction)


def teacher_threshold(task: Task) -> Threshold:
    """The range of clean data that the pipeline's scheduler tells; none for latents."""
    return teacher_of(task).threshold


def teacher_of(task: Task) -> DiffusersExpert:
    """The teacher of a pipeline's task.

    Raises:
        Refusal: for another task.
    """
    if not isinstance(task, PipelineTask):
        raise Refusal(f"{task.name!r} is no pipeline. Pass --task pipeline with --pipeline.path, or another part.")
    return task.teacher
