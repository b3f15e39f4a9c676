"""Captions beside pictures: what each picture of a folder shows, in words.

A ``metadata.jsonl`` or ``metadata.csv`` names files (``file_name``) and their captions, as the ``datasets`` library
reads it; or each picture has a text file beside it, ``x.txt`` or ``x.caption`` for ``x.png``, as trainers of adapters
read it. Where there are none, the folders of classes may say it: ``golden_retriever/1.png`` is "golden retriever".
"""

import os
from pathlib import Path
from typing import NamedTuple

from dagdiff.checks import Refusal
from dagdiff.envs.picture_files import Found
from dagdiff.pipelines.prompt_files import USUAL, find_column, read_table, read_text, trimmed


class Captions(NamedTuple):
    """The captions of a folder's pictures."""

    texts: list[str]
    """Of each picture, in order."""
    files: list[Path]
    """The files of text that they come from."""


def read_captions(folder: Path, found: Found, column: str | None = None) -> Captions | None:
    """Return the captions of pictures that were found, or None where there is none.

    Args:
        folder: the pictures'.
        found: the pictures.
        column: of ``metadata`` files; None takes the one called prompt, caption or text.

    Raises:
        Refusal: if some pictures have a caption and others have none.
    """
    places = sorted(
        {folder, *(above for file in found.files for above in file.parents if above.is_relative_to(folder))}
    )
    tables = [table for place in places for name in _TABLES if (table := place / name).is_file()]
    told: dict[str, str] = {}
    for table in tables:
        told |= _of_table(table, column)
    files, texts = list(tables) if told else [], []
    for picture in found.files:
        text = told.get(os.path.normpath(picture), "")
        beside = [] if text else [file for end in _BESIDE if (file := picture.with_suffix(end)).is_file()]
        for file in beside[:1]:
            text = " ".join(trimmed(read_text(file)).split())
            files.append(file)
        texts.append(text)
    without = [picture for picture, text in zip(found.files, texts, strict=True) if not text]
    if len(without) == len(texts):
        return None
    if without:
        raise Refusal(
            f"{len(without)} of {len(texts)} pictures in {folder} have no caption, such as {without[0]}. "
            f"Write {without[0].stem}.txt beside it, or take all captions away."
        )
    return Captions(texts, files)


def in_words(kind: str) -> str:
    """Return the name of a class as a prompt."""
    return " ".join(kind.replace("_", " ").replace("/", ", ").split())


def _of_table(table: Path, column: str | None) -> dict[str, str]:
    """What a metadata file says of pictures, by their paths; nothing if it has no column of captions."""
    records = read_table(table)
    names = {str(name).strip().lower() for record in records for name in record}
    if not records or "file_name" not in names or (column is None and not names & set(USUAL)):
        return {}
    column = find_column(table, records, column)
    pairs = ((record.get("file_name"), record.get(column)) for record in records)
    return {os.path.normpath(table.parent / name): trimmed(str(text or "")) for name, text in pairs if name}


_TABLES = ("metadata.jsonl", "metadata.csv")
_BESIDE = (".txt", ".caption")
