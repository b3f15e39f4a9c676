"""``dagdiff bench compute``: U-Nets on this CPU compiled, in bfloat16 and in channels-last order, against plain ones.

All make the same evaluations and updates in turns, on one torch thread; a time is the median of CPU time. Beside it
stands how far answers and gradients are from the plain network's: the root mean square of the difference over that of
the plain value. ``compute.csv`` and ``machine.json`` are written to ``--out``; in the checkout ``python -m
dagdiff.benchmarks.measure.compute`` writes the table of ``docs/cost.md`` from ``benchmarks/results/compute``.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.benchmarks.measure.overhead import one_thread, processor
from dagdiff.benchmarks.pages import with_table
from dagdiff.checkpoint import save_csv, save_json, save_text
from dagdiff.checks import check_at_least, check_in
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.compiled import check_compiler, compiled
from dagdiff.policies.student import Student
from dagdiff.policies.unet import image_unet
from dagdiff.reading import parse_json, read_csv, read_text
from dagdiff.schedule import CosineSchedule
from dagdiff.versions import versions

KEPT, PAGE = (Path("benchmarks/results/compute"), Path("benchmarks/results/compute-amd")), Path("docs/cost.md")

WAYS = ("plain", "channels-last", "bf16", "channels-last, bf16", "compiled", "compiled, bf16")
CHANNELS = {14: (32, 64), 32: (16, 32, 64)}


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        sides: of the images: 14, 32.
        ways: plain comes first, whatever else is named.
        batch: rows of an evaluation or update.
        repeats: of each, in turns, after two that are not counted.
        backend: of torch.compile.
    """

    sides: list[int] = field(default_factory=lambda: list(CHANNELS))
    ways: list[str] = field(default_factory=lambda: list(WAYS))
    batch: int = 64
    repeats: int = 9
    backend: str = "inductor"

    def __post_init__(self) -> None:
        for side in self.sides:
            check_in("sides", str(side), [str(each) for each in CHANNELS])
        for way in self.ways:
            check_in("ways", way, WAYS)
        for name in ("batch", "repeats"):
            check_at_least(name, getattr(self, name), 1)


class Way:
    """A network that computes in one way.

    Args:
        name: of :data:`WAYS`.
        side: of the images.
        backend: of torch.compile.
    """

    def __init__(self, name: str, side: int, backend: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made: nn.Module = Student(image_unet((1, side, side), channels=CHANNELS[side]), CosineSchedule())
        self.layout = torch.channels_last if "channels-last" in name else torch.contiguous_format
        made.to(memory_format=self.layout)  # type: ignore[call-overload]
        made = in_bfloat16(made) if "bf16" in name else made
        self.network = compiled(made, backend) if "compiled" in name else made
        self.optimiser = torch.optim.Adam(made.parameters(), lr=0.0, fused=True)
        self.spent: dict[str, list[float]] = {"evaluation": [], "update": []}
        self.began = 0.0

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the answer, without a gradient."""
        started = time.process_time()
        with torch.no_grad():
            answer: Tensor = self.network(x.to(memory_format=self.layout), t)
        self.spent["evaluation"].append(time.process_time() - started)
        return answer

    def update(self, x: Tensor, t: Tensor) -> Tensor:
        """Make an update that moves nothing, its rate being 0; return the gradient, flat."""
        started = time.process_time()
        self.optimiser.zero_grad()
        self.network(x.to(memory_format=self.layout), t).square().mean().backward()
        self.optimiser.step()
        self.spent["update"].append(time.process_time() - started)
        return torch.cat([weight.grad.flatten() for weight in self.network.parameters() if weight.grad is not None])

    def begin(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate and update for the first time, which compiles; return answer and gradient."""
        started = time.perf_counter()
        found = self.evaluate(x, t), self.update(x, t)
        self.began = time.perf_counter() - started
        return found


def measured(side: int, options: Options) -> list[dict[str, Any]]:
    """Return a row each way, for images of one size."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn((options.batch, 1, side, side), generator=noise)
    t = torch.rand(options.batch, generator=noise).clamp(min=0.02)
    ways = {name: Way(name, side, options.backend) for name in dict.fromkeys(("plain", *options.ways))}
    found = {name: way.begin(x, t) for name, way in ways.items()}
    for _ in range(options.repeats + 1):
        for way in ways.values():
            way.evaluate(x, t)
            way.update(x, t)
    rows = []
    for name, way in ways.items():
        spent = {f"{what}_ms": f"{1000.0 * median(times[2:]):.4g}" for what, times in way.spent.items()}
        errors = (off(mine, plain) for mine, plain in zip(found[name], found["plain"], strict=True))
        told = dict(zip(("answer_off", "gradient_off"), (f"{error:.2g}" for error in errors), strict=True))
        rows.append({"side": side, "way": name, "batch": options.batch, **spent, **told, "first_s": f"{way.began:.1f}"})
    return rows


def off(found: Tensor, plain: Tensor) -> float:
    """The root mean square of a difference, over that of the plain value."""
    return float((found - plain).square().mean().sqrt() / plain.square().mean().sqrt())


def measure(options: Options, out: Path) -> str:
    """Measure, write the file after each size, and return the table."""
    if options.backend == "inductor" and any("compiled" in way for way in options.ways):
        check_compiler(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    with one_thread():
        for side in options.sides:
            rows += measured(side, options)
            save_csv(out / "compute.csv", rows)
    save_json(out / "machine.json", {**versions(1), "processor": processor(), "cores": os.cpu_count()})
    return table(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line a size and way: times, what part they are of the plain network's, and errors."""
    plain = {row["side"]: row for row in rows if row["way"] == "plain"}
    lines = [
        "| image | network | evaluation, ms | update, ms | against plain | answers off by | gradients off by "
        "| first call, s |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        base = plain[row["side"]]
        ratios = ", ".join(f"{float(row[each]) / float(base[each]):.2f}" for each in ("evaluation_ms", "update_ms"))
        told = [row[name] for name in ("evaluation_ms", "update_ms")]
        errors = ["–" if row is base else row[name] for name in ("answer_off", "gradient_off")]
        cells = [f"{row['side']} x {row['side']}", row["way"], *told, ratios, *errors, row["first_s"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read(folder: Path) -> list[dict[str, str]]:
    """Read the lines that are kept in a folder."""
    return read_csv(folder / "compute.csv")


def main() -> None:
    """Write the page's tables, a processor each, from what is kept."""
    save_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), "compute", "\n\n".join(map(kept, KEPT))))


def kept(folder: Path) -> str:
    """Return the table of a folder under the name of its processor."""
    processor = parse_json(read_text(folder / "machine.json"), str(folder))["processor"]
    return f"**{processor}**\n\n{table(read(folder))}"


if __name__ == "__main__":
    main()
