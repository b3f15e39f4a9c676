"""The forest plot: what the mixture changes in each comparison, with its interval."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

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


def forest_figure(lines: Sequence[Line], baselines: Sequence[str] = tuple(MARKS)) -> Figure | None:
    """Draw the paired differences of the mixture to its baselines, a line a comparison; None without any.

    A dot is the difference to forward training, a diamond that to the published method where it is another. Left of
    zero the mixture is better. The axis is linear around zero and logarithmic beyond, so that small and large effects
    are seen at once. Each line has its name above it, and not beside it, so that a phone can show large letters.
    """
    drawn = [
        (line, baseline, found)
        for line in lines
        for baseline in baselines
        if (found := line.mixture.minus(baseline)) and not line.is_forward(baseline)
    ]
    if not drawn:
        return None
    metric = lines[0].mixture.judged_by
    figure = Figure(figsize=(4.6, 1.2 + 0.42 * len(drawn)), layout="constrained")
    axes = figure.add_subplot()
    ends = list[float]()
    for place, (line, baseline, found) in enumerate(drawn):
        interval = scaled(found.interval, metric)
        way = outcome(line.mixture, baseline)
        beyond = [[interval.mean - interval.low], [interval.high - interval.mean]]
        axes.errorbar(
            [interval.mean], [place], xerr=beyond, fmt=MARKS[baseline], color=WAYS[way], ms=6, capsize=3,
            markerfacecolor=WAYS[way] if baseline == "forward" else "white",
        )  # fmt: skip
        to = " (against published)" if baseline == "published" and len(baselines) > 1 else ""
        name = f"{line.case}, {line.title}{to}"
        axes.text(0.0, place - 0.4, name, transform=axes.get_yaxis_transform(), va="center", fontsize=10)
        ends += interval
    axes.axvline(0.0, color="#333333", lw=1)
    reach = [1e-9, *map(abs, ends)]
    small = 10.0 ** math.ceil(math.log10(float(np.median([each for each in reach if each > 0.0]))))
    if max(reach) > 20 * small:
        axes.set_xscale("symlog", linthresh=small)
        powers = [small * 10.0**k for k in range(1 + math.floor(math.log10(max(reach) / small)))]
        low, high = -min(0.0, *ends), max(0.0, *ends)
        ticks = [-each for each in powers if each <= low] + [0.0] + [each for each in powers if each <= high]
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(-2.0 * max(low, small / 2), 2.0 * max(high, small / 2))
    else:
        axes.set_xlim(min(0.0, *ends) - 0.1 * max(reach), max(0.0, *ends) + 0.1 * max(reach))
    axes.set_ylim(len(drawn) - 0.6, -0.8)
    subtracted = baselines[0] if len(baselines) == 1 else "baseline"
    dress(axes, "What the mixture changes", f"mixture minus {subtracted}, {quantity(metric)}\n← better      worse →")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#EEEEEE")
    axes.grid(visible=False, axis="y")
    return figure
