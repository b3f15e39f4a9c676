"""Running a suite: every run once, in processes here or on other machines, each record kept as soon as it is there.

A suite is a module with a dataclass ``Suite`` of its options, ``QUICK`` (one of them), ``cells(suite)`` and
``run(suite, out, workers)``; ``dagdiff.benchmarks.command`` lists them by name. Its runs are cells
(:mod:`dagdiff.benchmarks.running.cells`), their processes any ``concurrent.futures.Executor``, and their folder may be
shared by several commands (:mod:`dagdiff.benchmarks.running.folder`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagdiff.benchmarks.running.cells import Cell, Shard
from dagdiff.benchmarks.running.folder import Content, Folder, known_references, open_results, own_numbers
from dagdiff.benchmarks.running.work import learn, refer, run_cell
from dagdiff.checks import Refusal, check_at_least
from dagdiff.jobs.locks import Lock
from dagdiff.jobs.shared import Job, Shared, opened
from dagdiff.jobs.stops import Stopped
from dagdiff.jobs.workers import Workers

MakePool = Callable[[], Executor]
"""Makes the executor of a suite, or rejects one that can't be reached."""


def run_cells(
    name: str,
    cells: Iterable[Cell],
    settings: Mapping[str, Any],
    out: Path,
    workers: int = 1,
    pool: MakePool | None = None,
    shard: Shard = Shard(),  # noqa: B008  (a tuple)
) -> Content:
    """Run the cells that ``out`` does not hold yet; return, and keep there, all results.

    They are begun in the order given. A run whose loss is not finite, or whose process is killed, does not stop the
    others: it stands, with its cell's name, under ``failures``. Runs that another command is at are waited for.

    Args:
        name: of the suite.
        cells: its runs, all of them.
        settings: its options, as ``results.json`` tells them.
        out: the folder of results.
        workers: how many runs are under way at once.
        pool: makes what runs them; by default so many processes here.
        shard: the part of the runs that is this command's.

    Raises:
        Refusal: if ``out`` holds something else, or the executor can't be reached.
        Stopped: if INT or TERM came; the message says how to resume.
    """
    check_at_least("workers", workers, 1)
    folder = Folder(out, name)  # a folder that can't be is refused before the configurations are resolved
    cells = list(cells)
    mine = set(shard.of(cell.key for cell in cells))
    try:
        with opened(pool() if pool else Workers(workers)) as made:
            return _run(Shared(made, workers, folder.claims), folder, cells, mine, settings)
    except KeyboardInterrupt as stop:
        held = {record["config"] for record in open_results(folder.path, name)["records"]}
        raise Stopped(
            f"stopped with {len(mine & held)} of {len(mine)} runs kept in {out}. Run the same command again to resume.",
            getattr(stop, "status", 130),
        ) from None


def run_suite(
    suite: Any,
    options: Any,
    out: Path,
    workers: int = 1,
    pool: MakePool | None = None,
    shard: Shard = Shard(),  # noqa: B008
) -> Content:
    """Run what ``out`` does not hold yet of a suite; return all results, as :func:`run_cells` does.

    Args:
        suite: its module: ``cells(options)``, and a ``run`` where cells can't run apart from each other.
        options: of the suite.
        out: the folder of results.
        workers: as in :func:`run_cells`, and so
        pool: and
        shard: are.
    """
    name = suite.__name__.rpartition(".")[2]
    if not hasattr(suite, "run"):
        return run_cells(name, suite.cells(options), asdict(options), out, workers, pool, shard)
    if pool is not None or shard != Shard():
        raise Refusal(f"the suite {name} runs on one thread of one machine. Leave --executor and --shard away.")
    Folder(out, name)
    lock = Lock(out / "claims" / "suite")
    if not lock.take():
        raise Refusal(f"--out {out} is being filled by {lock.owner}. Wait for it, or name a new folder.")
    try:
        found: Content = suite.run(options, out, workers)
        return found
    finally:
        lock.release()


def _run(shared: Shared, folder: Folder, cells: Sequence[Cell], mine: set[str], settings: Mapping[str, Any]) -> Content:
    """Do the work: teachers, yardsticks, runs."""
    firsts: dict[str, Cell] = {}
    for cell in cells:
        firsts.setdefault(cell.case, cell)

    def begin(results: Content) -> None:
        others = {cell.key for cell in cells} - mine
        left = {key: why for key, why in results.get("failures", {}).items() if key in others}
        numbers = {**results.get("numbers", {}), **own_numbers(cells)}
        results |= {"settings": dict(settings), "failures": left, "numbers": numbers}

    results = folder.change(begin)
    held = {record["config"] for record in results["records"]}
    todo = {cell.key: cell for cell in cells if cell.key in mine - held}
    mine_first = {cell.case: firsts[cell.case] for cell in cells if cell.key in mine}
    _prepare(shared, folder, mine_first, bool(todo), results)
    failures: dict[str, str] = {}
    runs = {key: Job(str(cell), run_cell, (cell, folder.path), folder.record(key)) for key, cell in todo.items()}
    for _ in shared.do("runs", runs, failures):
        folder.assemble(cells, firsts)
    return folder.assemble(cells, firsts, failures)


def _prepare(shared: Shared, folder: Folder, firsts: Mapping[str, Cell], todo: bool, results: Content) -> None:
    """Train the teachers before two runs can train the same one, and score the yardsticks that are not known yet."""
    known = known_references(results)
    missing = {cell.yardstick: cell for cell in firsts.values() if cell.yardstick not in known}
    if not (todo or missing):
        return
    worlds: dict[str, Cell] = {}
    for cell in firsts.values():
        labelled = "-labelled" if "labelled" in cell.config["task"] else ""
        worlds.setdefault(f"{cell.labels['world']}{labelled}".replace("/", "_"), cell)
    list(shared.do("teachers", {world: Job(str(cell), learn, (cell,)) for world, cell in worlds.items()}))
    jobs = {each: Job(str(cell), refer, (cell, folder.path), folder.reference(each)) for each, cell in missing.items()}
    list(shared.do("references", jobs))
