"""Running a suite: every cell once, in fresh processes, each result kept as soon as it is there, and no run done twice.

A suite is a module with a dataclass ``Suite`` of its options, ``QUICK`` (one of them), ``cells(suite)`` and
``run(suite, out, workers)``; ``dagdiff.benchmarks.command`` lists them by name. A *cell* is one configuration under the
name of a variant. Cells with equal configurations are one run, listed under each name.
"""

import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from dagdiff import __version__
from dagdiff.checkpoint import save_arrays, save_json
from dagdiff.checks import Refusal, check_at_least
from dagdiff.expert import Expert
from dagdiff.metrics.base import numbers_of, score
from dagdiff.reading import check_kind, read_json
from dagdiff.report.results import IDENTITY, RESULTS
from dagdiff.round import NonFiniteLoss
from dagdiff.runs.config import Config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import digest
from dagdiff.runs.parts import resolve
from dagdiff.schedule import step_grid
from dagdiff.tasks.names import read_name
from dagdiff.transition import Ddim, sample
from dagdiff.versions import versions

_LABELS = ("task", "steps", "seed", "shares", "threshold")
_YARDSTICK = ("task", "samples", "substeps", "guidance", "expert", "schedule", "data", "metric")

THREADS = 1
"""Torch threads of every run: another number rounds in another order."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a configuration, the objective as it was named, and the variant it stands for.

    Variants are compared where task, objective, steps and ``setup`` agree. ``about`` says in words what sets a
    comparison apart from the suite's plain one ("learned expert"), and ``free`` names settings in which the variants of
    that comparison may differ.
    """

    objective: str
    variant: str
    config: Config
    about: str = ""
    free: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.case} {self.objective} {self.variant}"
        return f"{where}, {self.config['steps']} steps, seed {self.config['seed']}"

    @cached_property
    def key(self) -> str:
        """Content hash of the configuration; equal keys are the same run."""
        return digest(self.config)

    @property
    def entry(self) -> tuple[str, str, str]:
        """What makes a record one of its kind: the run, the variant it stands for, the comparison it stands in."""
        return self.key, self.variant, self.setup

    @property
    def case(self) -> str:
        """The task and what sets the comparison apart: the name of its yardsticks."""
        return ", ".join(filter(None, (self.config["task"], self.about)))

    @property
    def labels(self) -> dict[str, Any]:
        """What a record says of the cell."""
        task = self.config["task"]
        name = read_name(task)
        copied = {name: self.config[name] for name in ("shares", "seed", "steps", "updates", "substeps")}
        return {
            "task": task,
            "world": name.world,
            "data": name.set,
            "objective": self.objective,
            "variant": self.variant,
            "about": self.about,
            "case": self.case,
            "setup": self.setup,
            **copied,
        }

    @cached_property
    def setup(self) -> str:
        """Hash of what the labels leave out: the configuration but for task, steps, seed, shares and threshold."""
        rest = {name: value for name, value in self.config.items() if name not in (*_LABELS, *self.free)}
        return digest({**rest, "about": self.about} if self.free else rest)

    @property
    def yardstick(self) -> str:
        """Hash of what the floor and the expert's own score depend on."""
        return digest({name: self.config[name] for name in _YARDSTICK})


def run_cells(
    name: str, cells: Sequence[Cell], settings: Mapping[str, Any], out: Path, workers: int = 1
) -> dict[str, Any]:
    """Run the cells that ``out/results.json`` does not hold yet; return, and keep there, all results.

    They are begun in the order given. A run whose loss is not finite does not stop the others: it stands, with its
    cell's name, under ``failures``.

    Raises:
        Refusal: if ``out`` holds something else.
    """
    check_at_least("workers", workers, 1)
    results = open_results(out, name)
    found = {record["config"]: record for record in results["records"]}
    asked = {cell.entry for cell in cells}
    others = [record for record in results["records"] if _entry(record) not in asked]
    results |= {"settings": dict(settings), "failures": {}, "numbers": own_numbers(cells)}
    save_json(out / "results.json", results)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        _prepare(pool, cells, results, out)
        runs = {cell.key: (cell, out) for cell in cells if cell.key not in found}
        for key, record in _each(pool, "runs", run_cell, runs, results["failures"]):
            found[key] = record
            results["records"] = others + [{**found[cell.key], **cell.labels} for cell in cells if cell.key in found]
            save_json(out / "results.json", results)
    results["records"] = others + [{**found[cell.key], **cell.labels} for cell in cells if cell.key in found]
    save_json(out / "results.json", results)
    return results


def run_suite(suite: Any, options: Any, out: Path, workers: int = 1) -> dict[str, Any]:
    """Run what ``out`` does not hold yet of a suite; return all results, as :func:`run_cells` does.

    Args:
        suite: its module: ``cells(options)``, and a ``run`` where cells can't run apart from each other.
        options: of the suite.
        out: the folder of results.
        workers: processes.
    """
    if hasattr(suite, "run"):
        found: dict[str, Any] = suite.run(options, out, workers)
        return found
    name = suite.__name__.rpartition(".")[2]
    open_results(out, name)  # a folder that can't be is refused before the configurations are resolved
    return run_cells(name, list(suite.cells(options)), asdict(options), out, workers)


