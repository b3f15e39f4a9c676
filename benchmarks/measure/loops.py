"""A loop of a given size to be timed: a small U-Net taught by its frozen twin, on points drawn at random."""

import copy
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from dagdiff import engine
from dagdiff.checks import check_at_least, check_in
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.expert import Expert
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.mixture import Shares
from dagdiff.objectives import Consistency, DistributionMatching, Progressive
from dagdiff.objectives.base import Objective
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.student import Student
from dagdiff.policies.unet import image_unet
from dagdiff.schedule import CosineSchedule, step_grid

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "progressive": Progressive,
    "consistency": Consistency,
    "distribution": partial(DistributionMatching, tell_origin=True),
}


@dataclass(frozen=True)
class Size:
    """What is trained, in the whole of the run; several processes share batches and chains out.

    Args:
        objective: progressive, consistency or distribution.
        batch: rows of an update.
        chains: of a roll-in.
        steps: K, of the student.
        substeps: k, of the expert in one of them.
        side: of the images; their dimension is its square.
        buffer: rounds whose student states stay in the aggregate.
        rounds: that are timed, after one that is not.
        updates: of a round.
        channels: of the U-Net's levels.
        shares: of forward, student and expert states.
        reuse: batches that a record serves.
        bf16: compute in bfloat16.
        compiler: a backend of torch.compile for the student's network; none if empty.
    """

    objective: str = "progressive"
    batch: int = 64
    chains: int = 64
    steps: int = 4
    substeps: int = 2
    side: int = 14
    buffer: int = 1
    rounds: int = 3
    updates: int = 10
    channels: tuple[int, ...] = (32, 64)
    shares: tuple[float, float, float] = (0.5, 0.5, 0.0)
    reuse: float = 4.0
    bf16: bool = False
    compiler: str = ""

    def __post_init__(self) -> None:
        check_in("objective", self.objective, OBJECTIVES)
        for name in ("batch", "chains", "steps", "substeps", "side", "buffer", "rounds", "updates"):
            check_at_least(name, getattr(self, name), 1)


class Timed(NamedTuple):
    """What some rounds took: ``seconds`` a round, trained rows a second, and the peak of memory in bytes."""

    seconds: float
    throughput: float
    memory: int


class Images:
    """Points in [-1, 1], drawn at random with replacement."""

    def __init__(self, side: int, device: torch.device, number: int = 512) -> None:
        noise = torch.Generator().manual_seed(0)
        self.points = (torch.rand((number, 1, side, side), generator=noise) * 2.0 - 1.0).to(device)

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return ``n`` of them, ``(n, 1, side, side)``."""
        return self.points[torch.randint(len(self.points), (n,), generator=generator, device=self.points.device)]


def networks(size: Size, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Return a student and its frozen teacher, of the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Student(image_unet((1, size.side, size.side), channels=size.channels), CosineSchedule()).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    if size.compiler:
        student.network.compile(backend=size.compiler)
    return (in_bfloat16(student), in_bfloat16(teacher)) if size.bf16 else (student, teacher)


def build(size: Size, device: torch.device) -> DAgger:
    """Return the loop; in several processes this one's part of it."""
    student, teacher = networks(size, device)
    objective, schedule = OBJECTIVES[size.objective](), CosineSchedule()
    streams = [torch.Generator(device).manual_seed(2 * engine.rank() + stream) for stream in range(2)]
    law, times = objective.sampler(schedule), step_grid(size.steps).to(device)
    shape, chains = (1, size.side, size.side), engine.part("chains", size.chains)
    return DAgger(
        student,
        Expert(teacher, schedule, size.substeps),
        objective,
        DenoisingEnv(shape, law, times, batch_size=chains, generator=streams[0], device=device),
        Images(size.side, device),
        shares=Shares(*size.shares),
        rounds=size.rounds + 1,
        updates_per_round=size.updates,
        gathering=Gathering(reuse=size.reuse, rounds_kept=size.buffer),
        learning=Learning(partial(torch.optim.Adam, lr=1e-4), batch_size=engine.part("batch", size.batch)),
        generator=streams[1],
    )


def timed(size: Size, device: torch.device) -> Timed:
    """Train a round, then measure the next ones, on the wall's clock."""
    rounds: Iterator[Any] = iter(build(size, device))
    next(rounds)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = now(device)
    for _ in rounds:
        pass
    seconds = (now(device) - started) / size.rounds
    return Timed(seconds, size.updates * size.batch / seconds, peak(device))


def now(device: torch.device) -> float:
    """Return the time in seconds, when a device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device) -> int:
    """Return the most bytes that tensors took on a GPU, or this process on the CPU, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def smaller(size: Size) -> Size:
    """Return a size that takes a second, for trying the whole out."""
    return replace(size, batch=8, chains=8, steps=2, rounds=1, updates=2, side=8, channels=(8, 16))
