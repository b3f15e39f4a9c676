r"""The horizon suite: how own errors grow with the number K of steps, and what does not let them.

Let epsilon be a student's imitation loss on the expert's states, a mean over steps, and J its loss on its own states,
summed over the chain. Ross and Bagnell (2010, https://proceedings.mlr.press/v9/ross10a.html) bound behaviour cloning by
J = O(K^2 epsilon), as one error may spoil all later steps, and DAgger by O(K epsilon) (Ross et al. 2011,
https://arxiv.org/abs/1011.0686). Here the exponent p of J / epsilon ~ K^p is measured: 1 where errors do not
compound, 2 in the worst case.

=========  ===========================================================================================================
variant    trained on
=========  ===========================================================================================================
forward    forward-diffused states
bc         states of the expert's chains: behaviour cloning
dagger     the student's states alone; the expert drives the first round (beta 1, then 0)
mixture    all three sources
=========  ===========================================================================================================

Every student is fresh and small, so that it errs: MLPs of width 32 and 128, progressive distillation, DDIM, the exact
expert with 32 sub-steps in all. gaussians8 is shown whole (no data mismatch by the set) and in half. A second block
adds noise to the labels, of which the optimum does not change but a finite student's error does.

Before the runs we expect:

* bc: p between 1 and 2, and above dagger's: the student of width 32 leaves the expert's states. At K = 1 nothing
  differs, for every chain is at its noise. Foster et al. (2024, https://arxiv.org/abs/2407.15007) show that cloning
  need not pay for the horizon where the expert is deterministic and the loss is the right one; the DDIM expert is
  deterministic, so p may come out near 1, and the student of width 128 should show less growth than that of width 32.
* dagger: p near 1, and a lower end error than bc from K = 4 on.
* shown in half: forward is worst at every K, by data mismatch and not by growth.
* noise: it widens the gap between bc and dagger (2026, https://arxiv.org/abs/2606.30923: with a noisy expert cloning
  pays for the horizon).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict

from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.options import check_choices
from dagdiff.benchmarks.running.variants import shares_of
from dagdiff.checks import check_at_least
from dagdiff.expert import Expert
from dagdiff.metrics.statistics import Interval
from dagdiff.objectives.base import Clean
from dagdiff.objectives.progressive import Progressive
from dagdiff.report.records import Record
from dagdiff.runs.config import Config, configure

VARIANTS: dict[str, dict[str, Any]] = {
    "forward": {"shares": "forward"},
    "bc": {"shares": "expert"},
    "dagger": {"shares": "student", "beta": {"class": "indicator", "first": 1.0, "then": 0.0}},
    "mixture": {"shares": "mixture"},
}
"""What sets each variant apart, as settings; shares may be those of a variant."""

CLAIM = ("bc", "dagger")
"""The variants that the claim rests on; they have ``claim_seeds`` seeds at width 32 on the set shown whole."""

SUBSTEPS = 32  # of the expert, over the whole chain

_OWN = {
    "task": "Use --tasks.",
    "policy": "Use --widths.",
    "steps": "Use --steps.",
    "seed": "Use --seeds.",
    "updates": "Use --updates.",
    "objective": "Use --noises.",
    **dict.fromkeys(("shares", "beta"), "Use --variants."),
}


class NoisyLabels(Progressive):
    """Progressive distillation from labels with noise of their own.

    Args:
        noise: its standard deviation, in units of x.
    """

    def __init__(self, noise: float = 0.3) -> None:
        check_at_least("noise", noise, 0.0)
        super().__init__()
        self.noise = noise

    def begin(self, student: torch.nn.Module, expert: Expert, clean: Clean, generator: torch.Generator | None) -> None:
        """Keep the generator of the noise too."""
        super().begin(student, expert, clean, generator)
        self.generator = generator

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``target`` with noise."""
        found = super().annotate(expert, states)
        target = found["target"]
        drawn = torch.randn(target.shape, generator=self.generator, device=target.device, dtype=target.dtype)
        return found.set("target", target + self.noise * drawn)


