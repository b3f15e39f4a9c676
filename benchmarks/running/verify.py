"""Making runs again: do the numbers in a folder of results still come out?

On the machine and with the versions that made them they are equal. Elsewhere rounding takes another turn here and
there, and training carries it on (:mod:`dagdiff.benchmarks.measure.machines` measures how far). So a number that is
not equal is held against the seeds of its row, as one more draw from their law: with the mean m and the standard
deviation s of n seeds, (x - m) / (s sqrt(1 + 1/n)) follows Student's t with n - 1 degrees of freedom where seeds are
normal. All metrics of all runs of a call are tested together: Holm's correction keeps the chance that *any* of them is
called wrong, where all are right, below :data:`LEVEL`, however the metrics depend on each other.
Few seeds tell little: with three, only what lies a hundred standard deviations off stands out. With one, nothing can be
tested but equality.
"""

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.work import run_cell
from dagdiff.checks import Refusal, check_at_least
from dagdiff.metrics.statistics import chance_of_draw, holm
from dagdiff.report.records import Record
from dagdiff.report.results import IDENTITY, Results

EQUAL = 1e-5  # committed results are rounded to six digits
FLOOR = 1e-3  # of the mean: the least standard deviation, for metrics that are counts and hardly vary
LEVEL = 0.01
"""The chance that a call finds anything wrong where all is right."""


@dataclass(frozen=True)
class Compared:
    """A metric of a run that was made again, beside the number that is kept and the seeds of its row.

    ``alone`` is the probability that a draw from the law of the seeds lies as far from their mean, and ``chance`` the
    same corrected for all metrics that are tested together; both are NaN where there is one seed.
    """

    name: str
    new: float
    kept: float
    mean: float
    spread: float
    seeds: int
    alone: float
    chance: float

    @property
    def equal(self) -> bool:
        """Whether it is the number that is kept, but for the digits that are not."""
        return math.isclose(self.new, self.kept, rel_tol=EQUAL)

    @property
    def tested(self) -> bool:
        """Whether there is a chance at all: one seed has no spread to hold a number against."""
        return not math.isnan(self.alone)

    @property
    def wrong(self) -> bool:
        """Whether it is off by more than chance explains."""
        return self.chance < LEVEL

    def __str__(self) -> str:
        change = f"{self.name} {self.new:.4g}, kept {self.kept:.4g} ({self.new - self.kept:+.2g})"
        seeds = f"; {self.mean:.4g} +- {self.spread:.2g} over {self.seeds} seeds" if self.seeds > 1 else ""
        chance = f", by chance {_probability(self.chance)} ({_probability(self.alone)} alone)" if self.tested else ""
        return f"{change}{seeds}{chance}"


@dataclass(frozen=True)
class Verified:
    """A cell that was run again, and its metrics."""

    cell: Cell
    metrics: tuple[Compared, ...]

    @property
    def wrong(self) -> list[Compared]:
        """The metrics that are off by more than chance explains."""
        return [metric for metric in self.metrics if metric.wrong]

    @property
    def word(self) -> str:
        """What came of it: equal, within chance, not tested, or DISAGREES."""
        if all(metric.equal for metric in self.metrics):
            return "equal"
        if self.wrong:
            return "DISAGREES"
        return "within chance" if any(metric.tested for metric in self.metrics) else "not tested"

    def __str__(self) -> str:
        moved = sorted((metric for metric in self.metrics if not metric.equal), key=_moved)
        if not moved:
            return f"{self.cell}: equal"
        if self.wrong:
            return f"{self.cell}: DISAGREES in {' | '.join(map(str, self.wrong))}"
        return (
            f"{self.cell}: {self.word}, not equal in {len(moved)} of {len(self.metrics)} metrics; farthest: {moved[-1]}"
        )


