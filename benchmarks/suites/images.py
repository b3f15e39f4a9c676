"""The image suite: the same comparison as in the plane, on pictures, where experts are learned and classes go missing.

Its variants are forward, published and mixture, and ``mixture-box``, in which predictions are clamped to the range of
pixels; :mod:`dagdiff.benchmarks.running.variants` says what each is.

On ``biased`` the student is shown the lower half of the classes; the teacher, whose U-Net it starts from, knows all.
Before the runs we expect: on ``matched`` no difference; on ``biased`` forward-only training to lose classes that the
teacher has, most of all where the student's own outputs are its targets (LCM) or a critic learns them (DMD2), little
for PD, whose targets at any state are the teacher's; and the mixture to bring them back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from dagdiff.benchmarks.running.cells import Cell, at_seed
from dagdiff.benchmarks.running.options import check_choices
from dagdiff.benchmarks.running.variants import LABELS, labelled, shares_of, threshold_of
from dagdiff.benchmarks.suites.toy2d import OWN
from dagdiff.runs.config import configure

VARIANTS = ("forward", "published", "mixture", "mixture-box")

_OWN = {**OWN, "device": "Use --device."}


@dataclass
class Suite:
    """What is run: every task with every objective, variant and number of steps, for every seed.

    Args:
        tasks: comma-separated; `dagdiff list tasks` names them, and your own images may be named by their path.
        objectives: comma-separated; names or import paths.
        variants: comma-separated, of forward, published, mixture, mixture-box.
        steps: comma-separated numbers of student steps.
        seeds: how many seeds, 0 to seeds - 1; each has a teacher of its own.
        updates: of the student in each run.
        device: auto, cpu, cuda, ...
        settings: more settings of every run, e.g. {"lr": 1e-3, "batch_size": 256}.
    """

    tasks: list[str] = field(default_factory=lambda: ["digits-matched", "digits-biased"])
    objectives: list[str] = field(default_factory=lambda: ["progressive", "consistency", "distribution"])
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    steps: list[int] = field(default_factory=lambda: [2, 4])
    seeds: int = 3
    updates: int = 400
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(tasks=["digits-biased"], variants=["forward", "mixture"], steps=[4], seeds=1, updates=100)
"""The main contrast in a few minutes: ``--quick``."""


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs, seed by seed, so that a suite that is stopped holds whole comparisons."""
    check_choices(suite, VARIANTS, _OWN)
    grid = product(suite.tasks, suite.steps, suite.objectives, suite.variants)
    made = [_cell(suite, *chosen) for chosen in grid]
    for seed in range(suite.seeds):
        yield from (at_seed(cell, seed, suite.settings) for cell in made)


def _cell(suite: Suite, task: str, steps: int, objective: str, variant: str) -> Cell:
    common = {"samples": 1796, "updates": suite.updates, "heldout": 0, "device": suite.device, **suite.settings}
    own = {"task": task, "steps": steps, "objective": objective, "threshold": threshold_of(variant)}
    config = configure({**common, **own, "shares": shares_of(variant, objective, "images")})
    return Cell(objective, variant, labelled(config, variant), free=LABELS)
