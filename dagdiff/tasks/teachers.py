"""Learned teachers: networks trained by denoising score matching on a whole dataset, once, and kept in the cache."""

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dagdiff.checkpoint import cache_folder, content_hash, load_state, load_weights, save_state, save_weights
from dagdiff.checks import Refusal, check_at_least, check_in, check_seed
from dagdiff.jobs.awaited import awaited
from dagdiff.jobs.deferred import deferred
from dagdiff.jobs.pace import Pace
from dagdiff.jobs.stops import Stopped
from dagdiff.learner import Learner, Learning
from dagdiff.mixture import CosineRamp
from dagdiff.objectives.base import denoising_loss
from dagdiff.policies.prediction import PREDICTIONS
from dagdiff.policies.student import Student
from dagdiff.progress import Progress
from dagdiff.rollout import Data, draw
from dagdiff.round import NonFiniteLoss
from dagdiff.schedule import Schedule
from dagdiff.shapes import Denoiser
from dagdiff.tasks.base import Task
from dagdiff.versions import CODE


class Teacher(ABC):
    """A teacher to be learned; a kind of task says which network it is and on what it is trained.

    Args:
        task: whose dataset, schedule and classes it learns.
        network: options of its network.
        training: options of :func:`train_teacher`, ``updates`` among them.
        seed: of weights, data and noise.
        prediction: what the network predicts: x0, epsilon, v or flow.
    """

    def __init__(
        self, task: Task, network: dict[str, Any], training: dict[str, Any], seed: int = 0, prediction: str = "v"
    ) -> None:
        check_in("prediction", prediction, PREDICTIONS)
        for name in {"updates", "batch_size"} & set(training):
            check_at_least(name, training[name], 1)
        check_seed("seed", seed)
        self.task, self.options, self.training, self.seed, self.prediction = task, network, training, seed, prediction

    @abstractmethod
    def network(self) -> Student:
        """Return a fresh network, its weights fixed by the seed."""

    @property
    def data(self) -> Data:
        """The clean points that it learns from."""
        return self.task.world

    @property
    def content(self) -> dict[str, Any]:
        """What tells its data apart, where a dataset's name does not."""
        return {}

    @property
    def path(self) -> Path:
        """Where the trained weights are, or will be, cached: a content hash tells teachers apart."""
        kind, world = "labelled" if self.task.conditional else "plain", self.task.world.name
        times = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
        noise = [[f"{value:.4f}" for value in values.tolist()] for values in self.task.schedule(times)]
        options = {**self.content, **self.options, **self.training, "seed": self.seed, "prediction": self.prediction}
        key = {"world": world, "kind": kind, "schedule": noise, "version": CODE["teacher"], **options}
        digest = content_hash(json.dumps(key, sort_keys=True))[:16]
        return cache_folder() / "teachers" / f"{world}-{kind}-{digest}.safetensors"

    def train(self, device: torch.device | str = "cpu") -> Iterator[float]:
        """Train, yield the loss now and then, and cache the weights at the end; a stopped training is resumed.

        One process trains. Others that need the same teacher wait for it, and then find it trained.
        """
        network, part = self.network().to(device), self.path.with_suffix(".part")  # refused before a folder is made
        with awaited(self.path):
            if self.path.exists():
                return
            generator = torch.Generator(device).manual_seed(self.seed)
            drawn: dict[str, Any] = {"conditional": self.task.conditional, "generator": generator}
            yield from train_teacher(network, self.data, self.task.schedule, keep=part, **self.training, **drawn)
            save_weights(self.path, network)
            part.unlink(missing_ok=True)

    def load(self) -> Student:
        """Return the trained network, training it first where no cache has it."""
        if not self.path.exists():
            for _ in self.train():
                pass
        network = self.network()
        load_weights(self.path, network)
        return network


def student_from_expert(expert: Denoiser) -> nn.Module:
    """A student that starts from the expert's own network, as the methods do; the expert must be a network.

    Args:
        expert: the run's.
    """
    if not isinstance(expert, nn.Module):
        raise Refusal(
            f"the expert, a {type(expert).__name__}, is no torch.nn.Module, so no student can start from it. "
            "Pass --policy teacher, unet or fresh, or a policy of your own."
        )
    return copy.deepcopy(expert).requires_grad_(True).train()


def train_teacher(
    network: nn.Module,
    data: Data,
    schedule: Schedule,
    updates: int = 4000,
    batch_size: int = 512,
    lr: float = 2e-3,
    ema: float = 0.995,
    unlabelled: float = 0.1,
    conditional: bool = False,
    generator: torch.Generator | None = None,
    keep: Path | None = None,
) -> Iterator[float]:
    """Train a denoising network in place and yield the loss every 100 updates; in the end it holds the EMA weights.

    How far it is is shown (:class:`dagdiff.progress.Progress`).

    The learning rate falls to 0 along half a cosine. Conditional teachers see no label in a part ``unlabelled`` of the
    rows, so that guidance can ask them without one (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    With a file to ``keep`` its state in, training that was stopped is resumed from there, bit for bit as if it had not
    been stopped; the file is the caller's to delete. It is written after some of the hundreds, so seldom that it takes
    a twentieth of the time at most, and where INT or TERM ends training.

    Raises:
        Refusal: if the file is broken, or was kept by the training of another network.
        NonFiniteLoss: if the loss is NaN or infinite.
        Stopped: after INT or TERM, when the state is kept.
    """
    device = next(network.parameters()).device
    generator = generator or torch.Generator(device).manual_seed(0)
    adam = partial(torch.optim.Adam, lr=lr)
    learner = Learner(network, Learning(adam, CosineRamp(1.0, 0.0, until=1.0), clip=math.inf, ema=ema), updates)
    parts = learner.parts()
    done = _resume(keep, parts, generator) if keep and keep.exists() else 0
    saving = Pace(0.0)

    def save() -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        save_state(keep, {**states, "generator": generator.get_state(), "update": update})  # type: ignore[arg-type]

    with deferred() as wish, Progress("the teacher's training", updates, "update", done) as bar:
        for update in range(done + 1, updates + 1):
            x0, condition = draw(data, batch_size, generator, conditional)
            noise = torch.randn(x0.shape, generator=generator, device=device)
            t = torch.rand(batch_size, generator=generator, device=device).clamp(min=1e-3)
            if condition is not None:
                dropped = torch.rand(batch_size, generator=generator, device=device) < unlabelled
                condition = torch.where(dropped, -1, condition)
            loss = denoising_loss(learner.forward, x0, noise, t, schedule, condition)
            learner.update(loss)
            closes = update % 100 == 0 or update == updates
            if closes and not loss.isfinite():
                raise NonFiniteLoss(
                    f"the teacher's loss is not finite at update {update}; nothing of it is kept. Lower its lr, or "
                    "look at its data."
                )
            if keep and (wish.signal or (closes and saving.due)):
                saving(save)
            if wish.signal:
                place = f"the teacher's training stopped at update {update} of {updates}; the same command resumes it"
                raise Stopped(place if keep else "stopped", 128 + wish.signal)
            if closes:
                bar.advance(update - bar.done, loss=(told := float(loss.detach())))
                yield told
    if learner.averaged is not None:
        network.load_state_dict(copy.deepcopy(learner.averaged.module.state_dict()))


def _resume(keep: Path, parts: dict[str, Any], generator: torch.Generator) -> int:
    """Put all parts back to where they were kept; return how many updates had been made."""
    kept = load_state(keep, parts)
    generator.set_state(kept["generator"])
    return int(kept["update"])
