"""The command line. ``dagdiff COMMAND --help`` explains each command; this page stays light and loads no torch.

A mistake of the user's ends with status 2 and one line that names the value, the problem and the cure.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USAGE = """\
usage: dagdiff COMMAND [options]

Diffusion distillation as imitation learning: DAgger for diffusion.

commands:
  distill   distil a teacher into a few-step student, and keep the run in a folder
  sample    draw points from the student of a run
  shift     measure a student's covariate shift, step by step
  bench     compare what students are trained on: a suite of runs, a table and a report
  teacher   train the learned teacher of a task (once; it is cached)
  list      name the tasks, objectives, experts, policies, drivers, curricula, thresholds or schedules there are

`dagdiff COMMAND --help` explains a command; `dagdiff --version` says which dagdiff this is.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 for a mistake of the user's."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from dagdiff import __version__

        print(f"dagdiff {__version__}")
        return 0
    return _guarded(words[0], words[1:])


def _guarded(command: str, words: Sequence[str]) -> int:
    """Run a command; a refusal becomes one line."""
    from dagdiff.checks import Refusal, check_in
    from dagdiff.dagger import NonFiniteLoss

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # parts of the user's own are named by import path
    try:
        COMMANDS[check_in("command", command, COMMANDS)](words)
    except (Refusal, NonFiniteLoss) as error:
        print(f"dagdiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dagdiff: stopped", file=sys.stderr)
        return 130
    return 0


def distill(words: Sequence[str]) -> None:
    """Distil a teacher into a few-step student, and keep the run in a folder.

    A part's own options follow its name: --objective distribution --objective.gan_weight 1e-3.
    """
    import yaml

    from dagdiff import config, run
    from dagdiff.experiment import Experiment

    words = config.spelled(words)
    parser = config.build_parser(words, "dagdiff distill")
    parser.description = distill.__doc__
    parser.add_argument("--out", type=Path | None, default=None, help="the folder to fill; it must be new or empty")
    parser.add_argument("--logger", default="csv", help="csv, tensorboard, wandb (offline) or mlflow")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; later options win")
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings as YAML and stop")
    if {"-h", "--help"} & set(words):
        print(config.help_text(parser), end="")
        return
    given = config.read(parser, [word for word in words if word != "--print_config"])
    config.check_settings(given)
    out, logger = given.pop("out"), given.pop("logger")
    given.pop("config"), given.pop("print_config")
    chosen = config.plain(given, parser)
    if "--print_config" in words:
        print(yaml.safe_dump(chosen, sort_keys=False), end="")
        return
    run.check_folder(_given(out, "--out"))
    found = run.distil(Experiment.build(chosen), out, logger=logger)["metrics"]
    print(f"energy distance {found['energy']:.4g}, W2 {found['w2']:.3g}")
    print(f"imitation loss {found['loss_own']:.3g} on own states, {found['loss_forward']:.3g} on forward states")
    print(f"the run is kept in {out}")


def sample(words: Sequence[str]) -> None:
    """Draw points from the student of a run; writes FILE.npz (x: points, noise: where they started) and FILE.png."""
    from dagdiff import config, plots, run
    from dagdiff.checkpoint import save_arrays
    from dagdiff.checks import Refusal, check_at_least

    parser = _parser("sample", sample)
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.add_argument("--num", type=int, default=2000, help="how many points")
    parser.add_argument("--seed", type=int, default=0, help="of start noise and fresh noise")
    parser.add_argument("--out", type=Path, default=Path("samples.npz"), help="the .npz file to write")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    given = config.read(parser, words)
    check_at_least("num", given.num, 1)
    if given.out.suffix != ".npz" or given.out.is_dir():
        raise Refusal(f"--out {given.out} must be a .npz file, no folder. Pass e.g. --out samples.npz.")
    experiment = run.load(given.folder, given.device, given.weights)
    points = experiment.sample(given.num, given.seed)
    noise, condition, _ = experiment.start(given.num, given.seed)
    save_arrays(given.out, x=points, noise=noise, **({} if condition is None else {"condition": condition}))
    plots.save(plots.scatter_panels({"student": points.numpy(force=True)}), given.out.with_suffix(".png"))
    print(f"{given.num} points in {given.out}, drawn in {given.out.with_suffix('.png')}")


def shift(words: Sequence[str]) -> None:
    """Measure the covariate shift of a run's student, step by step, and what is gained where its expert acts instead.

    Prints two tables and a verdict; writes shift.csv, shift.png, intervention.csv and intervention.png to the folder.
    """
    from dagdiff import config, plots, plots_shift, run
    from dagdiff.checks import check_at_least
    from dagdiff.metrics.intervention import format_interventions, measure_interventions, write_interventions
    from dagdiff.metrics.shift import format_table, measure_shift, verdict, write_table
    from dagdiff.rollout import draw

    parser = _parser("shift", shift)
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


