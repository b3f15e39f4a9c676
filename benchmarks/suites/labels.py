"""The label suite: to where the expert walks for a label, on which states, and for how long one may train on it.

==========  ==========================================================================================================
block       what varies
==========  ==========================================================================================================
ends        where the walk ends (one solver step on, an eighth on, a uniform time, data), its solver and its sub-steps
            for a whole chain; training on the usual mixture
sources     the states, under one label: the expert's whole walk to data
long        the updates, for the one-step and the whole-walk label
price       the label at equal cost, where an evaluation of the expert costs 1 or 10 of the student's: shorter labels
            are cheaper and leave more updates
==========  ==========================================================================================================

LCM alone is looked at by sources, long and price. In ends PD and DMD2 stand too: PD walks to its next step or to data,
DMD2 takes the label as a second term of its loss or not at all.

Before the runs we expect (the second and third from trials on digits, one to three seeds):

* ends: LCM's one-step label is worst, for the student's own average says the rest and its errors are copied some fifty
  times. The further the walk, the better, as long as the solver is exact enough; 8 sub-steps of DPM-Solver++ do what 16
  of DDIM do. In the plane, where the exact expert's one step is cheap and students are small, gains are smaller.
  DMD2's modes get wider with the label; PD changes little, whose label bootstraps nothing.
* sources: the student's states alone or with the expert's do at least as well as the usual mixture; forward states
  alone are worst on biased sets, where they show half of the data.
* long: with one-step labels students get worse from some point on, with whole walks they stay.
* price: at 1 the whole walk stays ahead, for one-step labels gain little from more updates; at 10 the order turns, and
  8 sub-steps or a uniform end are best.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dagdiff.benchmarks.running.cells import Cell, at_seed
from dagdiff.benchmarks.running.nfe import predict_nfe, updates_for
from dagdiff.benchmarks.running.options import check_settings
from dagdiff.benchmarks.running.variants import shares_of
from dagdiff.benchmarks.suites.toy2d import OWN
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.runs.config import configure
from dagdiff.tasks.names import PLANE, read_name

STEP: dict[str, Any] = {"label_end": "step"}
WHOLE: dict[str, Any] = {"label_end": "data"}

ENDS: dict[str, dict[str, dict[str, Any]]] = {
    "consistency": {
        "one step": {"objective": STEP, "substeps": 8, "solver": "ddim"},
        "an eighth": {"objective": {"label_end": 0.125}, "substeps": 8, "solver": "dpm"},
        "uniform": {"objective": {"label_end": "uniform"}, "substeps": 8, "solver": "dpm"},
        "data, 8": {"objective": WHOLE, "substeps": 8, "solver": "dpm"},
        "data, 16": {"objective": WHOLE, "substeps": 16, "solver": "dpm"},
        "data, 16 of DDIM": {"objective": WHOLE, "substeps": 16, "solver": "ddim"},
    },
    "progressive": {
        "its step": {"objective": STEP, "solver": "ddim"},
        "its step, DPM-Solver++": {"objective": STEP, "solver": "dpm"},
        "data, 8": {"objective": WHOLE, "substeps": 8, "solver": "dpm"},
        "data, 16": {"objective": WHOLE, "substeps": 16, "solver": "dpm"},
    },
    "distribution": {
        "none": {"objective": {"label_weight": 0.0}, "substeps": 8, "solver": "ddim"},
        "data, 16, weight 0.3": {"objective": {"label_weight": 0.3}, "substeps": 16, "solver": "dpm"},
        "data, 16, weight 1": {"objective": {"label_weight": 1.0}, "substeps": 16, "solver": "dpm"},
    },
}
"""Labels by objective, as settings: the published one first."""

LABEL = ENDS["consistency"]["data, 16"]
"""The label of the block of sources."""

SOURCES = ("forward", "expert", "student", "mixture-0/50/50", "mixture-25/50/25")
_PRICED = ("one step", "uniform", "data, 8", "data, 16")
LENGTHS = (1, 4, 16)
"""Of training, in the suite's updates."""

PRICES = (1, 10)
"""Of an evaluation of the expert, in evaluations of the student."""

