"""An experiment: the objects that a configuration names, from its task to its loop, and the student's measurement."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from dagdiff import engine
from dagdiff.batches import InParts, rows_at_once, sample_in_batches
from dagdiff.checkpoint import check_writable, load_weights
from dagdiff.checks import Refusal, check_at_least, check_seed
from dagdiff.dagger import DAgger
from dagdiff.engine import find_device
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.expert import Expert
from dagdiff.fit import check_fit
from dagdiff.gathered import Gathered
from dagdiff.gathering import Gathering
from dagdiff.heldout import HeldOut
from dagdiff.hooks import Hook
from dagdiff.learner import Learning
from dagdiff.metrics.base import Scorer, score
from dagdiff.metrics.imitation import gaps
from dagdiff.metrics.standing import Standing
from dagdiff.mixture import Shares
from dagdiff.objectives.base import Objective
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.compiled import check_compiled, check_compiler, compiled
from dagdiff.policies.student import Stepwise
from dagdiff.policy import ExpertPolicy, StudentPolicy
from dagdiff.progress import Progress
from dagdiff.round import Round, updates_by_round
from dagdiff.runs.config import Config, typed
from dagdiff.runs.identity import check_labels
from dagdiff.runs.making import make, make_metric, make_schedule, maker
from dagdiff.runs.parts import RAMPS
from dagdiff.runs.standing import check_whole
from dagdiff.schedule import refine, step_grid
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.strategies.curriculum import Curriculum
from dagdiff.strategies.halving import Halving
from dagdiff.tasks.base import Task
from dagdiff.tasks.names import make_task
from dagdiff.threshold import Threshold
from dagdiff.transition import EpsilonScaling, Transition, chain


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
    denoiser: Denoiser | None
    rows: int | None = None
    """How many rows networks are shown at once where samples are drawn and scored; None takes what suits them."""
    label: int | None = None
    """The class that all samples are asked to show; None draws one for each."""
    guidance: float | None = None
    """The weight of guidance that the student is told for all samples; None draws one for each from its range."""
    hooks: list[Hook] = field(default_factory=list)
    """See what happens inside the rounds of a training; append to it before it begins."""

    @classmethod
    def build(cls, config: Config, training: bool = True) -> "Experiment":
        """Build from a configuration (see ``runs.config``); a run that is not to be trained needs no teacher yet.

        Raises:
            Refusal: for anything in it that can't be; nothing has been written by then.
        """
        settings = typed(config if training else _without_teacher(config))
        device = find_device(settings.device)
        if training and settings.compile:
            check_compiler(device)
        if training:
            engine.adam(device, settings.adam8bit)
        task = make_task(settings.task, make_schedule(settings), settings, training)
        if settings.data["class"]:
            task = replace(task, data=make("data", settings.data, task))
        objective = make("objective", settings.objective, task)
        for part in ("solver", *RAMPS):  # what can't be is refused before a teacher is trained
            make(part, settings[part], task)
        denoiser = make("expert", settings.expert, task) if training or settings.policy["class"] == "expert" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            student = make("policy", settings.policy, task, denoiser)
        curriculum = make("curriculum", settings.curriculum, task)
        steps = settings.stages[-1] if settings.stages else settings.steps
        transition = objective.sampler(task.schedule)
        times = task.grid(steps, transition)
        if settings.stepwise:
            student = Stepwise(student, times)
        if settings.bf16:
            student = in_bfloat16(student)
        made = cls(
            config=config,
            settings=settings,
            task=task,
            student=_to(student, device),
            objective=objective,
            threshold=make("threshold", settings.threshold, task),
            curriculum=curriculum,
            transition=transition,
            times=times.to(device),
            device=device,
            denoiser=denoiser,
        )
        if training and settings.start:
            folder = Path(settings.start)
            check_whole(folder, ("student.safetensors",))
            load_weights(folder / "student.safetensors", made.student)
        if training and settings.compile:
            compiled(made.student)
        if training:
            made.check(steps)
        return made

    @cached_property
    def expert(self) -> Expert:
        """The teacher in its role, built when first asked for."""
        named = make("expert", self.settings.expert, self.task) if self.denoiser is None else self.denoiser
        denoiser = _to(named, self.device)
        if self.settings.bf16 and isinstance(denoiser, nn.Module):  # a closed form stays exact
            denoiser = in_bfloat16(denoiser)
        if self.settings.compile:
            denoiser = compiled(denoiser)
        chosen, solver = self.settings, make("solver", self.settings.solver, self.task)
        return Expert(
            denoiser,
            self.task.schedule,
            chosen.substeps,
            self.task.unmet(chosen.guidance),
            self.threshold,
            solver=solver,
            span=self.span,
            guide=self.task.guide,
        )

    @property
    def span(self) -> float | None:
        """The time that the expert's sub-steps are for: the whole chain, where predictions must be right at data."""
        ends = self.transition.horizon(self.times[1:])
        return 1.0 if bool((ends == 0.0).all()) else None

    @cached_property
    def metrics(self) -> list[Scorer]:
        """What samples are scored by beside the task's own metrics."""
        return [make_metric(name, self.task) for name in self.settings.metric]

    @property
    def policy(self) -> StudentPolicy:
        """The student in its role."""
        return StudentPolicy(self.student, self.threshold)

    @property
    def measured(self) -> tuple[Denoiser, Expert]:
        """The student in its role, and the expert, whose networks are shown no more rows at once than is said."""
        rows = self._rows
        twin = copy.copy(self.expert)  # of the same ledger
        twin.denoiser = InParts(twin.denoiser, rows)
        return InParts(self.policy, rows), twin

    @property
    def _rows(self) -> int:
        return rows_at_once(self.task.shape) if self.rows is None else self.rows

    @property
    def sampler(self) -> Transition:
        """The law by which the student is sampled: that of its training, unless its noise is scaled."""
        scale = self.settings.epsilon_scale
        return self.transition if scale == 1.0 else EpsilonScaling(self.transition, scale)

    def training(self) -> Halving:
        """Return the whole training, its stages one after the other; nothing has run yet.

        Raises:
            Refusal: if a compiled student does not answer or learn as it does uncompiled.
        """
        if self.settings.compile:
            noise, condition, _ = self.start(4, seed=0)
            with torch.random.fork_rng(devices=[]):
                check_compiled(self.student, noise, torch.full((4,), 0.5, device=self.device), condition)
        stages = self.settings.stages or [self.settings.steps]
        engine.shard(self.expert.denoiser)
        return Halving(stages, self.student, self.expert, self.loop, self.curriculum)

    def rounds(self, training: Halving | None = None) -> Iterator[tuple[DAgger, Round]]:
        """Train, yielding each round with the loop it belongs to.

        Args:
            training: of :meth:`training`, with what it is to resume from; None trains from the start.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + engine.rank())
            yield from training or self.training()

    def unshard(self) -> None:
        """In process 0, put a whole student and expert in the place of sharded ones; all processes call it at once."""
        if not engine.sharded(self.student):
            return
        state = engine.state_of(self.student)
        if engine.rank() == 0:
            fresh = Experiment.build(self.config)
            self.student, self.denoiser = fresh.student, fresh.denoiser
            self.__dict__.pop("expert")
            self.student.load_state_dict(state)

    def loop(self, expert: Expert, steps: int) -> DAgger:
        """Return the loop that trains the student in so many steps against that expert; nothing has run yet.

        In several processes it is this process's part of it.
        """
        chosen = self.settings
        return DAgger(
            self.student,
            expert,
            copy.deepcopy(self.objective),
            self.env(steps),
            self.task.data,
            shares=Shares(*chosen.shares),
            rounds=chosen.rounds,
            updates_per_round=updates_by_round(chosen.updates, chosen.rounds),
            gathering=self.gathering(),
            learning=self.learning(),
            heldout=chosen.heldout,
            generator=self.generator(10 * engine.rank()),
            hooks=self.hooks,
        )

    def gathering(self) -> Gathering:
        """Return which states are gathered and how long they stay."""
        chosen = self.settings
        return Gathering(
            beta=make("beta", chosen.beta, self.task),
            per_chain=chosen.per_chain,
            driver=maker("driver", chosen.driver, self.task),
            shares_ramp=make("shares_ramp", chosen.shares_ramp, self.task),
            input_perturbation=chosen.input_perturbation,
            reuse=chosen.reuse,
            rounds_kept=chosen.rounds_kept,
            max_age=chosen.max_age,
            folder=Path(chosen.memmap) if chosen.memmap else None,
            ready=self.ready(),
        )

    def ready(self) -> Gathered | None:
        """The records made ahead that the run takes, if it names any; in several processes, this one's part."""
        chosen = self.settings
        if not chosen.gathered:
            return None
        check_labels(self.config, Path(chosen.gathered))
        return Gathered(Path(chosen.gathered), chosen.seed, self.device, engine.rank(), engine.world_size())

    def learning(self) -> Learning:
        """Return how the student learns; in several processes, in batches of this one's part."""
        chosen = self.settings
        return Learning(
            optimiser=partial(engine.adam(self.device, chosen.adam8bit), lr=chosen.lr, betas=tuple(chosen.betas)),
            lr_ramp=make("lr_ramp", chosen.lr_ramp, self.task),
            clip=chosen.clip,
            ema=chosen.ema,
            batch_size=engine.part("batch_size", chosen.batch_size),
            accumulate=chosen.accumulate,
            on_nonfinite=chosen.on_nonfinite,
        )

    def env(self, steps: int) -> DenoisingEnv:
        """Return the environment in which the student makes so many steps; in several processes, this one's part."""
        return DenoisingEnv(
            self.task.shape,
            self.transition,
            self.grid(steps).to(self.device),
            batch_size=engine.part("chains", self.settings.chains),
            conditions=self.task.conditions,
            generator=self.generator(1 + 10 * engine.rank()),
            device=self.device,
        )

    def grid(self, steps: int) -> Times:
        """Return the times of so many steps; those of an earlier stage split the last one's, which are the student's.

        A stage's expert then meets the times it was trained at.
        """
        final = len(self.times) - 1
        even = torch.equal(self.times.cpu(), step_grid(final))
        return step_grid(steps) if even else refine(self.times, steps // final)

    def in_steps(self, steps: int) -> "Experiment":
        """Return the same run with its student asked in so many steps, whatever it was trained in.

        Raises:
            Refusal: where answers are for the student's own next step (PD), and say nothing of others.
        """
        check_at_least("steps", steps, 1)
        if self.span is None or self.settings.stepwise:
            raise Refusal(
                f"steps={steps}: this student answers for the {len(self.times) - 1} steps that it was trained in. "
                "Leave steps away, or train one whose answers are data: --objective consistency, or "
                "--objective.label_end data."
            )
        return replace(self, times=self.task.grid(steps, self.transition).to(self.device))

    def check(self, steps: int) -> None:
        """Reject what no loop could be made of, without making one: a loop keeps copies of its networks."""
        chosen = self.settings
        if engine.sharding() and len(chosen.stages or ()) > 1:
            raise Refusal("stages copy their students, and sharded ones (FSDP2) can't be. Take --steps, or DDP.")
        self.task.check_training()
        if self.objective.real_data and not self.task.real_data:
            raise Refusal(
                f"{chosen.objective['class']} compares with real data here (gan_weight), and without pictures its data "
                "are the teacher's own samples. Pass --pipeline.images FOLDER, or --objective.gan_weight 0."
            )
        self.gathering()
        rows = self.learning().batch_size
        for name in chosen.metric:
            make_metric(name, self.task)
        if chosen.memmap:
            check_writable("memmap", Path(chosen.memmap))
        check_fit(self.env(steps), self.expert, self.objective, self.student, self.task.data, rows)

    def generator(self, stream: int, seed: int | None = None) -> torch.Generator:
        """Return the run's random stream of that number; ``seed`` replaces the run's own."""
        seed = check_seed("seed", self.settings.seed if seed is None else seed)
        return torch.Generator(self.device).manual_seed(1_000_003 * seed + stream)

    def start(self, n: int, seed: int) -> tuple[States, Condition, torch.Generator]:
        """Return noise and conditions for ``n`` chains, and the generator of their fresh noise, fixed by ``seed``."""
        generator = self.generator(3, seed)
        noise = torch.randn((n, *self.task.shape), generator=generator, device=self.device)
        condition = self.task.conditions(n, generator) if self.task.conditions else None
        if condition is not None and self.label is not None:
            condition = torch.full_like(condition, self.label)
        if self.guidance is not None:
            condition = self.task.weighted(condition, self.guidance)
        return noise, condition, generator

    def sample(self, n: int, seed: int, progress: bool = False) -> Tensor:
        """Return ``n`` points from the student, ``(n, *D)``; ``progress`` shows a bar."""
        return self._walked(self.policy, "samples", n, seed, progress)

    def _walked(self, policy: Denoiser, title: str, n: int, seed: int, progress: bool) -> Tensor:
        """Return where a policy leads the noise of ``seed``, batch by batch."""
        noise, condition, generator = self.start(n, seed)
        parts = policy, self.sampler, self.times, noise, condition, generator, self._rows
        with Progress(title, n, shown=progress) as bar:
            return sample_in_batches(*parts, bar.advance)

    def pictures(self, points: Tensor, progress: bool = False) -> Tensor:
        """Return what points look like, on the CPU, made batch by batch."""
        parts = points.split(self._rows)
        shown = Progress("decoding", len(parts), shown=progress)
        return torch.cat([self.task.pictures(part).cpu() for part in shown.over(parts)])

    def clouds(self, samples: Tensor | None = None) -> dict[str, Any]:
        """Return what is drawn side by side: training data, points of the target, and of the student."""
        n, generator = self.settings.samples, self.generator(6)
        panels = {
            "training data": self.task.data.sample(n, generator),
            "target": self.task.world.sample(n, generator),
            "student": self.sample(n, seed=0) if samples is None else samples,
        }
        return {name: self.task.pictures(each[: self.task.saved]).numpy(force=True) for name, each in panels.items()}

    def chains(self, n: int, seed: int) -> Tensor:
        """Return ``n`` student chains from noise to data, ``(n, K + 1, *D)``."""
        return self._chains(self.policy, n, seed)

    def expert_chains(self, n: int, seed: int) -> Tensor:
        """Return the chains of the expert in the student's place, from the same noise; it is not charged."""
        with self.expert.ledger.free():
            return self._chains(ExpertPolicy(self.expert, self.sampler, self.times), n, seed)

    def _chains(self, policy: Denoiser, n: int, seed: int) -> Tensor:
        noise, condition, generator = self.start(n, seed)
        steps = chain(policy, self.sampler, self.times, noise, condition, generator)
        return torch.stack([noise, *(step.x_s for step in steps)], dim=1)

    def pair(self, n: int, seed: int = 0) -> Tensor | None:
        """What the expert makes of the noise of the first of ``n`` chains, if samples are compared one by one."""
        chains = self.task.probes(n)
        noise, asked, _ = self.start(n, seed)
        return self.task.pair(self.measured[1], noise[:chains], self.times, None if asked is None else asked[:chains])

    def measure(
        self, samples: Tensor, seed: int = 0, paired: Tensor | None = None, progress: bool = False
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Score the student: every metric of its ``samples`` and the mean held-out imitation losses; losses by step.

        Samples are those of :meth:`sample` with this seed, ``paired`` what :meth:`pair` returns for it.
        """
        chains = self.task.probes(len(samples))
        _, asked, _ = self.start(len(samples), seed)
        paired = self.pair(len(samples), seed) if paired is None else paired
        truth = self.task.truth(len(samples), self.generator(4, seed), self.generator(5, seed), asked, paired)
        scorers: tuple[Scorer, ...] = (*self.task.metrics, *self.metrics)
        with Progress("scoring", len(scorers) + 2, shown=progress) as bar:
            metrics = score(bar.told(scorers), samples, truth)
            heldout = HeldOut(self.task.data, self.sampler, self.times, chains, self.task.conditional, seed)
            parts = self.measured
            found = heldout.imitation(*parts)
            bar.advance()
            losses = {name: sum(by_step) / len(by_step) for name, by_step in found.items()}
            displacement = heldout.displacement(*parts)
            bar.advance()
        metrics |= losses | gaps(losses) | {"end_error": displacement[-1]}
        return metrics, {"t": self.times[:-1].tolist(), **found, "displacement": displacement}

    def sample_expert(self, n: int, seed: int, progress: bool = False) -> Tensor:
        """Return ``n`` points from the expert in the student's place, ``(n, *D)``; it is not charged.

        They start from the noise of :meth:`sample`, and take its fresh noise: what a perfect imitator would return.
        """
        acting = ExpertPolicy(self.expert, self.sampler, self.times)
        with self.expert.ledger.free():
            return self._walked(acting, "the expert's samples", n, seed, progress)

    def score_expert(self, n: int, seed: int = 0) -> dict[str, float]:
        """Return every metric of the samples of :meth:`sample_expert`: the reference of a student's own."""
        _, asked, _ = self.start(n, seed)
        truth = self.task.truth(n, self.generator(4, seed), self.generator(5, seed), asked, self.pair(n, seed))
        return score((*self.task.metrics, *self.metrics), self.sample_expert(n, seed), truth)

    def stand(self, samples: Tensor, seed: int = 0, paired: Tensor | None = None, progress: bool = False) -> Standing:
        """Compare samples with those of the expert in the student's place; arguments as in :meth:`measure`."""
        truth = self.task.truth(len(samples), self.generator(4, seed), paired=paired)
        return self.task.stand(samples, self.sample_expert(len(samples), seed, progress), truth)


def _without_teacher(config: Config) -> Config:
    """The same configuration with a student of the same build that does not start from a teacher."""
    mlp, unet = ("fresh", "width", "depth"), ("fresh-unet", "channels", "layers")
    fresh = {"learned": mlp, "teacher": mlp, "unet": unet}
    teacher = config["expert" if config["policy"]["class"] == "expert" else "policy"]
    if teacher["class"] not in fresh:
        return config
    name, *kept = fresh[teacher["class"]]
    return {**config, "policy": {"class": name, **{option: teacher[option] for option in kept}}}


def _to(part: Any, device: torch.device) -> Any:
    """Move a part that can be moved."""
    return part.to(device) if hasattr(part, "to") else part