def own_numbers(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """What metrics that a run names say of their numbers, so that a report can say it without them."""
    names = dict.fromkeys(name for cell in cells for name in cell.config["metric"])
    numbers = {id_: number for name in names for id_, number in numbers_of(resolve("metric", name)).items()}
    return {id_: number._asdict() for id_, number in numbers.items()}


def _entry(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["config"], record["variant"], record.get("setup", "")


def _prepare(pool: ProcessPoolExecutor, cells: Sequence[Cell], results: dict[str, Any], out: Path) -> None:
    """Train the teachers before two runs can train the same one, and score the yardsticks that are not known yet."""
    firsts: dict[str, Cell] = {}
    for cell in cells:
        firsts.setdefault(cell.case, cell)
    worlds = {(cell.labels["world"], "labelled" in cell.config["task"]): (cell,) for cell in firsts.values()}
    list(_each(pool, "teachers", learn, worlds))
    known = {reference["yardstick"]: reference for reference in results["references"].values()}
    missing = {cell.yardstick: (cell, out) for cell in firsts.values() if cell.yardstick not in known}
    known.update(_each(pool, "references", refer, missing))
    results["references"].update({case: known[cell.yardstick] for case, cell in firsts.items()})


def open_results(out: Path, suite: str) -> dict[str, Any]:
    """Return the results that the folder holds, or empty ones for a new folder; refuse anything else."""
    file = out / "results.json"
    if not file.exists():
        if out.is_file() or (out.exists() and any(out.iterdir())):
            raise Refusal(f"--out {out} holds something else than results. Name a new folder, or one to continue.")
        empty: dict[str, Any] = {"settings": {}, "records": [], "references": {}}
        return {"suite": suite, "dagdiff": __version__, "identity": IDENTITY, "versions": versions(THREADS), **empty}
    results: dict[str, Any] = read_json(file, {"suite": str})
    if results["suite"] != suite:
        raise Refusal(f"{file} holds results of the suite {results['suite']!r}, not {suite!r}. Name a new folder.")
    if results.get("identity", 1) != IDENTITY:
        raise Refusal(
            f"{file} holds results of another version, whose runs are not those of this one. Name a new folder."
        )
    check_kind(results, RESULTS, str(file))
    return results


def run_cell(cell: Cell, out: Path) -> dict[str, Any]:
    """Train and score one student; return its record, and keep its samples and chains beside the results."""
    torch.set_num_threads(THREADS)
    experiment = Experiment.build(cell.config)
    *_, (_, last) = experiment.rounds()
    cost = {"nfe_student": last.nfe_student, "nfe_expert": last.nfe_expert, "seconds": last.seconds}
    return {**cell.labels, **cost, **scored(experiment, cell.key, out)}


def scored(experiment: Experiment, key: str, out: Path) -> dict[str, Any]:
    """Score a trained student and keep its samples and chains; return that part of its record."""
    seed, file = experiment.settings.seed, f"samples/{key}.npz"
    points = experiment.sample(experiment.settings.samples, seed)
    metrics, by_step = experiment.measure(points, seed)
    save_arrays(out / file, x=points[: experiment.task.saved], chains=experiment.chains(64, seed))
    return {"config": key, "samples": file, "metrics": metrics, "by_step": by_step}


def refer(cell: Cell, out: Path) -> dict[str, Any]:
    """Score real data (the floor) and the expert as students are; keep their samples, and chains from one noise."""
    torch.set_num_threads(THREADS)
    experiment = Experiment.build({**cell.config, "seed": 0, "threshold": {"class": "none"}})
    n, task = experiment.settings.samples, experiment.task
    schedule, expert = task.schedule, experiment.expert
    noise, condition, _ = experiment.start(n, seed=0)

    def scores(points: torch.Tensor) -> dict[str, float]:
        truth = task.truth(len(points), experiment.generator(4), experiment.generator(5), condition)
        return score((*task.metrics, *experiment.metrics), points, truth)

    plain = Expert(expert.denoiser, schedule, 1, expert.guidance)
    by_nfe = {steps: scores(sample(plain, Ddim(schedule), step_grid(steps), noise, condition)) for steps in task.nfes}
    walked = expert.walk(noise, experiment.times, condition)[-1]
    start, label, _ = experiment.start(64, seed=0)
    chains = torch.stack(expert.walk(start, experiment.times, label), dim=1)
    file = f"samples/{task.name.replace('/', '_')}-{cell.yardstick[:6]}.npz"
    data, truth = task.data.sample(n, experiment.generator(6)), task.world.sample(n, experiment.generator(7))
    seen = {"data": data, "truth": truth, "x": walked, "chains": chains}
    save_arrays(out / file, **{name: points[: task.saved] for name, points in seen.items()})
    found = {"floor": scores(task.real(n, experiment.generator(8))), "expert": scores(walked), "expert_by_nfe": by_nfe}
    return {**found, "samples": file, "yardstick": cell.yardstick}


def learn(cell: Cell) -> None:
    """Train and cache the networks that a cell starts from."""
    torch.set_num_threads(THREADS)
    Experiment.build(cell.config)


def _each(
    pool: ProcessPoolExecutor,
    title: str,
    function: Callable[..., Any],
    jobs: Mapping[Key, tuple[Any, ...]],
    failures: dict[Key, str] | None = None,
) -> Iterator[tuple[Key, Any]]:
    """Run ``function`` on every job's arguments; yield each job's name and result as it finishes.

    Where there are ``failures``, a loss that is not finite is noted there, and the other jobs go on.
    """
    futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc=title, disable=None):
            key = futures[future]
            name = f"{jobs[key][0]}"
            try:
                result = future.result()
            except Refusal as error:
                raise Refusal(f"{title}, {name}: {error}") from None
            except NonFiniteLoss as error:
                if failures is None:
                    raise Refusal(f"{title}, {name}: {error}") from None
                failures[key] = f"{name}: {error}"
            else:
                yield key, result
    finally:
        for future in futures:
            future.cancel()
