"""Configuration: what was given of a run, and the usual values of the rest, as checked settings.

A run is plain settings (:class:`dagdiff.runs.settings.Settings`) plus parts (:mod:`dagdiff.runs.parts`), whose own
arguments are options too: ``--expert mypkg.mine.MyExpert --expert.strength 2``. In YAML a part is ``expert: {class:
mypkg.mine.MyExpert, strength: 2}``. A part that has a parameter ``task`` is given the task. Words and mappings become
names and values in one place (:mod:`dagdiff.runs.words`); jsonargparse reads these once.
"""

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from dagdiff.checks import Refusal, check_path
from dagdiff.importing import reach_working_folder
from dagdiff.reading import has_aliases
from dagdiff.runs.parts import GIVEN, PARTS, resolve
from dagdiff.runs.recipes import Usual, usual
from dagdiff.runs.settings import Settings, check_settings
from dagdiff.runs.trust import names_code
from dagdiff.runs.words import Given, nested, spread
from dagdiff.tasks.names import read_name

Config = dict[str, Any]
"""A resolved configuration: what ``config.yaml`` holds."""

_LONGEST = 100_000  # characters of an option's value


def configure(settings: Mapping[str, Any]) -> Config:
    """Return the full configuration of a run of which only some settings are given; the rest take their defaults.

    Raises:
        Refusal: an unknown option, part or file, or a value that can't be; one line.
    """
    return complete(spread(settings))


def complete(given: Given) -> Config:
    """Return the full configuration of a run of which some names and values are given, as plain nested values."""
    parser = _parser(given)
    settings = _checked(parser, given)
    config: Config = yaml.safe_load(parser.dump(settings, skip_validation=True, skip_unset=False))
    few_step = "pipeline" in config and config["policy"]["class"] in ("few-step", "few-step-lora")
    if few_step and "pipeline.timesteps" not in given:
        config["pipeline"]["timesteps"] = _own_timesteps(config)
    return config


def _own_timesteps(config: Config) -> list[float] | None:
    """The timesteps that the few-step model has from which a student starts; None where they are the usual ones."""
    from dagdiff.pipelines.own_grid import own_timesteps  # it loads diffusers

    chosen, steps = config["pipeline"], (config["stages"] or [config["steps"]])[-1]
    if not chosen["path"] or not config["policy"]["path"]:
        return None
    return own_timesteps(config["policy"]["path"], chosen["path"], steps, chosen["sample_size"])


def typed(config: Mapping[str, Any]) -> Namespace:
    """Return a configuration as typed values, from which the objects of a run are made."""
    given = spread(config)
    return _checked(_parser(given), given)


def read(parser: ArgumentParser, given: Sequence[str] | Mapping[str, Any]) -> Namespace:
    """Let ``parser`` read words, or names and values; what it complains of becomes a one-line error."""
    try:
        found = parser.parse_args(given) if isinstance(given, Sequence) else parser.parse_object(_known(parser, given))
        for name, value in found.items():
            if isinstance(value, Path):
                check_path(f"--{name}" if f"--{name}" in parser._option_string_actions else name, value)
        return found
    except Refusal:
        raise
    except Exception as error:  # jsonargparse raises several kinds; all mean that the words are wrong
        words = given if isinstance(given, Sequence) else []
        names = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]
        strange = [name for name in names if name and f"--{name}" not in parser._option_string_actions]
        if strange:
            raise Refusal(_unrecognized(parser, strange[0], {})) from None
        text = re.sub(r'(?:Parser key|Key) "(.*?)":?', r"--\1:", str(error))
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
        reason = " ".join(line.strip(" -") for line in text.splitlines() if line.strip())
        raise Refusal(f"{reason}. See `{parser.prog} --help`.") from None


def _checked(parser: ArgumentParser, given: Given) -> Namespace:
    if names_code(given):
        reach_working_folder()
    settings = read(parser, given)
    for name, value in settings.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise Refusal(f"--{name} must fit into 64 bits; got one of {value.bit_length()}. Pass a smaller number.")
    check_settings(settings)
    return settings


def _check_text(name: str, value: str) -> None:
    """Reject text that no option takes: too long, with a zero byte, or YAML that would grow when it is read."""
    if len(value) > _LONGEST or "\0" in value:
        what = "a zero byte" if "\0" in value else f"{len(value):,} characters"
        raise Refusal(f"--{name} holds {what}, which no option takes. Pass a shorter value.")
    if has_aliases(value):
        raise Refusal(f"--{name} holds YAML aliases (*name), which are not read. Write the value out.")


def _known(parser: ArgumentParser, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and values nested, as the parser takes them; reject names that it lacks."""
    there = {action.dest for action in parser._actions}
    groups = {name.rpartition(".")[0] for name in there if not name.endswith(".help")}  # of options, and no options
    for name, value in given.items():
        if isinstance(value, str):
            _check_text(name, value)
        parents = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        if name not in there and not any(parent in there - groups for parent in parents):
            raise Refusal(_unrecognized(parser, name, given))
    return nested(given)


def _unrecognized(parser: ArgumentParser, name: str, given: Mapping[str, Any]) -> str:
    """The sentence about an option that there is not, with the nearest that there is.

    Args:
        parser: that lacks it.
        name: its name, "" for a stray word.
        given: names and values, as far as they are known.
    """
    there = {action.dest: action.default for action in parser._actions}
    part, dot, option = name.partition(".")
    options = [each for each in there if not each.endswith((".class", ".help"))]
    last = difflib.get_close_matches(option or name, {each.rpartition(".")[2] for each in options}, n=1, cutoff=0.8)
    near = (
        difflib.get_close_matches(name, options, n=1, cutoff=0.8)
        or [each for each in options if last and each.rpartition(".")[2] == last[0]][:1]
        or difflib.get_close_matches(name, options, n=1, cutoff=0.65)
    )
    hint = f" Did you mean --{near[0]}?" if near else ""
    chosen = given.get(f"{part}.class", there.get(f"{part}.class"))
    if dot and part in PARTS and chosen is not None:
        taken = [each.removeprefix(f"{part}.") for each in there if each.startswith(f"{part}.")]
        own = ", ".join(each for each in taken if each not in ("class", "help"))
        hint += f" The {part} {chosen} takes {own or 'no options'}."
    return f"unrecognized arguments: {f'--{name}' if name else given['']}.{hint} See `{parser.prog} --help`."


def _parser(given: Given) -> ArgumentParser:
    """Return the parser of a run: its settings, its parts, and the options of the parts that it takes."""
    parser = ArgumentParser(prog="dagdiff distill", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Settings, None)
    kind = read_name(str(given.get("task", Settings.task))).kind
    if kind.settings:
        parser.add_class_arguments(getattr(kind.imported(), kind.settings), "pipeline")
    taken: Usual = usual(given, Settings.task)
    for part, name in taken.parts.items():
        parser.add_argument(f"--{part}.class", type=str | None)
        if name is not None:
            made = resolve(part, name)
            add = parser.add_class_arguments if inspect.isclass(made) else parser.add_function_arguments
            add(made, part, skip={"task", *GIVEN.get(part, ())}, fail_untyped=False)
    there = {action.dest for action in parser._actions}
    parser.set_defaults({name: value for name, value in taken.values.items() if name in there})
    return parser
