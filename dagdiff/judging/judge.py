"""A student on the bench: its scores, the bounds of its distance to its expert, its shift by step, and its row.

Every student is held against two references: the *floor*, real points scored as if they were samples, and the *expert*
in the student's place, which makes as many steps by the same law from the same noise: what a perfect imitator scores.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dagdiff.batches import InParts, rows_at_once, sample_in_batches
from dagdiff.checks import Refusal
from dagdiff.judging import terms
from dagdiff.judging.judgement import Judgement, Scores
from dagdiff.judging.students import Given, Student, fitted, moved, read_student
from dagdiff.metrics.base import score
from dagdiff.metrics.shift import Density, bracket, measure_shift, surprise
from dagdiff.metrics.truth import Truth
from dagdiff.policy import ExpertPolicy
from dagdiff.rollout import draw
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import digest
from dagdiff.shapes import Condition, Denoiser
from dagdiff.tasks.plane import exact_expert
from dagdiff.transition import EpsilonScaling, Renoise, Transition
from dagdiff.versions import versions


def judge(
    student: Given | Sequence[Given],
    task: str,
    steps: int | None = None,
    seeds: int = 3,
    *,
    law: str | None = None,
    schedule: Any = None,
    entry: str | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> Judgement:
    """Judge a student on a task of the bench.

    Args:
        student: a callable ``(x_t, t, condition) -> x0``, its import path, a .npz file of samples or chains, the folder
            of a run, or a diffusers folder; or a sequence, one student for each seed, whose spread then holds that of
            training.
        task: its name.
        steps: of the student's chain, 4 by default; a run and a file of chains have their own.
        seeds: how many of the frozen seeds are taken.
        law: by which a callable or a chain moves: ddim (the default) or renoise.
        schedule: the name of the noise schedule of a callable's states; None takes the task's.
        entry: the name in its row; None takes what was handed in.
        device: auto, cpu, cuda, ...
        trust_code: run the code that the folder of a run names by import path.

    Raises:
        Refusal: for a student that can't be had, does not fit the task, or answers with another shape or NaN.
    """
    terms.check_task(task)
    several = isinstance(student, list | tuple)
    named: Sequence[Any] = student if several else [student]  # type: ignore[assignment]
    frozen = terms.check_seeds(len(named) if several else seeds)
    found = [read_student(each, task, steps, device, trust_code) for each in named]
    if several and any(each.policy is None for each in found):
        raise Refusal("of several students each must be one that acts; got a file of points. Hand it in alone.")
    first = found[0]
    steps = _steps(first, steps)
    if first.kind in ("run", "pipeline") and (law or schedule):
        raise Refusal(f"{first.name} brings its law and its schedule along. Leave --law and --schedule away.")
    name = law or _law_name(first.law)
    it = copy.copy(reference(task, steps, name, schedule or first.schedule, device))
    own = first.law or it.transition
    it.transition, it.times = own if _same_noise(own, it) else it.transition, _times(first, it)
    found = [moved(fitted(each, it.task, steps, len(frozen), terms.POINTS), it.device) for each in found]
    bench = _Bench(it, own)
    per_seed = [bench.scores(found[i % len(found)], i, seed) for i, seed in enumerate(frozen)]
    scores, floor, expert = (_by_metric([each[part] for each in per_seed]) for part in range(3))
    shift, ends = bench.shift(first, frozen[0])
    return Judgement(
        entry=entry or first.name,
        task=task,
        kind=first.kind,
        steps=steps,
        law=name,
        scores=scores,
        floor=floor,
        expert=expert,
        shift=shift,
        ends=ends,
        seeds=list(frozen),
        points=terms.POINTS,
        versions=versions(torch.get_num_threads()),
    )


@lru_cache(maxsize=16)
def _built(task: str, steps: int, law: str, schedule: Any, device: str) -> Experiment:
    return Experiment.build(configure(terms.settings(task, steps, law, schedule, device)))


def reference(task: str, steps: int, law: str, schedule: Any = None, device: str = "auto") -> Experiment:
    """Return the experiment whose task and expert judge students of so many steps by that law."""
    if isinstance(schedule, dict):
        return Experiment.build(configure(terms.settings(task, steps, law, schedule, device)))
    return _built(task, steps, law, schedule, device)


class _Bench:
    """The references of a task, and what they say of students.

    Args:
        it: holds task, expert, law and grid of the references.
        own: the law of the students; another than that of ``it`` where they see other noise.
    """

    def __init__(self, it: Experiment, own: Transition) -> None:
        self.it, self.own, self.rows = it, own, rows_at_once(it.task.shape)
        world, exact = getattr(it.task.world, "mixture", None), not it.task.conditional
        self.density: Density | None = exact_expert(it.task).log_density if world is not None and exact else None

    def scores(self, student: Student, number: int, seed: int) -> tuple[dict[str, float], ...]:
        """Every metric of the student, of the floor, and of the expert in its place, on one seed."""
        it, n = self.it, terms.POINTS
        with it.expert.ledger.free(), _seeded(seed):
            ends, asked = self._ends(student, number, seed)
            paired = it.pair(n, seed) if student.policy is not None else None
            mine = score(it.task.metrics, ends, self._truth(seed, asked, paired))
            return mine, *self._references(seed)

    def _references(self, seed: int) -> tuple[dict[str, float], dict[str, float]]:
        """The scores of the floor, and of the expert in the student's place; found once for students alike."""
        it, n = self.it, terms.POINTS
        key = digest(it.config), repr(it.transition), tuple(it.times.tolist()), seed, n
        if key not in _FOUND:
            real = score(it.task.metrics, it.task.real(n, it.generator(8, seed)), self._truth(seed))
            _FOUND[key] = real, it.score_expert(n, seed)
        return _FOUND[key]

    def _truth(self, seed: int, asked: Condition = None, paired: Tensor | None = None) -> Truth:
        generators = self.it.generator(4, seed), self.it.generator(5, seed)
        return self.it.task.truth(terms.POINTS, *generators, asked, paired)

    def _ends(self, student: Student, number: int, seed: int) -> tuple[Tensor, Condition]:
        """The points of a seed, and what they were asked to show where that is known."""
        if student.points is not None:
            rows = slice(number * terms.POINTS, (number + 1) * terms.POINTS)
            part, asked = student.points[rows], None if student.labels is None else student.labels[rows]
            return (part[:, -1] if student.kind == "chains" else part), asked
        assert student.policy is not None
        noise, condition, draws = self.it.start(terms.POINTS, seed)
        ends = sample_in_batches(student.policy, self.own, self.it.times, noise, condition, draws, self.rows)
        if not bool(ends.isfinite().all()):
            raise Refusal(f"{student.name} ends at NaN or infinity. Look at its weights, or train it again.")
        return ends.to(noise.device), condition

    def shift(self, student: Student, seed: int) -> tuple[list[dict[str, float]], dict[str, float] | None]:
        """The shift by step, and the bounds of the distance to the expert's ends, as far as they are known."""
        with self.it.expert.ledger.free(), _seeded(seed):
            if student.kind == "chains" and (student.labels is not None or not self.it.task.conditional):
                return self._of_chains(student, seed)
            if student.policy is None or self.own is not self.it.transition:
                return [], None
            return self._of_policy(student.policy, seed)

    def _of_policy(self, policy: Denoiser, seed: int) -> tuple[list[dict[str, float]], dict[str, float]]:
        it, n, generator = self.it, terms.POINTS, self.it.generator(7, seed)
        x0, condition = draw(it.task.data, n, generator, it.task.conditional)
        truth = it.task.reference(n, it.generator(4, seed))
        parts = InParts(policy, self.rows), it.measured[1], it.transition, it.times
        found = measure_shift(*parts, x0, condition, generator, self.density, truth)
        return [row.as_row() for row in found.rows], found.ends._asdict()

    def _of_chains(self, student: Student, seed: int) -> tuple[list[dict[str, float]], dict[str, float]]:
        """Of chains: how unlikely their states are, where the true density is known, and the bounds of their ends."""
        assert student.points is not None
        it, chains, generator = self.it, student.points[: terms.POINTS], self.it.generator(7, seed)
        acting = ExpertPolicy(it.measured[1], it.transition, it.times)
        asked = None if student.labels is None else student.labels[: terms.POINTS]
        led = sample_in_batches(acting, it.transition, it.times, chains[:, 0], asked, generator, self.rows)
        truth, rows = it.task.reference(terms.POINTS, it.generator(4, seed)), []
        for step, t in enumerate(it.times[:-1]):
            rows.append({"step": float(step), "t": float(t)})
            if self.density is not None:
                at = t.expand(len(chains))
                found = surprise(self.density, chains[:, step], at, truth, it.task.schedule, generator)
                rows[-1]["surprise"] = found
        return rows, bracket(chains[:, -1], led.to(chains.device), generator)._asdict()


