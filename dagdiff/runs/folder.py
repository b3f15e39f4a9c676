"""A run: distil, score, and keep everything in one folder.

The folder of a run holds ``student.safetensors`` (and ``best.safetensors``, the best round's), ``student.json`` (the
time grid, the sampler and the threshold that go with the weights), ``config.yaml``, ``rounds.csv``, ``metrics.json``,
figures, and ``manifest.json``; while it trains, ``checkpoints`` (:mod:`dagdiff.runs.checkpoints`).
"""

import contextlib
import copy
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dagdiff import engine
from dagdiff.aggregate import ROUNDS_KEPT
from dagdiff.checkpoint import load_weights, save_json, save_text, save_weights
from dagdiff.checks import Refusal, check_at_least, check_in, check_times
from dagdiff.dagger import DAgger
from dagdiff.jobs.deferred import deferred
from dagdiff.jobs.locks import Lock
from dagdiff.reading import MEGABYTE, read_json, to_yaml
from dagdiff.report import figures
from dagdiff.report.curves import rounds_figure
from dagdiff.round import NonFiniteLoss
from dagdiff.runs.checkpoints import Checkpoints
from dagdiff.runs.config import Config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.keeping import Keeper
from dagdiff.runs.looks import Looks
from dagdiff.runs.outside import KEPT, ask_in_turn, check_base, keep_outside, with_kept_prompts, with_prompts
from dagdiff.runs.rehearsal import check_logger, check_run
from dagdiff.runs.standing import FINISHED, NEW, check_same, check_whole, clear, seal, standing, with_absolute_paths
from dagdiff.runs.trust import check_registered
from dagdiff.runs.words import read_yaml
from dagdiff.transition import law_named

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


def distil(
    experiment: Experiment,
    out: Path,
    progress: bool = True,
    logger: str = "csv",
    save_every: float = 5.0,
    fresh: bool = False,
    look_every: int = 0,
) -> dict[str, Any]:
    """Run the experiment and fill the folder ``out``; return what ``metrics.json`` holds.

    A run of the same settings that was stopped there is resumed, and a finished one is left as it is. Of several
    processes the first fills the folder, each with its part of the checkpoints, and the others return nothing.

    Args:
        experiment: what is trained.
        out: the folder.
        progress: show a bar.
        logger: of the rounds.
        save_every: minutes between two checkpoints at most; 0 writes one after every update.
        fresh: delete the run that the folder holds, and start over.
        look_every: rounds from one look at the student to the next (:mod:`dagdiff.runs.looks`); 0 for none.

    Raises:
        Refusal: for what could not be finished (:func:`dagdiff.runs.rehearsal.check_run`), before anything is trained;
            for a run of other settings.
        NonFiniteLoss: after the last good student has been saved.
        Stopped: after INT or TERM, when the run has been saved.
    """
    check_at_least("save_every", save_every, 0.0)
    experiment = replace(experiment, config=with_absolute_paths(experiment.config))
    there, lock = os.path.exists(out), Lock(out / ".lock")  # unlike Path, at home with names that are too long
    try:
        held = _claimed(experiment.config, out, logger, fresh, lock) if engine.rank() == 0 else 0
        (held,) = engine.totals([held], torch.device("cpu"))
        if held == FINISHED:
            return _finished(experiment, out) if engine.rank() == 0 else {}
        looks = Looks(experiment, out, look_every)
        return _trained(experiment, out, progress, logger, save_every, looks)
    finally:
        lock.release()
        if engine.rank() == 0 and not there and os.path.isdir(out) and not any(out.iterdir()):
            out.rmdir()  # nothing was written


def _claimed(config: Config, out: Path, logger: str, fresh: bool, lock: Lock) -> int:
    """Lock a folder for a run; return what it holds of it."""
    standing(out)
    check_logger(logger)
    if not lock.take():
        raise Refusal(f"--out {out} is in use by {lock.owner}. Wait for its end, or name another folder.")
    held = standing(out)
    if held != NEW and fresh:
        clear(out)
        return NEW
    if held != NEW:
        check_same(out, config)
    return held


