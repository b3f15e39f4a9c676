"""``dagdiff bench gpu``: throughput, memory, overhead, compilation, bfloat16 and several GPUs, on one CUDA machine.

It takes less than ten minutes and writes ``gpu.csv`` and ``gpu.md`` to ``--out``; what there is no time for, or what
the device does not allow (compilers, CUDA graphs), is left out and named. Each line is a loop of
:mod:`dagdiff.benchmarks.measure.loops`. The overhead is the time of a forward round over that of the same mathematics
in bare torch, both in turns.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.benchmarks.measure.loops import Images, Size, build, networks, now, smaller, timed
from dagdiff.benchmarks.measure.scale import launched
from dagdiff.checkpoint import save_csv, save_text
from dagdiff.checks import Refusal, check_at_least, first_line
from dagdiff.engine import find_device
from dagdiff.expert import Expert
from dagdiff.schedule import CosineSchedule, perturb, step_grid
from dagdiff.shapes import column
from dagdiff.versions import versions

WIDE = (64, 128, 256)
"""Channels of the U-Net that fills a GPU, on 32 x 32 images: 10 million weights."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        minutes: after which no further line is begun.
        rounds: timed rounds of a line.
        device: cuda; cpu tries the command out.
        tiny: sizes that take seconds, which measure nothing.
    """

    minutes: float = 9.0
    rounds: int = 3
    device: str = "cuda"
    tiny: bool = False

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 1)
        check_at_least("minutes", self.minutes, 0.0)
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise Refusal("bench gpu needs a CUDA device, and there is none. Run it on a machine that has one.")
        find_device(self.device)


Row = dict[str, Any]


def lines(options: Options, cards: int) -> Iterator[tuple[str, Size, int]]:
    """Yield what, at which size and in how many processes; what matters most first."""
    usual = Size(rounds=options.rounds, side=32, batch=256, chains=256, channels=WIDE)
    base = smaller(usual) if options.tiny else usual
    for objective in ("progressive", "consistency", "distribution"):
        yield objective, replace(base, objective=objective), 1
    yield "bfloat16", replace(base, bf16=True), 1
    compiler = "eager" if options.tiny else "inductor"
    yield "compiled", replace(base, compiler=compiler), 1
    yield "bfloat16, compiled", replace(base, bf16=True, compiler=compiler), 1
    yield "CUDA graphs", replace(base, compiler="eager" if options.tiny else "cudagraphs"), 1
    for times in (2, 4):
        yield f"batch x {times}", replace(base, batch=times * base.batch, chains=times * base.chains), 1
    count = 2
    while count <= cards:
        yield f"{count} GPUs", replace(base, batch=count * base.batch, chains=count * base.chains), count
        count *= 2


def run(options: Options, cards: int, told: Callable[[str], None] = print) -> list[Row]:
    """Measure line by line while there is time; return a row each."""
    device, ends = find_device(options.device), time.monotonic() + 60.0 * options.minutes
    rows: list[Row] = []
    for what, size, ranks in lines(options, cards):
        if time.monotonic() > ends:
            told(f"left out, for the time is up: {what}")
            continue
        try:
            found: Mapping[str, Any] = (
                timed(size, device)._asdict() if ranks == 1 else launched(size, ranks, options.device)
            )
        except Exception as error:
            if not size.compiler:
                raise
            told(f"{what}: this device or torch does not allow it ({first_line(error)})")
            continue
        rows.append({"what": what, "batch": size.batch, **found, "overhead": ""})
        told(f"{what}: {found['throughput']:.0f} rows a second, {found['memory'] / 1e6:.0f} MB")
    forward = Size(rounds=options.rounds, shares=(1.0, 0.0, 0.0), reuse=1.0)
    small = smaller(forward) if options.tiny else forward
    if time.monotonic() <= ends:
        ours, bare = race(small, device, pairs=2 if options.tiny else 10)
        rate = small.updates * small.batch / median(ours)
        ratio = median(mine / other for mine, other in zip(ours, bare, strict=True))
        rows.append({
            "what": "overhead of a small U-Net", "batch": small.batch, "seconds": median(ours), "throughput": rate,
            "memory": "", "overhead": f"{ratio:.3f}",
        })  # fmt: skip
        told(f"overhead of a small U-Net: {ratio:.3f} times the bare loop")
    return rows


def race(size: Size, device: torch.device, pairs: int) -> tuple[list[float], list[float]]:
    """Let dagdiff's forward rounds and bare ones run in turns; return the seconds of both, round by round."""
    loop, other = iter(build(replace(size, rounds=pairs + 1), device)), Bare(size, device)
    ours, bare = list[float](), list[float]()
    for _ in range(pairs + 1):
        started = now(device)
        next(loop)
        between = now(device)
        other.round()
        ours.append(between - started)
        bare.append(now(device) - between)
    return ours[1:], bare[1:]  # the first warms up


class Bare:
    """Progressive distillation on forward states in plain torch: dagdiff's update and labels, and no more.

    Args:
        size: of the loop.
        device: of all.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device, self.data = size, device, Images(size.side, device)
        self.student, teacher = networks(size, device)
        self.schedule, self.grid = CosineSchedule(), step_grid(size.steps).to(device)
        self.expert = Expert(teacher, self.schedule, size.substeps)
        self.adam = torch.optim.Adam(self.student.parameters(), lr=1e-4)
        self.generator = torch.Generator(device).manual_seed(0)

    def round(self) -> Tensor:
        """Make a round's updates; return their losses, still on the device."""
        self.student.train()
        return torch.stack([self.update() for _ in range(self.size.updates)])

    def update(self) -> Tensor:
        """Draw, label, learn."""
        rows = self.size.batch
        x0 = self.data.sample(rows, self.generator)
        step = torch.randint(self.size.steps, (rows,), generator=self.generator, device=self.device)
        t, s = self.grid[step], self.grid[step + 1]
        noise = torch.randn(x0.shape, generator=self.generator, device=self.device)
        x_t = perturb(x0, noise, t, self.schedule)
        target = self.expert.target(x_t, t, s)
        alpha, sigma = self.schedule(t)
        weight = column((alpha / sigma).square().clamp(min=1.0), x_t)
        self.adam.zero_grad(set_to_none=True)
        loss = (weight * (self.student(x_t, t, None) - target).square()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.adam.step()
        found: Tensor = loss.detach()
        return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows in Markdown; several GPUs beside their throughput over one's."""
    base = float(rows[0]["throughput"]) if rows else 1.0
    told = ["| what | batch | rows a second | times the first | memory, GB | overhead |", "|---|---|---|---|---|---|"]
    for row in rows:
        memory = f"{float(row['memory']) / 1e9:.2f}" if row["memory"] != "" else "–"
        rate = float(row["throughput"])
        cells = row["what"], row["batch"], f"{rate:.0f}", f"{rate / base:.2f}", memory, row["overhead"] or "–"
        told.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(told)


def measure(options: Options, out: Path) -> str:
    """Measure, write ``gpu.csv`` and ``gpu.md`` to a folder, and return the table."""
    on_cuda = options.device.startswith("cuda")
    name = torch.cuda.get_device_name() if on_cuda else "no GPU: a trial of the command"
    rows = run(options, torch.cuda.device_count() if on_cuda else 1, partial(print, flush=True))
    save_csv(out / "gpu.csv", rows)
    made = ", ".join(f"{key} {value}" for key, value in versions(torch.get_num_threads()).items())
    save_text(out / "gpu.md", f"{name}; {made}\n\n{table(rows)}\n")
    return table(rows)
