"""Figures of curves: losses by step, quality against cost, and a run round by round.

See :mod:`dagdiff.report.figures` for what all figures share.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dagdiff.metrics.statistics import Interval
from dagdiff.report.figures import (
    OTHER,
    ROLES,
    VARIANTS,
    Points,
    as_floats,
    dress,
    legend_below,
    log_height,
    make_grid,
    time_axis,
)
from dagdiff.report.glossary import variant_name


class StepLosses(NamedTuple):
    """Imitation losses at the steps of a grid ``t`` ``(K,)``, on forward and student states, ``(seeds, K)`` each."""

    t: ArrayLike
    forward: ArrayLike
    own: ArrayLike


def loss_by_step(panels: Mapping[str, Mapping[str, StepLosses]]) -> Figure:
    """Draw imitation loss by step, a panel for each objective and a colour for each variant in it.

    Solid is the loss on the student states, dashed on forward states; lines are means over seeds, bands run from
    the least to the greatest seed.
    """
    figure, grid = make_grid(len(panels), len(panels), 3.2, 3.0, sharey=True)
    for axes, (title, variants) in zip(grid, panels.items(), strict=True):
        for variant, losses in variants.items():
            colour = VARIANTS.get(variant, OTHER)
            _band(axes, losses.t, losses.forward, colour, f"{variant_name(variant)}: forward states", "--")
            _band(axes, losses.t, losses.own, colour, f"{variant_name(variant)}: student states", "-")
        time_axis(axes, title)
    grid[0].set_ylabel("imitation loss")
    legend_below(figure, grid[:1])
    return figure


def quality_by_nfe(
    panels: Mapping[str, Mapping[str, Mapping[int, Interval]]],
    expert: Mapping[int, float],
    floor: float | None = None,
    ylabel: str = "energy distance",
) -> Figure:
    """Draw quality against network evaluations a sample: the expert's curve, and each student at its number of steps.

    Args:
        panels: objective -> variant -> steps -> interval.
        expert: steps -> quality.
        floor: quality of real samples, drawn as a line; smaller is better.
        ylabel: what quality is, with its unit.
    """
    figure, grid = make_grid(len(panels), len(panels), 3.2, 3.2, sharey=True)
    for axes, (title, variants) in zip(grid, panels.items(), strict=True):
        axes.plot(list(expert), list(expert.values()), "o-", ms=4, color=ROLES["expert"], label="the expert")
        if floor is not None:
            axes.axhline(floor, color=ROLES["data"], linestyle=":", label="floor")
        for place, (variant, points) in enumerate(variants.items()):
            dodge = 1.09 ** (place - (len(variants) - 1) / 2)
            _points(axes, [steps * dodge for steps in points], list(points.values()), variant)
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=max(abs(floor or 0.0), 1e-4))
        dress(axes, title, "network evaluations a sample")
        ticks = sorted({*expert, *(steps for points in variants.values() for steps in points)})
        axes.set_xticks(ticks, [str(steps) for steps in ticks])
        axes.minorticks_off()
    grid[0].set_ylabel(ylabel)
    legend_below(figure, grid)
    return figure


def quality_by_evaluations(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Interval]]]], ylabel: str = "energy distance"
) -> Figure:
    """Draw quality against what the expert was asked in training: a panel an objective, a line a variant.

    Args:
        panels: objective -> variant -> evaluations of the expert, and the interval over seeds.
        ylabel: what quality is, with its unit; smaller is better.
    """
    figure, grid = make_grid(len(panels), min(len(panels), 3), 4.6, 3.6)
    for axes, (title, variants) in zip(grid, panels.items(), strict=True):
        others = [name for name in variants if name not in VARIANTS]
        shades = dict(zip(others, colormaps["tab20"](np.linspace(0.0, 1.0, max(len(others), 2))), strict=False))
        for variant, looks in variants.items():
            x = [evaluations for evaluations, _ in looks]
            mean, low, high = zip(*(interval for _, interval in looks), strict=True)
            colour = VARIANTS[variant] if variant in VARIANTS else shades[variant]
            style = "-" if variant in VARIANTS else "--"
            axes.plot(x, mean, style, marker="o", ms=3, color=colour, label=variant_name(variant))
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1.0)
        dress(axes, title, "evaluations of the expert in training")
    grid[0].set_ylabel(ylabel)
    legend_below(figure, grid)
    return figure


def rounds_figure(rounds: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a run, round by round: the loss at each step on forward, own and expert states, and the held-out loss.

    Each round maps ``loss_forward``, ``loss_own`` and ``loss_expert`` (lists over steps, perhaps empty), ``heldout``
    and ``beta``. Rounds are counted as they come: their ``number`` starts anew with every stage of halving.
    """
    figure, (*laws, heldout) = make_grid(4, 4, 3.0, 3.0)
    for axes in laws[1:]:
        axes.sharey(laws[0])
    x = np.arange(1, len(rounds) + 1)
    for axes, law in zip(laws, ("forward", "own", "expert"), strict=True):
        _step_lines(axes, x, [done[f"loss_{law}"] for done in rounds])
        dress(axes, f"imitation loss on {law} states", "round")
    heldout.plot(
        x, as_floats([done["heldout"] for done in rounds]), ".-", color=ROLES["student"], label="held-out loss"
    )
    dress(heldout, "objective's loss, held-out states", "round")
    if any(done["beta"] for done in rounds):
        share = heldout.twinx()
        share.fill_between(
            x, as_floats([done["beta"] for done in rounds]), color=ROLES["data"], alpha=0.25, linewidth=0
        )
        share.set(ylim=(0, 1), ylabel="beta, the expert's share (grey)")
    if laws[0].lines:
        laws[0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _band(axes: Axes, t: ArrayLike, values: ArrayLike, colour: str, label: str, style: str) -> None:
    """Draw the mean over seeds, and the seeds' range behind it; steps that no seed measured are left out."""
    table = np.ma.masked_invalid(np.atleast_2d(as_floats(values)))
    t = as_floats(t)
    axes.plot(t, table.mean(axis=0), style, marker="o", ms=4, color=colour, label=label)
    axes.fill_between(t, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _points(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], variant: str) -> None:
    mean, low, high = zip(*intervals, strict=True)
    reach = np.subtract(mean, low), np.subtract(high, mean)
    colour, name = VARIANTS.get(variant, OTHER), variant_name(variant)
    axes.errorbar(x, mean, yerr=reach, fmt="D", ms=5, capsize=3, color=colour, label=name)


def _step_lines(axes: Axes, x: Points, rounds: Sequence[Sequence[float]]) -> None:
    """A line for each step over the rounds, dark at noise and light at data; rounds may have unequal steps."""
    most = max((len(values) for values in rounds), default=0)
    table = as_floats([[*values, *[math.nan] * (most - len(values))] for values in rounds]).reshape(len(rounds), most)
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, most))
    for step, (values, shade) in enumerate(zip(table.T, shades, strict=True), start=1):
        axes.plot(x, values, ".-", color=shade, label=f"step {step}")
    log_height(axes)
