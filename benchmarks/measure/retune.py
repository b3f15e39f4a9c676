"""Keep few steps while fine-tuning: a few-step student retuned on its own chains, against what people do instead.

Run: python -m dagdiff.benchmarks.measure.retune FOLDER seeds=1 updates=50, all words optional. Runs that
FOLDER/retune.csv holds already are not made again; at the end the table of docs/keep-few-steps.md is printed, and in
the checkout written to the page.

A small pipeline of 8 x 8 digits is distilled into 4 steps (or 2): the few-step model that somebody has. Its teacher
is then fine-tuned to new data, and the few-step model is to follow. All ways make the same number of updates, of the
same batches at the same learning rate:

* ``kept``: nothing is done, the few-step model as it was;
* ``retuned``: it goes on, with the fine-tuned teacher as its expert, on states of its own chains (DAgger); no picture
  of the new data is shown to it;
* ``retuned-forward``: the same, on noised pictures of the new data alone;
* ``scratch``: a copy of the fine-tuned teacher is distilled, on states of its own chains;
* ``plain``: the few-step model is fine-tuned on the new pictures with the denoising loss, as a many-step one would be;
* ``teacher``, ``teacher-50``: the fine-tuned teacher itself, in as many steps and in 50.

Expected before the runs:

* Plain fine-tuning breaks it: worse than ``kept`` on half of the classes, for it forgets its few steps; on inverted
  contrast ``kept`` is so far off that even ``plain`` may be nearer.
* ``retuned`` is the best of all at few updates on half of the classes, where the old student is nearly right. On
  inverted contrast nothing of the old pictures is right, and starting from the fine-tuned teacher (``scratch``) may be
  as good or better.
* With more updates ``retuned`` and ``scratch`` meet.
* ``retuned-forward`` lies behind ``retuned`` where the old student's chains are far from the new data.
* Added after the first four runs of 4 steps, in which ``scratch`` led: the fine-tuned teacher is itself a fair sampler
  in 4 steps of such small pictures, so little is lost by starting from it. In 2 steps it is none, and ``retuned``
  should lead there at few updates.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from dagdiff.benchmarks.measure.overhead import one_thread, processor
from dagdiff.benchmarks.measure.rows import asked, completed, read_rows
from dagdiff.benchmarks.pages import with_table
from dagdiff.benchmarks.tables import head, line
from dagdiff.checkpoint import cache_folder, save_json, save_text
from dagdiff.checks import check_in
from dagdiff.expert import Expert
from dagdiff.jobs.aside import filled as aside
from dagdiff.learner import Learner, Learning
from dagdiff.metrics.images import Frechet
from dagdiff.metrics.statistics import paired_difference
from dagdiff.metrics.truth import Truth
from dagdiff.mixture import LinearRamp
from dagdiff.objectives.base import denoising_loss
from dagdiff.pipelines.export import build_pipeline
from dagdiff.points import Points
from dagdiff.policies.prediction import V
from dagdiff.policies.student import Student
from dagdiff.policies.unet import UNet, image_unet
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.schedule import VPSchedule
from dagdiff.tasks.names import make_task
from dagdiff.tasks.teachers import train_teacher
from dagdiff.versions import versions

FOLDER = Path(__file__).resolve().parent.parent / "results" / "retune"
PAGE = Path("docs/keep-few-steps.md")

CHOSEN = {
    "steps": "4,2",
    "data": "half,inverted",
    "ways": "retuned,retuned-forward,scratch,plain",
    "updates": "50,200",
    "seeds": "3",
}
"""What is run where the command says nothing; seeds are 0 to seeds - 1."""

KEY = ("steps", "data", "way", "updates", "seed")
ROWS, LR, SAMPLES = 32, 3e-4, 896
OBJECTIVE = {"objective": "consistency", "objective.label_end": "data", "substeps": 16, "lr": LR}
SHOWN = (0, 1, 2, 3, 4)
"""The classes of the half."""

WAYS = {
    "kept": "the few-step model as it was",
    "retuned": "**retuned on its own chains**",
    "retuned-forward": "retuned on noised new pictures",
    "scratch": "distilled from scratch",
    "plain": "plain fine-tuning (denoising loss)",
    "teacher": "the fine-tuned teacher in as many steps",
    "teacher-50": "the fine-tuned teacher in 50 steps",
}
"""A way and what it is called in the table, in its order."""

DATA = {"half": "half of the classes", "inverted": "inverted contrast"}


class Digits:
    """The digits, old and new.

    Args:
        name: half or inverted; empty for the old ones.
    """

    def __init__(self, name: str = "") -> None:
        self.task: Any = make_task("digits-matched")
        self.name, self.sign = name, -1.0 if name == "inverted" else 1.0
        world: Any = self.task.world
        self.train, self.test = (self._changed(split) for split in (world.train, world.test))

    def _changed(self, split: Points) -> Tensor:
        assert split.labels is not None
        kept = (
            torch.isin(split.labels, torch.tensor(SHOWN)) if self.name == "half" else torch.ones(len(split.points)) > 0
        )
        return self.sign * split.points[kept]

    def distance(self, samples: Tensor) -> float:
        """The Frechet distance of samples to the held-out pictures, in features of upright contrast."""
        truth = Truth(self.sign * self.test, classifier=self.task.classifier)
        found: float = Frechet(by_parts=True)(self.sign * samples, truth)["fd"]
        return found

    def file(self, folder: Path) -> Path:
        """The training pictures as a file of arrays."""
        path = folder / f"{self.name or 'old'}.npz"
        if not path.exists():
            pixels = ((self.train.permute(0, 2, 3, 1) + 1.0) * 127.5).round().to(torch.uint8)
            np.savez(path, images=pixels.numpy())
        return path


def trained(folder: Path, data: Tensor, start: Path | None, updates: int) -> Path:
    """Train a pipeline of pixels on pictures, from another or from nothing; return its folder."""
    if not folder.exists():
        schedule = VPSchedule.linear()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = image_unet((1, 8, 8)) if start is None else UNet.load(start / "unet")
        student = Student(network, schedule, V)
        generator = torch.Generator().manual_seed(0)
        lr = 2e-3 if start is None else 1e-3
        for _ in train_teacher(student, Points(data), schedule, updates, 64, lr, 0.99, generator=generator):
            pass
        with aside(folder) as place:
            made: Any = DDPMPipeline(network.unet, DDPMScheduler(prediction_type="v_prediction"))
            made.save_pretrained(place)
    return folder


def settings(teacher: Path, images: Path, steps: int, seed: int, updates: int, **others: Any) -> dict[str, Any]:
    """The settings of a distillation."""
    usual = {"batch_size": ROWS, "chains": ROWS, "rounds": 10, "heldout": 0, "device": "cpu"}
    told = {"task": "pipeline", "pipeline.path": str(teacher), "pipeline.images": str(images)}
    return {**told, **usual, **OBJECTIVE, "steps": steps, "seed": seed, "updates": updates, **others}


def distilled(chosen: Mapping[str, Any]) -> Experiment:
    """Train a student."""
    it = Experiment.build(configure(chosen))
    for _ in it.rounds():
        pass
    return it


def few_step(folder: Path, teacher: Path, images: Path, steps: int, seed: int) -> Path:
    """Distil the old teacher; return the folder of the exported few-step pipeline."""
    if not folder.exists():
        it = distilled(settings(teacher, images, steps, seed, 300, lr=1e-3))
        made = build_pipeline(it.student, it.sampler, it.times, it.threshold, str(teacher))
        with aside(folder) as place:
            made.save_pretrained(place)
    return folder


def plainly(it: Experiment, data: Tensor, updates: int, seed: int) -> None:
    """Fine-tune a student on pictures with the denoising loss."""
    adam = partial(torch.optim.Adam, lr=LR, fused=True)
    learner = Learner(it.student, Learning(adam, LinearRamp(1.0, 0.0, until=1.0), batch_size=ROWS), updates)
    generator, points = torch.Generator().manual_seed(seed), Points(data)
    it.student.train()
    for _ in range(updates):
        x0 = points.sample(ROWS, generator)
        noise, t = torch.randn(x0.shape, generator=generator), torch.rand(ROWS, generator=generator).clamp(min=1e-3)
        learner.update(denoising_loss(learner.forward, x0, noise, t, it.task.schedule))


def measure(run: Mapping[str, Any], places: Mapping[str, Path], new: Digits) -> dict[str, Any]:
    """Make one run; return its key and the distance of its samples to the new held-out pictures."""
    way, updates, steps, seed = str(run["way"]), *(int(run[name]) for name in ("updates", "steps", "seed"))
    build = partial(settings, places["teacher"], places["images"], seed=seed, updates=max(updates, 10))
    start: dict[str, Any] = {"policy": {"class": "few-step", "path": str(places["few"])}}
    own: dict[str, Any] = {"shares": (0.0, 1.0, 0.0)}
    if way.startswith("teacher"):
        it = Experiment.build(configure(build(50 if way == "teacher-50" else steps)))
        noise, condition, _ = it.start(SAMPLES, seed)
        plain = Expert(it.expert.denoiser, it.task.schedule, threshold=it.threshold)
        samples = plain.walk(noise, it.times, condition)[-1]
    else:
        if way in ("kept", "plain"):
            it = Experiment.build(configure(build(steps, **start)))
            if way == "plain":
                plainly(it, new.train, updates, seed)
        else:
            shares: dict[str, Any] = {"shares": (1.0, 0.0, 0.0)} if way == "retuned-forward" else own
            it = distilled(build(steps, **shares, **({} if way == "scratch" else start)))
        samples = it.sample(SAMPLES, seed=seed)
    return {**run, "fd": f"{new.distance(samples):.6g}"}


def runs(chosen: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what tells each run apart, seed by seed."""
    for steps, seed in product(map(int, chosen["steps"].split(",")), range(int(chosen["seeds"]))):
        for data in chosen["data"].split(","):
            told = {"steps": steps, "data": check_in("data", data, DATA)}
            for way in ("kept", "teacher", *(("teacher-50",) if (steps, seed) == (4, 0) else ())):
                yield {**told, "way": way, "updates": 0, "seed": seed}
            for updates in chosen["updates"].split(","):
                for way in chosen["ways"].split(","):
                    yield {**told, "way": check_in("way", way, WAYS), "updates": int(updates), "seed": seed}


