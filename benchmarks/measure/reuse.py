"""Re-use of labels: the quality of students against the expert's evaluations that they cost.

Run: python -m dagdiff.benchmarks.measure.reuse FILE.csv tasks=digits-biased seeds=3
objectives=progressive,consistency reuse=1,4. Runs that the file holds already are not made again; at the end the table
of docs/reuse.md is printed.

All runs make the updates of their recipe, so those of less re-use buy more labels.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dagdiff.benchmarks.measure.rows import asked, completed
from dagdiff.benchmarks.running.nfe import predict_nfe
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

FILE = Path(__file__).resolve().parent.parent / "results" / "reuse" / "reuse.csv"

CHOSEN = {
    "tasks": "gaussians8-biased,digits-biased",
    "objectives": "progressive,consistency,distribution",
    "reuse": "1,2,4,8",
    "seeds": "3",
}
"""What is run where the command says nothing; seeds are 0 to seeds - 1."""

QUALITY = ("energy", "fd", "loss_own", "loss_forward")
"""The metrics that are kept, where the task has them."""

KEY = ("task", "objective", "reuse", "seed")


def runs(chosen: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what tells each run apart, seed by seed."""
    tasks, objectives, reuse = (chosen[name].split(",") for name in ("tasks", "objectives", "reuse"))
    for seed in range(int(chosen["seeds"])):
        for task in tasks:
            for objective in objectives:
                for times in reuse:
                    yield dict(zip(KEY, (task, objective, float(times), seed), strict=True))


def measure(run: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Make one run; return its cost and quality.

    ``forward_part`` is the part of the expert's evaluations that labels forward states.

    Args:
        run: task, objective, reuse and seed.
        settings: more settings of the run.
    """
    config = configure({**run, "heldout": 0, "device": "cpu", **settings})
    it = Experiment.build(config)
    *_, (_, last) = it.rounds()
    metrics, _ = it.measure(it.sample(it.settings.samples, seed=0))
    cost = {name: getattr(last, name) for name in ("nfe_expert", "nfe_student")}
    found = {name: f"{metrics[name]:.6g}" if name in metrics else "" for name in QUALITY}
    part = predict_nfe(config).forward_labels / last.nfe_expert
    return {**run, **cost, "forward_part": f"{part:.3f}", **found, "seconds": f"{last.seconds:.1f}"}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return means over seeds as a table in Markdown; in brackets the least and the greatest quality of a seed."""
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[str(row["task"]), str(row["objective"]), float(row["reuse"])].append(row)
    lines = [
        "| task | objective | re-use | seeds | expert evaluations | of these for forward labels | quality | own loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, objective, times), found in sorted(groups.items()):
        quality = [float(row["fd"]) if row["fd"] else 1000.0 * float(row["energy"]) for row in found]
        thousands = fmean(float(row["nfe_expert"]) for row in found) / 1000.0
        part, own = (fmean(float(row[name]) for row in found) for name in ("forward_part", "loss_own"))
        spread = f"{fmean(quality):.2f} [{min(quality):.2f}, {max(quality):.2f}]"
        numbers = f"{thousands:,.0f} k | {100 * part:.0f} % | {spread} | {own:.3g} |"
        lines.append(f"| {task} | {objective} | {times:g} | {len(found)} | {numbers}")
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    """Make the runs that are not there yet, write the file after each, and print the table."""
    chosen, file = asked(words, CHOSEN, FILE)
    rows = completed(file, KEY, runs(chosen), measure)
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
