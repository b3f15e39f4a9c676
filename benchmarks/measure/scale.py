"""``dagdiff bench scale``: how throughput grows with processes, and what a run costs as each of its sizes grows.

Each point is a small loop (:mod:`dagdiff.benchmarks.measure.loops`) in fresh processes, started as a run of several is.
``time`` is the wall's of a round, ``memory`` the peak of process 0. The exponent p of a column is the slope of its
logarithm on the size's: cost grows as the p-th power of the size.

``scale.csv`` and ``scale.md`` are written to ``--out``. In the checkout ``python -m dagdiff.benchmarks.measure.scale``
puts the table of ``benchmarks/results/scale`` on the page docs/memory.md, and with it what Stable Diffusion 1.5 is
predicted to take.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dagdiff.benchmarks.measure.loops import Size, smaller, timed
from dagdiff.benchmarks.measure.predict import sentence
from dagdiff.benchmarks.pages import with_table
from dagdiff.checkpoint import save_csv, save_text
from dagdiff.checks import Refusal, check_at_least, check_in, first_line
from dagdiff.engine import find_device, joined
from dagdiff.reading import read_csv

KEPT, PAGE = Path("benchmarks/results/scale"), Path("docs/memory.md")

AXES: dict[str, tuple[int, ...]] = {
    "ranks": (1, 2),
    "ranks_weak": (1, 2),
    "batch": (16, 32, 64, 128),
    "steps": (2, 4, 8, 16),
    "substeps": (1, 2, 4, 8),
    "side": (8, 16, 32),
    "buffer": (1, 4, 16),
    "rounds": (2, 4, 8),
}
"""What grows, and how far. All else is as in :class:`Size`; of ``rounds`` the time is that of all.

Of ``ranks`` the processes share one batch (strong scaling), of ``ranks_weak`` each has one (weak scaling)."""

RANKS = ("ranks", "ranks_weak")

NAMES = {
    "ranks": "processes that share a batch", "ranks_weak": "processes with a batch each",
    "batch": "rows of a batch", "steps": "steps K", "substeps": "sub-steps k",
    "side": "dimension (side²)", "buffer": "rounds in the buffer", "rounds": "rounds",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        axes: ranks, ranks_weak, batch, steps, substeps, side, buffer, rounds.
        processes: numbers of them; of GPUs, one each.
        rounds: timed rounds of a point.
        repeats: of each point, in turns; the fastest counts.
        device: auto, cpu or cuda.
        tiny: sizes that take seconds, which try the command out and measure nothing.
    """

    axes: list[str] = field(default_factory=lambda: list(AXES))
    processes: list[int] = field(default_factory=lambda: list(AXES["ranks"]))
    rounds: int = 3
    repeats: int = 3
    device: str = "auto"
    tiny: bool = False

    def __post_init__(self) -> None:
        for name in self.axes:
            check_in("axes", name, AXES)
        check_at_least("processes", min(self.processes, default=0), 1)
        check_at_least("rounds", self.rounds, 1)
        check_at_least("repeats", self.repeats, 1)
        cards = torch.cuda.device_count()
        if find_device(self.device).type == "cuda" and max(self.processes) > cards:
            raise Refusal(f"processes must be at most {cards}, a GPU each; got {max(self.processes)}. Pass fewer.")


def points(options: Options) -> Iterator[tuple[str, int, int, Size]]:
    """Yield axis, value, number of processes and size of each point."""
    base = smaller(Size()) if options.tiny else Size(rounds=options.rounds)
    for axis in options.axes:
        for value in options.processes if axis in RANKS else AXES[axis]:
            if axis in RANKS:
                rows = 1 if axis == "ranks" else value
                yield axis, value, value, replace(base, batch=rows * base.batch, chains=rows * base.chains)
            else:
                yield axis, value, 1, replace(base, **cast(Any, {axis: value}))


