"""A race: columns of a comparison that train in turns, a round each, so that their times compare.

Whatever else the machine does slows all alike, and nobody always comes after the same one. Everything runs on one
thread, and each column has a global random stream of its own: training in turns is training alone, number for number.
Times are CPU time of an update of the student with all that comes with it (critic updates, rollouts).
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.work import THREADS, scored
from dagdiff.round import updates_by_round
from dagdiff.runs.experiment import Experiment

Training = Callable[[Experiment], Iterator[tuple[int, int]]]
"""Trains an experiment's student; yields after each round the NFE of student and expert so far."""


def race(columns: Sequence["Racer"], out: Path) -> list[dict[str, Any]]:
    """Train all columns in turns, a round each; return their records."""
    torch.set_num_threads(THREADS)
    for number in range(columns[0].it.settings.rounds):
        for place in range(len(columns)):
            columns[(number + place) % len(columns)].turn()
    return [column.record(out) for column in columns]


class Racer:
    """One column under way.

    Args:
        cell: what it is.
        key: the name under which its record is kept.
        train: how it is trained.
    """

    def __init__(self, cell: Cell, key: str, train: Training) -> None:
        with torch.random.fork_rng(devices=[]):
            self.cell, self.key, self.it = cell, key, Experiment.build(cell.config)
        self.training = train(self.it)
        self.nfe, self.wall, self.cpu = (0, 0), 0.0, list[float]()
        self.random = torch.Generator().manual_seed(self.it.settings.seed).get_state()

    def turn(self) -> None:
        """Train for a round."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            wall, cpu = time.perf_counter(), time.process_time()
            self.nfe = next(self.training)
            self.cpu.append(time.process_time() - cpu)
            self.wall += time.perf_counter() - wall
            self.random = torch.get_rng_state()

    def record(self, out: Path) -> dict[str, Any]:
        """End the training and score the student, as :func:`dagdiff.benchmarks.running.work.run_cell` does.

        ``milliseconds`` of CPU an update are the median over rounds, but for the first, which also builds things.
        """
        with torch.random.fork_rng(devices=[]):
            list(self.training)
        updates = updates_by_round(self.it.settings.updates, self.it.settings.rounds)
        each = [cpu / made for cpu, made in zip(self.cpu, updates, strict=True)]
        cost = {"nfe_student": self.nfe[0], "nfe_expert": self.nfe[1], "seconds": self.wall}
        cost |= {"milliseconds": 1e3 * statistics.median(each[1:] or each)}
        return {**self.cell.labels, **cost, **scored(self.it, self.key, out)}
