"""A run: distil, score, and keep everything in one folder.

The folder of a run holds ``student.safetensors`` (and ``best.safetensors``, the best round's), ``student.json`` (the
time grid, the sampler and the threshold that go with the weights), ``config.yaml``, ``rounds.csv``, ``metrics.json``
and figures.
"""

import copy
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dagdiff import __version__, engine
from dagdiff.checkpoint import load_weights, save_csv, save_json, save_text, save_weights
from dagdiff.checks import Refusal, check_in, check_times
from dagdiff.dagger import DAgger
from dagdiff.reading import MEGABYTE, read_json, to_yaml
from dagdiff.report import figures
from dagdiff.report.curves import rounds_figure
from dagdiff.report.images import sample_panels
from dagdiff.round import NonFiniteLoss, Round
from dagdiff.runs.config import Config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.rehearsal import check_run
from dagdiff.runs.trust import check_registered
from dagdiff.runs.words import read_yaml
from dagdiff.transition import law_named
from dagdiff.versions import versions

Kept = TypeVar("Kept")

BESIDE = {
    "times": [float],
    "sampler": {"class": str, "eta?": (float, None)},
    "threshold": {"class": str},
    "schedule": {"class": (str, None)},
    "epsilon_scale?": float,
    "task?": str,
}
"""What ``student.json`` holds (:mod:`dagdiff.reading`)."""


def distil(experiment: Experiment, out: Path, progress: bool = True, logger: str = "csv") -> dict[str, Any]:
    """Run the experiment and fill the folder ``out``; return what ``metrics.json`` holds.

    Of several processes the first fills it, and the others return nothing.

    Raises:
        Refusal: for what could not be finished (:func:`dagdiff.runs.rehearsal.check_run`), before anything is trained.
        NonFiniteLoss: after the last good student has been saved.
    """
    if engine.rank() > 0:
        try:
            ((loop, _),) = deque(experiment.rounds(), maxlen=1)
        except NonFiniteLoss:
            experiment.unshard()
            raise
        finish(experiment, loop)
        return {}
    for line in check_run(experiment, out, logger):
        print(f"dagdiff: warning: {line}", file=sys.stderr)
    log, rounds = None, list[Round]()
    try:
        for each in _with_progress(experiment, progress):
            loop, done = each
            rounds.append(done)
            log = log or _logger(logger, out)  # nothing is written before the first round is there
            for name, value in _row(done).items():
                log.log_scalar(name, value, step=done.updates)
    except NonFiniteLoss:
        experiment.unshard()
        save_student(experiment, out)
        save_rounds(rounds, out)
        raise
    finish(experiment, loop)
    if loop.best is not None:
        save_weights(out / "best.safetensors", _with_state(experiment.student, loop.best[2]))
    save_student(experiment, out)
    save_rounds(rounds, out)
    samples = experiment.sample(experiment.settings.samples, seed=0)
    paired = experiment.pair(len(samples))
    metrics, by_step = experiment.measure(samples, paired=paired)
    standing = experiment.stand(samples, paired=paired)
    best = {"round": loop.best[0], "heldout": loop.best[1]} if loop.best else None
    nfe = {"nfe_student": rounds[-1].nfe_student, "nfe_expert": rounds[-1].nfe_expert, "seconds": rounds[-1].seconds}
    if loop.gathering.ready is not None:
        nfe["nfe_gathered"] = loop.gathering.ready.saved
    teacher = {**standing._asdict(), "behind": standing.behind}
    made = {"dagdiff": __version__, **versions(torch.get_num_threads())}
    report = {"metrics": metrics, "by_step": by_step, "teacher": teacher, "best": best, **nfe, "versions": made}
    save_json(out / "metrics.json", report)
    save_figures(experiment, rounds, out)
    return report


def finish(experiment: Experiment, loop: DAgger) -> None:
    """Give the student the weights that are kept, the averaged ones if there are; all processes call it at once."""
    if loop.best is not None:
        loop.best = (*loop.best[:2], engine.whole(loop.best[2]))
    if loop.learner.averaged is not None:
        experiment.student.load_state_dict(loop.learner.averaged.module.state_dict())
    experiment.unshard()


