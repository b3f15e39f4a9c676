"""``dagdiff distill``: the whole of a run, from its settings to its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal
from dagdiff.commands import check_given, manual
from dagdiff.runs.words import read_yaml, spell, spread


def distill(words: Sequence[str]) -> None:
    """Distil a teacher into a few-step student, and save the run in a folder.

    A run that was stopped is resumed by the same command, or by --resume FOLDER alone, as if it had never stopped.
    """
    given = spell(words, flags=("print_config", "fresh", "trust_code"))
    if "help" in given:
        print(manual.text(given, str(distill.__doc__)), end="")
        return
    from dagdiff.reading import to_yaml
    from dagdiff.runs.config import complete

    own = {
        name: given.pop(name, None)
        for name in ("out", "logger", "save_every", "look_every", "fresh", "resume", "trust_code")
    }
    shown, resumed = given.pop("print_config", False), own["resume"]
    if resumed is not None:
        given = _kept(Path(resumed), given, bool(own["trust_code"]))
    chosen = complete(_started(given))
    if shown:
        print(to_yaml(chosen), end="")
        return
    out = None if own["out"] is None else Path(own["out"])
    folder = check_given(out, "--out") if resumed is None else Path(resumed)
    if out not in (None, folder):
        raise Refusal(f"--resume {resumed} fills that folder, not --out {out}. Leave --out away.")
    told = own["logger"] or "csv", _minutes(own["save_every"]), bool(own["fresh"]), _rounds(own["look_every"])
    _run(chosen, folder, *told)


def _started(given: dict[str, Any]) -> dict[str, Any]:
    """Take the folder of a run as ``--policy``: a student of the same network, which starts where that one ended."""
    named = given.get("policy.class")
    if not isinstance(named, str) or not (Path(named) / "config.yaml").is_file():
        return given
    from dagdiff.runs.trust import check_registered

    file = Path(named) / "config.yaml"
    config = read_yaml(file)
    check_registered(config, file)
    kept = {name: value for name, value in spread(config).items() if name.partition(".")[0] in ("policy", "stepwise")}
    return {**given, **kept, "start": named}


def _kept(folder: Path, given: dict[str, Any], trusted: bool) -> dict[str, Any]:
    """Return the settings of the run in a folder, and what is given beside them."""
    from dagdiff.runs.trust import check_registered

    file = folder / "config.yaml"
    if not file.exists():
        raise Refusal(f"--resume {folder} holds no run: config.yaml is missing. Name the --out folder of a run.")
    config = read_yaml(file)
    if not trusted:
        check_registered(config, file)
    return {**spread(config), **given}


def _minutes(text: Any) -> float:
    try:
        return 5.0 if text is None else float(text)
    except ValueError:
        raise Refusal(f"--save_every must be a number of minutes; got {text!r}. Pass e.g. --save_every 5.") from None


def _rounds(text: Any) -> int:
    told = "0" if text is None else str(text)
    if not told.isdecimal():
        raise Refusal(f"--look_every must be a number of rounds; got {text!r}. Pass e.g. --look_every 5.")
    return int(told)


def _run(chosen: dict[str, Any], out: Path, logger: str, save_every: float, fresh: bool, look_every: int) -> None:
    """Train and keep the run, and print what it came to."""
    from dagdiff import engine
    from dagdiff.jobs.stops import Stopped, stoppable
    from dagdiff.runs.experiment import Experiment
    from dagdiff.runs.folder import distil
    from dagdiff.runs.rehearsal import check_logger, check_run
    from dagdiff.runs.standing import standing

    standing(out)
    check_logger(logger)
    try:
        with stoppable(), engine.joined(chosen, lambda: check_run(Experiment.build(chosen), logger)):
            report = distil(Experiment.build(chosen), out, True, logger, save_every, fresh, look_every)
    except Stopped as stop:
        told = "stopped; the same command resumes the run" if str(stop) == "stopped" else str(stop)
        raise Stopped(told, stop.status) from None
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
    print(f"imitation loss {found['loss_own']:.3g} on student states, {found['loss_forward']:.3g} on forward states")
    print(f"the run is saved in {out}")


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