def _trained(
    experiment: Experiment, out: Path, progress: bool, logger: str, save_every: float, looks: Looks
) -> dict[str, Any]:
    """Train and measure, from where a run in the folder was stopped."""
    if engine.rank() == 0:
        for line in check_run(experiment, logger):
            print(f"dagdiff: warning: {line}", file=sys.stderr)
        rounds = experiment.settings.rounds
        if experiment.settings.rounds_kept is None and rounds > ROUNDS_KEPT:
            told = f"the newest {ROUNDS_KEPT} of {rounds} rounds; --rounds_kept {rounds} keeps all"
            print(f"the aggregate keeps the states of {told}")
        if not (out / "config.yaml").exists():
            save_text(out / "config.yaml", to_yaml(experiment.config))
        keep_outside(experiment.task, experiment.config, out, experiment.student)
    training = experiment.training()
    with deferred() as wish:
        keeper = Keeper(experiment, training, out, save_every, wish, partial(_logger, logger, out), looks)
        training.watch = keeper.watch
        keeper.resume()
        try:
            for loop, done in keeper.shown(progress):
                keeper.close(loop, done)
        except Exception as error:
            if isinstance(error, NonFiniteLoss):  # all processes find it at once
                experiment.unshard()
            if engine.rank() == 0:
                _rescue(error, experiment, training.loop, keeper, out)
            raise
        finally:
            if training.loop is not None:
                training.loop.aggregate.close()
    assert training.loop is not None
    finish(experiment, training.loop)
    return _closed(experiment, training.loop, keeper, out, progress) if engine.rank() == 0 else {}


def _rescue(error: Exception, experiment: Experiment, loop: DAgger | None, keeper: Keeper, out: Path) -> None:
    """Save the student of the last good round, and the best; what can't be saved does not hide why.

    Of a run that is rejected before its first round nothing is left.
    """
    if loop is None or (isinstance(error, Refusal) and not keeper.rounds and not keeper.checkpoints.names):
        clear(out)
        return
    with contextlib.suppress(Refusal):
        if not isinstance(error, NonFiniteLoss):  # after that it is the last good one
            experiment.student.load_state_dict(loop.learner.last_good)
        _save_best(experiment, loop, out)
        save_student(experiment, out)
        keeper.save_rounds()


def _closed(experiment: Experiment, loop: DAgger, keeper: Keeper, out: Path, progress: bool) -> dict[str, Any]:
    """Save and measure a student that has been trained, and seal the folder."""
    _save_best(experiment, loop, out)
    save_student(experiment, out)
    keeper.save_rounds()
    rounds = keeper.rounds
    samples = experiment.sample(experiment.settings.samples, seed=0, progress=progress)
    paired = experiment.pair(len(samples))
    metrics, by_step = experiment.measure(samples, paired=paired, progress=progress)
    level = experiment.stand(samples, paired=paired, progress=progress)
    best = {"round": loop.best[0], "heldout": loop.best[1]} if loop.best else None
    nfe = {"nfe_student": rounds[-1].nfe_student, "nfe_expert": rounds[-1].nfe_expert, "seconds": rounds[-1].seconds}
    if loop.gathering.ready is not None:
        nfe["nfe_gathered"] = loop.gathering.ready.saved
    teacher = {**level._asdict(), "difference": list(level.difference), "behind": level.behind}
    report = {"metrics": metrics, "by_step": by_step, "teacher": teacher, "best": best, **nfe, "versions": keeper.made}
    save_json(out / "metrics.json", report)
    keeper.draw()
    figures.save(rounds_figure([asdict(done) for done in rounds]), out / "rounds.png")
    seal(out)
    keeper.checkpoints.clear()
    return report


