"""The intervention curve, drawn: what the student's samples gain where the expert acts; see :mod:`dagdiff.plots`.

Left, the expert acts in a part p of the chains at every step; right, at one step alone, between the lines of the
student alone (p = 0) and of the expert throughout (p = 1).
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dagdiff.checks import Refusal
from dagdiff.metrics.intervention import Intervention
from dagdiff.plots import ROLES, dress


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


def _draw(axes: Axes, x: Sequence[float], rows: Sequence[Intervention], title: str, xlabel: str) -> None:
    heights, bars = [row.energy for row in rows], [2.0 * row.error for row in rows]
    axes.errorbar(x, heights, yerr=bars, fmt="o-", ms=4, capsize=3, color="#0072B2")
    dress(axes, title, xlabel)
