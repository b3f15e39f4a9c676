"""``dagdiff distill``: the whole of a run, from its settings to its folder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dagdiff import engine
from dagdiff.commands import check_given
from dagdiff.report.glossary import DISTANCES, METRICS
from dagdiff.runs import config, folder
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.rehearsal import check_folder, check_logger


def distill(words: Sequence[str]) -> None:
    """Distil a teacher into a few-step student, and keep the run in a folder.

    A part's own options follow its name: --objective distribution --objective.gan_weight 1e-3.
    """
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
    check_folder(check_given(out, "--out"))
    check_logger(logger)
    with engine.joined(partial(Experiment.build, chosen)):
        report = folder.distil(Experiment.build(chosen), out, logger=logger)
    if report:
        _tell(report["metrics"], out)
        if report["teacher"]["behind"]:
            print(_behind(report["teacher"], chosen))


def _tell(found: dict[str, float], out: Path) -> None:
    """Print what a run came to: what students are judged by, W2, and what dagdiff's own metrics do not measure."""
    named = {metric: METRICS[metric].title or metric if metric in METRICS else metric for metric in found}
    shown = [metric for metric in found if metric in (*DISTANCES, "w2") or metric not in METRICS]
    print(", ".join(f"{named[metric]} {found[metric]:.4g}" for metric in shown))
    print(f"imitation loss {found['loss_own']:.3g} on own states, {found['loss_forward']:.3g} on forward states")
    print(f"the run is kept in {out}")


def _behind(found: dict[str, Any], chosen: config.Config) -> str:
    """Say that the student is behind its teacher, by which number, and what to try."""
    steps = chosen["stages"][-1] if chosen["stages"] else chosen["steps"]
    name = DISTANCES[found["metric"]]
    now = {option: value for option in ("lr", "updates", "shares") if (value := chosen[option]) is not None}
    told = ", ".join(f"{option} {value}" for option, value in now.items())
    return (
        f"Behind the teacher, whose own {steps} steps reach {name} {found['teacher']:.4g}; the student's is "
        f"{found['student']:.4g} (difference {found['student'] - found['teacher']:.2g}, standard error "
        f"{found['error']:.2g}). Try --lr ten times higher or lower, more --updates, or other --shares; now {told}."
    )
