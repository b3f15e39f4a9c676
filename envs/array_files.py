"""Arrays of images, and perhaps of labels, in .npy and .npz files, in whatever layout and number type they have.

An .npz file is read as the field writes it: ``images`` and ``labels``; ``arr_0`` and ``arr_1`` (what ``numpy.savez``
makes of nameless arrays, as guided-diffusion does); ``x_train``, ``y_train``, ``x_test``, ``y_test`` (Keras) or
``train_images`` and so on (MedMNIST); or the samples that dagdiff draws, ``x`` and ``condition``. Only the arrays that
are wanted are read, and only after their headers were found to be sound.
"""

import io
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy

from dagdiff.checks import Refusal, first_line
from dagdiff.envs.images import Collection, range_of, to_states


def open_arrays(path: Path) -> dict[str, "Array"]:
    """Read the headers of a .npy or .npz file: its arrays by their names, a .npy file's as ``images``.

    Raises:
        Refusal: for what is no such file, is cut off, or would fill the memory when it is unpacked.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            raise OSError("it is no file")
        with Path(path).open("rb") as file:
            if file.read(6) == npy.MAGIC_PREFIX:
                file.seek(0)
                size = Path(path).stat().st_size
                return {"images": _array(path, "images", file, size, lambda: np.load(path, allow_pickle=False))}
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            if not members:
                raise Refusal(f"{path} holds no arrays, but {archive.namelist()[:3]}. Unpack it and name its folder.")
            if len(members) > _MEMBERS:
                raise Refusal(f"{path} holds {len(members):,} arrays, and {_MEMBERS} is the most. Write fewer.")
            found = {}
            for member in members:
                _check_packed(path, member)
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    found[name] = _array(path, name, file, member.file_size, _member(path, name))
            return found
    except Refusal:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise Refusal(
            f"{path} can't be read as .npz or .npy ({first_line(error)}). Write it with numpy.savez(path, images=...)."
        ) from None


def _check_packed(path: Path, member: zipfile.ZipInfo) -> None:
    """Reject an array that a few bytes are to make gigabytes of."""
    if member.file_size > _BOMB and member.file_size > _RATIO * member.compress_size:
        raise Refusal(
            f"{member.filename!r:.80} in {path} would unpack {member.compress_size:,} bytes to {member.file_size:,}. "
            "Write it with numpy.savez, unpacked, if that is right."
        )


def read_arrays(path: Path, value_range: tuple[float, float] | None = None) -> Collection:
    """Read the images of a .npy or .npz file, and the labels of an .npz file.

    Images are ``(N, H, W)``, or ``(N, H, W, C)`` or ``(N, C, H, W)`` with 1 or 3 channels, or ``(N, H, W, 4)`` bytes
    whose last channel is opacity: what is transparent shows white. Whole numbers from 0 to 255 are bytes, uint16 above
    that reaches to 65535; of floats see :func:`~dagdiff.envs.images.to_states`. Labels are whole numbers or names.

    Args:
        path: the file.
        value_range: black and white; an array ``range`` of two numbers in the file says the same.

    Raises:
        Refusal: for a file without images, one that is cut off or larger than the memory, and pickled objects.
    """
    arrays = open_arrays(path)
    parts = _parts(path, arrays)
    if value_range is None and "range" in arrays:
        declared = arrays["range"].read()
        if declared.shape != (2,) or declared.dtype.kind not in "iuf":
            raise Refusal(f"range in {path} must be two numbers, black and white; got {declared.tolist()}.")
        value_range = (float(declared[0]), float(declared[1]))
    own = "noise" in arrays and parts[0].images == "x"
    images, note = [], ""
    for part in parts:
        pixels = _channels_first(f"{part.images!r} in {path}", arrays[part.images].read())
        if own:  # drawn samples pass the ends of the range as far as the student likes
            pixels, value_range = pixels.clip(-1.0, 1.0), (-1.0, 1.0)
        reach = f"{pixels.dtype} from {float(pixels.min()):g} to {float(pixels.max()):g}"
        states, (black, white) = _states(pixels, value_range)
        note = note or f"; {reach}, read with black {black:g} and white {white:g}"
        images.append(states)
    first = len(images[0]) if len(parts) == 2 else None
    shapes = {tuple(each.shape[1:]) for each in images}
    if len(shapes) > 1:
        raise Refusal(f"both splits of {path} must have one image shape; got {sorted(shapes)}. Resize one of them.")
    if any(part.labels is None for part in parts):
        return Collection(torch.cat(images), first=first, note=note)
    values = [_labels(f"{part.labels!r} in {path}", arrays[part.labels].read()) for part in parts if part.labels]
    for each, known in zip(images, values, strict=True):
        if len(each) != len(known):
            raise Refusal(f"labels must be as many as images; got {len(known)} and {len(each)}. Give one an image.")
    labels, classes = name_classes(np.concatenate(values))
    return Collection(torch.cat(images), labels, classes, first, note)


def name_classes(values: np.ndarray) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Number the classes that labels ``(N,)`` name, in their order: return ``(N,)`` int64 and the names."""
    names, numbers = np.unique(values, return_inverse=True)
    return torch.from_numpy(numbers.reshape(-1).astype(np.int64)), tuple(str(name) for name in names)


