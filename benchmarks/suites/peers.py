"""A peer, side by side: DMD2 by NVIDIA ModelOpt (``pip install 'dagdiff[peers]'``) on our worlds, networks and updates.

================  ========  ==================================================================================
variant           losses    states that the student and the critic are trained on
================  ========  ==================================================================================
forward           dagdiff   forward-diffused
student           dagdiff   student states: what DMD2 calls backward simulation
mixture-25/50/25  dagdiff   both, and the expert's
modelopt-forward  ModelOpt  forward-diffused (``backward_simulation=False``)
modelopt-student  ModelOpt  student states (``backward_simulation=True``)
default           dagdiff   our objective as it comes: a critic conditioned on the step of an output, fewer
                            updates of it, larger learning rates, and the objective's own shares
================  ========  ==================================================================================

The first five hold DMD2 as published: one fake score for all times, five updates of it to one of the student. So they
differ in states and in formulas alone; the last is what a user gets who names nothing.

*Alike* in the five, because the very same objects serve both: the world and the set that is shown, the schedule
(rectified flow, the only one that ModelOpt knows), the learned teacher, the student and fake score that start from it,
both optimisers with clipping and learning-rate ramp, batch, updates, critic updates, the range of tau (uniform), the
grid, and the law by which students are sampled (fresh noise each step, ModelOpt's "sde"). ModelOpt leaves the loop to
its user; ours for it is :mod:`dagdiff.benchmarks.suites.modelopt_dmd2`.

*Different*, because it is what ModelOpt does (``tests/benchmarks/test_peers.py`` holds the formulas):

* Its fake score minimises the error of the guess of x0, unweighted (its default), ours the error in v, which is
  ((alpha^2 + sigma^2) / sigma)^2 times that and stresses small tau.
* It divides by mean|x - real| + 1e-6, we by the mean and skip a row without one. On these worlds nobody can tell.
* With backward simulation it walks a fresh chain for every batch, and one batch holds one time of the grid. We roll in
  once a round, keep what was visited, and a batch holds all times.
* It perturbs and converts in float64.

Times are CPU time of an update of the student together with its critic updates, roll-ins included; the columns of a
task and seed train in turns (:mod:`dagdiff.benchmarks.running.race`).
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.folder import open_results, own_numbers
from dagdiff.benchmarks.running.options import check_settings
from dagdiff.benchmarks.running.race import Racer, Training, race
from dagdiff.benchmarks.running.variants import MIXES
from dagdiff.benchmarks.running.work import refer
from dagdiff.benchmarks.suites import modelopt_dmd2
from dagdiff.checkpoint import save_text
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.report.results import Results
from dagdiff.report.rows import Row
from dagdiff.report.summary import write_summary
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.recipes import recipe
from dagdiff.sealed import save_sealed
from dagdiff.tasks.base import Task
from dagdiff.tasks.names import PLANE, read_name, task_names
from dagdiff.tasks.plane import Teacher


def ours(it: Experiment) -> Iterator[tuple[int, int]]:
    """Train the experiment's student by our own loop; yield after each round the NFE of student and expert so far."""
    for _, done in it.rounds():
        yield done.nfe_student, done.nfe_expert


def flow_expert(task: Task) -> nn.Module:
    """A teacher that predicts the flow's velocity, as those of rectified flow do; our own default, v, is for cosine."""
    return Teacher(task, prediction="flow").load().requires_grad_(False).eval()


PUBLISHED: dict[str, Any] = {
    "objective": {
        "class": "distribution",
        "critic_updates": 5,
        "critic_lr": 5e-4,
        "tell_origin": False,
        "label_weight": 0.0,
    },
    "lr": 5e-4,
}


class Column(NamedTuple):
    """A variant: the shares (forward, student, expert) of its states, what trains it, and its settings."""

    shares: tuple[float, float, float]
    train: Training = ours
    settings: dict[str, Any] = PUBLISHED
    peer: bool = False


VARIANTS = {
    "forward": Column((1.0, 0.0, 0.0)),
    "student": Column((0.0, 1.0, 0.0)),
    "mixture-25/50/25": Column(MIXES["mixture-25/50/25"]),
    "modelopt-forward": Column((1.0, 0.0, 0.0), partial(modelopt_dmd2.train, backward_simulation=False), peer=True),
    "modelopt-student": Column((0.0, 1.0, 0.0), partial(modelopt_dmd2.train, backward_simulation=True), peer=True),
    "default": Column(recipe("plane", "distribution")["shares"], settings={"objective": "distribution"}),
}


@dataclass
class Suite:
    """What is run: every task with every variant for every seed.

    Args:
        tasks: comma-separated, unlabelled; `dagdiff list tasks` names them.
        variants: comma-separated, of forward, student, mixture-25/50/25, modelopt-forward, modelopt-student,
            default; times are told as ratios to the first.
        steps: of the student, at least 2.
        seeds: how many seeds, 0 to seeds - 1.
        updates: of the student in each run.
        settings: more settings of every run, e.g. {"lr": 1e-3}.
    """

    tasks: list[str] = field(default_factory=lambda: ["gaussians8-matched", "gaussians8-biased", "imbalanced-biased"])
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    steps: int = 4
    seeds: int = 3
    updates: int = 1200
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(tasks=["gaussians8-matched", "gaussians8-biased"], seeds=2, updates=200)
"""Two tasks in a few minutes: ``--quick``."""

