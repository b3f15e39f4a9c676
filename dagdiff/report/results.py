"""Results of a suite, read from their folder."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal
from dagdiff.metrics.base import Number
from dagdiff.reading import MEGABYTE, Kind
from dagdiff.report.glossary import DISTANCES, METRICS
from dagdiff.report.records import RECORD, REFERENCE, Record, in_present_words, read_number, read_record, read_reference
from dagdiff.report.rows import Row, make_rows
from dagdiff.sealed import read_sealed

IDENTITY = 3
"""Version of what identifies a run: its settings, their defaults, their names, and how their key is made. Results of an
older one stay readable and are marked so."""

RESULTS = {
    "suite": str, "dagdiff": str, "settings": dict, "records": [RECORD], "references": {str: REFERENCE},
    "versions?": {str: str}, "failures?": {str: str}, "identity?": int, "numbers?": {str: dict},
}  # fmt: skip
"""What ``results.json`` holds (:mod:`dagdiff.reading`)."""

_MOST = 1024 * MEGABYTE  # bytes of it


def read_results(folder: Path, kind: Kind = RESULTS) -> dict[str, Any]:
    """Return what ``results.json`` holds in a folder.

    Where it was put together from records it must hold its own SHA-256; older ones, which have none, are read as they
    are.
    """
    return read_sealed(folder / "results.json", kind, _MOST, required=(folder / "records").exists())


@dataclass(frozen=True)
class Results:
    """A folder of results: its records, and for each case (a task) the ``floor`` and the ``expert``.

    ``identity`` is the :data:`IDENTITY` under which they were made; 1 where the file does not say. ``own`` is what the
    file says of numbers that dagdiff does not know.
    """

    folder: Path
    suite: str
    version: str
    settings: dict[str, Any]
    records: list[Record]
    references: dict[str, dict[str, Any]]
    versions: dict[str, str]
    failures: dict[str, str]
    identity: int = 1
    own: dict[str, Number] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read ``results.json``; reject a folder without it, or one that holds something else or no finished run."""
        file = folder / "results.json"
        if not file.exists():
            raise Refusal(f"{folder} holds no results.json. Name the --out folder of `dagdiff bench`.")
        try:
            content = read_results(folder)
            identity = content.get("identity", 1)
            content = in_present_words(content) if identity < IDENTITY else content
            records = [read_record(entry) for entry in content["records"]]
            cases = dict.fromkeys(record.case for record in records)
            references = {case: read_reference(content["references"][case]) for case in cases}
            parts = content["suite"], content["dagdiff"], dict(content["settings"]), records, references
            versions, failures = content.get("versions", {}), content.get("failures", {})
            own = {name: read_number(entry) for name, entry in content.get("numbers", {}).items()}
            found = cls(folder, *parts, versions, failures, identity, own)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, Refusal) else repr(error)
            raise Refusal(f"{file} does not hold results ({reason}). Run `dagdiff bench` into a new folder.") from None
        if not records:
            raise Refusal(f"{file} holds no finished run. Wait for `dagdiff bench`, or run it again.")
        return found

    @cached_property
    def judged_by(self) -> str:
        """The metric that counts: of dagdiff's distances that students may be judged by, the last that a run holds."""
        held = {name: None for record in self.records for name, value in record.metrics.items() if math.isfinite(value)}
        return ([name for name in held if name in DISTANCES] or list(DISTANCES))[-1]

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """Id -> meaning of every number that a run holds, in their order; unknown ones have none."""
        held = dict.fromkeys(name for record in self.records for name in record.metrics)
        return {name: METRICS.get(name) or self.own.get(name) or Number("") for name in held}

    @cached_property
    def rows(self) -> list[Row]:
        """A row for each task, objective, number of steps and variant, in the order of the records; made once."""
        return make_rows(self.records, self.references, self.numbers, self.judged_by)

    @property
    def teachers(self) -> list[tuple[int, str]]:
        """Seed and weights of the learned experts of runs on images; another machine trains others."""
        return sorted({(each.seed, each.teacher) for each in self.records if each.teacher and "fd" in each.metrics})

    @property
    def made_with(self) -> str:
        """What made them, in words: version, machine, torch, and the number of seeds."""
        seeds = len({record.seed for record in self.records})
        torch = self.versions.get("torch", "unknown").partition("+")[0]
        machine = self.versions.get("system", "an unknown machine")
        return f"dagdiff {self.version} on {machine} (torch {torch}), {seeds} seed{'s' * (seeds > 1)}"

    def arrays(self, path: str) -> dict[str, Any]:
        """Read the arrays of a record's or a reference's ``samples`` file; reject a missing or broken one."""
        from dagdiff.envs.array_files import open_arrays  # it loads torch

        try:
            return {name: array.read() for name, array in open_arrays(self.folder / path).items()}
        except Refusal as error:
            raise Refusal(f"{self.folder / path} is missing or broken ({error}). Run `dagdiff bench` again.") from None
