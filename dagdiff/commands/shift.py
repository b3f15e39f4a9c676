"""``dagdiff shift``: the covariate shift of a run's student, what its expert's help gains, and what its errors cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dagdiff.checkpoint import save_csv
from dagdiff.checks import check_at_least, check_at_most, check_seed
from dagdiff.commands import MOST, add_batches, add_trust, check_batches, make_parser
from dagdiff.metrics.amplification import StepAmplification, format_amplification, measure_amplification
from dagdiff.metrics.intervention import SHARES, Intervention, format_interventions, measure_interventions
from dagdiff.metrics.shift import Shift, measure_shift
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.progress import Progress
from dagdiff.report import figures
from dagdiff.report.anatomy import conclusion, format_shift
from dagdiff.report.measured import save_ends
from dagdiff.report.shift import amplification_figure, intervention_figure, shift_figure
from dagdiff.rollout import draw
from dagdiff.runs import config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.runs.words import split
from dagdiff.tasks.plane import exact_expert


def shift(words: Sequence[str]) -> None:
    """Measure what each step of a student does wrong, what is gained where its expert acts instead, what errors cost.

    Prints tables, and in sentences which steps err and what to train on; writes shift.csv, intervention.csv and
    amplification.csv, each with its figure (.png), to the folder, and of images ends.png: one noise a column.
    """
    if "expert" in dict(split(words, flags=("trust_code",))):
        from dagdiff.commands.shift_pair import shift_pair  # only pipelines need diffusers

        return shift_pair(words)
    parser = make_parser("shift", shift)
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.add_argument("--num", type=int, default=2000, help="chains and forward states a step")
    parser.add_argument("--seed", type=int, default=0, help="of data and noise")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    add_batches(parser)
    add_trust(parser)
    given = config.read(parser, words)
    check_at_least("num", given.num, 10)
    check_at_most("num", given.num, MOST)
    check_batches(given.batch_size)
    check_seed("seed", given.seed)
    experiment = open_run(given.folder, given.device, given.weights, given.trust_code)
    experiment.rows = given.batch_size
    found = measure(experiment, given.num, given.seed, progress=True)
    kept = keep(found, given.folder, experiment.task.pictures)
    note = f"\n\n{_MATCHED}" if isinstance(experiment.objective, DistributionMatching) else ""
    print(f"{told(found)}{note}\n\nsaved in {given.folder}: {', '.join(kept)}")


class Found(NamedTuple):
    """What was measured, each under the name of its files."""

    shift: Shift
    intervention: list[Intervention]
    amplification: list[StepAmplification]


def measure(it: Experiment, num: int, seed: int, progress: bool = False) -> Found:
    """Measure the experiment's student on ``num`` chains, at nobody's NFE cost; ``seed`` fixes data and noise."""
    parts, steps = (*it.measured, it.sampler, it.times), len(it.times) - 1
    generator = it.generator(7, seed)
    x0, condition = draw(it.task.data, num, generator, it.task.conditional)
    truth, mixture = it.task.reference(num, it.generator(4, seed)), getattr(it.task.world, "mixture", None)
    density = None if mixture is None or condition is not None else exact_expert(it.task).log_density
    total = 3 * steps + len(SHARES)  # each step in each of the three measurements, and each share of the expert's
    with Progress("shift", total, shown=progress) as bar, it.expert.ledger.free():
        shifts = measure_shift(*parts, x0, condition, generator, density, truth, bar.advance)
        noise, condition, generator = it.start(num, seed)
        acted = measure_interventions(*parts, noise, truth, generator, condition, tell=bar.advance)
        noise, condition, generator = it.start(num, seed)
        costs = measure_amplification(*parts, noise, condition, generator, bar.advance)
    return Found(shifts, acted, costs)


def keep(found: Found, folder: Path, pictures: Callable[[Tensor], Tensor]) -> list[str]:
    """Write a table and a figure of each, and the ends where they are images; return the names of the files."""
    tables = {**found._asdict(), "shift": found.shift.rows}
    for name, rows in tables.items():
        save_csv(folder / f"{name}.csv", [row.as_row() for row in rows])
    figures.save(shift_figure(found.shift.rows), folder / "shift.png")
    figures.save(intervention_figure(found.intervention), folder / "intervention.png")
    figures.save(amplification_figure(found.amplification), folder / "amplification.png")
    names = [f"{name}.{kind}" for name in Found._fields for kind in ("csv", "png")]
    return [*names, *save_ends(found.shift, folder, pictures)]


def told(found: Found) -> str:
    """Return the tables, with what the first advises."""
    costs = f"the error made at each step, and its cost at the end:\n{format_amplification(found.amplification)}"
    return "\n\n".join(
        (format_shift(found.shift), conclusion(found.shift), format_interventions(found.intervention), costs)
    )


_MATCHED = (
    "note: this student was trained by distribution matching, which asks for the teacher's distribution and not for "
    "its guess; errors of steps are large in any such student. Trust the energy distances and the classifier"
)
