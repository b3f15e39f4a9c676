"""Re-use of labels: the quality of students against the expert's evaluations that they cost.

Run: python -m dagdiff.benchmarks.measure.reuse [FILE.csv] [WORD=VALUES ...], for example tasks=digits-biased seeds=3
objectives=progressive,consistency reuse=1,4. Runs that the file holds already are not made again.

All runs make the updates of their recipe, so those of less re-use buy more labels. By re-use r a run buys about 1 / r
of the labels of forward states, and rolls in about 1 / r of the chains.
"""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dagdiff.benchmarks.running.nfe import predict_nfe
from dagdiff.checkpoint import save_text
from dagdiff.checks import Refusal
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


def measure(run: Mapping[str, Any]) -> dict[str, Any]:
    """Make one run; return its cost and quality.

    ``forward_part`` is the part of the expert's evaluations that labels forward states.
    """
    config = configure({**run, "heldout": 0, "device": "cpu"})
    it = Experiment.build(config)
    *_, (_, last) = it.rounds()
    metrics, _ = it.measure(it.sample(it.settings.samples, seed=0))
    cost = {name: getattr(last, name) for name in ("nfe_expert", "nfe_student")}
    found = {name: f"{metrics[name]:.6g}" if name in metrics else "" for name in QUALITY}
    part = predict_nfe(config).forward_labels / last.nfe_expert
    return {**run, **cost, "forward_part": f"{part:.3f}", **found, "seconds": f"{last.seconds:.1f}"}


def main(words: list[str]) -> None:
    """Make the runs that are not there yet, and write the table after each."""
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := set(options) - set(CHOSEN):
        raise Refusal(f"unknown option {sorted(unknown)[0]!r}. Known: {', '.join(CHOSEN)}.")
    file = next((Path(word) for word in words if "=" not in word), FILE)
    rows: list[dict[str, Any]] = list(csv.DictReader(file.open())) if file.exists() else []
    there = {tuple(str(row[name]) for name in KEY) for row in rows}
    for run in runs({**CHOSEN, **options}):
        if tuple(str(run[name]) for name in KEY) in there:
            continue
        rows.append(measure(run))
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(rows[-1]))
        table.writeheader()
        table.writerows(rows)
        save_text(file, text.getvalue())
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
