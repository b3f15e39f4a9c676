"""The forest plot: what the mixture changes in each comparison, with its interval."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from dagdiff.report.excess import NOTHING
from dagdiff.report.figures import OTHER, VARIANTS, dress
from dagdiff.report.glossary import quantity
from dagdiff.report.overview import Line
from dagdiff.report.verdict import BETTER, INCONCLUSIVE, WORSE, outcome, scaled

MOST = 30
"""Comparisons beyond which a figure is no first sight any more."""

WAYS = {BETTER: VARIANTS["mixture"], WORSE: VARIANTS["forward"], NOTHING: "#999999", INCONCLUSIVE: OTHER}
"""The result of a comparison -> its colour."""

MARKS = {"forward": "o", "published": "D"}


def forest_figure(lines: Sequence[Line]) -> Figure | None:
    """Draw the paired differences of the mixture to its baselines, a line a comparison; None without any.

    A dot is the difference to forward training, a diamond that to the published method where it is another. Left of
    zero the mixture is better. The axis is linear around zero and logarithmic beyond, so that small and large effects
    are seen at once.
    """
    drawn = [
        (line, baseline, found)
        for line in lines
        for baseline in MARKS
        if (found := line.mixture.minus(baseline)) and not line.is_forward(baseline)
    ]
    if not drawn:
        return None
    metric = lines[0].mixture.judged_by
    figure = Figure(figsize=(6.4, 1.1 + 0.3 * len(drawn)), layout="constrained")
    axes = figure.add_subplot()
    labels, reach = [], [1e-9]
    for place, (line, baseline, found) in enumerate(drawn):
        interval = scaled(found.interval, metric)
        way = outcome(line.mixture, baseline)
        beyond = [[interval.mean - interval.low], [interval.high - interval.mean]]
        axes.errorbar(
            [interval.mean], [place], xerr=beyond, fmt=MARKS[baseline], color=WAYS[way], ms=6, capsize=3,
            markerfacecolor=WAYS[way] if baseline == "forward" else "white",
        )  # fmt: skip
        to = "" if baseline == "forward" else " (to published)"
        labels.append(f"{line.case}, {line.title}{to}")
        reach += [abs(bound) for bound in interval]
    axes.axvline(0.0, color="#333333", lw=1)
    small = float(np.quantile([each for each in reach[1:] if each > 0.0] or [1.0], 0.25))
    if max(reach) > 20 * small:
        axes.set_xscale("symlog", linthresh=small)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(axis="x", labelrotation=45)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    dress(axes, "What the mixture changes", f"mixture minus baseline, {quantity(metric)}\n← better      worse →")
    axes.set_yticks(range(len(drawn)), labels)
    axes.grid(axis="x", color="#EEEEEE")
    axes.grid(visible=False, axis="y")
    return figure