def open_run(folder: Path, device: str = "auto", weights: str = "student", trust_code: bool = False) -> Experiment:
    """Build the experiment of a finished run and load its student (``weights="best"`` for the best round's).

    How the student is sampled is read from ``student.json``; the rest of the configuration from ``config.yaml``. Both
    may name dagdiff's own parts alone, unless you trust their writer with ``trust_code``: then import paths in them are
    imported.

    Raises:
        Refusal: if the folder holds no finished run, or one that names code.
    """
    file, beside = folder / "config.yaml", folder / "student.json"
    if not file.exists():
        raise Refusal(f"{folder} holds no run: config.yaml is missing. Name the --out folder of `dagdiff distill`.")
    check_in("weights", weights, ("student", "best"))
    config, kept = read_yaml(file), read_json(beside, BESIDE, MEGABYTE)
    if not isinstance(config.get("policy"), dict):
        raise Refusal(f"{file} does not tell the student's policy. Make the run again, or copy the file whole.")
    sampled: Config = {name: kept[name] for name in ("threshold", "schedule", "epsilon_scale") if name in kept}
    if not trust_code:
        check_registered(config, file)
        check_registered(sampled, beside)
    experiment = Experiment.build({**config, **sampled, "device": device}, training=False)
    load_weights(folder / f"{weights}.safetensors", experiment.student)
    law, sampler = kept["sampler"], experiment.transition
    if not trust_code or law["class"] != type(sampler).__name__:  # a law of one's own comes with its objective
        sampler = _asked(beside, lambda: law_named(law["class"], sampler.schedule, law.get("eta")))
    experiment.transition = sampler
    experiment.times = _asked(beside, lambda: check_times(torch.tensor(kept["times"]))).to(experiment.device)
    return experiment


def _asked(file: Path, make: Callable[[], Kept]) -> Kept:
    """Return what ``make`` makes of a file's content; what it can't take becomes a refusal that names the file."""
    try:
        return make()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refusal(f"{file}: {error}") from None


def save_student(experiment: Experiment, out: Path) -> None:
    """Write the student's weights, and beside them what they need to be sampled as they were trained."""
    chosen = experiment.config
    beside = {
        "times": experiment.times.tolist(),
        "sampler": {"class": type(experiment.transition).__name__, "eta": getattr(experiment.transition, "eta", None)},
        "epsilon_scale": experiment.settings.epsilon_scale,
        "threshold": chosen["threshold"],
        "schedule": chosen["schedule"],
        "task": experiment.task.name,
    }
    save_weights(out / "student.safetensors", experiment.student)
    save_json(out / "student.json", beside)
    save_text(out / "config.yaml", to_yaml(experiment.config))


def save_rounds(rounds: list[Round], out: Path) -> None:
    """Write ``rounds.csv``: one line a round."""
    save_csv(out / "rounds.csv", [_row(done) for done in rounds])


def save_figures(experiment: Experiment, rounds: list[Round], out: Path) -> None:
    """Draw the student's samples beside the data and the truth, and its losses over the rounds."""
    n = experiment.settings.samples
    generator = experiment.generator(6)
    panels = {
        "shown to the student": experiment.task.data.sample(n, generator),
        "truth": experiment.task.world.sample(n, generator),
        "student": experiment.sample(n, seed=0),
    }
    clouds = {
        name: experiment.task.pictures(points[: experiment.task.saved]).numpy(force=True)
        for name, points in panels.items()
    }
    figures.save(sample_panels(clouds), out / "samples.png")
    figures.save(rounds_figure([asdict(done) for done in rounds]), out / "rounds.png")


def _row(done: Round) -> dict[str, Any]:
    """A round as one flat line: per-step lists become columns."""
    fields = asdict(done)
    shares = dict(zip(("share_forward", "share_student", "share_expert"), fields.pop("shares"), strict=True))
    losses = {f"train_{name}": value for name, value in fields.pop("losses").items()}
    laws = ("loss_forward", "loss_own", "loss_expert")
    by_step = {f"{name}_{k}": value for name in laws for k, value in enumerate(fields.pop(name))}
    return {**fields, **shares, **losses, **by_step}


def _with_progress(experiment: Experiment, progress: bool) -> Iterator[tuple[DAgger, Round]]:
    from tqdm import tqdm

    settings = experiment.settings
    total = settings.rounds * len(settings.stages or [0])
    with tqdm(experiment.rounds(), total=total, unit="round", disable=None if progress else True) as bar:
        for loop, done in bar:
            bar.set_postfix({name: f"{value:.3g}" for name, value in done.losses.items()})
            yield loop, done


def _with_state(student: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(student)
    twin.load_state_dict(state)
    return twin


def _logger(kind: str, out: Path) -> Any:
    """A TorchRL logger that writes under ``out/log``, never to the network."""
    from torchrl.record.loggers.utils import get_logger

    try:
        return get_logger(kind, logger_name=str(out), experiment_name="log", wandb_kwargs={"offline": True})
    except (ImportError, ModuleNotFoundError) as error:
        raise Refusal(
            f"--logger {kind} needs a package that is not installed ({error}). pip install 'dagdiff[loggers]'."
        ) from None
