"""Prompts in files: one a line in a text file, or a column of a table (.csv, .tsv, .jsonl, .json).

All are UTF-8, with or without a byte-order mark; a file in another encoding is refused by that encoding's name. Lines
end at LF, CRLF or CR alone: a prompt may hold other marks that Unicode counts as line breaks.
"""

import codecs
import contextlib
import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dagdiff.checks import Refusal
from dagdiff.reading import MEGABYTE, parse_json, read_bytes

Record = dict[str, Any]
"""A row of a table: column -> cell."""


def read_text(path: Path) -> str:
    """Read a file of text, without its byte-order mark; refuse one that is not UTF-8, and name what it seems to be."""
    raw = read_bytes(path, _MOST, "Give a text file with a prompt a line.")
    marked = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)
    guess = marked or ("UTF-16 or no text at all" if b"\0" in raw else None)
    try:
        if guess is None:
            return raw.decode("utf-8-sig")
        where = "holds zero bytes" if marked is None else f"begins with the bytes {raw[:4].hex(' ')}"
    except UnicodeDecodeError as error:
        guess = "Windows-1252 or another 8-bit code page"
        where = f"holds the byte {raw[error.start]:#04x} at {error.start}"
    packed = guess.startswith("packed")
    cure = "Unpack it." if packed else f"Save it as UTF-8 (iconv -f {guess.split()[0].upper()} -t UTF-8)."
    raise Refusal(f"{path} is not UTF-8: it {where}, so it seems to be {guess}. {cure}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, cut at LF, CRLF and CR alone."""
    return re.split(r"\r\n|\n|\r", read_text(path))


def trimmed(text: str) -> str:
    """Return a prompt without the white space and the invisible marks around it: "" if it shows nothing."""
    if not any(map(_shows, text)):
        return ""
    return text.strip().strip(_AROUND).strip()


def read_table(path: Path) -> list[Record]:
    """Read the rows of a table.

    A .csv file may be cut by commas, semicolons or tabs; its first line names the columns.

    Raises:
        Refusal: for a file that can't be read, with the line that is wrong, and for one of more than a gigabyte.
    """
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _read_cut(path, tabs=kind == ".tsv")
    if kind == ".json":
        rows = parse_json(read_text(path), str(path), strict=False)
        if not isinstance(rows, list):
            raise Refusal(f"{path} holds a {type(rows).__name__}, not a list of prompts or of records. Write [...].")
        numbered = list(enumerate(rows, 1))
    else:
        lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if trimmed(line)]
        numbered = [(number, parse_json(line, f"line {number} of {path}", strict=False)) for number, line in lines]
    records = [{"prompt": row} if isinstance(row, str) else row for _, row in numbered]
    wrong = [number for (number, _), record in zip(numbered, records, strict=True) if not isinstance(record, dict)]
    if wrong:
        raise Refusal(f'{path} holds neither a prompt nor a record in row {wrong[0]}. Write {{"prompt": "..."}}.')
    return records


def find_column(path: Path, records: Sequence[Record], asked: str | None) -> str:
    """The column of prompts: the one asked for, or the first of the usual names, in small or capital letters."""
    there = list(dict.fromkeys(str(name) for record in records for name in record))
    if asked is not None and asked in there:
        return asked
    folded = {name.strip().lower(): name for name in reversed(there)}
    usual = next((folded[name] for name in USUAL if name in folded), None)
    if asked is None and usual is not None:
        return usual
    what = f"no column {asked!r}" if asked is not None else f"no column called {', '.join(USUAL)}"
    raise Refusal(f"{path} has {what}; it has {there}. Name one: --pipeline.prompt_column NAME.")


def read_cell(path: Path, number: int, value: Any) -> str:
    """A prompt from a table's cell; "" where there is none."""
    if value is not None and not isinstance(value, str):
        raise Refusal(
            f"{path} holds a {type(value).__name__} for a prompt in row {number}: {value!r}. Name a column of text."
        )
    return trimmed(value or "")


def _read_cut(path: Path, tabs: bool) -> list[Record]:
    """The rows of a .csv or .tsv file; quotes that don't pair are plain characters where tabs cut the columns."""
    text = read_text(path)
    head = text.splitlines()[0] if text else ""
    cut = "\t" if tabs else max(",;\t", key=head.count)
    try:
        return _rows(text, cut, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if tabs:
            with contextlib.suppress(csv.Error):
                return _rows(text, cut, csv.QUOTE_NONE)
        raise Refusal(
            f"{path} can't be read as a table ({error}). Put cells with quotes or commas in quotes."
        ) from None


def _rows(text: str, cut: str, quoting: Literal[0, 3]) -> list[Record]:
    """The rows of a cut table; cells beyond the last column are left out."""
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, restkey="", restval="", delimiter=cut, quoting=quoting, strict=True)
    return [{name: cell for name, cell in row.items() if name} for row in reader]


def _shows(mark: str) -> bool:
    """Whether a character leaves anything to see."""
    kind = unicodedata.category(mark)
    return kind[0] != "Z" and kind not in ("Cc", "Cf", "Cs") and mark not in _BLANK


_MOST = 1024 * MEGABYTE  # bytes of a file
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""The suffixes of tables."""
USUAL = ("prompt", "prompts", "caption", "captions", "text")
"""Names that columns of prompts usually have."""
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16", b"\x1f\x8b": "packed by gzip", b"PK\x03\x04": "packed by zip",
}  # fmt: skip
_AROUND = "\ufeff\u200b\u2060\u00ad\0"  # byte-order mark, zero-width space, word joiner, soft hyphen
_BLANK = "\u2800\u3164\uffa0\u115f\u1160\u034f\ufe0e\ufe0f"  # letters, signs and marks that show nothing
