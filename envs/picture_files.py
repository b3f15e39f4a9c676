"""Pictures in a folder: which files there are, the class and the split of each, and the pixels that it shows.

Every format that Pillow reads as pixels is a picture. Links are followed, though not in a circle; hidden files are
left out. A picture is read the way up that its camera says, in 8 bits, and where it is transparent it shows white.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dagdiff.checks import Refusal, check_at_least, first_line
from dagdiff.reading import parse_json, read_text

Size = int | tuple[int, int]
"""The side of a square, or height and width, in pixels."""


class Found(NamedTuple):
    """The pictures of a folder, those of the training split first."""

    files: list[Path]
    classes: list[str]
    """Of each file; "" where the folder knows no classes."""
    first: int | None
    """How many files are the training split; None where the folder has no splits."""
    skipped: Counter[str]
    """How many files were left out, by the reason."""


class Pixels(NamedTuple):
    """Pictures of one size, as bytes ``(N, 1 or 3, H, W)``."""

    images: np.ndarray
    kept: list[int]
    """Their numbers among the pictures that were given: a broken one may be missing."""
    cropped: int
    """How many lost a part because they had another shape."""


def find_pictures(folder: Path) -> Found:
    """Find the pictures below a folder.

    Folders ``train`` and ``test`` or ``validation`` (``val``, ``valid``) that hold all pictures are splits, whether
    classes lie below or above them. The rest of a picture's folder is its class; a ``dataset.json`` as StyleGAN's tools
    write it (``{"labels": [[file, number], ...]}``) says it otherwise. Where there are ``test`` and ``validation``,
    ``test`` is held out, unless it lacks the classes.

    Raises:
        Refusal: if there is no picture, or some lie beside the folders of classes.
    """
    folder, skipped = Path(folder), Counter[str]()
    files = list(_walk(folder, skipped))
    if not files:
        raise Refusal(f"no picture in {folder}{reasons(skipped)}. Name a folder that holds png, jpg or other pictures.")
    pictures = _placed(folder, files, skipped)
    held = _held_out(pictures)
    shown = [picture for picture in pictures if picture.split in ("", "train")]
    kept = [picture for picture in pictures if held and picture.split == held]
    skipped.update(f"in {picture.split}" for picture in pictures if picture.split not in ("", "train", held))
    both = [*shown, *kept]
    known = {picture.kind for picture in shown} != {""}
    found = Found(
        [picture.file for picture in both],
        [picture.kind if known else "" for picture in both],
        len(shown) if held else None,
        skipped,
    )
    loose = [file for file, kind in zip(found.files, found.classes, strict=True) if not kind]
    if loose and known:
        raise Refusal(
            f"{len(loose)} pictures lie beside the folders of classes, such as {loose[0]}. Move them into one, or away."
        )
    return found


def read_pixels(pictures: Iterable[tuple[str, Any]], size: Size | None = None, skip_broken: bool = False) -> Pixels:
    """Read pictures to bytes; ``size`` crops each in its middle to that shape and scales it.

    Args:
        pictures: the name of each, and its file: a path, an open file, or a picture of Pillow's.
        size: the side of a square, or height and width; None takes pictures of one size as they are.
        skip_broken: leave out those that can't be read.

    Raises:
        Refusal: for a picture that can't be read, or, without ``size``, pictures of two sizes; each is named.
    """
    shape = (size, size) if isinstance(size, int) else size
    for side in shape or ():
        check_at_least("size", side, 1)
    rows: list[np.ndarray] = []
    kept: list[int] = []
    cropped, first, broken = 0, "", ""
    for number, (name, source) in enumerate(pictures):
        try:
            picture = read_picture(name, source)
        except Refusal as error:
            if not skip_broken:
                raise
            broken = broken or str(error)
            continue
        if shape is not None:
            cropped += picture.width * shape[0] != picture.height * shape[1]
        row = fitted(picture, shape)
        first = first or name
        if rows and row.shape[1:] != rows[0].shape[1:]:
            sizes = [f"{w} x {h}" for h, w in (rows[0].shape[1:], row.shape[1:])]
            raise Refusal(
                f"pictures must have one size; {first} is {sizes[0]}, {name} is {sizes[1]}. "
                "Pass --size 32 (in Python size=32): it crops them in the middle and scales them."
            )
        rows.append(row)
        kept.append(number)
    if not rows:
        raise Refusal(f"none of the pictures can be read; {broken or 'there is none'}")
    channels = max(len(row) for row in rows)
    return Pixels(np.stack([row.repeat(channels // len(row), axis=0) for row in rows]), kept, cropped)


def fitted(picture: Image.Image, shape: tuple[int, int] | None) -> np.ndarray:
    """Return the bytes of a picture, ``(1 or 3, H, W)``; a shape crops it in its middle and scales it."""
    if shape is not None:
        picture = ImageOps.fit(picture, shape[::-1], Image.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


def read_picture(name: str, source: Path | IO[bytes] | Image.Image) -> Image.Image:
    """Read one picture, mode "L" or "RGB".

    Raises:
        Refusal: if it is broken, too large or of unknown depth; ``name`` says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a small file may hold gigabytes
            if isinstance(source, Image.Image):
                return _flat(_upright(source))
            with Image.open(source) as picture:
                return _flat(_upright(picture))
    except Refusal as error:
        raise Refusal(f"{name} {error}") from None
    except Exception as error:  # Pillow's decoders raise some ten kinds on files that are broken, too large or foreign
        raise Refusal(
            f"{name} can't be read as a picture ({first_line(error)}). Repair it, take it away, or leave out all that "
            "are broken: --skip_broken true."
        ) from None