def verify(cells: Sequence[Cell], results: Results, count: int, seed: int = 0) -> list[Verified]:
    """Run ``count`` random cells that ``results`` hold anew, one after the other, and compare; nothing is kept.

    Raises:
        Refusal: if the results were made by another version, or hold none of the cells.
    """
    check_at_least("verify", count, 1)
    if results.identity != IDENTITY:
        raise Refusal(
            f"{results.folder} was made by another version of dagdiff, whose runs are not those of this one. Verify it "
            "with the version that its results.json names, or run the suite again into a new folder."
        )
    kept = {(record.config, record.variant): record for record in results.records}
    held = list({cell.key: cell for cell in cells if (cell.key, cell.variant) in kept}.values())
    if not held:
        raise Refusal(f"{results.folder} holds no run of this suite's settings. Name the folder that it wrote.")
    found = []
    for cell in random.Random(seed).sample(held, min(count, len(held))):
        record = kept[cell.key, cell.variant]
        with tempfile.TemporaryDirectory() as folder:
            metrics = run_cell(cell, Path(folder))["metrics"]
        found.append(Verified(cell, compare(metrics, record, results.records)))
    return correct(found)


def compare(metrics: Mapping[str, float], record: Record, records: Sequence[Record]) -> tuple[Compared, ...]:
    """Hold new metrics of a run against those of its record, each by itself; those without a kept number are left out.

    Args:
        metrics: of the run that was made again.
        record: the run as it is kept.
        records: among which are the other seeds of its row.
    """
    row = [other for other in records if _row(other) == _row(record)]
    kept = {name: value for name, value in record.metrics.items() if math.isfinite(value)}
    return tuple(
        _compared(name, float(metrics.get(name, math.nan)), value, [other.metrics[name] for other in row])
        for name, value in kept.items()
    )


def correct(found: Sequence[Verified]) -> list[Verified]:
    """Correct the chances of all metrics of all runs for being tested together."""
    chances = iter(holm([metric.alone for run in found for metric in run.metrics if metric.tested]))
    return [
        replace(run, metrics=tuple(replace(m, chance=next(chances)) if m.tested else m for m in run.metrics))
        for run in found
    ]


def conclude(found: Sequence[Verified]) -> str:
    """Say in a line how many runs came out how, at which level, and what so few seeds can't tell."""
    words = [run.word for run in found]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    seeds = [metric.seeds for run in found for metric in run.metrics if metric.tested and metric.seeds > 1]
    if not seeds:
        return f"{len(found)} runs: {counts}. One seed has no spread: nothing can be tested but equality."
    told = (
        f"{len(seeds)} metrics tested together: where all are right, a false alarm has a chance of {LEVEL:.0%} at most"
    )
    return f"{len(found)} runs: {counts}. {told}. {_power(min(seeds), len(seeds))}"


def _power(seeds: int, tests: int) -> str:
    from scipy.stats import t

    least = float(t.isf(LEVEL / (2 * tests), seeds - 1)) * math.sqrt(1 + 1 / seeds)
    return f"With {seeds} seeds, less than {least:.0f} standard deviations can't be told from chance."


def _compared(name: str, new: float, kept: float, row: Sequence[float]) -> Compared:
    values = np.array([value for value in row if math.isfinite(value)])
    mean, seeds = float(values.mean()), len(values)
    spread = max(float(values.std(ddof=1)), FLOOR * abs(mean)) or FLOOR if seeds > 1 else math.nan
    if not math.isfinite(new):
        alone = 0.0  # no number at all is no draw
    elif seeds == 1:
        alone = math.nan
    else:
        equal = math.isclose(new, kept, rel_tol=EQUAL)
        alone = 1.0 if equal else chance_of_draw(new, mean, spread, seeds)
    return Compared(name, new, kept, mean, spread, seeds, alone, alone)


def _moved(metric: Compared) -> float:
    """How far a metric is from the number that is kept: in deviations of the seeds, of one seed in parts of itself."""
    scale = metric.spread if metric.seeds > 1 else max(abs(metric.kept), FLOOR)
    return abs(metric.new - metric.kept) / scale


def _probability(chance: float) -> str:
    return "below 1e-6" if chance < 1e-6 else f"{chance:.2g}"


def _row(record: Record) -> tuple[object, ...]:
    return record.task, record.objective, record.variant, record.steps, record.setup
