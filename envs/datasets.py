"""Data sets of the ``datasets`` library: their splits, their column of images, and their labels."""

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dagdiff.checks import Refusal, first_line
from dagdiff.envs.array_files import name_classes
from dagdiff.envs.picture_files import picture_suffixes


class Rows(NamedTuple):
    """The rows of a data set, those of the training split first."""

    open: Callable[[int], tuple[str, Any]]
    """The name and the image of a row: an open file or a path."""
    number: int
    labels: Tensor | None
    """``(count,)`` int64."""
    classes: tuple[str, ...]
    first: int | None
    """How many rows are the training split; None where there is no other."""
    skipped: Counter[str]

    @property
    def pictures(self) -> Iterator[tuple[str, Any]]:
        """The name and the image of each row, in order."""
        return map(self.open, range(self.number))


def is_dataset(folder: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` wrote, or holds parquet files and no pictures."""
    ends = {file.suffix.lower() for file in folder.rglob("*")} if not _saved(folder) else set()
    return _saved(folder) or (".parquet" in ends and not ends & picture_suffixes())


def read_dataset(source: str, image: str | None = None, label: str | None = None) -> Rows:
    """Open a data set; its images are read later, one by one.

    The splits ``train`` and ``test`` are taken, or ``train`` and ``validation`` where there is no test split or its
    labels are withheld (-1).

    Args:
        source: a folder, or a hub id.
        image: the column of images; None takes the only one of type Image.
        label: the column of labels; None takes the only ClassLabel, or else the column ``label``; "" reads none.

    Raises:
        Refusal: without the package, for a set that can't be loaded, and where columns are missing or not the only one.
    """
    splits = _load(source)
    shown = next((splits[name] for name in splits if name.lower() in ("train", "training")), None)
    features = dict(next(iter(splits.values())).features)
    image = image_column(source, features, image)
    label = _label_column(source, features, label)
    held, unused = None, Counter[str]()
    if shown is not None:
        order = ("test", "validation", "valid", "val")
        there = sorted((name for name in splits if name.lower() in order), key=lambda name: order.index(name.lower()))
        name = next((name for name in there if _told(splits[name], label)), None)
        held = None if name is None else splits[name]
        unused.update({f"in {each}": len(part) for each, part in splits.items() if part is not shown and each != name})
    parts = [shown, held] if held is not None else [shown] if shown is not None else list(splits.values())
    labels, classes = _labels(parts, features, label) if label else (None, ())
    return Rows(
        _opener(parts, image), sum(map(len, parts)), labels, classes, None if held is None else len(parts[0]), unused
    )


def text_column(source: str, usual: Sequence[str], asked: str | None = None) -> str | None:
    """Return the column of captions: the one asked for, or the first of the ``usual`` names; None where there is none.

    Raises:
        Refusal: if the one asked for holds no text.
    """
    features = dict(next(iter(_load(source).values())).features)
    there = [name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    if asked is not None and asked not in there:
        raise Refusal(f"column {asked!r} of {source!r} holds no text; such are {there}. Name another column.")
    return asked or next((name for name in usual if name in there), None)


def _load(source: str) -> dict[str, Any]:
    """The splits of a data set by their names."""
    datasets = library()
    try:
        loaded: Any = datasets.load_from_disk(source) if _saved(Path(source)) else datasets.load_dataset(source)
    except Exception as error:  # of the network, the hub's client, pyarrow, or the library itself
        raise Refusal(
            f"{source!r} can't be loaded ({first_line(error)}). Name a folder of save_to_disk, or a hub id."
        ) from None
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    filled = {name: part for name, part in splits.items() if len(part)}
    if not filled:
        raise Refusal(f"{source!r} holds no rows in {sorted(splits)}. Save it again.")
    return filled


def library() -> Any:
    """Return the package ``datasets``; reject what needs it where it is missing."""
    try:
        import datasets
    except ImportError:
        raise Refusal("data sets of this kind need the package datasets. Run: pip install datasets") from None
    return datasets


def _saved(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))


def image_column(source: str, features: dict[str, Any], asked: str | None) -> str:
    """Return the column of images: the one asked for, the only one, or the one that has the usual name."""
    import datasets

    there = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or _is_file(kind)]
    if asked is not None:
        if asked not in there:
            raise Refusal(
                f"column {asked!r} of {source!r} is not of type Image; such are {there}, of {sorted(features)}. "
                f"Name another column, or cast it with cast_column({asked!r}, datasets.Image())."
            )
        return asked
    usual = [name for name in ("image", "img") if name in there]
    if not there or (len(there) > 1 and not usual):
        raise Refusal(
            f"{source!r} has {len(there)} columns of type Image, {there}, of {sorted(features)}. Keep one: "
            "remove_columns([...]) or cast_column(NAME, datasets.Image()), then save_to_disk; in Python, image=NAME."
        )
    return there[0] if len(there) == 1 else usual[0]


def _is_file(kind: Any) -> bool:
    """Whether a column holds bytes of files: what a column of type Image is where its table does not say so."""
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def _label_column(source: str, features: dict[str, Any], asked: str | None) -> str | None:
    """The column of labels, or None: the one asked for, the one of the usual name, or the only ClassLabel."""
    import datasets

    there = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [
        name
        for name, kind in features.items()
        if getattr(kind, "dtype", "").startswith(("int", "uint", "string", "bool")) or name in there
    ]
    if asked is not None:
        if asked and asked not in plain:
            raise Refusal(
                f"column {asked!r} of {source!r} is no ClassLabel, whole number or name; such are {plain}. "
                "Name another column."
            )
        return asked or None
    usual = [name for name in ("label", "labels") if name in plain]
    if usual:
        return usual[0]
    if len(there) > 1:
        raise Refusal(
            f"{source!r} has {len(there)} columns of labels, {there}. Say which: rename_column({there[0]!r}, 'label'), "
            "then save_to_disk; in Python, label=NAME."
        )
    return there[0] if there else None


def _told(part: Any, label: str | None) -> bool:
    """Whether a split tells its labels; hidden ones are -1 or null."""
    return label is None or any(value not in (None, -1) for value in part.unique(label))


def _labels(parts: list[Any], features: dict[str, Any], label: str) -> tuple[Tensor, tuple[str, ...]]:
    """The labels of all rows, and the classes' names."""
    values = [value for part in parts for value in part[label]]
    names = getattr(features[label], "names", None)
    bad = [row for row, value in enumerate(values) if value is None or (names and not 0 <= value < len(names))]
    if bad:
        raise Refusal(
            f"{len(bad)} rows have no label in column {label!r}, such as row {bad[0]}. Filter them out, or remove the "
            "column."
        )
    return (torch.tensor(values), tuple(names)) if names else name_classes(np.array(values))


def _opener(parts: list[Any], image: str) -> Callable[[int], tuple[str, Any]]:
    """Gives the name of a row and its image, not decoded yet."""
    import datasets

    plain = [part.cast_column(image, datasets.Image(decode=False)).select_columns([image]) for part in parts]
    starts = [0, *itertools.accumulate(map(len, plain))]

    def opened(row: int) -> tuple[str, Any]:
        number = bisect_right(starts, row) - 1
        return f"row {row}", stored(plain[number][row - starts[number]][image])

    return opened


def stored(record: Any) -> Any:
    """Return the image of a row that is not decoded: an open file or a path."""
    found = record or {}
    raw, path = found.get("bytes"), found.get("path")
    return BytesIO(raw) if raw is not None else Path(path or "without an image")