@cache
def picture_suffixes() -> frozenset[str]:
    """The ends of file names, in small letters with the dot, that Pillow reads as pixels."""
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _NO_PIXELS)


def _walk(folder: Path, skipped: Counter[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the pictures below a folder in order; count what else there is."""
    above = (*above, folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise Refusal(f"{folder} can't be read ({error.strerror}). Name a folder of pictures.") from None
    for entry in entries:
        end = entry.suffix.lower()
        if entry.name.startswith(".") or entry.name in _FOREIGN:
            skipped["hidden"] += 1
        elif entry.is_dir():
            if entry.resolve() in above:
                skipped["links in a circle"] += 1
            else:
                yield from _walk(entry, skipped, above)
        elif end in picture_suffixes():
            yield entry
        else:
            skipped[end or "without a suffix"] += 1


class _Picture(NamedTuple):
    """A file, its split ("" where the folder knows none) and its class ("" where it lies in no folder)."""

    file: Path
    split: str
    kind: str


def _placed(folder: Path, files: Sequence[Path], skipped: Counter[str]) -> list[_Picture]:
    """The pictures with split and class; those outside the splits are counted and left out."""
    told = _told_classes(folder, files)
    places = {file: file.relative_to(folder).parts[:-1] for file in files}
    level = _split_level(list(places.values()))
    tops = {_SPLITS.get(place[0].lower()) for place in places.values() if place}
    if level is None and "train" in tops and tops & {"test", "validation"}:
        level = 0  # a training split and another, with other pictures beside them
        inside = {file: place for file, place in places.items() if place and place[0].lower() in _SPLITS}
        skipped["outside the splits"] = len(places) - len(inside)
        places = inside
    if level is None:
        return [_Picture(file, "", "/".join(place) if told is None else told[file]) for file, place in places.items()]
    start = level if len({place[:level] for place in places.values()}) == 1 else 0  # a folder around all is no class
    return [
        _Picture(
            file,
            _SPLITS[place[level].lower()],
            "/".join((*place[start:level], *place[level + 1 :])) if told is None else told[file],
        )
        for file, place in places.items()
    ]


def _split_level(places: Sequence[tuple[str, ...]]) -> int | None:
    """The depth at which all pictures lie in folders of splits, ``train`` among them; None where there is none."""
    for level in range(min(map(len, places))):
        names = {_SPLITS.get(place[level].lower()) for place in places}
        if None not in names and "train" in names:
            return level
    return None


def _held_out(pictures: Sequence[_Picture]) -> str:
    """The split to hold out: the first that there is and that has some of the shown classes; "" for none."""
    classes = {split: {each.kind for each in pictures if each.split == split} for split in _SPLITS.values()}
    shown = classes["train"]
    return next((split for split in ("test", "validation") if classes[split] and _meet(shown, classes[split])), "")


def _meet(shown: set[str], held: set[str]) -> bool:
    """Whether held-out pictures can stand beside those shown: these have no classes, or some are the same."""
    return shown == {""} or bool(shown & held)


def _told_classes(folder: Path, files: Sequence[Path]) -> dict[Path, str] | None:
    """What a ``dataset.json`` says of each picture's class; None where there is none."""
    path = folder / "dataset.json"
    try:
        content = parse_json(read_text(path), str(path), strict=False) if path.is_file() else None
        if not isinstance(content, dict) or "labels" not in content:
            return None
        labels = {str(name): str(number) for name, number in content["labels"] or ()}
    except (ValueError, TypeError) as error:
        raise Refusal(f"{path} can't be read ({first_line(error)}). Repair it, or take it away.") from None
    names = {file: file.relative_to(folder).as_posix() for file in files}
    missing = [name for name in names.values() if name not in labels]
    if labels and missing:
        raise Refusal(
            f"{path} names no label for {missing[0]} ({len(missing)} such). Add it, or take {path.name} away."
        )
    return {file: labels.get(name, "") for file, name in names.items()}


def reasons(skipped: Counter[str]) -> str:
    """Return what was left out, in brackets: " (2 hidden, 1 .txt)"; "" for nothing."""
    told = ", ".join(f"{count} {why}" for why, count in skipped.most_common() if count)
    return f" ({told})" if told else ""


def _upright(picture: Image.Image) -> Image.Image:
    """The first frame of a picture, decoded, the way up that its camera says; the kind of its file stays known."""
    key = _transparent_value(picture)
    kind = picture.format
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    picture.format = kind
    if key is not None:
        picture.info["transparency"] = key
    return picture


def _transparent_value(picture: Image.Image) -> int | tuple[int, ...] | None:
    """The one value or colour that means "transparent", in the depth in which Pillow decodes the pixels."""
    key, tile = picture.info.get("transparency"), getattr(picture, "tile", None)
    raw = str(tile[0][3] if tile and isinstance(tile[0][3], str) else "")
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        return key * (85 if raw == "L;2" else 17)
    if isinstance(key, tuple) and raw.startswith("RGB;16"):
        return tuple(part >> 8 for part in key)
    return key if isinstance(key, int | tuple) else None


def _flat(picture: Image.Image) -> Image.Image:
    """A picture in 8 bits, "L" or "RGB", with white where it is transparent."""
    grey = picture.mode in ("1", "L", "LA", "La") or picture.mode[0] in "IF"
    paletted = picture.mode in ("P", "PA")
    if picture.mode[0] in "IF":
        picture = _eight_bits(picture)
    elif picture.mode == "La":  # the one mode that Pillow turns into nothing but its straight twin
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if grey else "RGB")
    if paletted:
        red, green, blue = np.asarray(picture).transpose(2, 0, 1)
        picture = picture.convert("L") if (red == green).all() and (green == blue).all() else picture
    return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or of floats in [0, 1], in 8 bits."""
    values, key = np.asarray(picture).astype(np.float64), picture.info.get("transparency")
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not deep and not (picture.mode == "F" and -0.1 <= low <= high <= 1.1):
        raise Refusal(
            f"has values from {low:.4g} to {high:.4g} in {picture.mode!r}, 32 bits, and does not say which is white. "
            "Save it with 8 or 16 bits, or as floats in [0, 1]."
        )
    scale = 255.0 / 65535.0 if deep else 255.0
    grey = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val"), "validation"
)
_FOREIGN = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what macOS and Windows leave in folders
_NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows them, and needs a program to draw them
