"""What stands for data where a pipeline is distilled: your own images, or samples that its network draws itself.

Forward states are noised clean points. *Images* are encoded once (:mod:`dagdiff.tasks.pipeline_images`). Without images
the teacher draws its *own samples*: distillation then needs no data but the prompts, and a student is shown exactly the
law that its teacher has. They cost one long chain each, are drawn when they are first needed, and are kept in the
cache, the prompts that they show beside them; a fifth is held out.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from dagdiff.checkpoint import cache_folder, content_hash, kept_tensors, read_state, save_state
from dagdiff.checks import Refusal, check_at_least
from dagdiff.envs.sets import Points
from dagdiff.expert import Expert
from dagdiff.jobs.awaited import awaited
from dagdiff.jobs.deferred import deferred
from dagdiff.jobs.pace import Pace
from dagdiff.jobs.pieces import noted
from dagdiff.jobs.stops import Stopped
from dagdiff.pipelines.banks import AskedBank
from dagdiff.pipelines.fingerprint import fingerprint
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.schedulers import usual_times
from dagdiff.progress import Progress
from dagdiff.schedule import FlowSchedule, step_grid
from dagdiff.shapes import Times
from dagdiff.transition import Ddim

HELD_OUT = 0.2
"""The part of the clean points that nobody is trained on."""

Splits = tuple[Points, Points]
"""What the student is shown, and what is held out."""


class Kept(Points):
    """Points in a file of the cache, memory-mapped: they were checked when it was written.

    Args:
        points: ``(N, *D)``.
        labels: ``(N,)``, or None.
        file: where they are.
    """

    def __init__(self, points: Tensor, labels: Tensor | None, file: Path) -> None:
        self.points, self.labels, self.file = points, labels, file


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
    key = f"{_print(teacher)} {noise} {told}"
    path = cache_folder() / "pipelines" / f"{content_hash(key)[:16]}.safetensors"
    with awaited(path):
        part, there = path.with_suffix(".part"), path.exists()
        found = kept_tensors(path, lambda: _drawn(teacher, count, steps, guidance, at_once, part))
        part.unlink(missing_ok=True)
        if not there:
            noted(path)
    points, labels = found["points"], found.get("labels")
    cut = count - max(2, round(HELD_OUT * count))
    parts = (slice(None, cut), slice(cut, None))
    shown, held = (Kept(points[part], None if labels is None else labels[part], path) for part in parts)
    return shown, held


def _print(teacher: DiffusersExpert) -> str:
    """A hash of a teacher's network and prompts; of a bank that is still to be filled the words count."""
    bank = getattr(teacher.network.conditions, "bank", teacher.network.conditions)
    if not isinstance(bank, AskedBank):
        return fingerprint(teacher.network)
    return content_hash(fingerprint(teacher.network.body), *bank.prompts)


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
