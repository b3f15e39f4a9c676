"""``dagdiff shift``: the covariate shift of a run's student, and what is gained where its expert acts instead."""

from collections.abc import Sequence
from pathlib import Path

from dagdiff import config, plots, plots_shift, run
from dagdiff.checks import check_at_least
from dagdiff.commands import make_parser
from dagdiff.metrics.intervention import format_interventions, measure_interventions, write_interventions
from dagdiff.metrics.shift import format_table, measure_shift, verdict, write_table
from dagdiff.rollout import draw


def shift(words: Sequence[str]) -> None:
    """Measure the covariate shift of a run's student, step by step, and what is gained where its expert acts instead.

    Prints two tables and a verdict; writes shift.csv, shift.png, intervention.csv and intervention.png to the folder.
    """
    parser = make_parser("shift", shift)
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.add_argument("--num", type=int, default=2000, help="chains and forward states a step")
    parser.add_argument("--seed", type=int, default=0, help="of data and noise")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    given = config.read(parser, words)
    check_at_least("num", given.num, 10)
    it = run.load(given.folder, given.device, given.weights)
    generator = it.generator(7, given.seed)
    x0, condition = draw(it.task.data, given.num, generator, it.task.conditional)
    parts = it.policy, it.expert, it.transition, it.times
    rows = measure_shift(*parts, x0, condition, generator)
    noise, condition, generator = it.start(given.num, given.seed)
    truth = it.task.world.reference(given.num, it.generator(4, given.seed))
    runs = measure_interventions(*parts, noise, truth, generator, condition)
    write_table(rows, given.folder / "shift.csv")
    plots.save(plots.shift_figure(rows), given.folder / "shift.png")
    write_interventions(runs, given.folder / "intervention.csv")
    plots.save(plots_shift.intervention_figure(runs), given.folder / "intervention.png")
    print(f"{format_table(rows)}\n\n{verdict(rows)}\n\n{format_interventions(runs)}\n")
    print(f"kept in {given.folder}: shift.csv, shift.png, intervention.csv, intervention.png")
