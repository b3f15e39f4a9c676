"""How far would another CPU be off? Suites run again under settings that stand in for one.

Run in the checkout: ``python -m dagdiff.benchmarks.measure.machines NAME FOLDER [SEEDS]``, with NAME demo, dmd2 or
headline. It measures into ``FOLDER/NAME``, resumes there what was stopped, and keeps what it finds in
``benchmarks/results/machines``, from which the tables of ``docs/machines.md`` are made. SEEDS names a folder of results
of the same cells, whose seeds tell the spread between seeds; else those of the measurement do. Without words only the
tables are written.

The same program on the same seeds rounds in another way where MKL takes the code path that all x86-64 CPUs share
(``MKL_CBWR=COMPATIBLE``) and where PyTorch's own kernels use no AVX (``ATEN_CPU_CAPABILITY=default``). Training carries
that on, so the students come out different. Each setting trains its own teachers, in a cache of its own.
"""

import csv
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np

from dagdiff.benchmarks.pages import with_table
from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.executor import run_cells
from dagdiff.benchmarks.suites import study, toy2d
from dagdiff.benchmarks.tables import CONTRAST
from dagdiff.checkpoint import save_csv, save_text
from dagdiff.checks import check_in
from dagdiff.metrics.statistics import Interval, paired_difference
from dagdiff.report.glossary import OBJECTIVES
from dagdiff.report.records import Record
from dagdiff.report.results import Results

KEPT, PAGE = Path("benchmarks/results/machines"), Path("docs/machines.md")

SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "compatible": {"MKL_CBWR": "COMPATIBLE"},
    "plain": {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"},
}
"""Setting -> its environment; the first is the machine as it is."""

DMD2 = toy2d.Suite(
    tasks=["gaussians8-biased"],
    objectives=["distribution"],
    variants=["published", "mixture"],
    seeds=10,
    updates=300,
    settings={"samples": 1000},
)
"""The demo's DMD2 with more seeds: does the published form stay ahead of the mixture? Neither looks at the set."""

SUITES: dict[str, tuple[Any, Any]] = {
    "demo": (toy2d, toy2d.QUICK),
    "dmd2": (toy2d, DMD2),
    "headline": (study, study.Suite(blocks=["headline"], seeds=1)),
}
"""Name -> the module of a suite and its options."""


def measure(name: str, folder: Path) -> None:
    """Run a suite under each setting into ``folder/SETTING``, world by world and seed by seed; resumable."""
    module, options = SUITES[name]
    for cells in portions(list(module.cells(options))):
        for setting, variables in SETTINGS.items():
            with environment({**variables, "DAGDIFF_CACHE": str((folder / "cache" / setting).resolve())}):
                run_cells(module.__name__.rpartition(".")[2], cells, vars(options), folder / setting)


def portions(cells: Sequence[Cell], least: int = 8) -> Iterator[list[Cell]]:
    """Yield the cells seed by seed and world by world, some together: a measurement that is stopped can be compared."""

    def portion(cell: Cell) -> tuple[int, str]:
        return cell.config["seed"], cell.labels["world"]

    waiting: list[Cell] = []
    for _, found in groupby(sorted(cells, key=lambda cell: cell.config["seed"]), key=portion):
        waiting += found
        if len(waiting) >= least:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile; this one has read its own already."""
    before = dict(os.environ)
    for name in {name for setting in SETTINGS.values() for name in setting}:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Line(NamedTuple):
    """A metric of a cell, on this machine and under the other settings.

    ``native`` is the mean over ``runs`` seeds with the machine as it is, ``moved`` the largest change of that mean
    under another setting, ``repeat`` the standard deviation of one and the same run between settings, ``seed`` that of
    ``seeds`` seeds under one setting.
    """

    task: str
    objective: str
    variant: str
    steps: int
    metric: str
    runs: int
    native: float
    moved: float
    repeat: float
    seeds: int
    seed: float


class Pair(NamedTuple):
    """Under one setting, the energy distance of the mixture minus that of the published method, seed by seed."""

    task: str
    objective: str
    setting: str
    runs: int
    published: float
    mixture: float
    difference: float
    low: float
    high: float


Kept = TypeVar("Kept", Line, Pair)


def lines(measured: Mapping[str, Results], seeds: Iterable[Results]) -> Iterator[Line]:
    """Yield a line a metric of each cell, over the seeds that were run under every setting; no runs twice.

    Args:
        measured: setting -> its results, the native ones first.
        seeds: results of the same cells, whose spread over seeds is taken; of several the mean variance.
    """
    found, spread = ([_by_row(results) for results in several] for several in (measured.values(), seeds))
    told = set[frozenset[str]]()
    for row, records in found[0].items():
        common = sorted(set.intersection(*(set(rows.get(row, {})) for rows in found)))
        runs = frozenset(records[seed].config for seed in common)
        if not common or runs in told:
            continue
        told.add(runs)
        for metric in records[common[0]].metrics:
            values = np.array([[rows[row][seed].metrics[metric] for seed in common] for rows in found])
            others = [[record.metrics[metric] for record in rows.get(row, {}).values()] for rows in spread]
            number = min(map(len, others))
            if number > 1 and np.isfinite(values).all() and np.isfinite(np.concatenate(others)).all():
                means, repeat = values.mean(1), float(np.sqrt(values.var(0, ddof=1).mean()))
                moved, seed = abs(means - means[0]).max(), np.sqrt(np.mean([np.var(one, ddof=1) for one in others]))
                yield Line(*row, metric, len(common), float(means[0]), float(moved), repeat, number, float(seed))


def pairs(measured: Mapping[str, Results]) -> Iterator[Pair]:
    """Yield the mixture's distance minus the published method's by setting, where there are five seeds or more."""
    for setting, results in measured.items():
        rows = _by_row(results)
        for (task, objective, variant, steps), ours in rows.items():
            theirs = rows.get((task, objective, "published", steps), {})
            common = sorted(ours.keys() & theirs.keys())
            if variant == "mixture" and len(common) >= 5:
                mine, other = ([them[seed].metrics["energy"] for seed in common] for them in (ours, theirs))
                means = statistics.mean(other), statistics.mean(mine)
                yield Pair(task, objective, setting, len(common), *means, *paired_difference(mine, other))


def _by_row(results: Results) -> dict[tuple[str, str, str, int], dict[int, Record]]:
    """The records of a suite's plain comparison: task, objective, variant and steps -> seed -> record."""
    found: dict[tuple[str, str, str, int], dict[int, Record]] = {}
    for record in results.records:
        if not record.about:
            row = record.task, record.objective, record.variant, record.steps
            found.setdefault(row, {})[record.seed] = record
    return found


