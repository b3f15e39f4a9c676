"""The toy-2D suite: the same student, updates and noise, trained on different states, in worlds whose truth is known.

Its variants are forward, published, mixture, student and expert states, and forward and mixture with a threshold
(``forward-box``, ``mixture-box``); :mod:`dagdiff.benchmarks.running.variants` says what each is.

Before the runs we expect: on ``matched`` no difference, because forward states are the states that a good student
meets; on ``biased`` and ``scarce`` a loss on student states that forward training does not see, and that the mixture
reduces.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.options import check_choices
from dagdiff.benchmarks.running.variants import LABELS, labelled, shares_of, threshold_of
from dagdiff.runs.config import Config, configure

VARIANTS = ("forward", "published", "mixture", "student", "expert", "forward-box", "mixture-box")

OWN = {
    "task": "Use --tasks.",
    "objective": "Use --objectives.",
    "steps": "Use --steps.",
    "seed": "Use --seeds.",
    "updates": "Use --updates.",
    "shares": "Use --variants.",
    "threshold": "Use --variants.",
}
"""Settings that the suite sets itself -> the option to use instead."""


@dataclass
class Suite:
    """What is run: every task with every objective, variant and number of steps, for every seed.

    Args:
        tasks: comma-separated; `dagdiff list tasks` names them.
        objectives: comma-separated; names or import paths.
        variants: comma-separated, of forward, published, mixture, student, expert, forward-box, mixture-box.
        steps: comma-separated numbers of student steps.
        seeds: how many seeds, 0 to seeds - 1.
        updates: of the student in each run.
        settings: more settings of every run, e.g. {"lr": 1e-3, "expert": "learned"}.
    """

    tasks: list[str] = field(
        default_factory=lambda: ["gaussians8-matched", "gaussians8-biased", "grid25-matched", "grid25-biased"]
    )
    objectives: list[str] = field(default_factory=lambda: ["progressive", "consistency", "distribution"])
    variants: list[str] = field(default_factory=lambda: ["forward", "published", "mixture", "student", "mixture-box"])
    steps: list[int] = field(default_factory=lambda: [4])
    seeds: int = 5
    updates: int = 1200
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(
    tasks=["gaussians8-matched", "gaussians8-biased"],
    variants=["forward", "published", "mixture"],
    seeds=3,
    updates=300,
    settings={"samples": 1000},
)
"""The main contrast in a few minutes: ``--quick``."""


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs; refuse unknown names before the first."""
    check_choices(suite, VARIANTS, OWN)
    for task in suite.tasks:
        for objective in suite.objectives:
            for variant in suite.variants:
                for steps in suite.steps:
                    config = _config(suite, variant, {"task": task, "objective": objective, "steps": steps})
                    for seed in range(suite.seeds):
                        yield Cell(objective, variant, {**config, "seed": seed}, free=LABELS)


def _config(suite: Suite, variant: str, chosen: dict[str, Any]) -> Config:
    objective = chosen["objective"]
    common = {"updates": suite.updates, "heldout": 0, "device": "cpu", **suite.settings}
    own = {"shares": shares_of(variant, objective), "threshold": threshold_of(variant)}
    return labelled(configure({**chosen, **common, **own}), variant)
