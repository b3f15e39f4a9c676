"""Figures of images: samples side by side, and chains from noise to image; see :mod:`dagdiff.report.figures`.

Images are ``(n, C, H, W)`` in [-1, 1], grey or in colours. Of states with another number of channels the first three
are shown as colours, or the first alone in grey, and the title says so. Images are laid out in one mosaic a panel,
without smoothing: a pixel is a square.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dagdiff.checkpoint import write_atomically
from dagdiff.checks import Refusal
from dagdiff.report.figures import Points, make_grid
from dagdiff.report.plane import scatter_panels


def sample_panels(panels: Mapping[str, Points]) -> Figure:
    """Draw batches of samples, whatever they are: points of the plane as clouds, images as images."""
    images = any(np.ndim(batch) == 4 for batch in panels.values())
    return image_panels(panels) if images else scatter_panels(panels)


def image_panels(panels: Mapping[str, Points], columns: int = 4, shown: int = 32) -> Figure:
    """Draw the first images of each batch ``(n, C, H, W)`` in a panel of its own, equal places side by side.

    Where the batches start from the same noise, equal places are equal noises, and can be compared.

    Raises:
        Refusal: if there is no panel, or a batch is no batch of images.
    """
    for title, images in panels.items():
        if np.ndim(images) != 4 or not np.size(images):
            raise Refusal(
                f"panel {title!r} must be (n, C, H, W) images; got shape {np.shape(images)}. Pass a batch of images."
            )
    figure, grid = make_grid(len(panels), min(columns, len(panels)), 2.6, 1.6)
    for axes, (title, images) in zip(grid, panels.items(), strict=True):
        _show(axes, title, images[:shown], across=_across(len(images[:shown])))
    return figure


def image_chains(panels: Mapping[str, Points], shown: int = 4) -> Figure:
    """Draw the first chains ``(n, K + 1, C, H, W)`` of each policy, a row each, from noise to image."""
    figure, grid = make_grid(len(panels), len(panels), 2.8, 2.4)
    for axes, (title, chains) in zip(grid, panels.items(), strict=True):
        some = chains[:shown]
        _show(axes, title, some.reshape(-1, *some.shape[2:]), across=some.shape[1])
    return figure


def handed_panels(handed: Tensor, decode: Callable[[Tensor], Tensor] = lambda states: states) -> Figure:
    """Draw ends ``(n, K + 1, *D)`` of chains that change hands, one noise a column, a row for each step.

    Args:
        handed: where the teacher ends that takes the student's chain over at step 0 to K.
        decode: makes images ``(B, C, H, W)`` of states.

    Raises:
        Refusal: if they are no images.
    """
    rows = [decode(handed[:, step]).float().numpy(force=True) for step in range(handed.shape[1])]
    if rows[0].ndim != 4:
        raise Refusal(f"ends must be images to be drawn; got states of shape {tuple(handed.shape[2:])}. Leave it away.")
    last, height, width = len(rows) - 1, rows[0].shape[2], rows[0].shape[3]
    seen = 3 if rows[0].shape[1] >= 3 else 1
    figure = Figure(figsize=(2.2 + 0.9 * len(handed), 0.4 + 0.9 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    picture = mosaic(np.concatenate(rows)[:, :seen], across=len(handed))
    axes.imshow(picture if seen == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    names = ["teacher", *(f"student before step {step}" for step in range(1, last)), "student"]
    axes.set_yticks([(height + 1) * row + height / 2 for row in range(last + 1)], names)
    axes.set_xticks(
        [(width + 1) * place + width / 2 for place in range(len(handed))], [str(place) for place in range(len(handed))]
    )
    axes.set_xlabel("noise: a column starts from one noise")
    axes.set_title("ends; from the named step on the teacher acts" if last > 1 else "ends", fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return figure


def mosaic(images: Points, across: int) -> Points:
    """Lay images ``(n, C, H, W)`` out in rows of ``across``, a pixel apart: ``(rows, columns, 1 or 3)`` in [0, 1]."""
    n, channels, height, width = images.shape
    down = math.ceil(n / across)
    padded = np.full((down * across, channels, height + 1, width + 1), np.nan)
    padded[:n, :, :height, :width] = np.clip((np.asarray(images, dtype=float) + 1.0) / 2.0, 0.0, 1.0)
    tiled = padded.reshape(down, across, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    laid = tiled.reshape(down * (height + 1), across * (width + 1), channels)
    return np.nan_to_num(laid[:-1, :-1], nan=1.0)


def save_grid(images: Points, path: Path) -> int:
    """Write images ``(n, C, H, W)`` side by side as a PNG, pixel by pixel; return how many there was room for.

    They fill a square; it has at most 8,192 pixels a side.
    """
    count, channels, height, width = (int(side) for side in images.shape)
    across = min(math.ceil(math.sqrt(count)), max(1, _SIDE // (width + 1)))
    shown = min(count, across * max(1, _SIDE // (height + 1)))
    laid = mosaic(images[:shown, : 3 if channels >= 3 else 1], min(across, shown))
    pixels = (laid * 255.0).round().astype(np.uint8)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    write_atomically(path, lambda partial: picture.save(partial, "PNG"))
    return shown


def _across(count: int, most: int = 8) -> int:
    """How many images stand side by side: as many as leave the fewest places without one; of these the most."""
    return min(range(min(most, count), min(most, count) // 2, -1), key=lambda across: -count % across)


def _show(axes: Axes, title: str, images: Points, across: int) -> None:
    channels = images.shape[1]
    seen = 3 if channels >= 3 else 1
    if channels != seen:
        title = f"{title}, channel{'s 1-3' if seen == 3 else ' 1'} of {channels}"
    picture = mosaic(images[:, :seen], across)
    axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


_SIDE = 8192
