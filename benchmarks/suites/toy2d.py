"""The toy-2D suite: the same student, updates and noise, trained on different states, in worlds whose truth is known.

=================  ===========================================================================================
variant            trained on
=================  ===========================================================================================
forward            forward-diffused states only, the usual off-policy training
base               what the published method trains on: forward states for PD and LCM, its own states for DMD2
student            the student's own states only
expert             the expert's own chains only: behaviour cloning
ddil               what suits the objective: all three; for DMD2 its own and the expert's
reflected-forward  forward states, with guesses thresholded to the world's box
reflected-ddil     as ddil, with guesses thresholded to the world's box
=================  ===========================================================================================

Before the runs we expect: on ``matched`` no difference, because forward states are the states that a good student
meets; on ``biased`` and ``scarce`` a loss on the student's own states that forward training does not see, and ddil
repairs.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagdiff.benchmarks.running.executor import Cell, open_results, run_cells
from dagdiff.benchmarks.running.options import check_choices
from dagdiff.runs.config import Config, configure
from dagdiff.runs.parts import resolve
from dagdiff.runs.recipes import recipe

SHARES = {
    "forward": (1.0, 0.0, 0.0),
    "student": (0.0, 1.0, 0.0),
    "expert": (0.0, 0.0, 1.0),
}
"""Shares (forward, student, expert) of the variants whose states do not depend on the objective."""

VARIANTS = ("base", "ddil", *SHARES, "reflected-forward", "reflected-ddil")


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
        variants: comma-separated, of forward, base, student, expert, ddil, reflected-forward,
            reflected-ddil.
        steps: comma-separated numbers of student steps.
        seeds: how many seeds, 0 to seeds - 1.
        updates: of the student in each run.
        settings: more settings of every run, e.g. {"lr": 1e-3, "expert": "learned"}.
    """

    tasks: list[str] = field(
        default_factory=lambda: ["gaussians8-matched", "gaussians8-biased", "grid25-matched", "grid25-biased"]
    )
    objectives: list[str] = field(default_factory=lambda: ["progressive", "consistency", "distribution"])
    variants: list[str] = field(default_factory=lambda: ["forward", "base", "student", "ddil", "reflected-ddil"])
    steps: list[int] = field(default_factory=lambda: [4])
    seeds: int = 5
    updates: int = 1200
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(
    tasks=["gaussians8-matched", "gaussians8-biased"],
    variants=["forward", "base", "ddil"],
    seeds=3,
    updates=300,
    settings={"samples": 1000},
)
"""The main contrast in a few minutes: ``--quick``."""


def run(suite: Suite, out: Path, workers: int = 1) -> dict[str, Any]:
    """Run what ``out`` does not hold yet; return all results, as ``run_cells`` does."""
    open_results(out, "toy2d")  # a folder that can't be is refused before the configurations are resolved
    return run_cells("toy2d", list(cells(suite)), dataclasses.asdict(suite), out, workers)


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs; refuse unknown names before the first."""
    check_choices(suite, VARIANTS, OWN)
    for task in suite.tasks:
        for objective in suite.objectives:
            for variant in suite.variants:
                for steps in suite.steps:
                    config = _config(suite, variant, {"task": task, "objective": objective, "steps": steps})
                    for seed in range(suite.seeds):
                        yield Cell(objective, variant, {**config, "seed": seed})


def _config(suite: Suite, variant: str, chosen: dict[str, Any]) -> Config:
    objective = chosen["objective"]
    threshold = "box" if variant.startswith("reflected") else "none"
    common = {"updates": suite.updates, "heldout": 0, "device": "cpu", **suite.settings}
    return configure({**chosen, **common, "shares": shares_of(variant, objective), "threshold": threshold})


def shares_of(variant: str, objective: str) -> list[float]:
    """Return the shares (forward, student, expert) of a variant.

    Those of ``base`` are the published method's, those of ``ddil`` what suits the objective.
    """
    states = variant.removeprefix("reflected-")
    if states == "ddil":
        return list(recipe("plane", objective)["shares"])
    if states == "base":
        states = "student" if getattr(resolve("objective", objective), "backward_simulation", False) else "forward"
    return list(SHARES[states])
