"""What the framework costs: dagdiff's loop against bare loops of the same mathematics, both in turns.

``dagdiff bench overhead --out runs/overhead`` writes ``overhead.csv`` and ``machine.json`` there and prints the table;
in the checkout ``python -m dagdiff.benchmarks.measure.overhead`` writes the table of ``docs/overhead.md`` from what is
kept in ``benchmarks/results/overhead``.

Both sides get the same networks, the same teacher and the same data; the bare side
(:mod:`dagdiff.benchmarks.measure.bare`) is written in plain torch. A round gathers, labels and makes its updates. The
two make their rounds in turns, each measured in CPU time of the process on one torch thread, so that what else runs
on the machine meets both. A ratio is the median over pairs of rounds, its spread their quartiles.
"""

import copy
import gc
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagdiff.benchmarks.measure.bare import BARE, Bare, Setting
from dagdiff.benchmarks.pages import with_table
from dagdiff.checkpoint import save_csv, save_json, save_text
from dagdiff.checks import check_at_least, check_in
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.gathering import Gathering, fresh_records, rolls
from dagdiff.learner import Learning
from dagdiff.mixture import LinearRamp, Shares
from dagdiff.objectives import Consistency, DistributionMatching, Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policies.unet import image_unet
from dagdiff.reading import read_csv
from dagdiff.report.glossary import OBJECTIVES
from dagdiff.runs.recipes import recipe
from dagdiff.schedule import CosineSchedule, step_grid
from dagdiff.shapes import Denoiser
from dagdiff.versions import versions

KEPT, PAGE = Path("benchmarks/results/overhead"), Path("docs/overhead.md")
NETWORKS = ("mlp", "unet")
WARM = 2  # rounds before the measurement


@dataclass(frozen=True)
class Options:
    """Which cases are measured.

    Args:
        networks: mlp (3 hidden layers of 128, points in the plane) and unet (14 x 14 images).
        objectives: progressive, consistency, distribution.
        batch_sizes: of the MLP; the U-Net takes 64 rows.
        rounds: pairs of rounds with the MLP.
        unet_rounds: pairs of rounds with the U-Net.
    """

    networks: list[str] = field(default_factory=lambda: list(NETWORKS))
    objectives: list[str] = field(default_factory=lambda: list(BARE))
    batch_sizes: list[int] = field(default_factory=lambda: [256, 1024])
    rounds: int = 40
    unet_rounds: int = 6

    def __post_init__(self) -> None:
        for name in self.networks:
            check_in("networks", name, NETWORKS)
        for name in self.objectives:
            check_in("objectives", name, BARE)
        for name, value in (("rounds", self.rounds), ("unet_rounds", self.unet_rounds), *_sizes(self.batch_sizes)):
            check_at_least(name, value, 1)


class Case(NamedTuple):
    """One comparison."""

    network: str
    objective: str
    batch: int
    states: str  # forward or mixture


class Parts(NamedTuple):
    """What both sides are given: a raw network that answers v, a teacher that answers x0, clean points."""

    network: Any
    teacher: Denoiser
    data: Any
    shape: tuple[int, ...]


def cases(options: Options) -> Iterator[Case]:
    """Yield the cases, the quick ones first."""
    for network in options.networks:
        for objective in options.objectives:
            for batch in options.batch_sizes if network == "mlp" else [64]:
                for states in ("forward", "mixture"):
                    yield Case(network, objective, batch, states)


def parts(network: str) -> Parts:
    """Make a student's network with seeded weights, its teacher and its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if network == "mlp":
            ring = world("gaussians8")
            assert ring.mixture is not None
            exact = GaussianMixtureExpert(ring.mixture.means, ring.mixture.stds, ring.mixture.weights, CosineSchedule())
            return Parts(MLP(width=128, depth=3), exact, ring, (2,))
        made = image_unet((1, 14, 14))
        teacher = Student(copy.deepcopy(made), CosineSchedule()).requires_grad_(False).eval()
        return Parts(made, teacher, Images(torch.rand(2000, 1, 14, 14) * 2.0 - 1.0), (1, 14, 14))


class Images:
    """Points that are drawn with replacement, in as few operations as can be."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` of them."""
        return self.points[torch.randint(len(self.points), (n,), generator=generator)]


def setting(case: Case, rounds: int) -> tuple[Setting, float]:
    """Return the sizes and rates of a case, the recipe's, and its re-use."""
    chosen = recipe("plane" if case.network == "mlp" else "images", case.objective)
    shares = chosen["shares"] if case.states == "mixture" else (1.0, 0.0, 0.0)
    sizes = {name: chosen[name] for name in ("chains", "substeps", "lr", "clip")}
    return Setting(case.batch, shares, rounds=rounds, **sizes), chosen["reuse"]


