"""The manual of ``dagdiff distill``: its options, in the order in which a user decides about them.

Help and documentation are made from these groups. What a run takes is described without importing it, so that help
comes at once.
"""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from dagdiff.runs.described import REQUIRED, Described, Option, describe, describe_part, describe_source
from dagdiff.runs.parts import HELP, PARTS, known
from dagdiff.runs.recipes import usual
from dagdiff.runs.settings import Settings
from dagdiff.tasks.names import read_name

GROUPS = {
    "What to distil": ("task", "expert", "guidance", "schedule", "data", "size", "skip_broken", "value_range", "out"),
    "What student": ("objective", "steps", "policy", "start", "stages", "stepwise", "threshold", "epsilon_scale"),
    "Which states": (
        "shares", "shares_ramp", "beta", "driver", "per_chain", "curriculum", "reuse", "rounds_kept", "max_age",
        "input_perturbation", "gathered",
    ),
    "How long, at what cost": (
        "updates", "rounds", "batch_size", "chains", "substeps", "solver", "lr", "lr_ramp", "betas", "clip", "ema",
    ),
    "Hardware": ("device", "bf16", "compile", "adam8bit", "accumulate", "memmap"),
    "Measure and log": ("samples", "metric", "heldout", "seed", "look_every", "logger"),
    "Stop and resume": ("resume", "fresh", "save_every", "on_nonfinite", "trust_code"),
    "Settings file": ("config", "print_config"),
}  # fmt: skip
"""Title -> options. Settings and parts that stand nowhere here follow under a title of their own."""

EXAMPLES = """\
examples:
  dagdiff distill --task grid25-biased --objective consistency --out runs/grid
  dagdiff distill --task digits-biased --objective progressive --stages 8,4,2 --out runs/digits
  dagdiff distill --task pipeline --pipeline.path FOLDER --policy lora --out runs/adapters

The groups follow the order of the decisions. Defaults are those of the task and the objective that are named.
Parts, such as --objective, have a short name or an import path (pkg.mine.MyObjective), and options of their own:
--objective distribution --objective.gan_weight 1e-3. `dagdiff list objectives` says what each one is; `dagdiff distill
--objective distribution --help` shows its options."""

_OWN = [
    Option("out", None, "Path", "folder to fill; new, empty, or that of the same run, which is then resumed."),
    Option("logger", "csv", "str", "csv, tensorboard, wandb (offline) or mlflow."),
    Option(
        "look_every", 0, "int", "rounds after which samples are drawn and scored, in looks/ and the logger; 0: never."
    ),
    Option("resume", None, "Path", "folder of a run that was stopped: resume it, with its own settings."),
    Option("fresh", False, "", "delete the run that the folder holds, and start over."),
    Option("save_every", 5.0, "float", "minutes between two checkpoints at most; rounds that take a while save too."),
    Option("trust_code", False, "", "with --resume: run the code that the folder's settings name by import path."),
    Option("config", None, "Path", "YAML file of settings; later options win."),
    Option("print_config", None, "", "print the resolved settings as YAML and stop."),
]
"""What the command has beside settings and parts."""


class Group(NamedTuple):
    """Options that belong together."""

    title: str
    options: list[Option]


def groups(given: Mapping[str, Any]) -> list[Group]:
    """Return all options of a run, grouped; defaults and the options of parts are those of what is given."""
    parts, values = usual(given, Settings.task)
    said = values | dict(given)
    told = {option.name: option for option in [*_OWN, *describe(Settings).options]}
    told |= {part: Option(part, None, "class", f"{HELP[part]}: {known(part)}.") for part in PARTS}
    told = {
        name: option._replace(value=said.get(f"{name}.class" if name in PARTS else name, option.value))
        for name, option in told.items()
    }
    placed = {name for names in GROUPS.values() for name in names}
    found = [Group(title, [told[name] for name in names]) for title, names in GROUPS.items()]
    found.append(Group("More", [option for name, option in told.items() if name not in placed]))
    kind = read_name(str(said.get("task", Settings.task))).kind
    described = {part: describe_part(part, name) for part, name in parts.items() if name is not None}
    if kind.settings:
        described = {"pipeline": describe_source(f"{kind.module}.{kind.settings}"), **described}
    for owner, each in described.items():
        name = parts.get(owner)
        title = f"Options of --{owner} {name}: {without_stop(each.summary)}" if name else f"Options of --task {owner}"
        found.append(Group(title, _prefixed(owner, each, said)))
    return [group for group in found if group.options]


def text(given: Mapping[str, Any], summary: str) -> str:
    """Return the help of ``dagdiff distill`` for what is given."""
    parser = argparse.ArgumentParser(
        prog="dagdiff distill",
        usage="dagdiff distill [options] --out FOLDER",
        description=f"{inspect.cleandoc(summary)}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for group in groups(given):
        section = parser.add_argument_group(group.title)
        for option in group.options:
            meaning = f"{_sentence(option.meaning)}{_default(option)}".replace("%", "%%")
            if option.type:
                section.add_argument(f"--{option.name}", metavar=_metavar(option.type), help=meaning)
            else:
                section.add_argument(f"--{option.name}", action="store_true", help=meaning)
    return parser.format_help()


def without_stop(meaning: str) -> str:
    """A sentence without its full stop; dots that stand for more stay."""
    return meaning if meaning.endswith("..") else meaning.removesuffix(".")


def _sentence(meaning: str) -> str:
    """A meaning with a capital and a full stop; a value that it begins with stays as it is spelt."""
    if not meaning:
        return ""
    whole = meaning if meaning.endswith(".") else f"{meaning}."
    return whole if whole.split(",")[0].strip() in ("csv", "auto") else whole[:1].upper() + whole[1:]


def written(value: Any) -> str:
    """A default as a user would spell it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _prefixed(owner: str, described: Described, said: Mapping[str, Any]) -> list[Option]:
    names = [f"{owner}.{option.name}" for option in described.options]
    return [
        option._replace(name=name, value=said.get(name, option.value))
        for name, option in zip(names, described.options, strict=True)
    ]


def _default(option: Option) -> str:
    if option.value is REQUIRED:
        return " Required."
    return "" if option.value in (None, []) else f" Default: {written(option.value)}."


def _metavar(kind: str) -> str:
    plain = kind.removesuffix(" | None")
    known = {"bool": "true|false", "int": "N", "float": "X", "str": "TEXT", "Path": "PATH", "class": "NAME"}
    return "A,B,..." if plain.startswith(("list", "tuple")) else known.get(plain, "VALUE")
