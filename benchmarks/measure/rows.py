"""Rows of a measurement: a table in a file that grows by a run a row, so that it resumes where it was stopped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import save_csv
from dagdiff.checks import Refusal
from dagdiff.reading import read_csv

Rows = list[dict[str, Any]]


def asked(words: Sequence[str], usual: Mapping[str, str], place: Path) -> tuple[dict[str, str], Path]:
    """Return what the words ``name=value`` say over the usual options, and the path that another word names.

    Args:
        words: of the command line.
        usual: every option, as it is where no word names it.
        place: the path where no word names one.

    Raises:
        Refusal: for an option that is unknown.
    """
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := sorted(set(options) - set(usual)):
        raise Refusal(f"unknown option {unknown[0]!r}. Known: {', '.join(usual)}.")
    return {**usual, **options}, next((Path(word) for word in words if "=" not in word), place)


def read_rows(file: Path) -> Rows:
    """Return the rows of a file, none where there is no file."""
    return [dict(row) for row in read_csv(file)] if file.exists() else []


def completed(
    file: Path,
    key: Sequence[str],
    runs: Iterable[Mapping[str, Any]],
    measure: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> Rows:
    """Make the runs that the file has no row of, by the columns of ``key``, and write it after each; return all."""
    rows = read_rows(file)
    there = {tuple(str(row[name]) for name in key) for row in rows}
    for run in runs:
        if tuple(str(run[name]) for name in key) not in there:
            rows.append(measure(run))
            save_csv(file, rows)
    return rows
