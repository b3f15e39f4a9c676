"""Your own images as a world: a folder of pictures, an .npz file, or a data set of the ``datasets`` library.

Each reader answers with an :class:`~dagdiff.envs.images.ImageWorld`. Where the source has no test split of its own, a
share ``held_out`` of the images is held out, the same for the same ``seed``.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_at_least
from dagdiff.envs.images import ImageWorld, hold_out, split_at, to_states

if TYPE_CHECKING:
    from PIL.Image import Image


def image_folder(folder: Path, size: int | None = None, held_out: float = 0.2, seed: int = 0) -> ImageWorld:
    """The png and jpg files of a folder; the sub-folder that holds a file is its class, if there are sub-folders.

    Where there are folders ``train`` and ``test``, they are the splits, and classes begin below. Grey pictures keep one
    channel if all are grey; transparent pixels show white. ``size`` crops each picture to its middle square and scales
    that to (size, size); without it all must have one size.
    """
    folder = Path(folder)
    fixed = (folder / "train").is_dir() and (folder / "test").is_dir()
    roots = [folder / "train", folder / "test"] if fixed else [folder]
    files = [sorted(f for f in root.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg")) for root in roots]
    if not all(files):
        raise Refusal(f"no png or jpg file in {roots[files.index([])]}. Name a folder that holds some.")
    kinds = [[str(file.parent.relative_to(root)) for file in part] for root, part in zip(roots, files, strict=True)]
    names = sorted({kind for part in kinds for kind in part})
    classes = tuple(names) if names != ["."] else ()
    labels = torch.tensor([names.index(kind) for part in kinds for kind in part]) if classes else None
    images = _stack(((str(file), _open(file)) for part in files for file in part), size)
    if not fixed:
        return hold_out(folder.name, images, labels, classes, held_out, seed)
    return split_at(folder.name, images, labels, classes, len(files[0]))


def image_arrays(path: Path, held_out: float = 0.2, seed: int = 0) -> ImageWorld:
    """The arrays ``images`` and, if there, ``labels`` of an .npz file.

    Images are ``(N, H, W)``, or with 1 or 3 channels ``(N, H, W, C)`` or ``(N, C, H, W)``; their values are bytes, or
    floats in [0, 1] or [-1, 1].
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise Refusal(f"{path} can't be read as .npz ({error}). Write it with numpy.savez.") from None
    if "images" not in found:
        raise Refusal(f"{path} holds no array 'images'; it holds {sorted(found)}. Write numpy.savez(path, images=...).")
    images = to_states(torch.from_numpy(_channels_first(found["images"])))
    if "labels" not in found:
        return hold_out(Path(path).stem, images, None, (), held_out, seed)
    labels = torch.from_numpy(found["labels"])
    if labels.is_floating_point() or labels.ndim != 1 or len(labels) == 0:
        raise Refusal(f"labels must be whole numbers, (N,); got {found['labels'].dtype} {found['labels'].shape}.")
    classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    return hold_out(Path(path).stem, images, labels.long(), classes, held_out, seed)


def hugging_face(
    source: str,
    image: str = "image",
    label: str | None = "label",
    size: int | None = None,
    held_out: float = 0.2,
    seed: int = 0,
) -> ImageWorld:
    """A data set saved by ``datasets.save_to_disk`` (a folder), or the hub's (an id such as ``ylecun/mnist``).

    Its ``train`` and ``test`` splits are taken where it has both. ``image`` and ``label`` name columns of the types
    Image and ClassLabel; ``label=None`` reads no labels. ``size`` is as in :func:`image_folder`.
    """
    try:
        import datasets
    except ImportError:
        raise Refusal("hub data sets need the package datasets, which is not here. Run: pip install datasets") from None
    try:
        local = Path(source).is_dir()
        loaded: Any = datasets.load_from_disk(source) if local else datasets.load_dataset(source)
    except (OSError, ValueError) as error:
        raise Refusal(f"{source!r} can't be loaded ({error}). Name a folder of save_to_disk, or a hub id.") from None
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    fixed = "train" in splits and "test" in splits
    parts = [splits["train"], splits["test"]] if fixed else list(splits.values())
    kinds = {image: datasets.Image} | ({label: datasets.ClassLabel} if label else {})
    for column, kind in kinds.items():
        if not isinstance(parts[0].features.get(column), kind):
            raise Refusal(
                f"column {column!r} of {source!r} is not of type {kind.__name__}; it has {dict(parts[0].features)}. "
                f"Name another column, or cast it with cast_column({column!r}, ...)."
            )
    name = Path(source).name
    images = _stack(((f"row {i}", row) for part in parts for i, row in enumerate(part[image])), size)
    classes = tuple(parts[0].features[label].names) if label else ()
    labels = torch.tensor([number for part in parts for number in part[label]]) if label else None
    if not fixed:
        return hold_out(name, images, labels, classes, held_out, seed)
    return split_at(name, images, labels, classes, len(parts[0]))


def _channels_first(images: np.ndarray) -> np.ndarray:
    """``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with 1 or 3 channels to ``(N, C, H, W)``."""
    if images.ndim == 3:
        return images[:, None]
    places = [axis for axis in (1, 3) if images.ndim == 4 and images.shape[axis] in (1, 3)]
    if len(places) != 1:
        raise Refusal(f"images must be (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3; got shape {images.shape}.")
    return np.moveaxis(images, places[0], 1)


def _stack(pictures: Iterable[tuple[str, "Image"]], size: int | None) -> Tensor:
    """Pictures with their names, in order, to states ``(N, C, H, W)``; refuse two sizes."""
    rows: list[np.ndarray] = []
    first = ""
    for name, picture in pictures:
        row = _pixels(name, picture, size)
        first = first or name
        if rows and row.shape[1:] != rows[0].shape[1:]:
            sizes = [f"{w} x {h}" for h, w in (rows[0].shape[1:], row.shape[1:])]
            raise Refusal(
                f"pictures must have one size; {first} is {sizes[0]}, {name} is {sizes[1]}. Pass e.g. size=32."
            )
        rows.append(row)
    channels = max(len(row) for row in rows)
    return to_states(torch.from_numpy(np.stack([row.repeat(channels // len(row), axis=0) for row in rows])))


def _pixels(name: str, picture: "Image", size: int | None) -> np.ndarray:
    """One picture as bytes ``(1 or 3, H, W)``."""
    from PIL import Image, ImageOps

    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise Refusal(f"{name} has pixels of mode {picture.mode}, which is not 8 bits deep. Convert it first.")
    if picture.mode not in ("1", "L", "RGB"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    if size is not None:
        check_at_least("size", size, 1)
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _open(file: Path) -> "Image":
    """Open and decode a picture, the way up that its camera says."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).copy()
    except (OSError, UnidentifiedImageError) as error:
        raise Refusal(f"{file} can't be read as a picture ({error}). Repair it or take it away.") from None
