"""The imitation suite: what else imitation learning offers against covariate shift, at equal updates of the student.

==================  ==================================================================================================
variant             trained on
==================  ==================================================================================================
forward             forward-diffused states only
mixture             all three sources, the method of this package
bc                  expert chains only: behaviour cloning (Pomerleau 1989)
dagger              student states only, but the expert drives in the first round (DAgger, Ross et al. 2011)
forward-training    student states, one step after the other, with a network a step (Ross and Bagnell 2010)
dart                forward states, and expert chains with noise like the student's errors (Laskey et al. 2017)
gate                as mixture, but the expert steps in where the student goes astray (Zhang and Cho 2017)
coaching            as mixture, with labels that are easy first (He et al. 2012)
cost-to-go          as mixture, steps weighed by what their errors cost (AggreVaTe, Ross and Bagnell 2014)
gaussian-kl         as mixture, the KL divergence of ancestral steps as the loss, sampled so (on-policy distillation)
input-perturbation  forward states with more noise than their time says (Ning et al. 2023)
epsilon-scaling     forward states; the noise in its guesses is scaled when it samples (Ning et al. 2024)
adaptive            as mixture, with on-policy shares that follow the measured loss gap
==================  ==================================================================================================

Variants have equal updates, chains and rounds, not equal cost: look at the columns of network evaluations too. Students
start from the teacher, as the methods do, and from scratch, where more is left to learn. Forward training, coaching,
cost-to-go, Gaussian KL and epsilon scaling are made for the labels and the sampler of progressive distillation, and are
left out for other objectives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.options import check_choices
from dagdiff.benchmarks.running.variants import shares_of
from dagdiff.runs.config import Config, configure

VARIANTS: dict[str, dict[str, Any]] = {
    "forward": {"shares": "forward"},
    "mixture": {"shares": "mixture"},
    "bc": {"shares": "expert"},
    "dagger": {"shares": "student", "beta": {"class": "indicator", "first": 1.0, "then": 0.0}},
    "forward-training": {"shares": "student", "stepwise": True, "curriculum": "forward-training"},
    "dart": {"shares": [0.25, 0.0, 0.75], "driver": "dart"},
    "gate": {"shares": "mixture", "driver": "gate"},
    "coaching": {"shares": "mixture", "curriculum": "coaching", "rounds_kept": 5},
    "cost-to-go": {"shares": "mixture", "curriculum": "cost-to-go"},
    "gaussian-kl": {"shares": "mixture", "objective": "gaussian-kl"},
    "input-perturbation": {"shares": "forward", "input_perturbation": 0.1},
    "epsilon-scaling": {"shares": "forward", "epsilon_scale": 1.005},
    "adaptive": {"shares": "mixture", "curriculum": "adaptive", "heldout": 128},
}
"""What sets each variant apart, as settings; shares may be those of a variant."""

LOOKS = 10
"""How often a student is scored while it trains: quality against evaluations of the expert."""

PROGRESSIVE_ONLY = ("forward-training", "coaching", "cost-to-go", "gaussian-kl", "epsilon-scaling")
"""Variants that need the labels or the sampler of progressive distillation."""

_FREE = tuple({name: None for own in VARIANTS.values() for name in own if name != "shares"})
_OWN = {
    "task": "Use --tasks.",
    "objective": "Use --objectives.",
    "policy": "Use --students.",
    "steps": "Use --steps.",
    "seed": "Use --seeds.",
    "updates": "Use --updates.",
    "threshold": "Use the suite toy2d.",
    "shares": "Use --variants.",
    **dict.fromkeys(_FREE, "Use --variants."),
}


@dataclass
class Suite:
    """What is run: every task with every student, objective, variant and number of steps, for every seed.

    Args:
        tasks: comma-separated; `dagdiff list tasks` names them.
        students: comma-separated; what the student starts as: teacher, fresh.
        objectives: comma-separated; names or import paths.
        variants: comma-separated, of forward, mixture, bc, dagger, forward-training, dart, gate, coaching, cost-to-go,
            gaussian-kl, input-perturbation, epsilon-scaling, adaptive.
        steps: comma-separated numbers of student steps.
        seeds: how many seeds, 0 to seeds - 1.
        updates: of the student in each run.
        settings: more settings of every run, e.g. {"lr": 1e-3, "expert": "learned"}.
    """

    tasks: list[str] = field(default_factory=lambda: ["gaussians8-biased", "imbalanced-biased", "grid25-biased"])
    students: list[str] = field(default_factory=lambda: ["teacher", "fresh"])
    objectives: list[str] = field(default_factory=lambda: ["progressive"])
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    steps: list[int] = field(default_factory=lambda: [4])
    seeds: int = 5
    updates: int = 1200
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(tasks=["gaussians8-biased"], students=["fresh"], seeds=1, updates=400)
"""Every variant once: ``--quick``."""


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs; refuse unknown names before the first."""
    check_choices(suite, VARIANTS, _OWN)
    for task in suite.tasks:
        for student in suite.students:
            for objective in suite.objectives:
                for variant in _applying(suite.variants, objective):
                    for steps in suite.steps:
                        chosen = {"task": task, "policy": student, "objective": objective, "steps": steps}
                        config = _config(suite, variant, chosen)
                        for seed in range(suite.seeds):
                            seeded = {**config, "seed": seed}
                            yield Cell(objective, variant, seeded, f"{student} student", _FREE, looks=LOOKS)


def _applying(variants: list[str], objective: str) -> list[str]:
    return [name for name in variants if objective == "progressive" or name not in PROGRESSIVE_ONLY]


def _config(suite: Suite, variant: str, chosen: dict[str, Any]) -> Config:
    common = {"updates": suite.updates, "heldout": 0, "device": "cpu", **suite.settings}
    own = VARIANTS[variant]
    shares = own["shares"] if isinstance(own["shares"], list) else shares_of(own["shares"], chosen["objective"])
    return configure({**chosen, **common, "threshold": "none", **own, "shares": shares})
