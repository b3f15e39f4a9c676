"""A run: build the objects that a configuration names, distil, score, and keep everything in one folder.

The folder of a run holds ``student.safetensors`` (and ``best.safetensors``, the best round's), ``student.json`` (the
time grid, the sampler and the threshold that go with the weights), ``config.yaml``, ``rounds.csv``, ``metrics.json``
and figures.
"""

import copy
import csv
import inspect
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor, nn

from dagdiff.benchmarks.tasks import Task, make_task
from dagdiff.checkpoint import load_weights, save_json, save_text, save_weights
from dagdiff.checks import Refusal, check_at_least, check_shares
from dagdiff.config import Config, flatten, parse, resolve
from dagdiff.dagger import DAgger, NonFiniteLoss, Round
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.expert import Expert
from dagdiff.halving import check_stages, halve
from dagdiff.heldout import HeldOut
from dagdiff.metrics.samples import score
from dagdiff.mixture import Shares
from dagdiff.objectives.base import Objective
from dagdiff.policy import StudentPolicy
from dagdiff.schedule import step_grid
from dagdiff.shapes import Condition, States, Times
from dagdiff.threshold import Threshold
from dagdiff.transition import Transition, chain, sample


@dataclass
class Experiment:
    """The objects of a run, built from its configuration and not yet trained."""

    config: Config
    settings: Namespace
    task: Task
    expert: Expert
    student: nn.Module
    objective: Objective
    threshold: Threshold
    transition: Transition
    times: Times
    device: torch.device

    @classmethod
    def build(cls, config: Config) -> "Experiment":
        """Build from a configuration (see :mod:`dagdiff.config`).

        Raises:
            Refusal: for anything in it that can't be; nothing has been written by then.
        """
        settings = parse(list(flatten(config)))
        check_shares(tuple(settings.shares))
        check_at_least("steps", settings.steps, 1)
        check_at_least("updates", settings.updates, settings.rounds)
        check_at_least("samples", settings.samples, 10)
        if settings.stages is not None:
            check_stages(settings.stages)
        device = find_device(settings.device)
        task = make_task(settings.task, _make("schedule", settings.schedule))
        threshold = _make("threshold", settings.threshold, task)
        denoiser = _to(_make("expert", settings.expert, task), device)
        expert = Expert(denoiser, task.schedule, settings.substeps, settings.guidance, threshold)
        objective = _make("objective", settings.objective, task)
        steps = settings.stages[-1] if settings.stages else settings.steps
        return cls(
            config=config,
            settings=settings,
            task=task,
            expert=expert,
            student=_to(_make("policy", settings.policy, task), device),
            objective=objective,
            threshold=threshold,
            transition=objective.sampler(task.schedule),
            times=step_grid(steps).to(device),
            device=device,
        )

    @property
    def policy(self) -> StudentPolicy:
        """The student in its role."""
        return StudentPolicy(self.student, self.threshold)

    def rounds(self) -> Iterator[tuple[DAgger, Round]]:
        """Train, yielding each round with the loop it belongs to."""
        stages = self.settings.stages or [self.settings.steps]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            yield from halve(stages, self.expert, self._loop)

    def _loop(self, expert: Expert, steps: int) -> DAgger:
        chosen, times = self.settings, step_grid(steps).to(self.device)
        env = DenoisingEnv(
            self.task.shape,
            self.transition,
            times,
            batch_size=chosen.chains,
            conditions=self.task.conditions,
            generator=self.generator(1),
            device=self.device,
        )
        return DAgger(
            self.student,
            expert,
            copy.deepcopy(self.objective),
            env,
            self.task.data,
            shares=Shares(*chosen.shares),
            shares_ramp=_make("shares_ramp", chosen.shares_ramp),
            beta=_make("beta", chosen.beta),
            per_chain=chosen.per_chain,
            rounds=chosen.rounds,
            updates_per_round=chosen.updates // chosen.rounds,
            batch_size=chosen.batch_size,
            rounds_kept=chosen.rounds_kept,
            max_age=chosen.max_age,
            optimiser=lambda parameters: torch.optim.Adam(parameters, lr=chosen.lr or self.objective.lr),
            lr_ramp=_make("lr_ramp", chosen.lr_ramp),
            clip=chosen.clip,
            ema=chosen.ema,
            heldout=chosen.heldout,
            generator=self.generator(0),
        )

    def generator(self, stream: int, seed: int | None = None) -> torch.Generator:
        """Return the run's random stream of that number; ``seed`` replaces the run's own."""
        seed = self.settings.seed if seed is None else seed
        return torch.Generator(self.device).manual_seed(1_000_003 * seed + stream)

    def start(self, n: int, seed: int) -> tuple[States, Condition, torch.Generator]:
        """Return noise and conditions for ``n`` chains, and the generator of their fresh noise, fixed by ``seed``."""
        generator = self.generator(3, seed)
        noise = torch.randn((n, *self.task.shape), generator=generator, device=self.device)
        condition = self.task.conditions(n, generator) if self.task.conditions else None
        return noise, condition, generator

    def sample(self, n: int, seed: int) -> Tensor:
        """Return ``n`` points from the student, ``(n, *D)``."""
        noise, condition, generator = self.start(n, seed)
        return sample(self.policy, self.transition, self.times, noise, condition, generator)

    def chains(self, n: int, seed: int) -> Tensor:
        """Return ``n`` student chains from noise to data, ``(n, K + 1, *D)``."""
        noise, condition, generator = self.start(n, seed)
        steps = chain(self.policy, self.transition, self.times, noise, condition, generator)
        return torch.stack([noise, *(step.x_s for step in steps)], dim=1)

    def measure(self, seed: int = 0) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Score the student: every sample metric and the mean held-out imitation losses; and the losses by step."""
        count = self.settings.samples
        truth = self.task.world.reference(count, self.generator(4, seed))
        metrics = score(self.sample(count, seed), truth, self.task.world.mixture, self.generator(5, seed))
        heldout = HeldOut(self.task.data, self.transition, self.times, count // 2, self.task.conditional, seed)
        found = heldout.imitation(self.policy, self.expert)
        forward, own = (sum(found[name]) / len(found[name]) for name in ("loss_forward", "loss_own"))
        metrics |= {"loss_forward": forward, "loss_own": own, "loss_gap": own - forward}
        return metrics, {"t": self.times[:-1].tolist(), **found}


def distil(experiment: Experiment, out: Path, progress: bool = True, logger: str = "csv") -> dict[str, Any]:
    """Run the experiment and fill the folder ``out``; return what ``metrics.json`` holds.

    Raises:
        Refusal: if ``out`` holds another run, or the logger's package is missing.
        NonFiniteLoss: after the last good student has been saved.
    """
    check_folder(out)
    log = _logger(logger, out)
    rounds: list[Round] = []
    try:
        for each in _with_progress(experiment, progress):
            loop, done = each
            rounds.append(done)
            for name, value in _row(done).items():
                log.log_scalar(name, value, step=done.updates)
    except NonFiniteLoss:
        save_student(experiment, out)
        save_rounds(rounds, out)
        raise
    if loop.best is not None:
        save_weights(out / "best.safetensors", _with_state(experiment.student, loop.best[2]))
    if loop.averaged is not None:
        experiment.student.load_state_dict(loop.averaged.module.state_dict())
    save_student(experiment, out)
    save_rounds(rounds, out)
    metrics, by_step = experiment.measure()
    best = {"round": loop.best[0], "heldout": loop.best[1]} if loop.best else None
    nfe = {"nfe_student": rounds[-1].nfe_student, "nfe_expert": rounds[-1].nfe_expert, "seconds": rounds[-1].seconds}
    report = {"metrics": metrics, "by_step": by_step, "best": best, **nfe}
    save_json(out / "metrics.json", report)
    save_figures(experiment, rounds, out)
    return report


def load(folder: Path, device: str = "auto", weights: str = "student") -> Experiment:
    """Build the experiment of a finished run and load its student (``weights="best"`` for the best round's).

    Raises:
        Refusal: if the folder holds no finished run.
    """
    if not (folder / "config.yaml").exists():
        raise Refusal(f"{folder} holds no run: config.yaml is missing. Name the --out folder of `dagdiff distill`.")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    experiment = Experiment.build({**config, "device": device})
    load_weights(folder / f"{weights}.safetensors", experiment.student)
    kept = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    experiment.times = torch.tensor(kept["times"], device=experiment.device)
    return experiment


def save_student(experiment: Experiment, out: Path) -> None:
    """Write the student's weights, and beside them what they need to be sampled as they were trained."""
    beside = {
        "times": experiment.times.tolist(),
        "sampler": {"class": type(experiment.transition).__name__, "eta": getattr(experiment.transition, "eta", None)},
        "threshold": experiment.config["threshold"],
        "schedule": experiment.config["schedule"],
        "task": experiment.task.name,
    }
    save_weights(out / "student.safetensors", experiment.student)
    save_json(out / "student.json", beside)
    save_text(out / "config.yaml", yaml.safe_dump(experiment.config, sort_keys=False))


def save_rounds(rounds: list[Round], out: Path) -> None:
    """Write ``rounds.csv``: one line a round."""
    rows = [_row(done) for done in rounds]
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    save_text(out / "rounds.csv", text.getvalue())


def save_figures(experiment: Experiment, rounds: list[Round], out: Path) -> None:
    """Draw the student's samples beside the data and the truth, its chains beside the expert's, and the rounds."""
    from dagdiff import plots

    n = experiment.settings.samples
    generator = experiment.generator(6)
    panels = {
        "shown to the student": experiment.task.data.sample(n, generator),
        "truth": experiment.task.world.sample(n, generator),
        "student": experiment.sample(n, seed=0),
    }
    plots.save(
        plots.scatter_panels({name: points.cpu().numpy() for name, points in panels.items()}), out / "samples.png"
    )
    plots.save(plots.rounds_figure([asdict(done) for done in rounds]), out / "rounds.png")


def check_folder(out: Path, mine: str = "config.yaml") -> None:
    """Refuse an output folder that is a file or holds another run's files."""
    if out.is_file():
        raise Refusal(f"--out {out} is a file. Name a folder.")
    if out.exists() and any(out.iterdir()):
        raise Refusal(f"--out {out} holds another run. Name a new folder, or delete it.")


def find_device(name: str) -> torch.device:
    """Return the device of that name, or for ``auto`` the GPU where there is one; refuse one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(
            f"device {name!r} is not there ({str(error).splitlines()[0]}). Pass --device cpu or auto."
        ) from None
    return device


def _make(part: str, chosen: Namespace, task: Task | None = None) -> Any:
    """Build a part from its parsed arguments; give it the task if it asks for one, or let it be the task's usual."""
    arguments = dict(vars(chosen))
    name = arguments.pop("class") or (task and task.usual[part])
    kind = resolve(part, str(name))
    if "task" in inspect.signature(kind).parameters:
        arguments["task"] = task
    return kind(**arguments)


def _to(part: Any, device: torch.device) -> Any:
    """Move a part that can be moved."""
    return part.to(device) if hasattr(part, "to") else part


def _row(done: Round) -> dict[str, Any]:
    """A round as one flat line: per-step lists become columns."""
    fields = asdict(done)
    shares = dict(zip(("share_forward", "share_student", "share_expert"), fields.pop("shares"), strict=True))
    losses = {f"train_{name}": value for name, value in fields.pop("losses").items()}
    by_step = {f"{name}_{k}": v for name in ("loss_forward", "loss_own") for k, v in enumerate(fields.pop(name))}
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
