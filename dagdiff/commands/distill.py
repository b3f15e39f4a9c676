"""``dagdiff distill``: the whole of a run, from its settings to its folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal
from dagdiff.commands import check_given, manual
from dagdiff.runs.settings import Settings
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
    """Take as ``--policy`` the folder of a run, or a few-step pipeline's folder or hub id: what the student starts as.

    Of a run it has the same network, and starts where that one ended.
    """
    named = given.get("policy.class")
    if not isinstance(named, str) or not (Path(named) / "config.yaml").is_file():
        return _few_step(given, named) if isinstance(named, str) and "/" in named else given
    from dagdiff.runs.trust import check_registered

    file = Path(named) / "config.yaml"
    config = read_yaml(file)
    check_registered(config, file)
    _check_base(given, config, named)
    said = spread(config)
    kept = {name: value for name, value in said.items() if name.partition(".")[0] in ("policy", "stepwise")}
    timesteps = said.get("pipeline.timesteps")
    alike = not timesteps or str(len(timesteps)) == str(given.get("steps", Settings.steps))
    if alike and "pipeline.path" in said:
        kept["pipeline.timesteps"] = given.get("pipeline.timesteps", timesteps)
    return {**given, **kept, "start": named}


def _few_step(given: dict[str, Any], path: str) -> dict[str, Any]:
    """The settings of a student that starts as a few-step pipeline; with ``--policy.rank`` it trains adapters alone."""
    if given.get("task") != "pipeline":
        raise Refusal(
            f"--policy {path} would start from a pipeline, and --task {given.get('task', 'gaussians8-biased')} is "
            "none. Pass --task pipeline --pipeline.path EXPERT, or the folder of a run."
        )
    if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
        raise Refusal(
            f"--policy {path} holds neither a run (config.yaml) nor a pipeline (model_index.json). Name the --out "
            "folder of dagdiff distill or export, or one that save_pretrained wrote."
        )
    kind = "few-step-lora" if "policy.rank" in given else "few-step"
    return {**given, "policy.class": kind, "policy.path": path}


def _check_base(given: dict[str, Any], config: dict[str, Any], folder: str) -> None:
    """Refuse a run of adapters that stand on another network than this run's expert."""
    if (config.get("policy") or {}).get("class") != "lora":
        return
    before, now = config.get("pipeline") or {}, {"path": given.get("pipeline.path"), "lora": given.get("pipeline.lora")}
    for name, value in now.items():
        if before.get(name) != (os.path.abspath(value) if value and os.path.exists(value) else value):
            raise Refusal(
                f"the student of {folder} is adapters on {before.get('path')}, and this run's expert has other "
                f"weights. Merge them first: dagdiff export {folder} --out FEW, then --policy FEW."
            )


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
        _tell(report["metrics"], report["teacher"], out)
        if "nfe_gathered" in report:
            print(f"{report['nfe_gathered']:,} evaluations of the expert were paid for by {chosen['gathered']}")
        if report["teacher"]["behind"]:
            print(_behind(chosen))


def _tell(found: dict[str, float], expert: dict[str, Any], out: Path) -> None:
    """Print what a run came to: what students are judged by, W2, and what dagdiff's own metrics do not measure.

    Beside it stands the expert in the student's place, and their difference with its interval.
    """
    from dagdiff.metrics.statistics import Interval
    from dagdiff.report.glossary import DISTANCES, METRICS

    named = {metric: METRICS[metric].title or metric if metric in METRICS else metric for metric in found}
    shown = [metric for metric in found if metric in (*DISTANCES, "w2") or metric not in METRICS]
    print(", ".join(f"{named[metric]} {found[metric]:.4g}" for metric in shown))
    difference = Interval(*expert["difference"])
    print(
        f"the expert in its place: {DISTANCES[expert['metric']]} {expert['teacher']:.4g}; difference {difference:.2g}"
    )
    print(f"imitation loss {found['loss_own']:.3g} on student states, {found['loss_forward']:.3g} on forward states")
    print(f"the run is saved in {out}")


def _behind(chosen: dict[str, Any]) -> str:
    """Say that the student is behind its expert, and what to try."""
    steps = chosen["stages"][-1] if chosen["stages"] else chosen["steps"]
    now = {option: value for option in ("lr", "updates", "shares") if (value := chosen[option]) is not None}
    told = ", ".join(f"{option} {value}" for option, value in now.items())
    return (
        f"Behind the expert in {steps} steps, by more than chance explains. Try --lr ten times higher or lower, more "
        f"--updates, or other --shares; now {told}."
    )