def keep(path: Path, found: Iterable[Line] | Iterable[Pair]) -> None:
    """Write lines or pairs as CSV, to five digits."""
    rows = [
        {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in line._asdict().items()}
        for line in found
    ]
    save_csv(path, rows)


def read(path: Path, kind: type[Kept]) -> list[Kept]:
    """Read the lines or pairs that are kept in a file."""
    types, rows = get_type_hints(kind).values(), list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    return [kind(*(make(value) for make, value in zip(types, row, strict=True))) for row in rows[1:]]


def by_cell(found: Sequence[Line]) -> str:
    """A line a task, a column an objective: the native distance of each kind of states and what it moved by."""
    mine = [line for line in found if line.metric == "energy"]
    table = [_line("dataset, trained on", *OBJECTIVES.values()), _line(*["---"] * (1 + len(OBJECTIVES)))]
    for task in dict.fromkeys(line.task for line in mine):
        cells = []
        for objective in OBJECTIVES:
            group = {line.variant: line for line in mine if (line.task, line.objective) == (task, objective)}
            told = [f"{name} {_number(group[name])}" for name in CONTRAST if name in group]
            cells.append(", ".join(told) or "–")
        table.append(_line(task.replace("-", ", "), *cells))
    return "\n".join(table)


def by_metric(found: Sequence[Line]) -> str:
    """A line a metric, a column an objective: a run's deviation between settings over that between seeds.

    The median over cells, and the largest.
    """
    table = [_line("metric", *OBJECTIVES.values()), _line(*["---"] * (1 + len(OBJECTIVES)))]
    for metric in dict.fromkeys(line.metric for line in found):
        cells = []
        for objective in OBJECTIVES:
            ratios = [
                line.repeat / line.seed
                for line in found
                if (line.metric, line.objective) == (metric, objective) and line.seed > 0
            ]
            cells.append(f"{statistics.median(ratios):.2f}, {max(ratios):.2f}" if ratios else "–")
        table.append(_line(metric, *cells))
    return "\n".join(table)


def by_setting(found: Sequence[Pair]) -> str:
    """A line a setting: the published method, the mixture, and the difference with its interval."""
    table = [_line("setting", "seeds", "published", "mixture", "difference"), _line(*["---"] * 5)]
    for pair in found:
        difference = f"{Interval(pair.difference, pair.low, pair.high):+.4f}"
        means = f"{pair.published:.4f}", f"{pair.mixture:.4f}"
        table.append(_line(pair.setting, str(pair.runs), *means, difference))
    return "\n".join(table)


def filled(text: str, folder: Path) -> str:
    """Return the page's text with its tables made anew from what is kept in a folder."""
    kept = {name: read(file, Line) for name in ("demo", "headline") if (file := folder / f"{name}.csv").exists()}
    for name, found in kept.items():
        text = with_table(text, name, by_cell(found))
    text = with_table(text, "metrics", by_metric([line for found in kept.values() for line in found]))
    return with_table(text, "DMD2", by_setting(read(folder / "dmd2-pairs.csv", Pair)))


def _number(line: Line) -> str:
    return f"{round(line.native, 4) + 0.0:.4f} ± {line.moved:.4f}"  # + 0.0 takes the sign from -0.0


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(words: Sequence[str]) -> None:
    """Measure a suite and keep what is found, if one is named; write the page's tables."""
    if words:
        name, folder, *rest = words
        place = Path(folder) / check_in("suite", name, SUITES)
        measure(name, place)
        measured = {setting: Results.load(place / setting) for setting in SETTINGS}
        keep(KEPT / f"{name}.csv", lines(measured, [Results.load(Path(word)) for word in rest] or measured.values()))
        if found := list(pairs(measured)):
            keep(KEPT / f"{name}-pairs.csv", found)
    save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), KEPT))


if __name__ == "__main__":
    main(sys.argv[1:])
