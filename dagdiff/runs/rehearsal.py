"""The end of a run, tried before its beginning: what would stop it after its training stops it now.

The logger is looked for, and real points take the place of the student's: they are scored and drawn
as its samples will be. What only a later command can't do is told, and stops nothing.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from dagdiff.checkpoint import check_writable
from dagdiff.checks import Refusal, check_in
from dagdiff.metrics.base import score
from dagdiff.report.images import sample_panels
from dagdiff.runs.experiment import Experiment

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""TorchRL's loggers, by name; all but csv need the package of that name."""


def check_run(experiment: Experiment, logger: str) -> list[str]:
    """Reject a run that could not be finished; return what later commands will not do with it, a line each.

    Nobody's evaluations are counted, and no random stream of the run is moved.

    Raises:
        Refusal: if the logger is missing, or samples could not be scored or drawn.
    """
    check_logger(logger)
    with torch.random.fork_rng(devices=[]):
        _score_and_draw(experiment)
    return [f"dagdiff export will refuse this student: {reason}" for reason in _not_exported(experiment)]


def check_folder(out: Path) -> None:
    """Reject an output folder that is a file, is not empty, or can't be written."""
    if os.path.isfile(out):  # unlike Path, at home with names that are too long
        raise Refusal(f"--out {out} is a file. Name a folder.")
    check_writable("--out", out)
    if out.exists() and any(out.iterdir()):
        raise Refusal(f"--out {out} is not empty. Name a new folder or an empty one.")


def check_logger(name: str) -> None:
    """Reject a logger that is unknown or not installed."""
    check_in("logger", name, LOGGERS)
    if name != "csv" and find_spec(name) is None:
        raise Refusal(
            f"--logger {name} needs the package {name}, which is not installed. Run pip install 'dagdiff[loggers]'."
        )


def _score_and_draw(it: Experiment) -> None:
    """Score and draw a few real points as the student's samples will be; their number is no more than has a say."""
    task, n = it.task, min(it.settings.samples, _FEW)
    try:
        points, (_, asked, _) = task.real(n, it.generator(8)), it.start(n, seed=0)
        paired = task.real(task.probes(n), it.generator(9))
        truth = task.truth(n, it.generator(4), it.generator(5), asked, paired)
        score((*task.metrics, *it.metrics), points, truth)
    except Refusal as error:
        raise Refusal(
            f"samples of {task.name!r} could not be scored after training: {error} Give more pictures, or more samples."
        ) from None
    sample_panels({"student": task.pictures(points[:2]).numpy(force=True)})


def _not_exported(it: Experiment) -> list[str]:
    """Why the student could not be exported, if it is one of images."""
    if len(it.task.shape) != 3:
        return []
    from dagdiff.pipelines.export import check_export  # only images need diffusers

    try:
        check_export(it.student, it.sampler, it.times, it.threshold, it.config.get("pipeline", {}).get("path"))
    except Refusal as error:
        return [str(error)]
    return []


_FEW = 64
"""Points that are scored before training. Where fewer are held out, a run's scores are of as many."""
