"""Figures of a study: what changes with shares, steps and thresholds; see :mod:`dagdiff.report.figures`.

They take plain mappings from a variant, a mixture or a number of steps to numbers, so that the measurements can come
from results or from elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from dagdiff.checks import Refusal, check_shares
from dagdiff.metrics.statistics import Interval
from dagdiff.report.figures import OTHER, ROLES, VARIANTS, dress, legend_below, make_grid
from dagdiff.report.glossary import variant_name

Shares = tuple[float, float, float]
"""Parts of a batch: forward, student, expert states."""


def overview_figure(
    panels: Mapping[str, Mapping[str, Mapping[str, Interval]]], experts: Mapping[str, Mapping[str, float]], xlabel: str
) -> Figure:
    """Draw a line a task and a panel an objective: each variant's quality with its interval, and the expert's.

    Args:
        panels: title -> task -> variant -> quality, smaller is better; a panel may lack a task.
        experts: title -> task -> the quality of the expert in the student's place.
        xlabel: what quality is; its axis is linear from -1 to 1 and logarithmic beyond.
    """
    tasks = list(dict.fromkeys(task for found in panels.values() for task in found))
    figure, grid = make_grid(len(panels), len(panels), 3.6, 1.1 + 0.26 * len(tasks), sharey=True)
    for axes, (title, found) in zip(grid, panels.items(), strict=True):
        marks = experts[title]
        places = [tasks.index(task) for task in marks]
        axes.plot(list(marks.values()), places, "|", ms=11, color=ROLES["expert"], label="expert")
        for variant in dict.fromkeys(variant for each in found.values() for variant in each):
            rows = [row for row, task in enumerate(tasks) if variant in found.get(task, {})]
            means, low, high = (np.array(x) for x in zip(*(found[tasks[row]][variant] for row in rows), strict=True))
            style: dict[str, Any] = {"fmt": "o", "ms": 4.5, "elinewidth": 1, "color": VARIANTS.get(variant, OTHER)}
            axes.errorbar(means, rows, xerr=(means - low, high - means), label=variant_name(variant), **style)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_xscale("symlog", linthresh=1.0)
        axes.margins(x=0.08)
        dress(axes, title, xlabel)
        axes.tick_params(axis="x", labelsize=7)
    grid[0].invert_yaxis()
    legend_below(figure, grid)
    return figure


def shares_figure(panels: Mapping[str, Mapping[Shares, float]]) -> Figure:
    """Draw quality over the triangle of shares, a panel each: a dot a mixture, its number beside it, the best ringed.

    Args:
        panels: title -> shares -> quality, smaller is better; at least three mixtures that are not on one line.
    """
    figure, grid = make_grid(len(panels), len(panels), 3.4, 3.3)
    for axes, (title, found) in zip(grid, panels.items(), strict=True):
        for shares in found:
            check_shares(shares)
        places: Any = np.array([_corner(shares) for shares in found])
        values: Any = np.array(list(found.values()), dtype=float)
        if len(found) < 3 or np.linalg.matrix_rank(places - places.mean(axis=0), tol=1e-9) < 2:
            raise Refusal(f"panel {title!r} needs three mixtures that are not on one line; got {list(found)}.")
        norm = LogNorm(values.min(), values.max()) if values.min() > 0 else None
        x, y = places.T
        axes.tricontourf(x, y, values, levels=_levels(values), cmap="viridis_r", norm=norm, alpha=0.45)
        axes.scatter(x, y, c=values, s=60, edgecolors="white", cmap="viridis_r", norm=norm, zorder=3)
        best = values.argmin()
        axes.scatter(x[best], y[best], s=150, facecolors="none", edgecolors="#222222", linewidths=1.4, zorder=4)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.2g}", place, (0, -13), textcoords="offset points", ha="center", fontsize=8)
        for name, corner in (("forward", (1, 0, 0)), ("student", (0, 1, 0)), ("expert", (0, 0, 1))):
            place = _corner(corner)
            axes.annotate(
                name, place, (0, 10 if place[1] else -28), textcoords="offset points", ha="center", fontsize=9
            )
        axes.set(xlim=(-0.2, 1.2), ylim=(-0.25, 1.1), aspect="equal")
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
    return figure


def growth_figure(panels: Mapping[str, Mapping[str, Mapping[int, tuple[float, Interval]]]]) -> Figure:
    """Draw how a chain's error grows with its number of steps K, beside the laws e K and e K^2 of imitation learning.

    With error e a step on the states of training, the error summed over the chain's student states is at most of order
    e K under dataset aggregation and e K^2 under behaviour cloning (Ross, Gordon and Bagnell 2011,
    https://arxiv.org/abs/1011.0686). Dashed and dotted are these laws with each variant's own e.

    Args:
        panels: title -> variant -> K -> e, the mean loss a step on forward states, and the summed loss on student
            states.
    """
    figure, grid = make_grid(len(panels), len(panels), 3.4, 3.3)
    for axes, (title, variants) in zip(grid, panels.items(), strict=True):
        for variant, found in variants.items():
            colour, counts, name = VARIANTS.get(variant, OTHER), sorted(found), variant_name(variant)
            means, low, high = zip(*(found[steps][1] for steps in counts), strict=True)
            reach = np.subtract(means, low), np.subtract(high, means)
            axes.errorbar(counts, means, reach, fmt="o-", ms=4, capsize=3, color=colour, label=f"{name}: measured")
            for power, style in ((1, "--"), (2, ":")):
                law = [found[steps][0] * steps**power for steps in counts]
                axes.plot(counts, law, style, color=colour, linewidth=1, label=f"{name}: e K{'²' * (power - 1)}")
        axes.set_xscale("log", base=2)
        _log(axes)
        ticks = sorted({steps for found in variants.values() for steps in found})
        axes.set_xticks(ticks, [str(steps) for steps in ticks])
        axes.minorticks_off()
        dress(axes, title, "student steps K")
    grid[0].set_ylabel("loss summed over the chain")
    legend_below(figure, grid)
    return figure


def thresholds_figure(panels: Mapping[str, Mapping[str, Interval]], label: str = "energy distance") -> Figure:
    """Draw what each threshold makes of a training: title -> threshold -> quality; the line is the first one's mean."""
    figure, grid = make_grid(len(panels), len(panels), 3.2, 2.6, sharey=True)
    for axes, (title, found) in zip(grid, panels.items(), strict=True):
        means, low, high = (np.array(values) for values in zip(*found.values(), strict=True))
        axes.errorbar(range(len(found)), means, (means - low, high - means), fmt="D", ms=5, capsize=3, color="#0072B2")
        axes.axhline(means[0], color=ROLES["data"], linestyle=":")
        axes.set_xticks(range(len(found)), list(found), rotation=30)
        axes.margins(x=0.12)
        _log(axes)
        dress(axes, title, "")
    grid[0].set_ylabel(label)
    return figure


def _corner(shares: Sequence[float]) -> tuple[float, float]:
    """The place of a mixture in the triangle: forward left, expert right, student on top."""
    _, student, expert = shares
    return expert + student / 2, student * math.sqrt(3.0) / 2


def _levels(values: Any) -> Any:
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + abs(low) + 1e-12
    return np.geomspace(low, high, 12) if low > 0 else np.linspace(low, high, 12)


def _log(axes: Axes) -> None:
    """Make the height logarithmic, if all of it is above 0."""
    heights = [float(value) for line in axes.lines for value in np.ravel(line.get_ydata())]
    if heights and min((value for value in heights if math.isfinite(value)), default=0.0) > 0.0:
        axes.set_yscale("log")