def run(options: Options) -> list[dict[str, Any]]:
    """Measure all points, in turns; return a row each, with the fastest of its repeats."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        for axis, value, ranks, size in points(options):
            found.setdefault((axis, value), []).append(launched(size, ranks, options.device))
    rows = []
    for (axis, value), told in found.items():
        best = min(told, key=lambda row: float(row["seconds"]))
        whole = best["seconds"] * (value if axis == "rounds" else 1)
        rows.append({"axis": axis, "value": value, **best, "seconds": whole})
    return rows


def launched(size: Size, ranks: int, device: str) -> dict[str, Any]:
    """Time a loop in fresh processes; return what process 0 tells."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        words = ["-m", __name__, "--worker", json.dumps(vars(size)), device, str(told)]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment = {**alone, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        done = subprocess.run([sys.executable, *several, *words], env=environment, capture_output=True, text=True)
        if done.returncode or not told.exists():
            raise Refusal(f"{ranks} processes came to nothing: {first_line(RuntimeError(done.stderr[-2000:]))}")
        found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def work(size: Size, device: str, out: Path) -> None:
    """Be one of the processes: time the loop, and in process 0 write down what it took."""
    with joined({**vars(size), "device": device}, lambda: None):
        found = timed(size, find_device(device))
        if os.environ.get("RANK", "0") == "0":
            save_text(out, json.dumps(found._asdict()))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope p of log cost on log size: cost grows as size to the p; NaN of less than two sizes."""
    if len(set(sizes)) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line a size that grows: its values, time and memory at each, and their exponents."""
    lines = [
        "| what grows | values | seconds a round | exponent | memory, MB | exponent |",
        "|---|---|---|---|---|---|",
    ]
    for axis, group in groupby(rows, key=lambda row: str(row["axis"])):
        mine = list(group)
        sizes = [float(row["value"]) ** (2 if axis == "side" else 1) for row in mine]
        seconds, memory = ([float(row[name]) for row in mine] for name in ("seconds", "memory"))
        slopes = [f"{exponent(sizes, costs):.2f}" for costs in (seconds, memory)]
        told = ", ".join(f"{size:g}" for size in sizes), _listed(seconds, "{:.3g}"), slopes[0]
        lines.append(f"| {NAMES[axis]} | {' | '.join(told)} | {_listed(memory, '{:.0f}', 1e6)} | {slopes[1]} |")
    return "\n".join(lines)


def speedup(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence of each kind: the throughput of several processes over that of the fewest."""
    told = []
    for axis in RANKS:
        mine = sorted((int(row["value"]), float(row["throughput"])) for row in rows if row["axis"] == axis)
        if mine:
            (least, base), *more = mine
            others = [f"{number}: {rate:.0f} rows a second ({rate / base:.2f}x)" for number, rate in more]
            told.append("; ".join([f"{NAMES[axis]}, {least}: {base:.0f} rows a second", *others]))
    return "\n\n".join(told)


def measure(options: Options, out: Path) -> str:
    """Measure, write ``scale.csv`` and ``scale.md`` to a folder, and return the table."""
    rows = run(options)
    save_csv(out / "scale.csv", [{name: _short(value) for name, value in row.items()} for row in rows])
    told = "\n\n".join(filter(None, (table(rows), speedup(rows), sentence())))
    save_text(out / "scale.md", told + "\n")
    return told


def filled(text: str, folder: Path) -> str:
    """Return the page's text with its table and sentences made anew."""
    rows = read_csv(folder / "scale.csv")
    return with_table(text, "scale", "\n\n".join(filter(None, (table(rows), speedup(rows), sentence()))))


def _listed(values: Sequence[float], form: str, unit: float = 1.0) -> str:
    return ", ".join(form.format(value / unit) for value in values)


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def main(words: Sequence[str]) -> None:
    """Be a worker, or write the page's table."""
    if words and words[0] == "--worker":
        told = json.loads(words[1])
        sizes: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
        size = Size(**sizes)
        work(size, words[2], Path(words[3]))
    else:
        save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), KEPT))


if __name__ == "__main__":
    main(sys.argv[1:])
