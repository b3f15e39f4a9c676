"""``dagdiff bench cost``: what the mixture costs against forward and published training, and what each setting buys.

Every row of the table changes one thing of the usual mixture and makes as many updates. Time is CPU time of the process
on one torch thread, of training alone. Runs that ``cost.csv`` in ``--out`` holds already are not made again. In the
checkout ``python -m dagdiff.benchmarks.measure.cost`` writes the table of ``docs/cost.md`` from what is kept in
``benchmarks/results/cost``.

*Forward* is forward states alone, re-used as the mixture's are. *Published* is the method as its paper has it, with new
states for every batch: PD and LCM on forward states, DMD2 on student states. ModelOpt's DMD2 knows rectified flow only,
so it stands beside two runs of ours from the suite *peers* that share its schedule, teacher, networks and optimisers.

Expected before the runs:

* Forward is the cheapest in every column. The mixture takes up to 1.4 times its CPU time, and less than published PD's,
  which labels four times as many states.
* Re-use 1 to 8: evaluations of the expert fall, and quality stays within the spread of seeds.
* Rounds kept cost nothing. PD and LCM do not care; DMD2 is better with the newest states alone.
* Updates a round: fewer rounds cost less, and at 5 rounds the student's states are too old: its own loss is higher.
* Labels that end at data, the usual ones of LCM, cost several times as many evaluations of the expert, and with few
  updates they make better samples, for nothing has to be passed on from step to step. PD gains nothing by them.
* DMD2 without labels is worse and asks the expert half as often; a weight of 0.3 does what 1 does.
* Half of the expert's sub-steps, or DDIM instead of DPM-Solver++, change nothing that can be seen.
* ModelOpt walks a chain for every batch, so its student is asked more often than ours on student states, and an update
  takes longer; quality is alike.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dagdiff.benchmarks.measure.overhead import one_thread, processor
from dagdiff.benchmarks.measure.rows import Rows, read_rows
from dagdiff.benchmarks.pages import with_table
from dagdiff.benchmarks.running.variants import shares_of
from dagdiff.benchmarks.suites import modelopt_dmd2, peers
from dagdiff.checkpoint import save_csv, save_json, save_text
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.report.glossary import OBJECTIVES
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.tasks.names import PLANE, read_name
from dagdiff.versions import versions

KEPT, PAGE = Path("benchmarks/results/cost"), Path("docs/cost.md")

KNOWN = ("progressive", "consistency", "distribution")

AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "states": dict.fromkeys(KNOWN, ("forward", "published")),
    "reuse": {**dict.fromkeys(KNOWN, ("1", "2", "8")), "distribution": ("1", "2", "4", "8")},
    "rounds_kept": dict.fromkeys(KNOWN, ("1", "5")),
    "rounds": dict.fromkeys(KNOWN, ("5", "10", "40")),
    "label_end": {"progressive": ("data",), "consistency": ("step", "0.125", "0.25", "uniform")},
    "label_weight": {"distribution": ("0", "0.3")},
    "substeps": {**dict.fromkeys(KNOWN, ("4", "8")), "progressive": ("2", "4")},
    "solver": dict.fromkeys(KNOWN, ("ddim", "heun")),
    "peer": {"distribution": ("student", "mixture-25/50/25", "modelopt-student")},
}
"""What is changed -> objective -> to which values; the usual ones are those of the recipe, in a row of their own."""

WORDS = {
    "usual": "the usual mixture", "states": "{} states", "reuse": "re-use {}", "rounds_kept": "rounds kept: {}",
    "rounds": "{} rounds", "label_end": "labels end at {}", "label_weight": "labels of weight {}",
    "substeps": "{} sub-steps", "solver": "solver {}",
    "peer": "on flow: {}",
}  # fmt: skip

QUALITY = ("energy", "w2", "mode_kl", "loss_own", "loss_forward")

ABSENT = "ModelOpt is not installed, so its row is left out. Run pip install 'dagdiff[peers]'."


@dataclass(frozen=True)
class Options:
    """Which runs are made.

    Args:
        tasks: of the plane, unlabelled.
        objectives: progressive, consistency, distribution.
        axes: what is changed: states, reuse, rounds_kept, rounds, label_end, label_weight, substeps,
            solver, peer.
        seeds: how many, 0 to seeds - 1.
        updates: of the student in each run.
    """

    tasks: list[str] = field(default_factory=lambda: ["gaussians8-biased", "imbalanced-biased"])
    objectives: list[str] = field(default_factory=lambda: list(KNOWN))
    axes: list[str] = field(default_factory=lambda: list(AXES))
    seeds: int = 2
    updates: int = 400

    def __post_init__(self) -> None:
        for name in self.objectives:
            check_in("objectives", name, KNOWN)
        for name in self.axes:
            check_in("axes", name, AXES)
        check_at_least("seeds", self.seeds, 1)
        check_at_least("updates", self.updates, 40)
        for name in self.tasks:
            if read_name(name).kind is not PLANE or name.endswith("-labelled"):
                raise Refusal(f"tasks must be unlabelled ones of the plane; got {name!r}. Pass e.g. gaussians8-biased.")


class Run(NamedTuple):
    """What tells a run apart: one thing is changed, or nothing (``usual``)."""

    task: str
    objective: str
    axis: str
    value: str
    seed: int
    updates: int


def runs(options: Options) -> Iterator[Run]:
    """Yield the runs, seed by seed; those of an objective follow each other."""
    for seed in range(options.seeds):
        for task in options.tasks:
            for objective in options.objectives:
                yield Run(task, objective, "usual", "", seed, options.updates)
                for axis in options.axes:
                    for value in AXES[axis].get(objective, ()):
                        yield Run(task, objective, axis, value, seed, options.updates)


def changed(run: Run) -> dict[str, Any]:
    """Return the settings by which a run differs from the usual mixture."""
    if run.axis == "states":
        published: dict[str, Any] = {"reuse": 1.0} if run.value == "published" else {}
        if published and run.objective == "distribution":
            published |= peers.PUBLISHED
        if published and run.objective == "consistency":
            published["objective.label_end"] = "step"
        return {"shares": shares_of(run.value, run.objective), **published}
    numbers: dict[str, Callable[[str], Any]] = {"reuse": float, "rounds_kept": int, "rounds": int, "substeps": int}
    name = f"objective.{run.axis}" if run.axis in ("label_end", "label_weight") else run.axis
    return {} if run.axis == "usual" else {name: numbers.get(run.axis, str)(run.value)}


def prepared(run: Run) -> tuple[Experiment, Iterator[Any]]:
    """Return a run's experiment, and its training: an iterator of rounds."""
    if run.axis == "peer":
        suite = peers.Suite([run.task], [run.value], seeds=run.seed + 1, updates=run.updates)
        *_, cell = peers.cells(suite)
        it = Experiment.build(cell.config)
        return it, peers.VARIANTS[run.value].train(it)
    usual = {"task": run.task, "objective": run.objective, "seed": run.seed, "updates": run.updates}
    it = Experiment.build(configure({**usual, "heldout": 0, "device": "cpu", **changed(run)}))
    return it, peers.ours(it)


