"""What stands for data where a pipeline is distilled: your own images, or samples that its network draws itself.

Forward states are noised clean points. *Images* are read, cropped to the pipeline's size and encoded once, with their
captions as prompts if there are any; a fifth of them is held out. Without images the teacher draws its *own samples*:
distillation then needs no data but the prompts, and a student is shown exactly the law that its teacher has. They cost
one long chain each, are drawn when they are first needed, and are kept in the cache, the prompts that they show beside
them; a fifth is held out here too.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dagdiff.checkpoint import cache_folder, content_hash, kept_tensors, read_state, save_state
from dagdiff.checks import Refusal, check_at_least
from dagdiff.envs.datasets import is_dataset, text_column
from dagdiff.envs.image_files import Labels, hugging_face, image_arrays, image_folder
from dagdiff.envs.picture_files import Found
from dagdiff.envs.sets import Points
from dagdiff.expert import Expert
from dagdiff.jobs.awaited import awaited
from dagdiff.jobs.deferred import deferred
from dagdiff.jobs.pace import Pace
from dagdiff.jobs.stops import Stopped
from dagdiff.pipelines.captions import Captions, in_words, read_captions
from dagdiff.pipelines.conditions import Labels as Classes
from dagdiff.pipelines.conditions import PromptBank
from dagdiff.pipelines.fingerprint import fingerprint
from dagdiff.pipelines.latents import Pixels
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.prompt_files import USUAL
from dagdiff.pipelines.schedulers import usual_times
from dagdiff.progress import Progress
from dagdiff.schedule import FlowSchedule, step_grid
from dagdiff.shapes import Times
from dagdiff.transition import Ddim

HELD_OUT = 0.2
"""The part of the clean points that nobody is trained on."""

Splits = tuple[Points, Points]
"""What the student is shown, and what is held out."""


class PipelineWorld:
    """Clean states of a pipeline, ``(N, C, H, W)``: pixels, or latents.

    Args:
        name: of the pipeline.
        conditions: draws a condition for each of n rows, or None.
        read: brings the points when they are first needed.
        latent: whether they are latents, which have no natural range.
        told: gives a weight of guidance to the conditions of points that hold none, where chains have one each.
    """

    mixture = None
    labels = 0

    def __init__(
        self, name: str, conditions: Callable[[int, Generator | None], Tensor | None], read: Callable[[], Splits],
        latent: bool, told: Callable[[Tensor, Generator | None], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.conditions, self.read, self.latent, self.told = name, conditions, read, latent, told

    @cached_property
    def splits(self) -> Splits:
        """The points that are shown and those that are held out; the first look may take a while."""
        return self.read()

    @property
    def box(self) -> float:
        """Half the side of the box in which pixels lie; rejected for latents."""
        if self.latent:
            raise Refusal("latents lie in no box. Leave --threshold away, or take --threshold quantile.")
        return 1.0

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` of the points that are shown, with replacement."""
        return self.splits[0].sample(n, generator)

    def sample_labelled(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw points with conditions: those they were drawn for, or, of images without captions, any."""
        shown = self.splits[0]
        if shown.labels is not None:
            points, labels = shown.sample_labelled(n, generator)
            return points, labels if self.told is None else self.told(labels, generator)
        points, condition = shown.sample(n, generator), self.conditions(n, generator)
        assert condition is not None
        return points, condition

    def reference(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` different held-out points; reject more than there are."""
        held = self.splits[1].points
        if not 2 <= n <= len(held):
            raise Refusal(
                f"{self.name!r} holds out {len(held)} points; asked for {n} different ones. Ask for fewer "
                "(--num), or give more images or --pipeline.own_samples."
            )
        device = generator.device if generator else None
        rows = torch.randperm(len(held), generator=generator, device=device)[:n]
        return held[rows.to(held.device)].to(rows.device)


def encoded_images(
    teacher: DiffusersExpert,
    path: Path,
    column: str | None = None,
    skip_broken: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Splits:
    """Return the states of images, shown and held out; encoded once and cached.

    Captions beside pictures become their conditions, by their numbers among the teacher's prompts; where there are
    none, their classes do: as prompts, if these are among the teacher's, or as the classes of its network.

    Args:
        teacher: whose states they become.
        path: a folder of pictures or of a data set, which are cropped in their middle to the pipeline's size, or a file
            of arrays.
        column: of captions in a ``metadata`` file or a data set; None takes the one called prompt, caption or text.
        skip_broken: leave out pictures that can't be read.
        value_range: black and white of a file of arrays, where its numbers leave it open.

    Raises:
        Refusal: if there are none, a file's are of another size than the pipeline's, a caption is not among the
            prompts, or their classes can't be told to be the network's.
    """
    if not path.exists():
        raise Refusal(f"no images at {path}. Name a folder of pictures, or a .npy or .npz file.")
    conditions = teacher.network.conditions
    height, width = teacher.autoencoder.image_shape[1:]
    prompts = conditions.prompts if isinstance(conditions, PromptBank) else ()
    if path.is_file() or is_dataset(path):
        text = text_column(str(path), USUAL, column) if prompts and path.is_dir() else None
        world = (
            image_arrays(path, HELD_OUT, value_range=value_range)
            if path.is_file()
            else hugging_face(str(path), None, text, (height, width), HELD_OUT, skip_broken=skip_broken)
        )
        numbers = _numbers(conditions, world.classes)
        if numbers is None and text is not None:
            raise Refusal(
                f"captions in column {text!r} of {path} are not among the prompts. Embed them with the others."
            )
        shown, held = (
            Points(_encoded(teacher, split.points), None if numbers is None else torch.tensor(numbers)[split.labels])
            for split in (world.train, world.test)
        )
        return shown, held

    def labelling(found: Found) -> Labels | None:
        captions = read_captions(path, found, column) if prompts else None
        if captions is not None:
            return _among(prompts, captions, path)
        kinds = sorted(set(found.classes))
        numbers = _numbers(conditions, kinds)
        if numbers is None:
            return None
        place = dict(zip(kinds, numbers, strict=True))
        names = prompts or tuple(map(str, range(max(numbers) + 1)))
        return Labels([place[kind] for kind in found.classes], names)

    world = image_folder(path, (height, width), HELD_OUT, skip_broken=skip_broken, labelling=labelling)
    shown, held = (Points(_encoded(teacher, split.points), split.labels) for split in (world.train, world.test))
    return shown, held


def _numbers(conditions: nn.Module, kinds: Sequence[str]) -> list[int] | None:
    """The conditions that classes stand for; None where there are none, or they say nothing to the teacher."""
    if not any(kinds):
        return None
    if isinstance(conditions, Classes):
        return conditions.numbers(kinds)
    numbers = {prompt: number for number, prompt in enumerate(getattr(conditions, "prompts", ()))}
    words = kinds if set(kinds) <= set(numbers) else [in_words(kind) for kind in kinds]
    return [numbers[word] for word in words] if set(words) <= set(numbers) else None


def _among(prompts: Sequence[str], captions: Captions, path: Path) -> Labels:
    """The numbers of captions among a teacher's prompts."""
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    strange = [text for text in captions.texts if text not in numbers]
    if strange:
        raise Refusal(
            f"{len(strange)} captions in {path} are not among the prompts, such as {strange[0][:80]!r}. Embed them "
            "with the others, or take the captions away."
        )
    return Labels([numbers[text] for text in captions.texts], tuple(prompts), "caption", captions.files)


def own_samples(
    teacher: DiffusersExpert,
    count: int,
    steps: int,
    guidance: float | Callable[[Tensor], Tensor] = 1.0,
    at_once: int = 8,
) -> Splits:
    """Return ``count`` samples of the teacher, shown and held out, with their conditions; drawn once and cached.

    They are the ends of its own DDIM chains of ``steps`` steps, ``at_once`` of them together: on the uniform grid, or,
    of rectified flow, on that of its pipeline.
    """
    check_at_least("own_samples", count, 10)
    check_at_least("own_steps", steps, 1)
    noise = content_hash(*teacher.schedule(_own_grid(teacher, steps)))
    embedded = teacher.network.family.embedded(teacher.network.body.config)
    weight = getattr(teacher.network.conditions, "range", guidance if embedded is None else embedded)
    told = teacher.prediction.name, tuple(teacher.shape), count, weight, teacher.threshold
    key = f"{fingerprint(teacher.network)} {noise} {told}"
    path = cache_folder() / "pipelines" / f"{content_hash(key)[:16]}.safetensors"
    with awaited(path):
        part = path.with_suffix(".part")
        found = kept_tensors(path, lambda: _drawn(teacher, count, steps, guidance, at_once, part))
        part.unlink(missing_ok=True)
    points, labels = found["points"], found.get("labels")
    cut = count - max(2, round(HELD_OUT * count))
    parts = (slice(None, cut), slice(cut, None))
    shown, held = (Points(points[part], None if labels is None else labels[part]) for part in parts)
    return shown, held


def _encoded(teacher: DiffusersExpert, images: Tensor) -> Tensor:
    """Images as states, on the CPU, in as many channels as the pipeline has; colours become greys where it has one."""
    autoencoder = teacher.autoencoder
    channels = autoencoder.image_shape[0]
    images = images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else images
    if channels == 1 and images.shape[1] == 3:  # luma of ITU-R BT.601, as Pillow takes it
        images = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).clamp(-1, 1)
    if isinstance(autoencoder, Pixels):
        return autoencoder.encode(images)
    path = cache_folder() / "latents" / f"{content_hash(images, *autoencoder.vae.state_dict().values())}.safetensors"
    encoded = kept_tensors(path, lambda: {"latents": autoencoder.encode(images, Generator().manual_seed(0)).cpu()})
    return encoded["latents"]


def _own_grid(teacher: DiffusersExpert, steps: int) -> Times:
    """The times of the teacher's own chains."""
    if isinstance(teacher.schedule, FlowSchedule):
        return usual_times(Ddim(teacher.schedule), teacher.network.law, steps)
    return step_grid(steps)


@torch.no_grad()
def _drawn(
    teacher: DiffusersExpert,
    count: int,
    steps: int,
    guidance: float | Callable[[Tensor], Tensor],
    at_once: int,
    part: Path,
) -> dict[str, Tensor]:
    """The ends of the teacher's chains and their conditions, from noise of the CPU: the same on every device.

    What is drawn so far is kept in ``part`` now and then, and where INT or TERM ends the drawing.
    """
    device = next(teacher.network.parameters()).device
    generator = Generator().manual_seed(0)
    noise = torch.randn((count, *teacher.shape), generator=generator)
    conditions: Any = teacher.network.conditions
    condition = conditions.draw(count, generator)
    expert = Expert(teacher, teacher.schedule, guidance=guidance, threshold=teacher.threshold, guide=teacher.guide)
    times = _own_grid(teacher, steps).to(device)
    points = list(read_state(part)["points"]) if part.exists() else []
    saving, left = Pace(1.0), torch.arange(count).split(at_once)[len(points) :]
    with deferred() as wish, Progress("the teacher's own samples", count, "sample", sum(map(len, points))) as bar:
        for rows in left:
            asked = None if condition is None else condition[rows].to(device)
            points.append(expert.walk(noise[rows].to(device), times, asked)[-1].cpu())
            bar.advance(len(rows))
            if wish.signal or saving.due:
                saving(lambda: save_state(part, {"points": points}))
            if wish.signal:
                told = f"stopped after {sum(map(len, points))} of {count} samples of the teacher"
                raise Stopped(f"{told}; the same command resumes", 128 + wish.signal)
    return {"points": torch.cat(points)} | ({} if condition is None else {"labels": condition})
