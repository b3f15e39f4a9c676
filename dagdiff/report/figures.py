"""Figures: what was made, how it came about, what it cost, and where it went astray.

Functions take arrays or simple records and return a :class:`matplotlib.figure.Figure`. Nothing is shown, pyplot's
global state is left alone, and the caller decides where a figure goes (:func:`save`, :func:`to_data_uri`). A colour
means one thing throughout: :data:`VARIANTS` says what a student was trained on, :data:`ROLES` who made a point, in
colours that colour-blind readers can tell apart (Okabe & Ito 2008, https://jfly.uni-koeln.de/color/). On time axes the
chain runs from noise (t = 1) on the left to data (t = 0) on the right.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from dagdiff.checkpoint import write_atomically
from dagdiff.checks import Refusal
from dagdiff.metrics.shift import StepShift
from dagdiff.metrics.statistics import Interval
from dagdiff.report.glossary import variant_name

Points = NDArray[Any]
"""Points of the plane, ``(n, 2)``; chains are ``(n, K + 1, 2)``, from noise to data."""

VARIANTS = {
    "forward": "#D55E00",
    "base": "#E69F00",
    "ddil": "#0072B2",
    "reflected-ddil": "#56B4E9",
    "student": "#CC79A7",
    "expert": "#009E73",
}
"""What a student was trained on -> its colour; the order is the order of every table and legend."""

ROLES = {"student": "#882255", "expert": "#222222", "data": "#999999"}
"""Who made a point -> its colour."""


def scatter_panels(
    panels: Mapping[str, Points], columns: int = 4, colours: Mapping[str, str] | None = None, half: float | None = None
) -> Figure:
    """Draw each cloud ``(n, 2)`` in its own panel, all on the same square; points outside it are counted, not lost.

    Args:
        panels: title -> points.
        columns: panels a row.
        colours: title -> colour; others are grey.
        half: half the side of the square around 0; None: :func:`half_width` of all panels.

    Raises:
        Refusal: if there is no panel, or a cloud is not ``(n, 2)``.
    """
    for title, points in panels.items():
        if np.ndim(points) != 2 or np.shape(points)[1] != 2:
            raise Refusal(f"panel {title!r} must be (n, 2) points; got shape {np.shape(points)}. Pick two coordinates.")
    half = half or half_width(panels.values())
    figure, grid = make_grid(len(panels), min(columns, len(panels)), 2.3, 2.5)
    for axes, (title, points) in zip(grid, panels.items(), strict=True):
        _dots(axes, points, 3, (colours or {}).get(title, "#555555"), 0.4)
        _square(axes, title, half)
        outside = int((~(np.abs(points) <= half).all(axis=1)).sum())
        if outside:
            axes.annotate(f"{outside} outside", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=8)
    return figure


def chain_panels(chains: Mapping[str, Points], truth: Points) -> Figure:
    """Draw chains ``(n, K + 1, 2)``, a panel for each name, over points of the true law in grey.

    A ring marks the noise a chain starts from, a dot where it ends. Names of :data:`ROLES` and :data:`VARIANTS` have
    their colour; "expert" is the role.
    """
    figure, grid = make_grid(len(chains), len(chains), 3.1, 3.3)
    half = half_width([truth, *(paths.reshape(-1, 2) for paths in chains.values())])
    for axes, (name, paths) in zip(grid, chains.items(), strict=True):
        colour = (VARIANTS | ROLES).get(name, "#555555")
        _dots(axes, truth, 3, ROLES["data"], 0.25)
        axes.add_collection(LineCollection(list(paths), colors=colour, linewidths=0.7, alpha=0.5))
        axes.scatter(paths[:, 0, 0], paths[:, 0, 1], s=12, facecolors="none", edgecolors=colour, linewidths=0.6)
        _dots(axes, paths[:, -1], 9, colour, 1.0)
        _square(axes, variant_name(name), half)
    return figure


class StepLosses(NamedTuple):
    """Imitation losses at the K steps of a grid ``t`` ``(K,)``: on forward and on own states, ``(seeds, K)`` each."""

    t: ArrayLike
    forward: ArrayLike
    own: ArrayLike


def loss_by_step(panels: Mapping[str, Mapping[str, StepLosses]]) -> Figure:
    """Draw imitation loss by step, a panel for each objective and a colour for each variant in it.

    Solid is the loss on the student's own states, dashed on forward states; lines are means over seeds, bands run from
    the least to the greatest seed.
    """
    figure, grid = make_grid(len(panels), len(panels), 3.2, 3.0, sharey=True)
    for axes, (title, variants) in zip(grid, panels.items(), strict=True):
        for variant, losses in variants.items():
            colour = VARIANTS.get(variant, "#555555")
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
    heldout.plot(x, _numbers([done["heldout"] for done in rounds]), ".-", color=ROLES["student"], label="held-out loss")
    dress(heldout, "objective's loss, held-out states", "round")
    if any(done["beta"] for done in rounds):
        share = heldout.twinx()
        share.fill_between(x, _numbers([done["beta"] for done in rounds]), color=ROLES["data"], alpha=0.25, linewidth=0)
        share.set(ylim=(0, 1), ylabel="beta, the expert's share (grey)")
    if laws[0].lines:
        laws[0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def half_width(clouds: Any, share: float = 0.99) -> float:
    """Half the side of a square around 0 that holds ``share`` of each cloud ``(n, 2)``, and a margin."""
    reach = [np.abs(cloud).max(axis=-1) for cloud in clouds]
    far = [np.quantile(finite, share) for at in reach if (finite := at[np.isfinite(at)]).size]
    if not far:
        raise Refusal("there are no finite points to draw. Pass at least one panel with finite points.")
    return 1.12 * float(max(far)) or 1.0


def save(figure: Figure, path: Path, source: str | None = None) -> None:
    """Write the figure in the format of the path's suffix (PNG without one), atomically; a PNG may name its source."""
    kind = path.suffix.removeprefix(".") or "png"
    named = {"Source": source} if source else None
    write_atomically(path, lambda partial: figure.savefig(partial, format=kind, dpi=150, metadata=named))


