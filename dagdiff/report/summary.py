"""The summary of results as a table of long format: a line for each row and number."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import save_csv
from dagdiff.metrics.statistics import Interval
from dagdiff.report.glossary import BASELINES
from dagdiff.report.results import Results
from dagdiff.report.rows import Row, mean_over

COSTS = ("nfe_student", "nfe_expert", "seconds")
"""What a run cost; summarised as its metrics are."""


def write_summary(results: Results, path: Path) -> None:
    """Write ``summary.csv``: who was measured, then the mean over seeds with its interval, of every number."""
    save_csv(path, [_rounded(line) for row in results.rows for line in summary_lines(row)])


def summary_lines(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a line for each number of a row: mean and interval, the expert's own, the differences to the baselines."""
    who = {name: getattr(row, name) for name in ("task", "objective", "variant", "steps")}
    who |= {"about": row.records[0].about, "updates": row.records[0].updates}
    who["shares"] = "/".join(f"{100 * share:.0f}" for share in row.records[0].shares)
    found = {**row.metrics, **{name: mean_over(getattr(each, name) for each in row.records) for name in COSTS}}
    for metric, interval in found.items():
        seeds = len(row.records) if metric in COSTS else sum(map(math.isfinite, _values(row, metric)))
        line = {**who, "metric": metric, "seeds": seeds, **_parts("", interval)}
        line |= {"expert": row.scores_of_expert[metric], "excess": row.excess[metric]}
        for baseline in BASELINES:
            difference = row.against.get(baseline, {}).get(metric)
            line |= _parts(f"minus_{baseline}_", difference.interval if difference else None)
            line |= {f"pairs_{baseline}": difference.seeds if difference else ""}
            line |= {f"beats_{baseline}": difference.improvement if difference else ""}
        left = row.left if metric == row.judged_by else None
        yield {
            **line,
            **_parts("remaining_gap_", left.ratio if left else None),
            "remaining": left.words if left else "",
        }


def _values(row: Row, metric: str) -> list[float]:
    return [record.metrics[metric] for record in row.records]


def _parts(prefix: str, interval: Interval | None) -> dict[str, float | str]:
    return {f"{prefix}{part}": getattr(interval, part, "") for part in Interval._fields}


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    """Floats to six digits; unknown ones stay empty."""
    return {
        name: (f"{value:.6g}" if math.isfinite(value) else "") if isinstance(value, float) else value
        for name, value in line.items()
    }
