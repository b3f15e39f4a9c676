"""``dagdiff distill``: the whole of a run, from its settings to its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff.commands import check_given, manual
from dagdiff.runs.words import spell


def distill(words: Sequence[str]) -> None:
    """Distil a teacher into a few-step student, and keep the run in a folder."""
    given = spell(words, flags=("print_config",))
    if "help" in given:
        print(manual.text(given, str(distill.__doc__)), end="")
        return
    from dagdiff.reading import to_yaml
    from dagdiff.runs.config import complete

    out, logger, shown = (given.pop(name, None) for name in ("out", "logger", "print_config"))
    chosen = complete(given)
    if shown:
        print(to_yaml(chosen), end="")
        return
    folder = check_given(None if out is None else Path(out), "--out")
    _run(chosen, folder, logger or "csv")


def _run(chosen: dict[str, Any], out: Path, logger: str) -> None:
    """Train and keep the run, and print what it came to."""
    from dagdiff import engine
    from dagdiff.runs.experiment import Experiment
    from dagdiff.runs.folder import distil
    from dagdiff.runs.rehearsal import check_folder, check_logger, check_run

    check_folder(out)
    check_logger(logger)
    with engine.joined(chosen, lambda: check_run(Experiment.build(chosen), out, logger)):
        report = distil(Experiment.build(chosen), out, logger=logger)
    if report:
        _tell(report["metrics"], out)
        if "nfe_gathered" in report:
            print(f"{report['nfe_gathered']:,} evaluations of the expert were paid for by {chosen['gathered']}")
        if report["teacher"]["behind"]:
            print(_behind(report["teacher"], chosen))


def _tell(found: dict[str, float], out: Path) -> None:
    """Print what a run came to: what students are judged by, W2, and what dagdiff's own metrics do not measure."""
    from dagdiff.report.glossary import DISTANCES, METRICS

    named = {metric: METRICS[metric].title or metric if metric in METRICS else metric for metric in found}
    shown = [metric for metric in found if metric in (*DISTANCES, "w2") or metric not in METRICS]
    print(", ".join(f"{named[metric]} {found[metric]:.4g}" for metric in shown))
    print(f"imitation loss {found['loss_own']:.3g} on own states, {found['loss_forward']:.3g} on forward states")
    print(f"the run is kept in {out}")


def _behind(found: dict[str, Any], chosen: dict[str, Any]) -> str:
    """Say that the student is behind its teacher, by which number, and what to try."""
    from dagdiff.report.glossary import DISTANCES

    steps = chosen["stages"][-1] if chosen["stages"] else chosen["steps"]
    name = DISTANCES[found["metric"]]
    now = {option: value for option in ("lr", "updates", "shares") if (value := chosen[option]) is not None}
    told = ", ".join(f"{option} {value}" for option, value in now.items())
    return (
        f"Behind the expert, which in the student's place reaches {name} {found['teacher']:.4g} in {steps} steps; the "
        f"student's is "
        f"{found['student']:.4g} (difference {found['student'] - found['teacher']:.2g}, standard error "
        f"{found['error']:.2g}). Try --lr ten times higher or lower, more --updates, or other --shares; now {told}."
    )