class Array(NamedTuple):
    """An array of a file, of which only the header was read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]


class _Part(NamedTuple):
    """The names of a split's arrays."""

    images: str
    labels: str | None


def _member(path: Path, name: str) -> Callable[[], np.ndarray]:
    """What reads one array of an .npz file."""

    def read() -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values: np.ndarray = arrays[name]
                return values
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
            raise Refusal(f"{name!r} in {path} can't be read ({first_line(error)}). Write the file again.") from None

    return read


def _array(path: Path, name: str, file: IO[bytes], size: int, read: Callable[[], np.ndarray]) -> Array:
    """Read an array's header; reject one that promises more than its file, or this machine's memory, holds."""
    shape, dtype = _header(file)
    asked = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and asked > size:
        raise Refusal(f"{name!r} in {path} is cut off: shape {shape} is {asked:,} bytes, of {size:,}. Get it again.")
    if dtype.hasobject:
        return Array(shape, dtype, lambda: _refuse_objects(path, name))
    if asked + 4 * math.prod(shape) > _memory():
        raise Refusal(
            f"{name!r} in {path} has shape {shape}, {asked:,} bytes: more than this machine's memory holds. "
            "Give smaller images, or fewer."
        )
    return Array(shape, dtype, read)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read an array's shape and type; a header that says to be longer than any is not read."""
    magic = file.read(8)
    if magic[:6] != npy.MAGIC_PREFIX:
        raise ValueError("an array does not begin as one")
    first = tuple(magic[6:]) == (1, 0)
    length = file.read(2 if first else 4)
    if int.from_bytes(length, "little") > _HEADER:
        raise ValueError(f"an array's header is to have {int.from_bytes(length, 'little'):,} bytes")
    text = length + file.read(int.from_bytes(length, "little"))
    reader = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
    shape, _, dtype = reader(io.BytesIO(text))
    if any(side < 0 for side in shape):
        raise ValueError(f"an array has the shape {shape}")
    return shape, dtype


def _refuse_objects(path: Path, name: str) -> np.ndarray:
    raise Refusal(
        f"{name!r} in {path} is pickled Python objects, which can run code. Save names.astype(str), or numbers."
    )