def _steps(student: Student, steps: int | None) -> int:
    """The number of steps: the student's own, or what was told, or 4."""
    own = None if student.times is None else len(student.times) - 1
    if student.kind == "chains" and student.points is not None and student.points.ndim > 1:
        own = student.points.shape[1] - 1
    if own is not None and steps is not None and own != steps:
        raise Refusal(f"{student.name} makes {own} steps; got --steps {steps}. Leave --steps away.")
    if student.kind == "chains" and student.times is not None and len(student.times) - 1 != own:
        raise Refusal(f"{student.name} holds {len(student.times)} times for {own} steps. Save K + 1 of them.")
    return own or steps or 4


def _law_name(law: Transition | None) -> str:
    """The name of a law; ddim where none is known."""
    plain = law.transition if isinstance(law, EpsilonScaling) else law
    return "renoise" if isinstance(plain, Renoise) else "ddim"


def _times(student: Student, it: Experiment) -> Tensor:
    return it.times if student.times is None else student.times.to(it.device)


def _same_noise(law: Transition, it: Experiment) -> bool:
    """Whether a law's states hold the noise that the task's expert is asked about."""
    t = it.times
    apart = torch.stack(law.schedule(t)) - torch.stack(it.task.schedule(t))
    return float(apart.abs().max()) <= _SAME


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let what draws from torch's global stream, as a callable may, draw the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _by_metric(rows: Sequence[dict[str, float]]) -> Scores:
    return {name: [row[name] for row in rows] for name in rows[0]}


_FOUND: dict[Any, tuple[dict[str, float], dict[str, float]]] = {}
_SAME = 2e-3  # in alpha and sigma: a table of a thousand entries read between them
