"""The study: a designed set of toy-2D experiments, in blocks that each vary one thing and hold the rest.

==========  ==========================================================================================================
block       what varies
==========  ==========================================================================================================
headline    {gaussians8, grid25, imbalanced, moons, checkerboard} x {matched, scarce, biased} x three objectives,
            trained on forward states, on what the published method trains on, or on dagdiff's mixture;
            DMD2, whose published states and mixture never look at the set, on matched and biased alone
sources     one source alone (student, expert), and forward and mixture with predictions thresholded to the box
steps       1, 2 and 8 student steps beside the headline's 4
equal-nfe   as many updates as cost, student and expert evaluations together, what forward-only training costs
teachers    an expert that was learned instead of the exact one, for forward and mixture
thresholds  each threshold with the mixture: none, box, dynamic, quantile, fold
shares      ten points of the triangle of shares, its corners among them
critic      DMD2's fake score conditioned on the step (as everywhere else), or not, as published, or with tau drawn
            within the step (TDM, arXiv 2503.06674; Phased DMD, arXiv 2510.27684); and a GAN head
schedules   the mixture with constant beta and shares, the default, and other courses of beta, shares, learning rate
==========  ==========================================================================================================

gaussians8 and grid25 are the worlds that learning rates and shares were tuned on; the others are reported untouched.
Headline and equal-nfe look at all five, critic at grid25 and imbalanced shown whole, schedules at the two that were
tuned on and imbalanced, shown in half, the other blocks at imbalanced shown in half. Seeds: 5 for headline and
equal-nfe, 3 for the others. All runs make 1200 updates but those of equal-nfe.

Before the runs we expect:

* headline: no difference where the set is matched; where it is scarce or biased, PD and LCM gain from the mixture.
  DMD2's own method trains on student states already, so there it gains against forward and not against published.
* sources: student states alone do nearly as well as the mixture; the expert's alone help less, since they are not
  where a student that errs goes. A threshold alone reduces the gap less than the states do.
* steps: no difference at one step, where every chain is at its noise; the gain grows with the steps.
* equal-nfe: a smaller gain than at equal updates, but a gain.
* teachers: the same signs.
* thresholds: little, for the exact expert's guesses lie in the box anyway.
* shares: the corner of forward states is worst, and the middle is flat.
* critic: conditioned on the step, DMD2 keeps the shares of the modes; the pool of outputs does not. Tau drawn within
  the step does as telling the step does, with narrower modes. The head widens the modes.
* schedules: beta changes nothing for PD and LCM, for which the expert's chains do as well as their own, and harms DMD2
  a little if it stays high. Shares that start with forward states waste the first updates: no change for PD and LCM,
  which recover, but worse for DMD2. A learning rate that never falls is worse for all.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.nfe import predict_nfe, updates_for
from dagdiff.benchmarks.running.options import check_settings
from dagdiff.benchmarks.running.variants import LABELS, MIXES, labelled, shares_of, threshold_of
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.runs.config import Config, configure

WORLDS = ("gaussians8", "grid25", "imbalanced", "moons", "checkerboard")
SETS = ("matched", "scarce", "biased")
OBJECTIVES = ("progressive", "consistency", "distribution")
NARROW = ("imbalanced-biased",)
TUNED = ("gaussians8-biased", "grid25-biased")

CONTRAST = ("forward", "published", "mixture")
THRESHOLDED = ("mixture", "mixture-box", "mixture-dynamic", "mixture-quantile", "mixture-fold")
CRITICS: dict[str, dict[str, Any]] = {
    "one pool": {"tell_origin": False},
    "one pool, 5 critic updates": {"tell_origin": False, "critic_updates": 5},
    "one pool, tau by step": {"tell_origin": False, "tau_by_step": True},
    "one pool, tau by step, 5 critic updates": {"tell_origin": False, "tau_by_step": True, "critic_updates": 5},
    "GAN head": {"gan_weight": 1e-2},
}
"""Other critics than the default one."""

SCHEDULES: dict[str, Config] = {
    "mixture": {},
    "beta 1, then 0": {"beta": {"class": "indicator", "first": 1.0, "then": 0.0}},
    "beta linear": {"beta": {"class": "linear", "start": 1.0, "end": 0.0, "until": 0.5}},
    "beta exponential": {"beta": {"class": "exponential", "start": 1.0, "end": 0.0, "half_life": 0.1}},
    "beta 0.5": {"beta": {"class": "constant", "value": 0.5}},
    "shares linear": {"shares_ramp": {"class": "linear", "start": 0.0, "end": 1.0, "until": 0.2}},
    "shares cosine": {"shares_ramp": {"class": "cosine", "start": 0.0, "end": 1.0, "until": 0.5}},
    "learning rate constant": {"lr_ramp": {"class": "constant", "value": 1.0}},
}
"""What changes over training beside the default, in which the learning rate alone does: it falls in a straight line."""

_OWN = dict.fromkeys(("task", "objective", "steps", "shares", "threshold", "expert"), "Use --blocks.")
_OWN |= {"seed": "Use --seeds and --few_seeds.", "updates": "Use --updates."}


@dataclass
class Suite:
    """What is run: some or all blocks of the study.

    Args:
        blocks: comma-separated, of headline, sources, steps, equal-nfe, teachers, thresholds, shares, critic,
            schedules.
        seeds: of headline and equal-nfe, 0 to seeds - 1.
        few_seeds: of the other blocks.
        updates: of the student in each run, but where NFE are made equal.
        settings: more settings of every run, e.g. {"lr": 1e-3}.
    """

    blocks: list[str] = field(default_factory=lambda: list(BLOCKS))
    seeds: int = 5
    few_seeds: int = 3
    updates: int = 1200
    settings: dict[str, Any] = field(default_factory=dict)


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the chosen blocks' runs, the most important block first and in it seed by seed; none comes twice."""
    check_at_least("seeds", suite.seeds, 1)
    check_at_least("few_seeds", suite.few_seeds, 1)
    check_settings(suite.settings, _OWN)
    if not suite.blocks:
        raise Refusal("--blocks is empty. Name at least one, or leave the option away.")
    for block in suite.blocks:
        check_in("block", block, BLOCKS)
    found = (cell for block in BLOCKS if block in suite.blocks for cell in BLOCKS[block](suite))
    yield from {cell.entry: cell for cell in found}.values()


