"""The work of a suite: what its processes are asked for, a function each."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dagdiff.benchmarks.running.cells import YARDSTICK, Cell
from dagdiff.checkpoint import save_arrays
from dagdiff.expert import Expert
from dagdiff.metrics.base import score
from dagdiff.pipelines.fingerprint import fingerprint
from dagdiff.round import Round
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import digest
from dagdiff.runs.looks import look
from dagdiff.schedule import step_grid
from dagdiff.sealed import read_sealed, save_sealed
from dagdiff.transition import Ddim, sample

_PLACE = (*YARDSTICK, "steps", "stages", "seed", "threshold", "solver", "epsilon_scale", "bf16")
"""What the expert's scores in a student's place depend on, beside the transition."""

THREADS = 1
"""Torch threads of every run: another number rounds in another order."""


def run_cell(cell: Cell, out: Path) -> dict[str, Any]:
    """Train and score one student; return its record, and keep its samples and chains beside the results."""
    torch.set_num_threads(THREADS)
    experiment = Experiment.build(cell.config)
    course = Course(experiment, cell.looks)
    for done in experiment.rounds():
        loop, last = done
        course.close(last)
    cost = {"nfe_student": last.nfe_student, "nfe_expert": last.nfe_expert, "seconds": last.seconds}
    if loop.gathering.ready is not None:
        cost["nfe_gathered"] = loop.gathering.ready.saved
    return {**cell.labels, **cost, **scored(experiment, cell.key, out), **course.record}


class Course:
    """What a student scores while it trains, and what it has cost by then.

    Args:
        experiment: the run.
        looks: how often it is scored, at even distances, the last time after the last round.
    """

    def __init__(self, experiment: Experiment, looks: int) -> None:
        self.experiment, self.looks, self.rounds = experiment, looks, 0
        self.all = experiment.settings.rounds * len(experiment.settings.stages or [1])
        self.points = list[dict[str, float]]()

    def close(self, done: Round) -> None:
        """Count a round, and score the student where one is due; no random stream of the run is moved."""
        self.rounds += 1
        if self.rounds * self.looks // self.all > (self.rounds - 1) * self.looks // self.all:
            cost = {"nfe_student": done.nfe_student, "nfe_expert": done.nfe_expert}
            self.points.append({**cost, **look(self.experiment)})

    @property
    def record(self) -> dict[str, Any]:
        """That part of the run's record: a list for each number."""
        if not self.points:
            return {}
        return {"course": {name: [point[name] for point in self.points] for name in self.points[0]}}


def scored(experiment: Experiment, key: str, out: Path) -> dict[str, Any]:
    """Score a trained student and keep its samples and chains; return that part of its record."""
    seed, file = experiment.settings.seed, f"samples/{key}.npz"
    points = experiment.sample(experiment.settings.samples, seed)
    metrics, by_step = experiment.measure(points, seed)
    chains = {"chains": experiment.chains(64, seed), "expert_chains": experiment.expert_chains(64, seed)}
    save_arrays(out / file, x=points[: experiment.task.saved], **chains)
    expert = {"expert": expert_scores(experiment, out), **teacher_name(experiment.expert)}
    return {"config": key, "samples": file, "metrics": metrics, "by_step": by_step, **expert}


def teacher_name(expert: Expert) -> dict[str, str]:
    """Return what names a learned expert in a record: the start of its weights' hash. Training differs by machine."""
    network = expert.denoiser
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        return {}
    return {"teacher": fingerprint(network)[:8]}


def expert_scores(experiment: Experiment, out: Path) -> dict[str, float]:
    """Return the scores of the expert in the student's place, from the student's noise; runs alike share a file."""
    law = experiment.transition
    named = f"{type(law).__name__}-{getattr(law, 'eta', 0.0):g}"
    file = out / "experts" / f"{digest({name: experiment.config[name] for name in _PLACE})}-{named}.json"
    if not file.exists():
        save_sealed(file, experiment.score_expert(experiment.settings.samples, experiment.settings.seed))
    found: dict[str, float] = read_sealed(file)
    return found


def refer(cell: Cell, out: Path) -> dict[str, Any]:
    """Score real data (the floor) and the expert as students are; keep their samples, and chains from one noise."""
    torch.set_num_threads(THREADS)
    experiment = Experiment.build({**cell.config, "seed": 0, "threshold": {"class": "none"}})
    n, task = experiment.settings.samples, experiment.task
    schedule, expert = task.schedule, experiment.expert
    noise, condition, _ = experiment.start(n, seed=0)

    def scores(points: torch.Tensor) -> dict[str, float]:
        truth = task.truth(len(points), experiment.generator(4), experiment.generator(5), condition)
        return score((*task.metrics, *experiment.metrics), points, truth)

    plain = Expert(expert.denoiser, schedule, 1, expert.guidance)
    by_nfe = {steps: scores(sample(plain, Ddim(schedule), step_grid(steps), noise, condition)) for steps in task.nfes}
    walked = expert.walk(noise, experiment.times, condition)[-1]
    start, label, _ = experiment.start(64, seed=0)
    chains = torch.stack(expert.walk(start, experiment.times, label), dim=1)
    file = f"samples/{task.name.replace('/', '_')}-{cell.yardstick[:6]}.npz"
    data, truth = task.data.sample(n, experiment.generator(6)), task.world.sample(n, experiment.generator(7))
    seen = {"data": data, "truth": truth, "x": walked, "chains": chains}
    save_arrays(out / file, **{name: points[: task.saved] for name, points in seen.items()})
    found = {"floor": scores(task.real(n, experiment.generator(8))), "expert": scores(walked), "expert_by_nfe": by_nfe}
    return {**found, "samples": file, "yardstick": cell.yardstick}


def learn(cell: Cell) -> None:
    """Train and cache the networks that a cell starts from."""
    torch.set_num_threads(THREADS)
    Experiment.build(cell.config)