def finish(experiment: Experiment, loop: DAgger) -> None:
    """Give the student the weights that are kept, the averaged ones if there are; all processes call it at once."""
    if loop.best is not None:
        loop.best = (*loop.best[:2], engine.whole(loop.best[2]))
    if loop.learner.averaged is not None:
        experiment.student.load_state_dict(loop.learner.averaged.module.state_dict())
    experiment.unshard()


def _finished(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Return what a finished run came to, and load its student."""
    check_whole(out, ("config.yaml", "student.json", "student.safetensors", "metrics.json"))
    print(f"dagdiff: the run in {out} is finished; --fresh starts it over", file=sys.stderr)
    load_weights(out / "student.safetensors", experiment.student)
    Checkpoints(out).clear()
    report: dict[str, Any] = read_json(out / "metrics.json")
    return report


def _save_best(experiment: Experiment, loop: DAgger, out: Path) -> None:
    if loop.best is not None:
        save_weights(out / "best.safetensors", _with_state(experiment.student, loop.best[2]))


def open_run(
    folder: Path,
    device: str = "auto",
    weights: str = "student",
    trust_code: bool = False,
    prompts: Path | None = None,
    prompt_column: str | None = None,
) -> Experiment:
    """Build the experiment of a finished run and load its student (``weights="best"`` for the best round's).

    How the student is sampled is read from ``student.json``; the rest of the configuration from ``config.yaml``. Both
    may name dagdiff's own parts alone, unless you trust their writer with ``trust_code``: then import paths in them are
    imported. A file of ``prompts`` (a column of it, if it is a table) takes the place of the run's own: its chains ask
    for them in turn.

    Raises:
        Refusal: if the folder holds no finished run, one that names code, or one that takes no prompts.
    """
    file, beside = folder / "config.yaml", folder / "student.json"
    if not file.exists():
        raise Refusal(f"{folder} holds no run: config.yaml is missing. Name the --out folder of `dagdiff distill`.")
    check_in("weights", weights, ("student", "best"))
    if not beside.exists() and not (folder / "metrics.json").exists():
        raise Refusal(f"{beside} is missing: the run is not finished. Resume it: dagdiff distill --resume {folder}.")
    check_whole(folder, ("config.yaml", "student.json", f"{weights}.safetensors", *KEPT))  # before anything is read
    config, kept = read_yaml(file), read_json(beside, BESIDE, MEGABYTE)
    if not isinstance(config.get("policy"), dict):
        raise Refusal(f"{file} does not tell the student's policy. Make the run again, or copy the file whole.")
    sampled: Config = {name: kept[name] for name in ("threshold", "schedule", "epsilon_scale") if name in kept}
    if not trust_code:
        check_registered(config, file)
        check_registered(sampled, beside)
    config = with_kept_prompts(config, folder) if prompts is None else with_prompts(config, prompts, prompt_column)
    experiment = Experiment.build({**config, **sampled, "device": device}, training=False)
    if prompts is not None:
        ask_in_turn(experiment.task, prompts, prompt_column)
    check_base(experiment.task, config, folder, experiment.student)
    load_weights(folder / f"{weights}.safetensors", experiment.student)
    law, sampler = kept["sampler"], experiment.transition
    if not trust_code or law["class"] != type(sampler).__name__:  # a law of one's own comes with its objective
        sampler = _asked(beside, lambda: law_named(law["class"], sampler.schedule, law.get("eta")))
    experiment.transition = sampler
    experiment.times = _asked(beside, lambda: check_times(torch.tensor(kept["times"]))).to(experiment.device)
    return experiment


def _asked(file: Path, make: Callable[[], Kept]) -> Kept:
    """Return what ``make`` makes of a file's content; what it can't take becomes an error that names the file."""
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
    if not (out / "config.yaml").exists():
        save_text(out / "config.yaml", to_yaml(experiment.config))


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