_OWN = {"task": "Use --tasks.", "steps": "Use --steps.", "seed": "Use --seeds.", "updates": "Use --updates."}
_OWN |= dict.fromkeys(("shares", "objective", "lr"), "Use --variants.")
_OWN |= {
    "schedule": "The peer knows rectified flow alone.",
    "threshold": "The peer has none.",
    "stages": "The peer has none.",
}


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs, those of a task and seed together; the peer's stand under the settings they share."""
    check_at_least("seeds", suite.seeds, 1)
    check_at_least("steps", suite.steps, 2)
    check_settings(suite.settings, _OWN)
    for name, values, known in (("task", suite.tasks, task_names()), ("variant", suite.variants, VARIANTS)):
        if not values:
            raise Refusal(f"--{name}s is empty. Name at least one, or leave the option away.")
        for value in values:
            check_in(name, value, known)
    for task in suite.tasks:
        if task.endswith("-labelled"):
            raise Refusal(f"task {task!r} has labels, and the peer is asked without. Take {task[:-9]!r}.")
        if read_name(task).kind is not PLANE:
            raise Refusal(f"task {task!r} is not of the plane, as this suite's teachers are. Take another task.")
        chosen = {"task": task, "schedule": "flow", "steps": suite.steps}
        chosen |= {"expert": "dagdiff.benchmarks.suites.peers.flow_expert", "policy": "expert"}
        chosen |= {"updates": suite.updates, "heldout": 0, "device": "cpu", **suite.settings}
        columns = {name: VARIANTS[name] for name in suite.variants}
        configs = {
            name: configure({**chosen, **column.settings, "shares": list(column.shares)})
            for name, column in columns.items()
        }
        for seed in range(suite.seeds):
            for name, config in configs.items():
                yield Cell("distribution", name, {**config, "seed": seed}, free=("objective", "lr"))


def run(suite: Suite, out: Path, workers: int = 1) -> dict[str, Any]:
    """Run what ``out`` does not hold yet, on one thread; return all results, and keep them and their table there."""
    if workers != 1:
        raise Refusal(f"--workers must be 1, for this suite measures time; got {workers}. Leave the option away.")
    results, wanted = open_results(out, "peers"), list(cells(suite))
    if any(VARIANTS[name].peer for name in suite.variants):
        modelopt_dmd2.load_fastgen()
    results |= {"settings": asdict(suite), "failures": {}, "numbers": own_numbers(wanted)}
    for (task, _), racers in groupby(wanted, lambda cell: (cell.config["task"], cell.config["seed"])):
        columns = {key(cell): cell for cell in racers}
        first = next(iter(columns.values()))
        if results["references"].get(task, {}).get("yardstick") != first.yardstick:
            results["references"][task] = refer(first, out)
        if not set(columns) <= {record["config"] for record in results["records"]}:
            others = [record for record in results["records"] if record["config"] not in columns]
            results["records"] = others + race([racer(cell) for cell in columns.values()], out)
        save_sealed(out / "results.json", results)
    save_text(out / "table.txt", table(out))
    return results


def key(cell: Cell) -> str:
    """Content hash of a run: that of its configuration, and for the peer's its name and version."""
    return f"{cell.key}-modelopt-{version('nvidia-modelopt')}" if VARIANTS[cell.variant].peer else cell.key


def racer(cell: Cell) -> Racer:
    """Return the cell at its start, to be trained as its variant is."""
    return Racer(cell, key(cell), VARIANTS[cell.variant].train)


def table(out: Path) -> str:
    """A text table of a folder's results: means over seeds, for energy and W2 with their bootstrap intervals."""
    results = Results.load(out)
    names = ("coverage", "on_mode", "mode_kl", "spread")
    lines = [["variant", "seeds", "energy", "w2", *names, "ms/update", "time ratio"]]
    for task, group in groupby(results.rows, lambda row: row.task):
        rows = list(group)
        lines.append([task, *[""] * (len(lines[0]) - 1)])
        for name in ("floor", "expert"):
            scores = results.references[task][name]
            lines.append([f"  ({name})", "", *(f"{scores[each]:.3g}" for each in ("energy", "w2", *names)), "", ""])
        lines += [_line(row, names, rows[0]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def milliseconds(row: Row) -> float:
    """Mean CPU time of an update."""
    return statistics.mean(record.milliseconds for record in row.records)


def _line(row: Row, names: Sequence[str], first: Row) -> list[str]:
    told = [f"{interval:.3g}" if (interval := row.metrics[name]) else "–" for name in ("energy", "w2")]
    told += [f"{interval.mean:.3g}" if (interval := row.metrics[name]) else "–" for name in names]
    times = milliseconds(row), milliseconds(row) / milliseconds(first)
    return [f"  {row.variant}", str(len(row.records)), *told, *(f"{each:.2f}" for each in times)]


def main(words: Sequence[str]) -> None:
    """Run the suite into a folder and print its table."""
    folders = [Path(word) for word in words if word != "--quick"]
    if len(folders) != 1:
        raise Refusal(
            f"one folder is needed; got {list(words)}. Run python -m dagdiff.benchmarks.suites.peers OUT [--quick]."
        )
    run(QUICK if "--quick" in words else Suite(), folders[0])
    write_summary(Results.load(folders[0]), folders[0] / "summary.csv")
    print(table(folders[0]), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
