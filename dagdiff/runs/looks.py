"""Looks: what the student makes at chosen rounds, as pictures and numbers, in the run's folder and in its logger.

All looks of a run start from the same noise, so equal places of two pictures show what training changed between them.
``looks/round-0005.png`` is the picture of a round, and ``looks.csv`` holds the numbers of all, a line each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagdiff import engine
from dagdiff.checkpoint import save_csv
from dagdiff.checks import Refusal, check_at_least
from dagdiff.metrics.base import score
from dagdiff.reading import read_csv
from dagdiff.report import figures
from dagdiff.report.images import sample_panels
from dagdiff.runs.experiment import Experiment


class Look(NamedTuple):
    """A look: the round, the student's updates by then, and what its samples score."""

    round: int
    updates: int
    numbers: dict[str, float]


def look(experiment: Experiment) -> dict[str, float]:
    """Return what the student scores now; nobody is charged, and no random stream of the run is moved.

    Scores are the task's few that are quick (``Task.looked``) and the run's own.
    """
    with _aside(experiment):
        return _scores(experiment, experiment.sample(experiment.settings.samples, seed=0))


def glance(experiment: Experiment) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what the student makes now beside the data and the truth, and what it scores, as :func:`look` does."""
    with _aside(experiment):
        samples = experiment.sample(experiment.settings.samples, seed=0)
        return experiment.clouds(samples), _scores(experiment, samples)


@contextmanager
def _aside(experiment: Experiment) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), experiment.expert.ledger.free():
        yield


def _scores(experiment: Experiment, samples: Tensor) -> dict[str, float]:
    task, n = experiment.task, len(samples)
    _, asked, _ = experiment.start(n, seed=0)
    truth = task.truth(n, experiment.generator(4), experiment.generator(5), asked)
    return score((*task.looked, *experiment.metrics), samples, truth)


class Looks:
    """The looks of a run.

    Args:
        experiment: the run.
        out: its folder.
        every: rounds from one to the next; 0 for none.

    Raises:
        Refusal: where the student is sharded, and one process alone can't ask it.
    """

    def __init__(self, experiment: Experiment, out: Path, every: int) -> None:
        check_at_least("look_every", every, 0)
        if every and engine.sharding():
            raise Refusal(f"look_every={every}: a sharded student (FSDP2) can't be sampled by one process. Take DDP.")
        self.experiment, self.out, self.every = experiment, out, every
        self.made = list[Look]()

    def resume(self) -> None:
        """Take up the looks that the folder holds."""
        file = self.out / "looks.csv"
        lines = read_csv(file) if file.exists() else []
        for line in lines:
            number, updates = int(line.pop("round")), int(line.pop("updates"))
            if self.picture(number).exists():
                self.made.append(Look(number, updates, {name: float(value) for name, value in line.items() if value}))

    def at(self, number: int) -> Look | None:
        """The look at a round, if it was looked at."""
        return next((look for look in self.made if look.round == number), None)

    def due(self, number: int, last: bool) -> bool:
        """Whether the round of that number, from 1, is looked at: every so-manieth is, and the last."""
        return self.every > 0 and (number % self.every == 0 or last)

    def look(self, number: int, updates: int) -> Look:
        """Look at the student after a round: write the picture and the numbers, and return them.

        Looks at later rounds, of a run that was stopped, are forgotten: those rounds come again.
        """
        clouds, numbers = glance(self.experiment)
        figures.save(sample_panels(clouds), self.picture(number))
        self.made = [each for each in self.made if each.round < number] + [Look(number, updates, numbers)]
        names = dict.fromkeys(name for each in self.made for name in each.numbers)
        empty: dict[str, float | str] = dict.fromkeys(names, "")
        lines = [{"round": each.round, "updates": each.updates, **empty, **each.numbers} for each in self.made]
        save_csv(self.out / "looks.csv", lines)
        return self.made[-1]

    def picture(self, number: int) -> Path:
        """The file of a round's picture."""
        return self.out / "looks" / f"round-{number:04d}.png"


def log_look(logger: Any, look: Look, picture: Path) -> None:
    """Write a look into a TorchRL logger, at the updates made: its numbers as scalars, its picture as an image.

    A logger of tables keeps no images: there they stand in the folder.
    """
    for name, value in look.numbers.items():
        logger.log_scalar(f"look_{name}", value, step=look.updates)
    kind = type(logger).__name__
    if kind == "CSVLogger":
        return
    from PIL import Image

    with Image.open(picture) as file:
        image = file.convert("RGB")
    if kind == "TensorboardLogger":
        import numpy as np

        logger.experiment.add_image("samples", np.asarray(image), global_step=look.updates, dataformats="HWC")
    elif kind == "WandbLogger":
        import wandb

        logger.log_scalar("samples", wandb.Image(image), step=look.updates)
    else:
        import mlflow

        mlflow.log_image(image, key="samples", step=look.updates)