_OWN = {
    **OWN,
    "objective": "Use --objectives.",
    "substeps": "Use --blocks.",
    "solver": "Use --blocks.",
    "device": "Use --device.",
}


@dataclass
class Suite:
    """What is run: some or all blocks, on every task, for every seed.

    Args:
        blocks: comma-separated, of ends, sources, long, price.
        tasks: comma-separated; `dagdiff list tasks` names them.
        objectives: comma-separated, of consistency, progressive, distribution: those of ends.
        seeds: how many seeds, 0 to seeds - 1; each has a learned expert of its own.
        updates: of the student in each run, but where they are what varies.
        device: auto, cpu, cuda, ...
        settings: more settings of every run, e.g. {"lr": 1e-3}.
    """

    blocks: list[str] = field(default_factory=lambda: list(BLOCKS))
    tasks: list[str] = field(default_factory=lambda: ["gaussians8-matched", "grid25-biased", "imbalanced-biased"])
    objectives: list[str] = field(default_factory=lambda: list(ENDS))
    seeds: int = 5
    updates: int = 400
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the chosen blocks' runs seed by seed, so that a suite that is stopped holds whole comparisons."""
    check_at_least("seeds", suite.seeds, 1)
    check_settings(suite.settings, _OWN)
    for name in ("blocks", "tasks", "objectives"):
        if not getattr(suite, name):
            raise Refusal(f"--{name} is empty. Name at least one, or leave the option away.")
    for block in suite.blocks:
        check_in("block", block, BLOCKS)
    for objective in suite.objectives:
        check_in("objective", objective, ENDS)
    made = [cell for task in suite.tasks for block in suite.blocks for cell in BLOCKS[block](suite, task)]
    for seed in range(suite.seeds):
        yield from (at_seed(cell, seed, suite.settings) for cell in made)


def _ends(suite: Suite, task: str) -> Iterator[Cell]:
    for objective in suite.objectives:
        for label, own in ENDS[objective].items():
            yield _cell(suite, task, objective, label, "label ends", own)


def _sources(suite: Suite, task: str) -> Iterator[Cell]:
    for states in SOURCES:
        yield _cell(suite, task, "consistency", states, "one label", LABEL, states)


def _long(suite: Suite, task: str) -> Iterator[Cell]:
    for length in LENGTHS:
        for label in ("one step", "data, 16"):
            own = {**ENDS["consistency"][label], "updates": length * suite.updates}
            yield _cell(suite, task, "consistency", label, f"{length * suite.updates:,} updates", own)


def _price(suite: Suite, task: str) -> Iterator[Cell]:
    for price in PRICES:
        about, labels = f"price {price}", ENDS["consistency"]
        made = {name: _cell(suite, task, "consistency", name, about, labels[name]) for name in _PRICED}
        budget = predict_nfe(made["data, 16"].config).at(price)
        for cell in made.values():
            updates = updates_for(cell.config, budget, price)
            yield replace(cell, config={**cell.config, "updates": updates}, free=(*cell.free, "updates"))


BLOCKS: dict[str, Callable[[Suite, str], Iterator[Cell]]] = {
    "ends": _ends,
    "sources": _sources,
    "long": _long,
    "price": _price,
}
"""The blocks, the most important first."""

QUICK = Suite(blocks=["ends"], tasks=["gaussians8-matched"], objectives=["consistency"], seeds=1, updates=200)
"""LCM's labels on one task: ``--quick``."""


def _cell(
    suite: Suite, task: str, objective: str, variant: str, about: str, own: dict[str, Any], states: str = "mixture"
) -> Cell:
    images = read_name(task).kind is not PLANE
    common = {"updates": suite.updates, "heldout": 0, "device": suite.device, **({"samples": 1796} if images else {})}
    told = {**common, **suite.settings, **own, "objective": {"class": objective, **own.get("objective", {})}}
    shares = shares_of(states, objective, "images" if images else "plane")
    config = configure({**told, "task": task, "shares": shares})
    return Cell(objective, variant, config, about, ("objective", "substeps", "solver"))
