"""A student's shift, drawn: where its expert's help pays, and what its errors cost; see :mod:`dagdiff.report.figures`.

The intervention curve is what the student's samples gain where the expert acts: left, in a part p of the chains at
every step; right, at one step alone, between the lines of the student alone (p = 0) and of the expert throughout
(p = 1). The amplification is what is left, at the end of the chain, of the error made at one step.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dagdiff.checks import Refusal
from dagdiff.metrics.amplification import StepAmplification
from dagdiff.metrics.intervention import Intervention
from dagdiff.metrics.shift import StepShift
from dagdiff.report.figures import ROLES, dress, make_grid, time_axis


def shift_figure(rows: Sequence[StepShift]) -> Figure:
    """Draw a student's covariate shift by step: its losses on three laws of states, and how far they lie apart."""
    titles = {"loss": "imitation loss", "energy": "energy distance (units of x)", "sliced_w2": "sliced W2 (units of x)"}
    if any(math.isfinite(row.accuracy_forward) for row in rows):
        titles["accuracy"] = "two-sample classifier, 0.5 = chance"
    figure, grid = make_grid(len(titles), len(titles), 3.2, 3.0)
    laws = [("forward", "data"), ("expert", "expert"), ("own", "student")]
    for axes, (name, title) in zip(grid, titles.items(), strict=True):
        for law, role in laws if name == "loss" else laws[:2]:
            label = f"on {law} states" if name == "loss" else f"own to {law} states"
            values = [getattr(row, f"{name}_{law}") for row in rows]
            axes.plot([row.t for row in rows], values, "o-", ms=4, color=ROLES[role], label=label)
        time_axis(axes, title, log=name == "loss")
        axes.legend(frameon=False, fontsize=8)
    return figure


def intervention_figure(rows: Sequence[Intervention]) -> Figure:
    """Draw energy distance (units of x, lower is better) against p, and against the only step where the expert acts.

    Bars are two standard errors of the difference from the student alone. The right panel is left out if no run has a
    step of its own.

    Raises:
        Refusal: if p = 0 or p = 1 is missing.
    """
    curve, alone = [row for row in rows if row.step is None], [row for row in rows if row.step is not None]
    if {0.0, 1.0} - {row.p for row in curve}:
        raise Refusal("the curve needs the runs with p = 0 and p = 1. Pass all rows of measure_interventions.")
    figure = Figure(figsize=(3.6 * (1 + bool(alone)), 3.1), layout="constrained")
    panels = figure.subplots(1, 1 + bool(alone), sharey=True, squeeze=False)[0]
    _draw(panels[0], [row.p for row in curve], curve, "the expert acts with probability p", "p, at every step")
    panels[0].set_ylabel("energy distance (units of x)")
    if alone:
        _draw(panels[1], [float(row.step or 0) for row in alone], alone, "the expert acts at one step alone", "step")
        panels[1].set_xticks([row.step for row in alone])
        for p, label, role in ((0.0, "student alone", "student"), (1.0, "expert throughout", "expert")):
            level = next(row.energy for row in curve if row.p == p)
            panels[1].axhline(level, linestyle="--", linewidth=1, color=ROLES[role], label=label)
        panels[1].legend(frameon=False, fontsize=8)
    return figure


def amplification_figure(rows: Sequence[StepAmplification]) -> Figure:
    """Draw, by step, the student's error beside what it costs at the end (units of x), and the factor between them.

    Above the dotted line, 1, the rest of the chain makes an error worse; below it, it forgives.
    """
    figure, (sizes, factor) = make_grid(2, 2, 3.6, 3.1)
    t = [row.t for row in rows]
    sizes.plot(t, [row.error for row in rows], "o-", ms=4, color=ROLES["student"], label="error at the step")
    sizes.plot(t, [row.cost for row in rows], "s--", ms=4, color=ROLES["student"], label="its cost at the end")
    factor.plot(t, [row.amplification for row in rows], "o-", ms=4, color=ROLES["student"])
    factor.axhline(1.0, color=ROLES["data"], linestyle=":")
    time_axis(sizes, "root mean square (units of x)")
    time_axis(factor, "amplification: cost / error", log=False)
    factor.set_ylim(bottom=0.0)
    sizes.legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, x: Sequence[float], rows: Sequence[Intervention], title: str, xlabel: str) -> None:
    heights, bars = [row.energy for row in rows], [2.0 * row.error for row in rows]
    axes.errorbar(x, heights, yerr=bars, fmt="o-", ms=4, capsize=3, color="#0072B2")
    dress(axes, title, xlabel)
