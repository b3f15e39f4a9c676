"""``dagdiff bench steps``: one student in any number of steps, against students that were made for each number.

A student under labels that walk to data answers a state with its clean end, whatever step comes next. Nothing ties it
to the number of steps that it was trained in but the states that it was trained on. LCM's usual mixture is trained in
each number of steps, and every student is asked in each; the expert in the student's place stands below.

Runs that ``steps.csv`` in ``--out`` holds already are not made again. In the checkout ``python -m
dagdiff.benchmarks.measure.steps`` writes the tables of ``docs/any-steps.md`` from what is kept in
``benchmarks/results/steps``.

Expected before the runs:

* A student of 2 or 4 steps, whose on-policy states are perturbed to all times, serves 2 to 16 steps at no more than 1.1
  times the distance of the student that was made for that number.
* In one step all are alike, for a start is noise in every training.
* The student of one step is the worst in many: it has seen own states of its first guess alone.
* More steps than trained in neither help nor harm much, and no student gets nearer to the truth than the expert in its
  place.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dagdiff.benchmarks.measure.overhead import one_thread, processor
from dagdiff.benchmarks.measure.rows import Rows, read_rows
from dagdiff.benchmarks.pages import with_table
from dagdiff.benchmarks.tables import head, line, spoken
from dagdiff.checkpoint import save_csv, save_json, save_text
from dagdiff.checks import check_at_least, check_in
from dagdiff.metrics.statistics import bootstrap_mean
from dagdiff.report.glossary import OBJECTIVES
from dagdiff.report.verdict import bracketed
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.tasks.names import read_name
from dagdiff.versions import versions

KEPT, PAGE = Path("benchmarks/results/steps"), Path("docs/any-steps.md")
TABLES = {"steps": "energy", "steps, images": "fd"}
"""The page's tables, each of a metric."""


@dataclass(frozen=True)
class Options:
    """Which students are made, and in how many steps they are asked.

    Args:
        tasks: any, in the plane or of images.
        objective: consistency, distribution or progressive, which then walks to data too.
        trained: numbers of steps of training, a student each.
        asked: numbers of steps in which each is asked.
        seeds: how many, 0 to seeds - 1.
        updates: of each student.
    """

    tasks: list[str] = field(default_factory=lambda: ["grid25-biased", "imbalanced-biased", "gaussians8-matched"])
    objective: str = "consistency"
    trained: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    asked: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    seeds: int = 3
    updates: int = 400

    def __post_init__(self) -> None:
        check_in("objective", self.objective, OBJECTIVES)
        for name in ("trained", "asked"):
            check_at_least(name, min(getattr(self, name), default=0), 1)
        check_at_least("seeds", self.seeds, 1)
        check_at_least("updates", self.updates, 20)
        for name in self.tasks:
            read_name(name)


class Run(NamedTuple):
    """A student that is trained."""

    task: str
    objective: str
    trained: int
    seed: int
    updates: int


def runs(options: Options) -> Iterator[Run]:
    """Yield the students, seed by seed."""
    for seed in range(options.seeds):
        for task in options.tasks:
            for trained in options.trained:
                yield Run(task, options.objective, trained, seed, options.updates)


def made(run: Run, asked: Sequence[int]) -> list[dict[str, Any]]:
    """Train one student; return a row a number of steps in which it is asked, with its distance and its expert's."""
    chosen = {"task": run.task, "objective": run.objective, "steps": run.trained, "seed": run.seed}
    label = {"objective.label_end": "data", "substeps": 16} if run.objective == "progressive" else {}
    it = Experiment.build(configure({**chosen, **label, "updates": run.updates, "heldout": 0, "device": "cpu"}))
    for _ in it.rounds():
        pass
    rows = []
    for steps in asked:
        other = it.in_steps(steps)
        found = other.stand(other.sample(it.settings.samples, seed=run.seed), seed=run.seed)
        distances = {"distance": f"{found.student:.6g}", "expert": f"{found.teacher:.6g}"}
        rows.append({**run._asdict(), "asked": steps, "metric": found.metric, **distances})
    return rows


def measure(options: Options, out: Path) -> str:
    """Make the students that are not there yet, write the file after each, and return the table."""
    rows = read(out)
    there = {tuple(row[name] for name in (*Run._fields, "asked")) for row in rows}
    with one_thread():
        for run in runs(options):
            asked = [steps for steps in options.asked if tuple(map(str, (*run, steps))) not in there]
            if asked:
                rows += [{name: str(value) for name, value in row.items()} for row in made(run, asked)]
                save_csv(out / "steps.csv", rows)
        save_json(out / "machine.json", {**versions(1), "processor": processor(), "cores": os.cpu_count()})
    return table([row for row in rows if int(row["updates"]) == options.updates])


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a line a task and training, a column a number of steps asked: mean distance over seeds and its interval.

    Energy distances are times 1000. The last line of a task and objective is the expert in the student's place.
    """
    asked = sorted({int(row["asked"]) for row in rows})
    lines = head("set", "trained in", *(f"asked in {steps}" for steps in asked))
    for task, objective in dict.fromkeys((row["task"], row["objective"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["objective"]) == (task, objective)]
        for trained in sorted({int(row["trained"]) for row in mine}):
            own = [row for row in mine if int(row["trained"]) == trained]
            told = f"{OBJECTIVES[objective]}, {trained} step{'s' if trained > 1 else ''}"
            lines += line(spoken(task), told, *_cells(own, "distance", asked))
        lines += line(spoken(task), f"the expert in {OBJECTIVES[objective]}'s place", *_cells(mine, "expert", asked))
    return "\n".join(lines)


def _cells(rows: Sequence[Mapping[str, str]], name: str, asked: Sequence[int]) -> Iterator[str]:
    """A cell a number of steps, of means by seed."""
    for steps in asked:
        told = [row for row in rows if int(row["asked"]) == steps]
        scale, digits = (1000.0, 1) if told[0]["metric"] == "energy" else (1.0, 3)
        by_seed = [
            scale * fmean(float(row[name]) for row in told if row["seed"] == seed)
            for seed in sorted({row["seed"] for row in told})
        ]
        yield bracketed(bootstrap_mean(by_seed), digits)


def read(folder: Path) -> Rows:
    """Read the rows that are kept in a folder; none if there is no file."""
    return read_rows(folder / "steps.csv")


def filled(text: str, folder: Path) -> str:
    """Return the page's text with its tables made anew: one for each metric."""
    rows = read(folder)
    for name, metric in TABLES.items():
        text = with_table(text, name, table([row for row in rows if row["metric"] == metric]))
    return text


def main() -> None:
    """Write the page's table from what is kept."""
    save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), KEPT))


if __name__ == "__main__":
    main()