def _headline(suite: Suite) -> Iterator[Cell]:
    for cell in _block(suite, [f"{name}-{part}" for name in WORLDS for part in SETS], CONTRAST, suite.seeds):
        if (cell.objective, cell.labels["data"]) != ("distribution", "scarce"):
            yield cell


def _sources(suite: Suite) -> Iterator[Cell]:
    alone = ("forward", "student", "expert", "mixture", "forward-box", "mixture-box")
    yield from _block(suite, NARROW, alone, suite.few_seeds)


def _steps(suite: Suite) -> Iterator[Cell]:
    yield from _block(suite, NARROW, CONTRAST, suite.few_seeds, steps=(1, 2, 4, 8))


def _equal_nfe(suite: Suite) -> Iterator[Cell]:
    for cell in _block(suite, [f"{name}-biased" for name in WORLDS], CONTRAST, suite.seeds):
        forward = _config(suite, cell.objective, "forward", cell.config["task"], None)
        updates = updates_for(cell.config, predict_nfe(forward).total)
        config = {**cell.config, "updates": updates}
        yield dataclasses.replace(cell, config=config, about="equal NFE", free=("updates", *LABELS))


def _teachers(suite: Suite) -> Iterator[Cell]:
    yield from _block(suite, NARROW, ("forward", "mixture"), suite.few_seeds, expert="learned")


def _thresholds(suite: Suite) -> Iterator[Cell]:
    yield from _block(suite, NARROW, THRESHOLDED, suite.few_seeds)


def _shares(suite: Suite) -> Iterator[Cell]:
    yield from _block(suite, NARROW, ("forward", "student", "expert", "mixture", *MIXES), suite.few_seeds)


def _critic(suite: Suite) -> Iterator[Cell]:
    for cell in _block(suite, ("grid25-matched", "imbalanced-matched"), ("published",), suite.few_seeds):
        if cell.objective == "distribution":
            yield cell
            for about, own in CRITICS.items():
                objective = {**cell.config["objective"], **own}
                yield dataclasses.replace(cell, config={**cell.config, "objective": objective}, about=about)


def _schedules(suite: Suite) -> Iterator[Cell]:
    for cell in _block(suite, (*TUNED, *NARROW), ("mixture",), suite.few_seeds):
        for name, own in SCHEDULES.items():
            config = {**cell.config, **own}
            yield Cell(cell.objective, name, config, "schedules", free=("beta", "shares_ramp", "lr_ramp", *LABELS))


BLOCKS: dict[str, Callable[[Suite], Iterator[Cell]]] = {
    "headline": _headline,
    "sources": _sources,
    "steps": _steps,
    "equal-nfe": _equal_nfe,
    "teachers": _teachers,
    "thresholds": _thresholds,
    "shares": _shares,
    "critic": _critic,
    "schedules": _schedules,
}
"""The blocks, the most important first."""

QUICK = Suite(blocks=["headline"], seeds=2, updates=300)
"""The headline in small: ``--quick``."""


def _block(
    suite: Suite,
    tasks: Sequence[str],
    variants: Iterable[str],
    seeds: int,
    steps: Sequence[int] = (4,),
    expert: str | None = None,
) -> Iterator[Cell]:
    """Yield a full product, one seed after another, so that a study that is stopped holds whole comparisons."""
    about = f"{expert} expert" if expert else ""
    for seed in range(seeds):
        for task in tasks:
            for objective in OBJECTIVES:
                for variant in variants:
                    for count in steps:
                        told = {"steps": count, "seed": seed}
                        config = _config(suite, objective, variant, task, expert)
                        yield Cell(objective, variant, {**config, **told}, about, LABELS)


def _config(suite: Suite, objective: str, variant: str, task: str, expert: str | None) -> Config:
    parts = {"task": task, "objective": objective, "expert": expert, "threshold": threshold_of(variant)}
    common = {"updates": suite.updates, "heldout": 0, "device": "cpu", **suite.settings, **parts}
    return labelled({**_configured(json.dumps(common)), "shares": shares_of(variant, objective)}, variant)


@cache
def _configured(settings: str) -> Config:
    """The configuration of some settings, as JSON: a study has hundreds of runs and a few dozen of these."""
    return configure(json.loads(settings))
