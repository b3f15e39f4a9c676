"""Figures of points in 2-D: clouds side by side, and chains from noise to data.

See :mod:`dagdiff.report.figures` for what all figures share.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from dagdiff.checks import Refusal
from dagdiff.report.figures import OTHER, ROLES, VARIANTS, Points, make_grid
from dagdiff.report.glossary import variant_name


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
        _dots(axes, points, 3, (colours or {}).get(title, OTHER), 0.4)
        _square(axes, title, half)
        outside = int((~(np.abs(points) <= half).all(axis=1)).sum())
        if outside:
            axes.annotate(f"{outside} outside", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=8)
    return figure


def chain_panels(chains: Mapping[str, Points], truth: Points) -> Figure:
    """Draw chains ``(n, K + 1, 2)``, a panel for each name, over points of the target in grey.

    A ring marks the noise a chain starts from, a dot where it ends. Names of :data:`ROLES` and :data:`VARIANTS` have
    their colour; "expert" is the role.
    """
    figure, grid = make_grid(len(chains), len(chains), 3.1, 3.3)
    half = half_width([truth, *(paths.reshape(-1, 2) for paths in chains.values())])
    for axes, (name, paths) in zip(grid, chains.items(), strict=True):
        colour = (VARIANTS | ROLES).get(name, OTHER)
        _dots(axes, truth, 3, ROLES["data"], 0.25)
        axes.add_collection(LineCollection(list(paths), colors=colour, linewidths=0.7, alpha=0.5))
        axes.scatter(paths[:, 0, 0], paths[:, 0, 1], s=12, facecolors="none", edgecolors=colour, linewidths=0.6)
        _dots(axes, paths[:, -1], 9, colour, 1.0)
        _square(axes, variant_name(name), half)
    return figure


def half_width(clouds: Iterable[Points], share: float = 0.99) -> float:
    """Half the side of a square around 0 that holds ``share`` of each cloud ``(n, 2)``, and a margin."""
    reach = [np.abs(cloud).max(axis=-1) for cloud in clouds]
    far = [np.quantile(finite, share) for at in reach if (finite := at[np.isfinite(at)]).size]
    if not far:
        raise Refusal("there are no finite points to draw. Pass at least one panel with finite points.")
    return 1.12 * float(max(far)) or 1.0


def _dots(axes: Axes, points: Points, size: float, colour: str, alpha: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, color=colour, alpha=alpha)


def _square(axes: Axes, title: str, half: float) -> None:
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_color("#CCCCCC")
