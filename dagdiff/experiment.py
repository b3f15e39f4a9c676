"""An experiment: the objects that a configuration names, from its task to its loop, and the student's measurement."""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from dagdiff import parallel
from dagdiff.benchmarks.tasks import Task, make_task
from dagdiff.checks import Refusal, check_seed
from dagdiff.config import Config, find_device, flatten, parse
from dagdiff.curriculum import Curriculum
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.expert import Expert
from dagdiff.halving import halve
from dagdiff.heldout import HeldOut
from dagdiff.mixture import Shares
from dagdiff.objectives.base import Objective
from dagdiff.parts import resolve
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.student import Stepwise
from dagdiff.policy import StudentPolicy
from dagdiff.round import Round, updates_by_round
from dagdiff.schedule import step_grid
from dagdiff.shapes import Condition, States, Times
from dagdiff.threshold import Threshold
from dagdiff.transition import EpsilonScaling, Transition, chain, sample


@dataclass
class Experiment:
    """The objects of a run, built from its configuration and not yet trained."""

    config: Config
    settings: Namespace
    task: Task
    student: nn.Module
    objective: Objective
    threshold: Threshold
    curriculum: Curriculum
    transition: Transition
    times: Times
    device: torch.device

    @classmethod
    def build(cls, config: Config, training: bool = True) -> "Experiment":
        """Build from a configuration (see :mod:`dagdiff.config`); a run that is not to be trained needs no teacher yet.

        Raises:
            Refusal: for anything in it that can't be; nothing has been written by then.
        """
        settings = parse(list(flatten(config if training else _without_teacher(config))))
        device = find_device(settings.device)
        schedule = _make("schedule", settings.schedule) if settings.schedule["class"] else None
        task = make_task(settings.task, schedule, settings)
        if settings.data["class"]:
            task = replace(task, data=_make("data", settings.data, task))
        objective = _make("objective", settings.objective, task)
        _check_kind("objective", objective, Objective, "a subclass of dagdiff.objectives.Objective")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            student = _make("policy", settings.policy, task)
        _check_kind("policy", student, nn.Module, "a torch.nn.Module")
        curriculum = _make("curriculum", settings.curriculum, task)
        _check_kind("curriculum", curriculum, Callable, "a callable loop -> rounds")
        steps = settings.stages[-1] if settings.stages else settings.steps
        if settings.stepwise:
            student = Stepwise(student, step_grid(steps))
        if settings.bf16:
            student = in_bfloat16(student)
        made = cls(
            config=config,
            settings=settings,
            task=task,
            student=_to(student, device),
            objective=objective,
            threshold=_make("threshold", settings.threshold, task),
            curriculum=curriculum,
            transition=objective.sampler(task.schedule),
            times=step_grid(steps).to(device),
            device=device,
        )
        if training:
            made.loop(made.expert, steps)  # what is wrong with it is told now
        return made

    @cached_property
    def expert(self) -> Expert:
        """The teacher in its role, built when first asked for."""
        denoiser = _to(_make("expert", self.settings.expert, self.task), self.device)
        _check_kind("expert", denoiser, Callable, "a callable (x_t, t, condition) -> x0")
        if self.settings.bf16 and isinstance(denoiser, nn.Module):  # a closed form stays exact
            denoiser = in_bfloat16(denoiser)
        return Expert(denoiser, self.task.schedule, self.settings.substeps, self.settings.guidance, self.threshold)

    @property
    def policy(self) -> StudentPolicy:
        """The student in its role."""
        return StudentPolicy(self.student, self.threshold)

    @property
    def sampler(self) -> Transition:
        """The law by which the student is sampled: that of its training, unless its noise is scaled."""
        scale = self.settings.epsilon_scale
        return self.transition if scale == 1.0 else EpsilonScaling(self.transition, scale)

    def rounds(self) -> Iterator[tuple[DAgger, Round]]:
        """Train, yielding each round with the loop it belongs to."""
        stages = self.settings.stages or [self.settings.steps]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + parallel.place())
            yield from halve(stages, self.expert, self.loop, self.curriculum)

    def loop(self, expert: Expert, steps: int) -> DAgger:
        """Return the loop that trains the student in so many steps against that expert; nothing has run yet.

        In several processes it is this process's part of it.
        """
        chosen, times = self.settings, step_grid(steps).to(self.device)
        env = DenoisingEnv(
            self.task.shape,
            self.transition,
            times,
            batch_size=parallel.part("chains", chosen.chains),
            conditions=self.task.conditions,
            generator=self.generator(1 + 10 * parallel.place()),
            device=self.device,
        )
        return DAgger(
            self.student,
            expert,
            copy.deepcopy(self.objective),
            env,
            self.task.data,
            shares=None if chosen.shares is None else Shares(*chosen.shares),
            shares_ramp=_make("shares_ramp", chosen.shares_ramp),
            beta=_make("beta", chosen.beta),
            per_chain=chosen.per_chain,
            driver=_maker("driver", chosen.driver),
            input_perturbation=chosen.input_perturbation,
            rounds=chosen.rounds,
            updates_per_round=updates_by_round(chosen.updates, chosen.rounds),
            batch_size=parallel.part("batch_size", chosen.batch_size),
            rounds_kept=chosen.rounds_kept,
            max_age=chosen.max_age,
            optimiser=lambda weights: torch.optim.Adam(
                weights, self.objective.lr if chosen.lr is None else chosen.lr, self.objective.betas
            ),
            lr_ramp=_make("lr_ramp", chosen.lr_ramp),
            clip=chosen.clip,
            ema=chosen.ema,
            heldout=chosen.heldout,
            accumulate=chosen.accumulate,
            folder=Path(chosen.memmap) if chosen.memmap else None,
            generator=self.generator(10 * parallel.place()),
        )

    def generator(self, stream: int, seed: int | None = None) -> torch.Generator:
        """Return the run's random stream of that number; ``seed`` replaces the run's own."""
        seed = check_seed("seed", self.settings.seed if seed is None else seed)
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
        return sample(self.policy, self.sampler, self.times, noise, condition, generator)

    def chains(self, n: int, seed: int) -> Tensor:
        """Return ``n`` student chains from noise to data, ``(n, K + 1, *D)``."""
        noise, condition, generator = self.start(n, seed)
        steps = chain(self.policy, self.sampler, self.times, noise, condition, generator)
        return torch.stack([noise, *(step.x_s for step in steps)], dim=1)

    def measure(self, samples: Tensor, seed: int = 0) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Score the student: every metric of its ``samples`` and the mean held-out imitation losses; losses by step.

        Samples are those of :meth:`sample` with this seed.
        """
        chains = self.task.probes(len(samples))
        noise, asked, _ = self.start(len(samples), seed)
        paired = self.task.pair(self.expert, noise[:chains], self.times, None if asked is None else asked[:chains])
        streams = self.generator(4, seed), self.generator(5, seed)
        metrics = self.task.judge(samples, *streams, asked, paired)
        heldout = HeldOut(self.task.data, self.sampler, self.times, chains, self.task.conditional, seed)
        found = heldout.imitation(self.policy, self.expert)
        forward, own = (sum(found[name]) / len(found[name]) for name in ("loss_forward", "loss_own"))
        metrics |= {"loss_forward": forward, "loss_own": own, "loss_gap": own - forward}
        return metrics, {"t": self.times[:-1].tolist(), **found}


def _check_kind(part: str, made: Any, kind: Any, wanted: str) -> None:
    if not isinstance(made, kind):
        raise Refusal(f"the {part} must be {wanted}; got a {type(made).__name__}. Name another with --{part}.")


def _without_teacher(config: Config) -> Config:
    """The same configuration with a student of the same build that does not start from a teacher."""
    policy = dict(config["policy"])
    fresh = {"teacher": ("fresh", "width", "depth"), "unet": ("fresh-unet", "channels", "layers")}
    if policy.get("class") not in fresh:
        return config
    name, *kept = fresh[policy["class"]]
    return {**config, "policy": {"class": name, **{option: policy[option] for option in kept}}}


def _make(part: str, chosen: Namespace, task: Task | None = None) -> Any:
    """Build a part from its parsed arguments; give it the task if it asks for one, or let it be the task's usual."""
    arguments = dict(vars(chosen))
    name = arguments.pop("class") or (task and task.usual[part])
    kind = resolve(part, str(name))
    if "task" in inspect.signature(kind).parameters:
        arguments["task"] = task
    return kind(**arguments)


def _maker(part: str, chosen: Namespace) -> Any:
    """A part that the loop builds itself, with the options it was given."""
    options = dict(vars(chosen))
    return partial(resolve(part, str(options.pop("class"))), **options)


def _to(part: Any, device: torch.device) -> Any:
    """Move a part that can be moved."""
    return part.to(device) if hasattr(part, "to") else part