def made(run: Run) -> dict[str, Any]:
    """Make one run; return its cost and quality. Milliseconds are CPU time an update, roll-ins and labels included."""
    it, training = prepared(run)
    started = time.process_time()
    *_, (student, expert) = training
    spent = 1000.0 * (time.process_time() - started) / run.updates
    metrics, _ = it.measure(it.sample(it.settings.samples, seed=run.seed), seed=run.seed)
    cost = {"nfe_student": student, "nfe_expert": expert, "milliseconds": f"{spent:.3f}"}
    return {**run._asdict(), **cost, **{name: f"{metrics[name]:.5g}" for name in QUALITY}}


def measure(options: Options, out: Path) -> str:
    """Make the runs that are not there yet, write the file after each, and return the table."""
    rows = read(out)
    there = {tuple(row[name] for name in Run._fields) for row in rows}
    wanted = [run for run in runs(options) if tuple(map(str, run)) not in there]
    absent = any(run.value.startswith("modelopt") for run in wanted) and not installed()
    with one_thread():
        for number, run in enumerate(run for run in wanted if not absent or not run.value.startswith("modelopt")):
            if not number:
                made(run._replace(updates=40))  # what is loaded when first used is no part of a run's time
            rows.append({name: str(value) for name, value in made(run).items()})
            save_csv(out / "cost.csv", rows)
        save_json(out / "machine.json", {**versions(1), "processor": processor(), "cores": os.cpu_count()})
    mine = [row for row in rows if int(row["updates"]) == options.updates]
    return "\n\n".join(filter(None, (table(mine), ABSENT if absent else "")))


def installed() -> bool:
    """Whether ModelOpt is there."""
    try:
        modelopt_dmd2.load_fastgen()
    except Refusal:
        return False
    return True


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a line an objective and change: means of cost and own loss over tasks and seeds; energy by task.

    ``time`` is told beside its ratio to that of forward states; energy is 1000 times the distance, with the least and
    the greatest of the seeds.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["objective"], row["axis"], row["value"]), []).append(row)
    lines = [
        "| objective | what is changed | CPU, ms an update | against forward | student evaluations "
        f"| expert evaluations | {' | '.join(f'energy, {task}' for task in tasks)} | own loss |",
        "|" + "---|" * (7 + len(tasks)),
    ]
    for (objective, axis, value), group in sorted(groups.items(), key=lambda found: _place(*found[0])):
        alike = {(row["task"], row["seed"]) for row in group}
        forward = groups.get((objective, "states", "forward"), [])
        base = [row for row in forward if (row["task"], row["seed"]) in alike]
        spent = _mean(group, "milliseconds")
        ratio = f"{spent / _mean(base, 'milliseconds'):.2f}" if base and axis != "peer" else "–"
        asked = [f"{_mean(group, name) / 1000.0:,.0f} k" for name in ("nfe_student", "nfe_expert")]
        energies = [_spread([1000.0 * float(row["energy"]) for row in group if row["task"] == task]) for task in tasks]
        told = [OBJECTIVES[objective], WORDS[axis].format(value), f"{spent:.2f}", ratio, *asked, *energies]
        own = f"{_mean(group, 'loss_own'):.3g}"
        lines.append(f"| {' | '.join([*told, own])} |")
    return "\n".join(lines)


def read(folder: Path) -> Rows:
    """Read the rows that are kept in a folder; none if there is no file."""
    return read_rows(folder / "cost.csv")


def _place(objective: str, axis: str, value: str) -> tuple[int, int, int]:
    """Where a line stands in the table."""
    values = AXES[axis][objective] if axis in AXES else (value,)
    return KNOWN.index(objective), list(WORDS).index(axis), values.index(value)


def _mean(rows: Sequence[Mapping[str, str]], name: str) -> float:
    return fmean(float(row[name]) for row in rows)


def _spread(values: Sequence[float]) -> str:
    if len(set(values)) < 2:
        return f"{values[0]:.2f}" if values else "–"
    return f"{fmean(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Write the page's table from what is kept."""
    save_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), "cost", table(read(KEPT))))


if __name__ == "__main__":
    main()