def prepared(data: str, steps: int, seed: int, folder: Path) -> dict[str, Path]:
    """Return the places of what a run needs: the fine-tuned teacher, pictures, the few-step model of the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    old, new = Digits(), Digits(data)
    first = trained(folder / "old", old.train, None, 1200)
    few = few_step(folder / f"few-{steps}-{seed}", first, old.file(folder), steps, seed)
    tuned = trained(folder / data, new.train, first, 400)
    return {"teacher": tuned, "images": new.file(folder), "few": few}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the distances as a table in Markdown: a line a way, a column a data set and number of updates."""
    cells = _cells(rows)
    lines = head(
        "FD-cnn to the new digits", *(f"{DATA[data]}, {of} updates, {steps} steps" for steps, data, of in cells)
    )
    for way, title in WAYS.items():
        told = []
        for cell in cells:
            values = list(_values(rows, cell, way).values())
            spread = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else " (1 seed)"
            told.append(f"{fmean(values):.2f}{spread}" if values else "-")
        lines += line(title, *told)
    return "\n".join(lines)


def differences(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how far retuning is from the other ways, paired by seed, in sentences."""
    lines = []
    for cell in _cells(rows):
        mine, told = _values(rows, cell, "retuned"), []
        for other in ("scratch", "plain", "retuned-forward", "kept"):
            theirs = _values(rows, cell, other)
            seeds = sorted(set(mine) & set(theirs))
            if len(seeds) > 2:
                apart = paired_difference([mine[seed] for seed in seeds], [theirs[seed] for seed in seeds])
                told.append(f"{other} {apart:+.2f}{'' if apart.clear_of_zero else ' (open)'}")
        if told:
            steps, data, of = cell
            lines.append(f"- {DATA[data]}, {of} updates, {steps} steps: {', '.join(told)}")
    return "\n".join(lines)


Cell = tuple[int, str, int]
"""Steps, data, updates."""


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The columns of the table: what was trained."""
    there = {(int(row["steps"]), row["data"], int(row["updates"])) for row in rows if int(row["updates"])}
    return sorted(there, key=lambda cell: (-cell[0], list(DATA).index(cell[1]), cell[2]))


def _values(rows: Sequence[Mapping[str, Any]], cell: Cell, way: str) -> dict[int, float]:
    """The distances of one cell by seed; what is not trained has one for all numbers of updates."""
    steps, data, updates = cell
    same = (steps, 4) if way == "teacher-50" else (steps,)
    mine = [row for row in rows if row["data"] == data and row["way"] == way and int(row["steps"]) in same]
    return {int(row["seed"]): float(row["fd"]) for row in mine if int(row["updates"]) in (0, updates)}


def filled(text: str, folder: Path) -> str:
    """Return the page's text with its table made anew from what is kept."""
    rows = read_rows(folder / "retune.csv")
    note = f"Means over {len({row['seed'] for row in rows})} seeds, in brackets the least and the greatest."
    return with_table(
        text,
        "retune",
        f"{table(rows)}\n\n{note} Lower is better. Retuned minus the others, by seed:\n\n{differences(rows)}",
    )


def main(words: Sequence[str]) -> None:
    """Make the runs that are not there yet, write the file after each, and print the table."""
    chosen, folder = asked(words, CHOSEN, FOLDER)

    def made(run: Mapping[str, Any]) -> dict[str, Any]:
        places = prepared(run["data"], run["steps"], run["seed"], cache_folder() / "retune")
        return measure(run, places, Digits(run["data"]))

    with one_thread():
        rows = completed(folder / "retune.csv", KEY, runs(chosen), made)
        save_json(folder / "machine.json", {**versions(1), "processor": processor()})
    print(f"{table(rows)}\n\n{differences(rows)}")
    if folder == FOLDER and PAGE.exists():
        save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), folder))


if __name__ == "__main__":
    main(sys.argv[1:])
