"""``dagdiff bench``: a suite of runs, its table and its report; or some of its runs made again."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from dagdiff.benchmarks.running.cells import Shard
from dagdiff.benchmarks.running.executor import run_suite
from dagdiff.benchmarks.running.verify import conclude, verify
from dagdiff.checks import Refusal, check_at_least, check_at_most, check_in, check_seed
from dagdiff.commands import USUAL, add_executor, add_trust, check_given, help_of, make_executor, make_parser
from dagdiff.jobs.stops import stoppable
from dagdiff.report.page import write_report
from dagdiff.report.results import Results
from dagdiff.report.summary import write_summary
from dagdiff.report.terminal import table
from dagdiff.round import NonFiniteLoss
from dagdiff.runs import config
from dagdiff.runs.parts import resolve
from dagdiff.runs.settings import lists_of
from dagdiff.runs.trust import check_plain, check_registered
from dagdiff.runs.words import listed, metric_names, split

SUITES = {
    "toy2d": "dagdiff.benchmarks.suites.toy2d",
    "study": "dagdiff.benchmarks.suites.study",
    "imitation": "dagdiff.benchmarks.suites.imitation",
    "images": "dagdiff.benchmarks.suites.images",
    "peers": "dagdiff.benchmarks.suites.peers",
    "horizon": "dagdiff.benchmarks.suites.horizon",
    "labels": "dagdiff.benchmarks.suites.labels",
}
"""Suite -> the module that holds it; see :mod:`dagdiff.benchmarks.running.executor` for what such a module offers."""

MEASUREMENTS = {
    name: f"dagdiff.benchmarks.measure.{name}"
    for name in ("overhead", "cost", "compute", "scale", "gpu", "steps", "distillbench")
}
"""Measurement, of this machine or of one thing about students -> its module, which offers ``Options`` and
``measure(options, out)``, the table."""

_FLAGS = ("quick", "tiny", "trust_code")


def bench(words: Sequence[str]) -> None:
    """Compare what students are trained on: run a suite, print its table, write it and a report to a folder.

    Runs that the folder already holds with the same configuration are not run again, and several commands, here or on
    other machines, may fill one folder. With --verify nothing is added: some runs that the folder holds are made again
    and compared.
    """
    pairs = [("executor.class" if name == "executor" else name, text) for name, text in split(words, _FLAGS)]
    metrics = [each for name, text in pairs if name == "metric" for each in metric_names(text)]
    said = {name: text for name, text in pairs if name != "metric"}
    said["suite"] = said.pop("", "")
    if said["suite"] in MEASUREMENTS:
        _measure(said)
        return
    suite, parser = _suite(said), make_parser("bench", bench)
    parser.add_argument("suite", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="a few minutes' worth: sets the options below")
    parser.add_argument("--workers", type=int, default=1, help="runs under way at once: here processes, one a core")
    parser.add_argument("--shard", type=str | None, default=None, help="K/N: only the K-th of N parts of the runs")
    executor = add_executor(parser, said.get("executor.class", USUAL))
    parser.add_argument(
        "--out", type=Path | None, default=None, help="the folder of results; one that holds some is continued"
    )
    parser.add_argument("--verify", type=int, default=0, help="make so many runs of the folder again, and compare")
    parser.add_argument("--verify_seed", type=int, default=0, help="chooses them")
    add_trust(parser)
    parser.add_argument("--metric", type=str | None, default=None, help="more metrics, comma-separated or repeated")
    parser.add_class_arguments(suite.Suite, None)
    if said.get("quick"):
        parser.set_defaults(dataclasses.asdict(suite.QUICK))
    if "help" in said:
        print(help_of(parser), end="")
        return
    said |= {name: listed(said[name]) for name in lists_of(suite.Suite) if name in said}
    given = vars(config.read(parser, said))
    check_seed("verify_seed", given["verify_seed"])
    for name in ("workers", "seeds", "verify"):
        check_at_most(name, given.get(name, 0), 10_000)
    check_at_least("workers", given["workers"], 1)
    for name in metrics:
        resolve("metric", name)
    workers, out = given.pop("workers"), check_given(given.pop("out"), "--out")
    shard = Shard() if given["shard"] is None else Shard.read(given["shard"])
    if metrics:
        named = metric_names(given["settings"].get("metric") or [])
        given["settings"] = {**given["settings"], "metric": [*named, *metrics]}
    if given["verify"]:
        _verify(suite, out, given["verify"], given["verify_seed"], given["trust_code"])
        return
    chosen = suite.Suite(**{option: given[option] for option in dataclasses.asdict(suite.QUICK)})
    told = {**vars(given["executor"]), "workers": workers, "out": out}
    pool = None if told["class"] == USUAL else partial(make_executor, executor, told)
    with stoppable():
        found = run_suite(suite, chosen, out, workers, pool, shard)
    if found["records"]:
        results = Results.load(out)
        write_summary(results, out / "summary.csv")
        print(table(results))
        print(f"report: {write_report(out)}")
    _tell_failures(list(found["failures"].values()), len(found["records"]))


def _measure(said: dict[str, str]) -> None:
    """Measure this machine: print the table, and write it to a folder."""
    module, parser = import_module(MEASUREMENTS[said["suite"]]), make_parser("bench", _measure)
    parser.add_argument("suite", help=", ".join(MEASUREMENTS))
    parser.add_argument("--out", type=Path | None, default=None, help="the folder of the measurement")
    parser.add_class_arguments(module.Options, None)
    if "help" in said:
        print(parser.format_help(), end="")
        return
    given = vars(
        config.read(parser, {**said, **{name: listed(said[name]) for name in lists_of(module.Options) if name in said}})
    )
    out = check_given(given.pop("out"), "--out")
    del given["suite"]
    print(module.measure(module.Options(**given), out))


def _verify(suite: Any, out: Path, count: int, seed: int, trust_code: bool) -> None:
    """Make some runs of a folder again and print a line for each; reject if any disagrees."""
    results = Results.load(out)
    file = out / "results.json"
    chosen = _kept_suite(suite, results.settings, file, trust_code)
    try:
        wanted = list(suite.cells(chosen))
    except Refusal as error:
        raise Refusal(f"the settings in {file} are not this suite's: {error}") from None
    found = verify(wanted, results, count, seed)
    print("\n".join([*map(str, found), conclude(found)]))
    wrong = sum(bool(each.wrong) for each in found)
    if wrong:
        raise Refusal(f"{wrong} of {len(found)} runs disagree with {out}. Compare the versions in its results.json.")


def _kept_suite(suite: Any, settings: dict[str, Any], file: Path, trust_code: bool) -> Any:
    """Return the options of a suite that a file holds; reject foreign ones, and such as name code."""
    parser = make_parser("bench", bench)
    parser.add_class_arguments(suite.Suite, None)
    check_plain(settings, file)
    try:
        chosen = vars(config.read(parser, settings))
    except Refusal as error:
        raise Refusal(f"the settings in {file} are not this suite's: {error} Name a folder that it wrote.") from None
    if not trust_code:
        check_registered(chosen["settings"], file)
        for option, part in {"objectives": "objective", "students": "policy"}.items():
            for name in chosen.get(option, []):
                check_registered({part: name}, file)
    return suite.Suite(**chosen)


def _suite(said: Mapping[str, Any]) -> Any:
    """Import the suite that was named; with no name but a call for help, the first there is."""
    name = said["suite"] or ("help" in said and next(iter(SUITES)))
    if not name:
        known = ", ".join([*SUITES, *MEASUREMENTS])
        raise Refusal(f"the suite comes first: dagdiff bench SUITE [options], with SUITE one of {known}.")
    return import_module(SUITES[check_in("suite", name, (*SUITES, *MEASUREMENTS))])


def _tell_failures(failures: Sequence[str], finished: int) -> None:
    """Name the runs that came to nothing, after what the others brought has been shown."""
    if failures:
        told = "; ".join(failures)
        raise NonFiniteLoss(
            f"{len(failures)} run{'s' * (len(failures) > 1)} failed ({finished} records are kept): {told}"
        )
