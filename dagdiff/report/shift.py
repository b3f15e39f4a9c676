"""A student's shift, drawn: where its expert's help pays, and what its errors cost; see :mod:`dagdiff.report.figures`.

The intervention curve is what the student's samples gain where the expert acts: left, in a part p of the chains at
every step; right, at one step alone, between the lines of the student alone (p = 0) and of the expert throughout
(p = 1). The amplification is what is left, at the end of the chain, of the error made at one step.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dagdiff.checks import Refusal
from dagdiff.metrics.amplification import StepAmplification
from dagdiff.metrics.intervention import Intervention
from dagdiff.report.figures import ROLES, dress, make_grid, time_axis


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
