"""Your own images as a dataset: a folder of pictures, a file of arrays, or a data set of the ``datasets`` library.

Each reader answers with an :class:`~dagdiff.envs.images.ImageWorld`, and tells in one line on stderr what it has read
and what it left out. Where the source has no held-out split of its own, a share ``held_out`` of the images is held out,
the same for the same ``seed``. How files are read: :mod:`dagdiff.envs.picture_files`, :mod:`dagdiff.envs.array_files`,
:mod:`dagdiff.envs.datasets`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dagdiff.engine import rank
from dagdiff.envs.array_files import read_arrays
from dagdiff.envs.datasets import read_dataset
from dagdiff.envs.images import Collection, ImageWorld, to_states
from dagdiff.envs.picture_files import Found, Pixels, Size, find_pictures, read_pixels, reasons


class Labels(NamedTuple):
    """What the pictures of a folder show."""

    numbers: Sequence[int]
    """Of each picture, in order."""
    names: tuple[str, ...]
    """Of the numbers."""
    kind: str = "class"
    """What the names are."""
    files: Sequence[Path] = ()
    """Files beside the pictures that say so."""


def image_folder(
    folder: Path,
    size: Size | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    skip_broken: bool = False,
    labelling: Callable[[Found], Labels | None] | None = None,
) -> ImageWorld:
    """The pictures of a folder, of every format that Pillow reads; folders in it are classes, or splits.

    Grey pictures keep one channel if all are grey; transparent pixels show white.

    Args:
        folder: see :func:`~dagdiff.envs.picture_files.find_pictures`.
        size: crop each picture in its middle, to a square or to (height, width), and scale it; without it all must
            have one size.
        held_out: the share that is held out where there are no splits.
        seed: of what is held out.
        skip_broken: leave out pictures that can't be read, instead of refusing the folder.
        labelling: says what each picture shows; None takes its folder.
    """
    found = find_pictures(folder)
    pixels = read_pixels(((str(file), file) for file in found.files), size, skip_broken)
    told = (labelling or _by_folder)(found) or Labels((), ())
    first = None if found.first is None else sum(row < found.first for row in pixels.kept)
    skipped = found.skipped + Counter(broken=len(found.files) - len(pixels.kept))
    skipped.subtract(file.suffix for file in told.files)
    labels = torch.tensor(list(told.numbers))[pixels.kept] if told.names else None
    read = Collection(to_states(torch.from_numpy(pixels.images)), labels, told.names, first)
    return _world(
        str(folder), Path(folder).resolve().name, read, held_out, seed, skipped, _cropping(pixels, size), told.kind
    )


def image_arrays(
    path: Path, held_out: float = 0.2, seed: int = 0, value_range: tuple[float, float] | None = None
) -> ImageWorld:
    """The images of a .npy or .npz file, and the labels of an .npz file: :mod:`dagdiff.envs.array_files` reads them.

    Args:
        path: the file.
        held_out: the share that is held out where the file has no split of its own.
        seed: of what is held out.
        value_range: black and white, where neither the numbers' type nor the file says it.
    """
    read = read_arrays(Path(path), value_range)
    return _world(str(path), Path(path).stem, read, held_out, seed, Counter(), read.note)


def hugging_face(
    source: str,
    image: str | None = None,
    label: str | None = None,
    size: Size | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    skip_broken: bool = False,
) -> ImageWorld:
    """A data set saved by ``datasets.save_to_disk`` (a folder), a folder of parquet files, or an id of the hub's.

    Args:
        source: the folder, or an id such as ``ylecun/mnist``.
        image: the column of images; None takes the only one of type Image.
        label: the column of labels; None takes the only ClassLabel, or else the column ``label``; "" reads none.
        size: as in :func:`image_folder`, like the rest.
        held_out: the share that is held out where there is no split ``test`` or ``validation``.
        seed: of what is held out.
        skip_broken: leave out rows whose image can't be read.
    """
    rows = read_dataset(source, image, label)
    pixels = read_pixels(rows.pictures, size, skip_broken)
    labels, classes = (None, ()) if rows.labels is None else (rows.labels[pixels.kept], rows.classes)
    first = None if rows.first is None else sum(row < rows.first for row in pixels.kept)
    skipped = rows.skipped + Counter(broken=rows.number - len(pixels.kept))
    read = Collection(to_states(torch.from_numpy(pixels.images)), labels, classes, first)
    return _world(source, Path(source).name, read, held_out, seed, skipped, _cropping(pixels, size))


def _by_folder(found: Found) -> Labels | None:
    """Each picture's folder as its class, if there are any."""
    if not any(found.classes):
        return None
    names = sorted(set(found.classes))
    place = {name: number for number, name in enumerate(names)}
    return Labels([place[kind] for kind in found.classes], tuple(names))


def _cropping(pixels: Pixels, size: Size | None) -> str:
    """What was done to the shapes of pictures, in words."""
    if size is None:
        return ""
    return scaled((size, size) if isinstance(size, int) else size, pixels.cropped)


def scaled(size: tuple[int, int], cropped: int) -> str:
    """Say to what pictures were scaled, and how many of them lost a part."""
    return f"; scaled to {size[1]} x {size[0]}, {cropped} of another shape cropped in the middle"


def _world(
    source: str, name: str, read: Collection, held_out: float, seed: int, skipped: Counter[str], note: str = "",
    kind: str = "class",
) -> ImageWorld:  # fmt: skip
    """Make the dataset of what was read, and tell it in one line."""
    world = read.world(name, held_out, seed)
    kinds = 0 if read.labels is None else len(read.labels.unique())
    tell(source, (len(world.train.points), len(world.test.points)), kinds, kind, skipped, note)
    return world


def tell(source: str, splits: tuple[int, int], kinds: int, kind: str, skipped: Counter[str], note: str) -> None:
    """Tell in one line on stderr what was read: how many pictures are shown and held out, and what they show."""
    counts = f"{_many(sum(splits), 'picture')}, {_many(kinds, kind)}, {sum(skipped.values())} skipped{reasons(skipped)}"
    if rank() == 0:
        print(f"{source}: {counts}; {splits[0]} to train on, {splits[1]} held out{note}", file=sys.stderr)


def _many(count: int, what: str) -> str:
    """A number of things: "1 class", "3 classes"."""
    return f"{count} {what if count == 1 else what + ('es' if what.endswith('s') else 's')}"