@dataclass
class Suite:
    """What is run: every task with every width, label noise, number of steps and variant, for every seed.

    Args:
        tasks: comma-separated; `dagdiff list tasks` names them.
        widths: comma-separated; of the student's layers.
        steps: comma-separated numbers of student steps.
        variants: comma-separated, of forward, bc, dagger, mixture.
        noises: comma-separated; standard deviations of noise on the labels of the first task, for bc and dagger and the
            first width.
        seeds: how many seeds, 0 to seeds - 1.
        claim_seeds: of bc and dagger on the first task and the first width.
        updates: of the student in each run.
        settings: more settings of every run, e.g. {"lr": 1e-3}.
    """

    tasks: list[str] = field(default_factory=lambda: ["gaussians8-matched", "gaussians8-biased"])
    widths: list[int] = field(default_factory=lambda: [32, 128])
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    noises: list[float] = field(default_factory=lambda: [0.3])
    seeds: int = 4
    claim_seeds: int = 8
    updates: int = 600
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(tasks=["gaussians8-matched"], widths=[32], steps=[2, 8], seeds=1, claim_seeds=1)
"""The claim's variants and their neighbours once: ``--quick``."""


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs, seed by seed; refuse unknown names before the first."""
    check_choices(suite, VARIANTS, _OWN)
    for name in ("seeds", "claim_seeds"):
        check_at_least(name, getattr(suite, name), 1)
    made = list(_kinds(suite))
    for seed in range(max(suite.seeds, suite.claim_seeds)):
        yield from (replace(cell, config={**cell.config, "seed": seed}) for cell, seeds in made if seed < seeds)


def _kinds(suite: Suite) -> Iterator[tuple[Cell, int]]:
    """The runs but for their seed, and how many seeds each has."""
    for task in suite.tasks:
        for width in suite.widths:
            first = (task, width) == (suite.tasks[0], suite.widths[0])
            for steps in suite.steps:
                for variant in suite.variants:
                    claimed = first and variant in CLAIM
                    yield _cell(suite, task, width, steps, variant), suite.claim_seeds if claimed else suite.seeds
                    for noise in suite.noises if claimed else ():
                        yield _cell(suite, task, width, steps, variant, noise), suite.seeds


def _cell(suite: Suite, task: str, width: int, steps: int, variant: str, noise: float = 0.0) -> Cell:
    own, about = VARIANTS[variant], f"width {width}" + (f", label noise {noise:g}" if noise else "")
    objective: Any = {"class": f"{__name__}.NoisyLabels", "noise": noise} if noise else "progressive"
    config: Config = configure(
        {
            "task": task,
            "objective": objective,
            "policy": {"class": "fresh", "width": width, "depth": 2},
            "steps": steps,
            "substeps": max(1, SUBSTEPS // steps),
            "updates": suite.updates,
            "chains": 64,
            "batch_size": 128,
            "lr": 3e-3,
            "heldout": 0,
            "device": "cpu",
            **suite.settings,
            **own,
            "shares": shares_of(own["shares"], "progressive"),
        }
    )
    return Cell("progressive", variant, config, about, ("beta",))


class Growth(NamedTuple):
    """The exponent p of J / epsilon ~ K^p over the numbers of steps, with its 95 % interval over seeds."""

    exponent: Interval
    ratios: dict[int, Interval]
    """K -> own loss over the loss on expert states, means over steps: J / (K epsilon)."""


def growth(records: Sequence[Record], resamples: int = 2000) -> Growth:
    """Return how own errors grow with the number of steps in the runs of one variant, task and width.

    The exponent is the slope of log(J / epsilon) on log K by least squares, one point a number of steps, its mean over
    seeds; the interval is a percentile bootstrap that draws seeds anew at each number of steps.
    """
    found: dict[int, list[float]] = {}
    for record in sorted(records, key=lambda record: (record.steps, record.seed)):
        found.setdefault(record.steps, []).append(record.metrics["loss_own"] / record.metrics["loss_expert"])
    steps, draws = sorted(found), np.random.default_rng(0)
    logs = [np.log(np.asarray(found[number]) * number) for number in steps]

    def slope(heights: Sequence[float]) -> float:
        return float(np.polyfit(np.log(steps), heights, 1)[0])

    resampled = [slope([float(draws.choice(log, len(log)).mean()) for log in logs]) for _ in range(resamples)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    exponent = Interval(slope([float(log.mean()) for log in logs]), float(low), float(high))
    ratios = {number: _mean(np.asarray(values), draws) for number, values in found.items()}
    return Growth(exponent, ratios)


def _mean(values: "np.ndarray[Any, Any]", draws: np.random.Generator) -> Interval:
    """The geometric mean of ratios, with its interval."""
    logs = np.log(values)
    means = logs[draws.integers(len(logs), size=(2000, len(logs)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(*(math.exp(each) for each in (float(logs.mean()), float(low), float(high))))
