"""Data sets that the ``datasets`` library streams: their rows come one after the other and are never all on the disk.

They are named ``hf:SOURCE``: an id of the hub's, or a folder of parquet files or of pictures. A stream can't be opened
in its middle, so pictures are read in its order. The words that rows hold are read ahead and kept in the cache.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import cache_folder, content_hash, save_json
from dagdiff.checks import Refusal, first_line
from dagdiff.envs.datasets import image_column, library, stored
from dagdiff.envs.streams import Stream, digest
from dagdiff.progress import Progress
from dagdiff.reading import MEGABYTE, read_json

PREFIX = "hf:"
"""Before the name of a data set that is streamed."""


def read_stream(source: str, usual: Sequence[str], column: str | None = None, text: bool = True) -> Stream:
    """Return the pictures of a data set that is streamed: those of the split ``train``, or of the only one.

    Args:
        source: a folder, or an id of the hub's.
        usual: names that a column of captions may have.
        column: of captions; None takes the first of the usual names.
        text: take the captions, where there are any; else the classes of the column ``label``.

    Raises:
        Refusal: without the package, for a set that can't be loaded or is empty, and where columns are missing.
    """
    rows, others, key = _load(source)
    features = dict(_features(source, rows))
    image = image_column(source, features, None)
    words = _words_column(source, features, usual, column) if text else None
    kind = "caption" if words else "class"
    words = words or next((name for name in ("label", "labels") if name in features), None)
    told: list[str] = []
    if words is not None:
        path = cache_folder() / "words" / f"{content_hash(f'{key} {words}')[:16]}.json"
        if not path.exists():
            save_json(path, _words(source, rows, words, features[words]))
        told = read_json(path, [str], 1024 * MEGABYTE)
    return Stream(
        source=f"{PREFIX}{source}", hashed=lambda: key, count=len(told) if words else None, told=told, kind=kind,
        skipped=Counter({f"splits ({', '.join(others)})": len(others)} if others else {}),
        flow=partial(_flow, source, rows, image), note="; read as a stream, one of five in a row held out",
    )  # fmt: skip


def _load(source: str) -> tuple[Any, list[str], str]:
    """The split that is read, the names of the others, and a hash of what it is."""
    datasets = library()
    try:
        splits: Any = datasets.load_dataset(source, streaming=True)
        folder = Path(source)
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
            key = digest(files, folder)
        else:
            key = content_hash(f"{source} {datasets.load_dataset_builder(source).hash}")  # of the hub: its commit
    except Refusal:
        raise
    except Exception as error:  # of the network, the hub's client, pyarrow, or the library itself
        raise Refusal(
            f"{source!r} can't be streamed ({first_line(error)}). Name a folder of parquet files or pictures, or a hub "
            "id."
        ) from None
    names = list(splits)
    name = next((name for name in names if name.lower() in ("train", "training")), names[0] if names else "")
    if not names or (len(names) > 1 and name.lower() not in ("train", "training")):
        raise Refusal(f"{source!r} has the splits {names} and none called train. Rename the one that is meant.")
    return splits[name], [each for each in names if each != name], key


def _features(source: str, rows: Any) -> Any:
    """The columns and their types."""
    found = rows.features
    if found is None:  # known only when rows are read
        found = rows._resolve_features().features
    if not found:
        raise Refusal(f"{source!r} holds no rows. Name a set that holds pictures.")
    return found


def _words_column(source: str, features: dict[str, Any], usual: Sequence[str], asked: str | None) -> str | None:
    """The column of captions; None where there is none."""
    there = [name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    if asked is not None and asked not in there:
        raise Refusal(f"column {asked!r} of {source!r} holds no text; such are {there}. Name another column.")
    return asked or next((name for name in usual if name in there), None)


def _words(source: str, rows: Any, column: str, kind: Any) -> list[str]:
    """What each row says in a column; numbers of classes become their names."""
    names = getattr(kind, "names", None)
    found: list[str] = []
    with Progress(f"reading {column}", 0, "row") as bar:
        for number, record in enumerate(_tried(source, rows.select_columns([column]))):
            value = record[column]
            if value is None or not str(value).strip() or (names and not 0 <= value < len(names)):
                raise Refusal(f"row {number} of {source!r} has no {column}. Filter such rows out, or drop the column.")
            found.append(" ".join(str(names[value] if names else value).split()))
            bar.advance()
    return found


def _flow(source: str, rows: Any, image: str, start: int) -> Iterator[tuple[str, Any]]:
    """The name and the image of each row, from one on."""
    datasets = library()
    plain = rows.cast_column(image, datasets.Image(decode=False)).select_columns([image])
    for number, record in zip(itertools.count(start), _tried(source, plain.skip(start) if start else plain)):
        yield f"row {number} of {source}", _opened(record[image])


def _opened(record: Any) -> Any:
    """What holds a picture; of one that lies elsewhere an open file."""
    found = stored(record)
    path = str((record or {}).get("path"))
    if isinstance(found, Path) and "://" in path:
        import fsspec

        return fsspec.open(path, "rb").open()
    return found


def _tried(source: str, rows: Any) -> Iterator[Any]:
    """The rows; what the library or the network raises becomes one line."""
    try:
        yield from rows
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(f"{source!r} can't be read to its end ({first_line(error)}). The same command resumes.") from None
