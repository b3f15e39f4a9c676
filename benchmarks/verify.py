"""Making runs again: do the numbers in a folder of results still come out?

On the machine and with the versions that made them they are equal. Elsewhere rounding takes another turn here and
there, and training carries it on, so a run is asked to stay within what seeds do: each metric must lie within three
standard deviations of the mean over the seeds of its row, or within a thousandth of the number that is kept.
"""

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dagdiff.benchmarks.suite import Cell, run_cell
from dagdiff.checks import Refusal, check_at_least
from dagdiff.results import Record, Results

EQUAL = 1e-5  # committed results are rounded to six digits
NEAR = 1e-3
DEVIATIONS = 3.0


@dataclass(frozen=True)
class Verified:
    """A cell that was run again: the metrics that are not equal, and those of them that are out of bounds."""

    cell: Cell
    seeds: int
    moved: list[str]
    wrong: list[str]

    def __str__(self) -> str:
        if self.wrong:
            return f"{self.cell}: DISAGREES in {'; '.join(self.wrong)}"
        spread = f"within the spread of {self.seeds} seeds, not equal in {len(self.moved)} metrics"
        return f"{self.cell}: {spread if self.moved else 'equal'}"


def verify(cells: Sequence[Cell], results: Results, count: int, seed: int = 0) -> list[Verified]:
    """Run ``count`` random cells that ``results`` hold anew, one after the other, and compare; nothing is kept.

    Raises:
        Refusal: if the results hold none of the cells.
    """
    check_at_least("verify", count, 1)
    kept = {(record.config, record.variant): record for record in results.records}
    held = list({cell.key: cell for cell in cells if (cell.key, cell.variant) in kept}.values())
    if not held:
        raise Refusal(f"{results.folder} holds no run of this configuration. Was it made by another version?")
    found = []
    for cell in random.Random(seed).sample(held, min(count, len(held))):
        record = kept[cell.key, cell.variant]
        with tempfile.TemporaryDirectory() as folder:
            metrics = run_cell(cell, Path(folder))["metrics"]
        found.append(compare(cell, metrics, record, results.records))
    return found


def compare(cell: Cell, metrics: Mapping[str, float], record: Record, records: Sequence[Record]) -> Verified:
    """Hold new metrics of a run against its record, and against the spread over seeds in ``records``."""
    row = [other for other in records if _row(other) == _row(record)]
    moved, wrong = [], []
    for name, kept in record.metrics.items():
        new = float(metrics.get(name, math.nan))
        if new == kept or (math.isnan(new) and math.isnan(kept)) or math.isclose(new, kept, rel_tol=EQUAL):
            continue
        moved.append(name)
        values = np.array([other.metrics[name] for other in row])
        spread = float(values.std(ddof=1)) if len(row) > 1 else 0.0
        inside = abs(new - float(values.mean())) <= DEVIATIONS * spread
        if not inside and not math.isclose(new, kept, rel_tol=NEAR):
            wrong.append(
                f"{name} {new:.4g} (kept {kept:.4g}; {values.mean():.4g} +- {spread:.2g} over {len(row)} seeds)"
            )
    return Verified(cell, len(row), moved, wrong)


def _row(record: Record) -> tuple[object, ...]:
    return record.task, record.objective, record.variant, record.steps, record.setup
