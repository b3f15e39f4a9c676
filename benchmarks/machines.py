"""How far would another CPU be off? Suites run again under settings that stand in for one.

Run: ``python -m dagdiff.benchmarks.machines NAME FOLDER``, with NAME one of ``demo``, ``dmd2``, ``headline``.

The same program on the same seeds rounds in another way where MKL takes the code path that all x86-64 CPUs share
(``MKL_CBWR=COMPATIBLE``) and where PyTorch's own kernels use no AVX (``ATEN_CPU_CAPABILITY=default``). Training carries
that on, so the students come out different. Each setting trains its own teachers, in a cache of its own.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from dagdiff.benchmarks import study, toy2d
from dagdiff.benchmarks.suite import Cell, run_cells
from dagdiff.checks import check_in

SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "compatible": {"MKL_CBWR": "COMPATIBLE"},
    "plain": {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"},
}
"""Setting -> its environment; the first is the machine as it is."""

DMD2 = toy2d.Suite(
    tasks=["gaussians8-biased"],
    objectives=["distribution"],
    variants=["base", "ddil"],
    seeds=10,
    updates=300,
    settings={"samples": 1000},
)
"""The demo's DMD2 with more seeds: does the published form stay ahead of the mixture? Neither looks at the set."""

SUITES: dict[str, tuple[Any, Any]] = {
    "demo": (toy2d, toy2d.QUICK),
    "dmd2": (toy2d, DMD2),
    "headline": (study, study.Suite(blocks=["headline"], seeds=2)),
}
"""Name -> the module of a suite and its options."""


def measure(name: str, folder: Path) -> None:
    """Run a suite under each setting into ``folder/SETTING``, world by world and seed by seed; resumable."""
    module, options = SUITES[name]
    for cells in portions(list(module.cells(options))):
        for setting, variables in SETTINGS.items():
            with environment({**variables, "DAGDIFF_CACHE": str((folder / "cache" / setting).resolve())}):
                run_cells(module.__name__.rpartition(".")[2], cells, vars(options), folder / setting)


def portions(cells: Sequence[Cell], least: int = 8) -> Iterator[list[Cell]]:
    """Yield the cells seed by seed and world by world, some together: a measurement that is stopped can be compared."""

    def portion(cell: Cell) -> tuple[int, str]:
        return cell.config["seed"], cell.labels["world"]

    waiting: list[Cell] = []
    for _, found in groupby(sorted(cells, key=lambda cell: cell.config["seed"]), key=portion):
        waiting += found
        if len(waiting) >= least:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile; this one has read its own already."""
    before = dict(os.environ)
    for name in {name for setting in SETTINGS.values() for name in setting}:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(words: Sequence[str]) -> None:
    """Measure a suite."""
    name, folder = words
    measure(check_in("suite", name, SUITES), Path(folder) / name)


if __name__ == "__main__":
    main(sys.argv[1:])