def to_data_uri(figure: Figure, dpi: int = 130) -> str:
    """Return the figure as a PNG in a ``data:`` address, which a page can hold inline."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode("ascii")


def make_grid(count: int, columns: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Make ``count`` axes in rows of ``columns``, each of that size in inches."""
    if count == 0:
        raise Refusal("there is nothing to draw. Pass at least one panel.")
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for axes in grid[1:] if sharey else []:
        axes.sharey(grid[0])
        axes.tick_params(labelleft=False)
    return figure, grid


def _dots(axes: Axes, points: Points, size: float, colour: str, alpha: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, color=colour, alpha=alpha)


def _square(axes: Axes, title: str, half: float) -> None:
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_color("#CCCCCC")


def dress(axes: Axes, title: str, xlabel: str) -> None:
    """Give axes their title, the name of x, faint lines to read heights by, and no frame."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)


def time_axis(axes: Axes, title: str, log: bool = True) -> None:
    """Dress axes whose x is time, noise on the left; make the height logarithmic if asked to and if it can be."""
    dress(axes, title, "time t (noise 1 → data 0)")
    low, high = sorted(axes.get_xlim())
    axes.set_xlim(high, low)
    if log:
        _log(axes)


def _log(axes: Axes) -> None:
    """Make the height logarithmic, if there is anything above 0 to show."""
    if math.isfinite(axes.dataLim.minposy):
        axes.set_yscale("log")


def _band(axes: Axes, t: ArrayLike, values: ArrayLike, colour: str, label: str, style: str) -> None:
    """Draw the mean over seeds, and the seeds' range behind it; steps that no seed measured are left out."""
    table = np.ma.masked_invalid(np.atleast_2d(_numbers(values)))
    t = _numbers(t)
    axes.plot(t, table.mean(axis=0), style, marker="o", ms=4, color=colour, label=label)
    axes.fill_between(t, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _points(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], variant: str) -> None:
    mean, low, high = zip(*intervals, strict=True)
    reach = np.subtract(mean, low), np.subtract(high, mean)
    colour, name = VARIANTS.get(variant, "#555555"), variant_name(variant)
    axes.errorbar(x, mean, yerr=reach, fmt="D", ms=5, capsize=3, color=colour, label=name)


def legend_below(figure: Figure, grid: Sequence[Axes]) -> None:
    """One legend under all panels, each label once."""
    known = {label: mark for axes in grid for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    last = [variant_name(variant) for variant in VARIANTS]
    labels = sorted(known, key=[*(label for label in known if label not in last), *last].index)
    marks = [known[label] for label in labels]
    widest = 0.6 + 0.075 * max(map(len, labels), default=0)  # inches, at this size of letters
    columns = max(1, min(5, len(labels), int(figure.get_figwidth() / widest)))
    figure.legend(marks, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _step_lines(axes: Axes, x: Points, rounds: Sequence[Sequence[float]]) -> None:
    """A line for each step over the rounds, dark at noise and light at data; rounds may have unequal steps."""
    most = max((len(values) for values in rounds), default=0)
    table = _numbers([[*values, *[math.nan] * (most - len(values))] for values in rounds]).reshape(len(rounds), most)
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, most))
    for step, (values, shade) in enumerate(zip(table.T, shades, strict=True), start=1):
        axes.plot(x, values, ".-", color=shade, label=f"step {step}")
    _log(axes)


def _numbers(values: Any) -> Points:
    """As floats; None, which JSON writes for NaN, becomes NaN."""
    return np.asarray(values, dtype=float)