def _memory() -> float:
    """The machine's memory in bytes, as far as it tells."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _parts(path: Path, arrays: dict[str, Array]) -> list[_Part]:
    """The names of the arrays that are images and labels: of one set, or of a training and a held-out split."""
    folded = {name.lower(): name for name in arrays}

    def named(form: str) -> _Part | None:
        """The first images, and the first labels, whose names are ``form`` filled with one of the usual words."""
        images, labels = (
            next((folded[form.format(word)] for word in words if form.format(word) in folded), None)
            for words in (_IMAGES, _LABELS)
        )
        if images and images.endswith("arr_0") and "arr_1" in folded and len(arrays["arr_1"].shape) == 1:
            labels = labels or "arr_1"
        return _Part(images, labels) if images else None

    def split(*names: str) -> _Part | None:
        return next(filter(None, (named(form) for name in names for form in (f"{name}_{{}}", f"{{}}_{name}"))), None)

    train, held, whole = split("train"), split("test") or split("validation", "valid", "val"), named("{}")
    if train and held:
        return [train, held]
    if whole or train:
        return [part for part in (whole, train) if part][:1]
    shaped = [name for name, array in arrays.items() if len(array.shape) in (3, 4)]
    if len(shaped) == 1:
        return [_Part(shaped[0], next((folded[word] for word in _LABELS if word in folded), None))]
    told = {name: array.shape for name, array in arrays.items()}
    raise Refusal(f"{path} holds no array 'images'; it holds {told}. Write numpy.savez(path, images=...).")


def _channels_first(name: str, images: np.ndarray) -> np.ndarray:
    """Images of any layout as ``(N, 1 or 3, H, W)``, in this machine's byte order."""
    if images.dtype.kind not in "biuf":
        raise Refusal(f"{name} must be numbers; got {images.dtype}. Save uint8, or floats in [0, 1].")
    images = images.astype(images.dtype.newbyteorder("="), copy=False)
    if images.ndim == 4 and images.shape[3] == 4 and images.shape[1] not in (1, 3) and images.dtype == np.uint8:
        colour, opaque = images[..., :3].astype(np.uint16), images[..., 3:].astype(np.uint16)
        images = ((colour * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)
    places = [axis for axis in (1, 3) if images.ndim == 4 and images.shape[axis] in (1, 3)]
    alone = images.ndim == 3 and images.shape[2] != 3  # (H, W, 3) is one picture
    if not alone and len(places) != 1:
        raise Refusal(
            f"{name}: images must be (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3; got shape {images.shape}."
        )
    if images.size == 0:
        raise Refusal(f"{name} holds no image: its shape is {images.shape}. Save some.")
    return images[:, None] if alone else np.moveaxis(images, places[0], 1)


def _states(images: np.ndarray, value_range: tuple[float, float] | None) -> tuple[torch.Tensor, tuple[float, float]]:
    """Numbers of any type as states, and what was black and white; whole ones are bytes, or reach over 16 bits."""
    if images.dtype.kind == "f":
        images = images.astype(np.float32 if images.itemsize <= 4 else np.float64, copy=False)
    elif images.dtype == np.bool_:
        images, value_range = images.astype(np.float32), value_range or (0.0, 1.0)
    elif value_range is None:
        low, high = int(images.min()), int(images.max())
        if high == 1 and low >= 0:
            raise Refusal(
                f"images are whole numbers from {low} to 1, {images.dtype}: nearly black if they are bytes. Save them "
                "as bool, or times 255; or declare black and white: --value_range 0,1 (or 0,255), or range=[0, 1] "
                "beside the images of an .npz file."
            )
        if 0 <= low <= high <= 255:
            images = images.astype(np.uint8)
        elif images.dtype == np.uint16:
            images, value_range = images.astype(np.float32), (0.0, 65535.0)
        else:
            raise Refusal(
                f"images must be uint8, or floats in [0, 1] or [-1, 1]; got {images.dtype} from {low} to {high}. Whole "
                "numbers reach from 0 to 255; else declare black and white: --value_range "
                "BLACK,WHITE, or range=[black, white] beside the images of an .npz file."
            )
    else:
        images = images.astype(np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return to_states(pixels, value_range), range_of(pixels, value_range)


def _labels(name: str, values: np.ndarray) -> np.ndarray:
    """Labels of any whole-number type, or names, as ``(N,)``; bytes become text."""
    column = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if column.dtype.kind not in "iuUSb" or column.ndim != 1 or len(column) == 0:
        raise Refusal(
            f"labels must be whole numbers or names, (N,); {name} is {values.dtype} {values.shape}. "
            "Save e.g. labels.argmax(1), or names.astype(str)."
        )
    if column.dtype.kind == "S":
        return np.char.decode(column, "utf-8")
    return column.astype(column.dtype.newbyteorder("="), copy=False)


_HEADER = 10_000  # bytes of an array's header, numpy's own limit
_MEMBERS = 1_000  # arrays of a file
_BOMB, _RATIO = 2**30, 100  # an array larger than that and packed closer than that is no data
_IMAGES = ("images", "image", "arr_0", "x", "samples", "data")
_LABELS = ("labels", "label", "condition", "y", "targets", "classes")
