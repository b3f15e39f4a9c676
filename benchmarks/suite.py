"""Running a suite: every cell once, in fresh processes, each result kept as soon as it is there, and no run done twice.

A *cell* is one configuration under the name of a variant. Cells with equal configurations are one run, listed under
each name.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from dagdiff import __version__
from dagdiff.checkpoint import load_json, save_arrays, save_json
from dagdiff.checks import Refusal, check_at_least
from dagdiff.config import Config
from dagdiff.dagger import NonFiniteLoss
from dagdiff.experiment import Experiment
from dagdiff.expert import Expert
from dagdiff.metrics.samples import score
from dagdiff.schedule import step_grid
from dagdiff.transition import Ddim, sample

NFES = (1, 2, 4, 8, 16, 32)
"""The numbers of steps at which the expert's own chain is scored."""

_TOLD = ("task", "steps", "seed", "shares", "threshold")
_YARDSTICK = ("task", "samples", "substeps", "guidance", "expert", "schedule", "data")

Key = TypeVar("Key", bound=Hashable)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a configuration, the objective as it was named, and the variant it stands for."""

    objective: str
    variant: str
    config: Config

    def __str__(self) -> str:
        return f"{self.config['task']} {self.objective} {self.variant} seed {self.config['seed']}"

    @property
    def key(self) -> str:
        """Content hash of the configuration; equal keys are the same run."""
        return _digest(self.config)

    @property
    def labels(self) -> dict[str, Any]:
        """What a record says of the cell."""
        task = self.config["task"]
        world, data, *_ = task.split("-")
        copied = {name: self.config[name] for name in ("shares", "seed", "steps", "updates")}
        return {
            "task": task,
            "world": world,
            "data": data,
            "objective": self.objective,
            "variant": self.variant,
            "setup": self.setup,
            **copied,
        }

    @property
    def setup(self) -> str:
        """Hash of what the labels do not tell: the configuration but for task, steps, seed, shares and threshold."""
        return _digest({name: value for name, value in self.config.items() if name not in _TOLD})

    @property
    def yardstick(self) -> str:
        """Hash of what the floor and the expert's own score depend on."""
        return _digest({name: self.config[name] for name in _YARDSTICK})


def run_cells(
    name: str, cells: Sequence[Cell], settings: Mapping[str, Any], out: Path, workers: int = 1
) -> dict[str, Any]:
    """Run the cells that ``out/results.json`` does not hold yet; return, and keep there, all results.

    Raises:
        Refusal: if ``out`` holds something else.
    """
    check_at_least("workers", workers, 1)
    results = open_results(out, name)
    found = {record["config"]: record for record in results["records"]}
    asked = {(cell.key, cell.variant) for cell in cells}
    others = [record for record in results["records"] if (record["config"], record["variant"]) not in asked]
    firsts = {cell.config["task"]: cell for cell in reversed(cells)}
    save_json(out / "results.json", results)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        worlds = {(cell.labels["world"], "labelled" in task): (cell,) for task, cell in firsts.items()}
        list(_each(pool, "teachers", learn, worlds))  # before two runs can train the same one
        known = {task: reference["yardstick"] for task, reference in results["references"].items()}
        missing = {task: (cell, out) for task, cell in firsts.items() if known.get(task) != cell.yardstick}
        results["references"].update(_each(pool, "references", refer, missing))
        runs = {cell.key: (cell, out) for cell in cells if cell.key not in found}
        results["settings"] = dict(settings)
        for key, record in _each(pool, "runs", run_cell, runs):
            found[key] = record
            results["records"] = others + [{**found[cell.key], **cell.labels} for cell in cells if cell.key in found]
            save_json(out / "results.json", results)
    results["records"] = others + [{**found[cell.key], **cell.labels} for cell in cells]
    save_json(out / "results.json", results)
    return results


def open_results(out: Path, suite: str) -> dict[str, Any]:
    """Return the results that the folder holds, or empty ones for a new folder; refuse anything else."""
    file = out / "results.json"
    if not file.exists():
        if out.is_file() or (out.exists() and any(out.iterdir())):
            raise Refusal(f"--out {out} holds something else than results. Name a new folder, or one to continue.")
        return {"suite": suite, "dagdiff": __version__, "settings": {}, "records": [], "references": {}}
    results = load_json(file)
    if results.get("suite") != suite:
        raise Refusal(f"{file} holds results of the suite {results.get('suite')!r}, not {suite!r}. Name a new folder.")
    whole = all({"config", "variant"} <= set(record) for record in results.get("records", [{}]))
    if not whole or not isinstance(results.get("references"), dict):
        raise Refusal(f"{file} is not what a suite writes. Delete it, or name a new folder.")
    return results


def run_cell(cell: Cell, out: Path) -> dict[str, Any]:
    """Train and score one student; return its record, and keep its samples and chains beside the results."""
    torch.set_num_threads(1)
    it = Experiment.build(cell.config)
    *_, (_, last) = it.rounds()
    seed = it.settings.seed
    metrics, by_step = it.measure(seed)
    file = f"samples/{cell.key}.npz"
    save_arrays(out / file, x=it.sample(it.settings.samples, seed), chains=it.chains(64, seed))
    cost = {"nfe_student": last.nfe_student, "nfe_expert": last.nfe_expert, "seconds": last.seconds}
    return {**cell.labels, **cost, "config": cell.key, "samples": file, "metrics": metrics, "by_step": by_step}


def refer(cell: Cell, out: Path) -> dict[str, Any]:
    """Score real data (the floor) and the expert as students are; keep their samples, and chains from one noise."""
    torch.set_num_threads(1)
    it = Experiment.build({**cell.config, "seed": 0, "threshold": {"class": "none"}})
    n, world, schedule = it.settings.samples, it.task.world, it.task.schedule
    reference = world.reference(n, it.generator(4))

    def judged(points: torch.Tensor) -> dict[str, float]:
        return score(points, reference, world.mixture, it.generator(5))

    noise, condition, _ = it.start(n, seed=0)
    plain = Expert(it.expert.denoiser, schedule, 1, it.expert.guidance)
    by_nfe = {steps: judged(sample(plain, Ddim(schedule), step_grid(steps), noise, condition)) for steps in NFES}
    walked = it.expert.walk(noise, it.times, condition)[-1]
    start, label, _ = it.start(64, seed=0)
    chains = torch.stack(it.expert.walk(start, it.times, label), dim=1)
    file = f"samples/{it.task.name}.npz"
    data, truth, real = (law.sample(n, it.generator(6 + i)) for i, law in enumerate((it.task.data, world, world)))
    save_arrays(out / file, data=data, truth=truth, x=walked, chains=chains)
    scores = {"floor": judged(real), "expert": judged(walked), "expert_by_nfe": by_nfe}
    return {**scores, "samples": file, "yardstick": cell.yardstick}


def learn(cell: Cell) -> None:
    """Train and cache the networks that a cell starts from."""
    torch.set_num_threads(1)
    Experiment.build(cell.config)


def _each(
    pool: ProcessPoolExecutor, title: str, function: Callable[..., Any], jobs: Mapping[Key, tuple[Any, ...]]
) -> Iterator[tuple[Key, Any]]:
    """Run ``function`` on every job's arguments; yield each job's name and result as it finishes."""
    futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc=title, disable=None):
            yield futures[future], future.result()
    except (Refusal, NonFiniteLoss) as error:
        raise Refusal(f"{title}, {jobs[futures[future]][0]}: {error}") from None
    finally:
        for future in futures:
            future.cancel()