def ours(it: Parts, objective: str, chosen: Setting, reuse: float) -> DAgger:
    """Build dagdiff's loop."""
    makers: dict[str, Any] = {
        "progressive": Progressive,
        "consistency": partial(Consistency, chosen.solver_steps, chosen.ema),
        "distribution": partial(DistributionMatching, chosen.critic_updates, chosen.critic_lr),
    }
    made = makers[objective]()
    noise, states = (torch.Generator().manual_seed(seed) for seed in range(2))
    law = made.sampler(CosineSchedule())
    return DAgger(
        Student(it.network, CosineSchedule()),
        Expert(it.teacher, CosineSchedule(), chosen.substeps),
        made,
        DenoisingEnv(it.shape, law, step_grid(chosen.steps), chosen.chains, generator=noise),
        it.data,
        shares=Shares(*chosen.shares),
        rounds=chosen.rounds,
        updates_per_round=chosen.updates,
        gathering=Gathering(reuse=reuse),
        learning=Learning(
            partial(torch.optim.Adam, lr=chosen.lr, fused=True),
            LinearRamp(1.0, 0.0, 1.0),
            clip=chosen.clip,
            batch_size=chosen.batch,
        ),
        generator=states,
    )


def bare(it: Parts, objective: str, chosen: Setting) -> Bare:
    """Build the bare loop."""
    return BARE[objective](it.network, it.teacher, it.data.sample, it.shape, chosen)


def plan(objective: str, chosen: Setting, reuse: float) -> Iterator[tuple[int, int, int]]:
    """Yield what dagdiff gathers in each round: forward states, and batches of own and of the teacher's chains."""
    critics = chosen.critic_updates if objective == "distribution" else 0
    drawn, owed = chosen.updates * chosen.batch * (1 + critics), [0.0, 0.0]
    forward, *chains = (fresh_records(share, drawn, chosen.batch, reuse) for share in chosen.shares)
    while True:
        batches = []
        for place, records in enumerate(chains):
            count, owed[place] = rolls(records, owed[place], chosen.chains * chosen.steps)
            batches.append(count)
        yield forward, batches[0], batches[1]


def race(case: Case, rounds: int) -> list[tuple[float, float]]:
    """Let both sides make their rounds in turns; return the CPU seconds of each pair, dagdiff's first."""
    chosen, reuse = setting(case, WARM + rounds)
    loop = iter(ours(parts(case.network), case.objective, chosen, reuse))
    other, wanted = bare(parts(case.network), case.objective, chosen), plan(case.objective, chosen, reuse)
    found = []
    for _ in range(chosen.rounds):
        gc.collect()
        started = time.process_time()
        next(loop)
        between = time.process_time()
        other.round(*next(wanted))
        found.append((between - started, time.process_time() - between))
    return found[WARM:]


def row(case: Case, pairs: Sequence[tuple[float, float]], updates: int = Setting.updates) -> dict[str, Any]:
    """Return a line of the file: milliseconds an update of both sides, and the ratio with its quartiles."""
    ratios = [mine / other for mine, other in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    each = (1000.0 * statistics.median(side) / updates for side in zip(*pairs, strict=True))
    times = dict(zip(("dagdiff_ms", "bare_ms"), (f"{value:.4g}" for value in each), strict=True))
    spread = {"ratio": f"{middle:.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}"}
    return {**case._asdict(), "pairs": len(ratios), **times, **spread}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(options: Options, out: Path) -> str:
    """Measure the cases, write the file after each, and return the table."""
    rows: list[dict[str, Any]] = []
    with one_thread():
        for case in cases(options):
            rows.append(row(case, race(case, options.rounds if case.network == "mlp" else options.unet_rounds)))
            save_csv(out / "overhead.csv", rows)
        save_json(out / "machine.json", {**versions(1), "processor": processor(), "cores": os.cpu_count()})
    return table(rows)


def processor() -> str:
    """The name of this machine's CPU."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the ratios as a table in Markdown: a line a network, objective and batch size."""
    found = {Case(row["network"], row["objective"], int(row["batch"]), row["states"]): row for row in rows}
    lines = [
        "| network | objective | B | forward: bare, dagdiff (ms) | ratio | mixture: bare, dagdiff (ms) | ratio "
        "| mixture / forward: bare, dagdiff |",
        "|" + "---|" * 8,
    ]
    names = {"mlp": "MLP 3 x 128", "unet": "U-Net, 14 x 14"}
    for case in found:
        if case.states == "forward":
            pair = found[case], found[case._replace(states="mixture")]
            cells = [
                f"{row['bare_ms']}, {row['dagdiff_ms']} | {float(row['ratio']):.2f} "
                f"[{float(row['low']):.2f}, {float(row['high']):.2f}]"
                for row in pair
            ]
            dearer = (float(pair[1][side]) / float(pair[0][side]) for side in ("bare_ms", "dagdiff_ms"))
            cells.append(", ".join(f"{value:.2f}" for value in dearer))
            lines.append(
                f"| {' | '.join([names[case.network], OBJECTIVES[case.objective], str(case.batch), *cells])} |"
            )
    return "\n".join(lines)


def read(folder: Path) -> list[dict[str, str]]:
    """Read the lines that are kept in a folder."""
    return read_csv(folder / "overhead.csv")


def _sizes(sizes: Sequence[int]) -> list[tuple[str, int]]:
    return [("batch_sizes", size) for size in sizes]


def main() -> None:
    """Write the page's table from what is kept."""
    save_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), "overhead", table(read(KEPT))))


if __name__ == "__main__":
    main()
