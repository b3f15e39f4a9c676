"""The folder of a suite, which several commands may fill at once, on one machine or on many.

``records/`` holds a file a run and a yardstick, written whole by the process that made it; ``claims/`` holds the locks
of what is under way. ``results.json`` is put together from these, in the order of the suite's runs. It is read, changed
and written under a lock, so what other commands have added, with other options too, stays. Each holds its own SHA-256.
A folder without ``records/``, as older ones are, is read as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dagdiff import __version__
from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.running.work import THREADS
from dagdiff.checkpoint import check_writable
from dagdiff.checks import Refusal
from dagdiff.jobs.locks import locked
from dagdiff.metrics.base import numbers_of
from dagdiff.reading import check_kind
from dagdiff.report.results import IDENTITY, RESULTS, read_results
from dagdiff.runs.parts import resolve
from dagdiff.sealed import read_sealed, save_sealed
from dagdiff.versions import versions

Content = dict[str, Any]
"""What ``results.json`` holds."""


class Folder:
    """A folder of results.

    Args:
        path: of the folder.
        suite: the name of the suite.

    Raises:
        Refusal: for a folder that holds something else; nothing has been written then.
    """

    def __init__(self, path: Path, suite: str) -> None:
        self.path, self.suite = path.absolute(), suite
        open_results(path, suite)
        self._known: dict[Path, Content] = {}

    @property
    def claims(self) -> Path:
        """Where the locks are."""
        return self.path / "claims"

    def record(self, key: str) -> Path:
        """The file of a run's record."""
        return self.path / "records" / f"{key}.json"

    def reference(self, yardstick: str) -> Path:
        """The file of a yardstick."""
        return self.path / "records" / f"reference-{yardstick}.json"

    def change(self, change: Callable[[Content], None]) -> Content:
        """Change what ``results.json`` holds, after whoever changes it now; return it."""
        with locked(self.claims / "results"):
            results = open_results(self.path, self.suite)
            change(results)
            save_sealed(self.path / "results.json", results)
        return results

    def assemble(
        self, cells: Sequence[Cell], firsts: Mapping[str, Cell], failures: Mapping[str, str] | None = None
    ) -> Content:
        """Put ``results.json`` together from all that is there; return it.

        Args:
            cells: all runs of the suite.
            firsts: case -> the cell whose yardsticks are the case's.
            failures: key -> reason of runs that were tried and failed.
        """
        asked = {cell.entry for cell in cells}
        keys = {cell.key for cell in cells}

        def change(results: Content) -> None:
            held = {record["config"]: record for record in results["records"]}
            found = held | self._read({key: self.record(key) for key in keys - set(held)})
            others = [record for record in results["records"] if _entry(record) not in asked]
            results["records"] = others + [{**found[cell.key], **cell.labels} for cell in cells if cell.key in found]
            scored = known_references(results)
            missing = {cell.yardstick: self.reference(cell.yardstick) for cell in firsts.values()}
            scored |= self._read({each: file for each, file in missing.items() if each not in scored})
            here = {case: scored[cell.yardstick] for case, cell in firsts.items() if cell.yardstick in scored}
            results["references"] = {**results["references"], **here}
            failed = {**results.get("failures", {}), **(failures or {})}
            results["failures"] = {key: why for key, why in failed.items() if key in keys - set(found)}

        return self.change(change)

    def _read(self, files: Mapping[str, Path]) -> dict[str, Content]:
        """Return what those of the files hold that are there; each is read once."""
        for file in files.values():
            if file not in self._known and file.exists():
                self._known[file] = read_sealed(file)
        return {key: self._known[file] for key, file in files.items() if file in self._known}


def known_references(results: Content) -> dict[str, Content]:
    """Return the yardsticks that results hold, by what they depend on."""
    return {each["yardstick"]: each for each in results["references"].values() if "yardstick" in each}


def open_results(out: Path, suite: str) -> Content:
    """Return the results that the folder holds, or empty ones for a new folder; reject anything else."""
    file = out / "results.json"
    if not file.exists():
        if out.exists() and not (out.is_dir() and _ours(out)):
            raise Refusal(f"--out {out} holds something else than results. Name a new folder, or one to continue.")
        check_writable("--out", out)
        empty: Content = {"settings": {}, "records": [], "references": {}}
        return {"suite": suite, "dagdiff": __version__, "identity": IDENTITY, "versions": versions(THREADS), **empty}
    results: Content = read_results(out, {"suite": str})
    if results["suite"] != suite:
        raise Refusal(f"{file} holds results of the suite {results['suite']!r}, not {suite!r}. Name a new folder.")
    if results.get("identity", 1) != IDENTITY:
        raise Refusal(
            f"{file} holds results of another version, whose runs are not those of this one. Name a new folder."
        )
    check_kind(results, RESULTS, str(file))
    return results


def own_numbers(cells: Iterable[Cell]) -> dict[str, Content]:
    """What metrics that a run names say of their numbers, so that a report can say it without them."""
    names = dict.fromkeys(name for cell in cells for name in cell.config["metric"])
    numbers = {id_: number for name in names for id_, number in numbers_of(resolve("metric", name)).items()}
    return {id_: number._asdict() for id_, number in numbers.items()}


def _ours(out: Path) -> bool:
    """Whether a folder without results is empty, or one that a suite has begun."""
    names = {file.name for file in out.iterdir() if not file.name.startswith(".results.json")}
    return names <= {"claims", "submitit"} or "records" in names


def _entry(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["config"], record["variant"], record.get("setup", "")