def bench(words: Sequence[str]) -> None:
    """Compare what students are trained on: run a suite, print its table, write it and a report to a folder.

    Runs that results.json already holds with the same configuration are not run again. With --verify nothing is added:
    some runs that the folder holds are made again and compared.
    """
    from dagdiff import config, verdict
    from dagdiff.benchmarks.suite import spelled
    from dagdiff.report import write_report
    from dagdiff.results import Results, write_summary

    suite = _suite(words)
    parser = _parser("bench", bench)
    parser.add_argument("suite", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="a few minutes' worth: sets the options below")
    parser.add_argument("--workers", type=int, default=1, help="processes; one a core is best")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="the folder of results; one that holds some is continued"
    )
    parser.add_argument("--verify", type=int, default=0, help="make so many runs of the folder again, and compare")
    parser.add_argument("--verify_seed", type=int, default=0, help="chooses them")
    parser.add_class_arguments(suite.Suite, None)
    if "--quick" in words:
        parser.set_defaults(dataclasses.asdict(suite.QUICK))
    given = vars(config.read(parser, list(spelled(words, suite.Suite))))
    workers, out = given.pop("workers"), _given(given.pop("out"), "--out")
    if given["verify"]:
        _verify(suite, out, given["verify"], given["verify_seed"])
        return
    chosen = suite.Suite(**{option: given[option] for option in dataclasses.asdict(suite.QUICK)})
    found = suite.run(chosen, out, workers)
    if found["records"]:
        results = Results.load(out)
        write_summary(results, out / "summary.csv")
        print(verdict.table(results))
        print(f"report: {write_report(out)}")
    _tell_failures(list(found["failures"].values()), len(found["records"]))


def _verify(suite: Any, out: Path, count: int, seed: int) -> None:
    """Make some runs of a folder again and print a line for each; refuse if any disagrees."""
    from dagdiff.benchmarks.verify import verify
    from dagdiff.checks import Refusal
    from dagdiff.results import Results

    results = Results.load(out)
    found = verify(list(suite.cells(suite.Suite(**results.settings))), results, count, seed)
    print("\n".join(map(str, found)))
    wrong = sum(bool(each.wrong) for each in found)
    if wrong:
        raise Refusal(f"{wrong} of {len(found)} runs disagree with {out}. Compare the versions in its results.json.")


def _suite(words: Sequence[str]) -> Any:
    """Import the suite that the first word names; with no name but a call for help, the first there is."""
    from importlib import import_module

    from dagdiff.checks import Refusal, check_in

    name = next(iter(words), "")
    if name in ("-h", "--help"):
        name = next(iter(SUITES))
    if not name or name.startswith("-"):
        raise Refusal(f"the suite comes first: dagdiff bench SUITE [options], with SUITE one of {', '.join(SUITES)}.")
    return import_module(SUITES[check_in("suite", name, SUITES)])


def _tell_failures(failures: Sequence[str], finished: int) -> None:
    """Name the runs that came to nothing, after what the others brought has been shown."""
    from dagdiff.dagger import NonFiniteLoss

    if failures:
        told = "; ".join(failures)
        raise NonFiniteLoss(
            f"{len(failures)} run{'s' * (len(failures) > 1)} failed ({finished} records are kept): {told}"
        )


def teacher(words: Sequence[str]) -> None:
    """Train the learned teacher of a task on its whole world; it is cached by the content of its configuration."""
    from tqdm import tqdm

    from dagdiff import config
    from dagdiff.benchmarks.tasks import Teacher, make_task
    from dagdiff.schedule import CosineSchedule

    parser = _parser("teacher", teacher)
    parser.add_argument("--task", required=True, help="a task; its distillation set does not matter")
    parser.add_class_arguments(Teacher, None, skip={"task"})
    options = vars(config.read(parser, words))
    learner = Teacher(make_task(options.pop("task"), CosineSchedule()), **options)
    if learner.path.exists():
        print(f"already trained: {learner.path}")
        return
    with tqdm(learner.train(), total=-(-learner.updates // 100), unit="00 updates", disable=None) as bar:
        for loss in bar:
            bar.set_postfix(loss=f"{loss:.3f}")
    print(f"trained for {learner.updates} updates, last loss {loss:.3f}: {learner.path}")


def list_names(words: Sequence[str]) -> None:
    """Name the tasks, objectives, experts, policies, drivers, curricula, ... that there are, a line each."""
    from dagdiff import config
    from dagdiff.benchmarks.tasks import task_names
    from dagdiff.checks import check_in
    from dagdiff.parts import PARTS, resolve

    kinds = {f"{part}s": [part] for part in ("objective", "expert", "threshold", "driver")}
    kinds |= {"tasks": [], "policies": ["policy"], "curricula": ["curriculum"]}
    kinds |= {"schedules": ["schedule", "beta", "shares_ramp", "lr_ramp"]}
    parser = _parser("list", list_names)
    parser.add_argument("kind", help=", ".join(kinds))
    kind = check_in("kind", config.read(parser, words).kind, kinds)
    if kind == "tasks":
        print("\n".join(task_names()))
    for part in kinds[kind]:
        for name, path in PARTS[part].items():
            summary = (resolve(part, name).__doc__ or "").split("\n")[0]
            print(f"--{part} {name:<13} {summary}  [{path}]")


SUITES = {
    "toy2d": "dagdiff.benchmarks.toy2d",
    "study": "dagdiff.benchmarks.study",
    "imitation": "dagdiff.benchmarks.imitation",
    "peers": "dagdiff.benchmarks.peers",
}
"""Suite -> the module that holds it; see :mod:`dagdiff.benchmarks.suite` for what such a module offers."""

COMMANDS = {
    "distill": distill,
    "sample": sample,
    "shift": shift,
    "bench": bench,
    "teacher": teacher,
    "list": list_names,
}


def _parser(command: str, function: object) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"dagdiff {command}", description=function.__doc__, exit_on_error=False, allow_abbrev=False
    )


def _given(value: Path | None, option: str) -> Path:
    from dagdiff.checks import Refusal

    if value is None:
        raise Refusal(f"{option} is missing. Name a folder, e.g. {option} runs/first.")
    return value


if __name__ == "__main__":
    sys.exit(main())
