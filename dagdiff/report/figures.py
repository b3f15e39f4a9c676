"""What all figures share: colours, grids, axes, legends, and how a figure is written.

A figure is a function of arrays or simple records that returns a :class:`matplotlib.figure.Figure`. Nothing is shown,
pyplot's global state is left alone, and the caller decides where a figure goes (:func:`save`, :func:`to_data_uri`). A
colour means one thing throughout: :data:`VARIANTS` says what a student was trained on, :data:`ROLES` who made a point,
in colours that colour-blind readers can tell apart (Okabe & Ito 2008, https://jfly.uni-koeln.de/color/). On time axes
the chain runs from noise (t = 1) on the left to data (t = 0) on the right.
"""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagdiff.checkpoint import write_atomically
from dagdiff.checks import Refusal
from dagdiff.report.glossary import variant_name

Points = NDArray[Any]
"""Points of the plane, ``(n, 2)``; chains are ``(n, K + 1, 2)``, from noise to data."""

VARIANTS = {
    "forward": "#D55E00",
    "published": "#E69F00",
    "mixture": "#0072B2",
    "mixture-box": "#56B4E9",
    "student": "#CC79A7",
    "expert": "#009E73",
}
"""What a student was trained on -> its colour; the order is the order of every table and legend."""

ROLES = {"student": "#882255", "expert": "#222222", "data": "#999999"}
"""Who made a point -> its colour."""

OTHER = "#555555"
"""The colour of what has none of its own."""


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
        log_height(axes)


def log_height(axes: Axes) -> None:
    """Make the height logarithmic, if there is anything above 0 to show."""
    if math.isfinite(axes.dataLim.minposy):
        axes.set_yscale("log")


def legend_below(figure: Figure, grid: Sequence[Axes]) -> None:
    """One legend under all panels, each label once."""
    known = {label: mark for axes in grid for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    last = [variant_name(variant) for variant in VARIANTS]
    labels = sorted(known, key=[*(label for label in known if label not in last), *last].index)
    marks = [known[label] for label in labels]
    widest = 0.6 + 0.075 * max(map(len, labels), default=0)  # inches, at this size of letters
    columns = max(1, min(5, len(labels), int(figure.get_figwidth() / widest)))
    figure.legend(marks, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def as_floats(values: Any) -> Points:
    """As floats; None, which JSON writes for NaN, becomes NaN."""
    return np.asarray(values, dtype=float)
