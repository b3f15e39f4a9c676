"""The pictures that a pipeline's user names, wherever they are, as one stream with what each shows in words.

A folder of pictures, a file of arrays, shards of webdataset, a data set of the ``datasets`` library, saved or streamed.
"""

from collections import Counter
from functools import partial
from pathlib import Path

from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.envs.array_files import read_arrays
from dagdiff.envs.dataset_streams import PREFIX, read_stream
from dagdiff.envs.datasets import is_dataset, read_dataset, text_column
from dagdiff.envs.picture_files import find_pictures
from dagdiff.envs.streams import Stream, digest
from dagdiff.envs.tar_files import expanded, find_shards, read_shards
from dagdiff.pipelines.captions import in_words, read_captions
from dagdiff.pipelines.prompt_files import USUAL


def open_pictures(
    source: str, column: str | None = None, text: bool = True, value_range: tuple[float, float] | None = None
) -> Stream:
    """Return the pictures of a source; none is decoded yet, but those of a file of arrays.

    Args:
        source: a folder of pictures, of a saved data set or of shards, a file of arrays or a shard, a pattern of
            shards, or ``hf:SOURCE`` of a data set that is streamed.
        column: of captions, where they stand in columns; None takes the one called prompt, caption or text.
        text: take the captions, where there are any; else classes.
        value_range: black and white of a file of arrays, where its numbers leave it open.

    Raises:
        Refusal: if there are none, or they can't be told apart from what is no picture.
    """
    if source.startswith(PREFIX):
        return read_stream(source.removeprefix(PREFIX), USUAL, column, text)
    path, shards = Path(source), find_shards(source)
    if shards:
        return read_shards(source, shards, USUAL, column, text)
    if not path.exists():
        raise Refusal(f"no images at {path}. Name a folder of pictures, or a .npy or .npz file.")
    if path.is_file():
        return _arrays(path, value_range)
    return _data_set(path, column, text) if is_dataset(path) else _folder(path, column, text)


def is_arrays(source: str) -> bool:
    """Whether a source is a file of arrays, whose black and white may be told."""
    return Path(source).is_file() and not source.lower().endswith(".tar")


def is_there(source: str) -> bool:
    """Whether a source can be looked for: a stream of the hub's always, all else where its files are."""
    if source.startswith(PREFIX):
        return True
    return Path(source).exists() or ("{" in source and all(Path(name).exists() for name in expanded(source)))


def told_prompts(source: str | None, column: str | None = None, classes: bool = False) -> list[str]:
    """Return the different captions of pictures, in order; none of a file of arrays.

    Args:
        source: of the pictures; None for none.
        column: of captions, where they stand in columns.
        classes: take the names of the classes where there are no captions.
    """
    if not source or is_arrays(source):
        return []
    stream = open_pictures(source, column)
    if stream.kind != "caption" and not classes:
        return []
    return [text for text in dict.fromkeys(stream.names or stream.told) if text]


def _folder(path: Path, column: str | None, text: bool) -> Stream:
    """The pictures of a folder; of classes the names as words."""
    found = find_pictures(path)
    captions = read_captions(path, found, column) if text else None
    skipped = Counter(found.skipped)
    if captions is not None:
        skipped.subtract(file.suffix for file in captions.files)
    kinds = found.classes if any(found.classes) else []
    return Stream(
        source=str(path), hashed=partial(digest, found.files, path), count=len(found.files),
        told=kinds if captions is None else captions.texts, kind="class" if captions is None else "caption",
        names=[in_words(kind) for kind in kinds] if captions is None else [],
        first=found.first, skipped=skipped, open=lambda row: (str(found.files[row]), found.files[row]),
    )  # fmt: skip


def _data_set(path: Path, column: str | None, text: bool) -> Stream:
    """The rows of a data set that lies in a folder."""
    name = text_column(str(path), USUAL, column) if text else None
    rows = read_dataset(str(path), label=name)
    told = [] if rows.labels is None else [rows.classes[number] for number in rows.labels.tolist()]
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".", "cache-")))
    return Stream(
        source=str(path), hashed=partial(digest, files, path), count=rows.number, told=told,
        names=rows.classes, kind="class" if name is None else "caption", first=rows.first, skipped=rows.skipped,
        open=rows.open,
    )  # fmt: skip


def _arrays(path: Path, value_range: tuple[float, float] | None) -> Stream:
    """The images of a file of arrays, which is read whole."""
    read = read_arrays(path, value_range)
    told = [] if read.labels is None else [read.classes[number] for number in read.labels.tolist()]
    return Stream(
        source=str(path), hashed=lambda: f"{digest([path], path)} {value_range}", count=len(read.images), told=told,
        first=read.first, note=read.note, open=partial(_row, path, read.images),
    )  # fmt: skip


def _row(path: Path, images: Tensor, row: int) -> tuple[str, Tensor]:
    return f"row {row} of {path}", images[row]
