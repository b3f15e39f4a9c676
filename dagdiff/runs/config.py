"""Configuration: from words on the command line, or a YAML file, to checked settings.

A run is plain settings (:class:`Settings`) plus parts (:mod:`dagdiff.runs.parts`), whose own arguments are options too:
``--expert mypkg.mine.MyExpert --expert.strength 2``. In YAML a part is ``expert: {class: mypkg.mine.MyExpert, strength:
2}``. A part that has a parameter ``task`` is given the task.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from dagdiff.checks import Refusal, check_above, check_at_least, check_seed, check_share, check_shares
from dagdiff.engine import find_device
from dagdiff.runs.parts import (
    DEFAULTS,
    GIVEN,
    HELP,
    PARTS,
    canonical,
    known,
    reach_working_folder,
    resolve,
    usual_parts,
)
from dagdiff.runs.recipes import PLANE, pipeline_kind, recipe
from dagdiff.runs.trust import check_plain, names_code
from dagdiff.strategies.halving import check_stages
from dagdiff.tasks.names import PIPELINE, read_name

Config = dict[str, Any]
"""A resolved configuration: what ``config.yaml`` holds."""


@dataclass
class Settings:
    """Distil a teacher into a few-step student.

    Args:
        task: the world and its distillation set, e.g. grid25-biased; `dagdiff list tasks` names them all; or pipeline,
            with --pipeline.path.
        shares: parts of a batch that are forward-diffused, from student chains, from expert chains; they sum to 1.
        steps: K, the student's steps.
        stages: true progressive halving: the steps of each stage, e.g. 16,8,4; the student of one teaches the next.
        updates: of the student, over all rounds (of each stage); the first rounds make one more if need be.
        rounds: of gathering and training.
        batch_size: rows of an update.
        chains: rolled in a round.
        substeps: DDIM sub-steps of the expert within one student step.
        guidance: classifier-free weight of the expert on labelled tasks.
        per_chain: let one driver keep a chain to its end.
        stepwise: give the student a network of its own for each step.
        input_perturbation: noise that forward states hold beside their own, as a part of it; 0 adds none.
        epsilon_scale: what the noise in the student's guesses is divided by when it samples; 1 leaves it.
        rounds_kept: rounds of student states that stay in the aggregate; null keeps all, 1 the newest.
        max_age: drop student states older than this many updates.
        lr: learning rate of Adam.
        betas: Adam's decay rates of the first and the second moment.
        clip: the largest gradient norm.
        ema: decay of the averaged student, which is the one saved, (1 + n) / (10 + n) at most after n updates; 0 saves
            the last.
        bf16: run student and expert networks in bfloat16 where that is safe (autocast); weights keep their precision.
        accumulate: parts of a batch that go through the student one after the other, to save memory.
        memmap: a folder for the aggregate, memory-mapped; null keeps it in memory.
        heldout: chains of the measurement that closes a round; 0 measures nothing.
        samples: points drawn from the student for its final score.
        size: of your own pictures: crop each in its middle to a square of that side; null leaves them as they are.
        skip_broken: train without those of your own pictures that can't be read, instead of refusing them all.
        seed: of everything random, from 0 to 2^32 - 1.
        device: auto, cpu, cuda, cuda:1, ...
    """

    task: str = "gaussians8-biased"
    shares: tuple[float, float, float] = PLANE.settings["shares"]
    steps: int = 4
    stages: list[int] | None = None
    updates: int = PLANE.settings["updates"]
    rounds: int = PLANE.settings["rounds"]
    batch_size: int = PLANE.settings["batch_size"]
    chains: int = PLANE.settings["chains"]
    substeps: int = PLANE.settings["substeps"]
    guidance: float = 1.0
    per_chain: bool = False
    stepwise: bool = False
    input_perturbation: float = 0.0
    epsilon_scale: float = 1.0
    rounds_kept: int | None = None
    max_age: int | None = None
    lr: float = PLANE.settings["lr"]
    betas: tuple[float, float] = PLANE.settings["betas"]
    clip: float = PLANE.settings["clip"]
    ema: float = 0.0
    bf16: bool = False
    accumulate: int = 1
    memmap: str | None = None
    heldout: int = PLANE.settings["heldout"]
    samples: int = PLANE.settings["samples"]
    size: int | None = None
    skip_broken: bool = False
    seed: int = 0
    device: str = "auto"


def configure(settings: Mapping[str, Any]) -> Config:
    """Return the full configuration of a run of which only some settings are given; the rest take their defaults."""
    words = spelled(list(flatten(settings)))
    return plain(parse(words), build_parser(words, "dagdiff distill"))


def parse(arguments: Sequence[str], prog: str = "dagdiff distill") -> Namespace:
    """Parse the settings and parts of a run into checked values; of two words for one setting the later wins.

    Raises:
        Refusal: an unknown option, part or file, or a value of the wrong type; one line.
    """
    words = spelled(arguments)
    settings = read(build_parser(words, prog), words)
    check_settings(settings)
    return settings


def read(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Let ``parser`` read the words; what it complains of becomes a one-line refusal."""
    if names_code(words):
        reach_working_folder()
    try:
        return parser.parse_args([word for word in words if word])
    except Exception as error:  # jsonargparse raises several kinds; all mean that the words are wrong
        text = re.sub(r'Parser key "(.*?)":?', r"--\1:", str(error))
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
        reason = " ".join(line.strip(" -") for line in text.splitlines() if line.strip())
        raise Refusal(f"{reason}. See `{parser.prog} --help`.") from None


def build_parser(words: Sequence[str], prog: str) -> ArgumentParser:
    """Return the parser of a run whose parts are named in spelled ``words``; their own arguments are options too.

    What the words leave open is resolved here: the task's usual parts, and the recipe of what is trained.
    """
    parser = ArgumentParser(prog=prog, usage=f"{prog} [options]", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Settings, None)
    task = _last(words, "--task") or Settings.task
    named = {part: name for part in PARTS if (name := _last(words, f"--{part}.class"))}
    kind = read_name(task).kind
    usual = usual_parts(task, named.get("expert"))
    chosen = {part: named.get(part) or usual.get(part) or DEFAULTS.get(part, {}).get("class") for part in PARTS}
    trained = kind.recipe
    if kind is PIPELINE:
        parser.add_class_arguments(getattr(kind.imported(), kind.settings), "pipeline")
        chosen["schedule"] = named.get("schedule")
        trained = pipeline_kind(_last(words, "--pipeline.path"), str(chosen["policy"]))
    _refuse_second_teacher(words, named, usual)
    tuned = recipe(trained, str(chosen["objective"]))
    for part, name in chosen.items():
        parser.add_argument(f"--{part}.class", type=str | None, default=name, help=f"{HELP[part]}; {known(part)}")
        if name is None:
            continue
        made = resolve(part, name)
        add = parser.add_class_arguments if inspect.isclass(made) else parser.add_function_arguments
        add(made, part, skip={"task", *GIVEN.get(part, ())}, fail_untyped=False)
        if name == DEFAULTS.get(part, {}).get("class"):
            tuned = {**{f"{part}.{key}": value for key, value in DEFAULTS[part].items() if key != "class"}, **tuned}
    there = {action.dest for action in parser._actions}
    parser.set_defaults({name: value for name, value in tuned.items() if name in there})
    return parser


def _refuse_second_teacher(words: Sequence[str], named: Mapping[str, str], usual: Mapping[str, str]) -> None:
    """Refuse a second teacher: where the expert is a learned network, a student that starts from one starts from it."""
    policy = named.get("policy", usual["policy"])
    if usual["policy"] == "expert" and policy in ("teacher", "unet"):
        raise Refusal(
            f"--policy {policy} describes a second teacher beside the expert {usual['expert']!r}, from which the "
            "student starts. Leave --policy away, or pass fresh or fresh-unet."
        )
    options = [word.partition("=")[0] for word in words if word.startswith("--policy.") and ".class=" not in word]
    if policy == "expert" and options:
        raise Refusal(
            f"{options[0]}: the student starts from the expert {usual['expert']!r} and has no options of its own. "
            f"Pass {options[0].replace('policy', 'expert')}, or name another --policy."
        )


def help_text(parser: ArgumentParser) -> str:
    """Return the parser's help as users type it: ``--objective NAME``, where jsonargparse has ``--objective.class``."""
    text = parser.format_help()
    for part in PARTS:
        text = re.sub(rf"  --{part} CONFIG +Path to a configuration file\.\n", "", text)
        text = re.sub(rf"--{part}\.class CLASS", f"--{part} NAME", text)
    return re.sub(r"\(type: str\s*\|\s*null,\s*", "(", text)


def plain(namespace: Namespace, parser: ArgumentParser) -> Config:
    """Return parsed settings as nested dicts of plain values, as ``config.yaml`` holds them."""
    config: Config = yaml.safe_load(parser.dump(namespace, skip_validation=True, skip_unset=False))
    return config


def check_settings(settings: Namespace) -> None:
    """Refuse settings that can't be, each under the name that the user gave it."""
    check_shares(tuple(settings.shares))
    for name in ("steps", "rounds", "batch_size", "chains", "substeps", "accumulate"):
        check_at_least(name, getattr(settings, name), 1)
    check_at_least("updates", settings.updates, settings.rounds)
    check_seed("seed", settings.seed)
    check_at_least("samples", settings.samples, 10)
    if settings.samples > 20_000:
        raise Refusal(f"samples must be at most 20000, for all pairs are compared; got {settings.samples}.")
    if read_name(settings.task).kind is PIPELINE and settings.samples > 1000:
        raise Refusal(
            f"samples of a pipeline run through it at once, 1000 at most; got {settings.samples}. Pass e.g. 32."
        )
    if settings.accumulate > settings.batch_size:
        raise Refusal(
            f"accumulate must be at most batch_size, {settings.batch_size}; got {settings.accumulate}. Lower it."
        )
    check_at_least("heldout", settings.heldout, 0)
    check_at_least("input_perturbation", settings.input_perturbation, 0)
    for name in ("clip", "epsilon_scale", "lr"):
        check_above(name, getattr(settings, name), 0)
    for beta in settings.betas:
        check_share("betas", beta)
    for name in ("rounds_kept", "max_age"):
        check_at_least(name, 1 if getattr(settings, name) is None else getattr(settings, name), 1)
    if settings.stages is not None:
        check_stages(settings.stages)
        if settings.stepwise:
            raise Refusal("stepwise has a network a step, and stages change the steps. Leave one of them away.")
    find_device(settings.device)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Spell a nested configuration as ``--name=value`` words; ``expert: exact`` means ``expert: {class: exact}``."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif key in PARTS and not prefix:
            yield f"--{key}.class={'null' if value is None else value}"
        else:
            yield f"--{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def spelled(arguments: Sequence[str]) -> list[str]:
    """Spell words out: ``--expert X`` as ``--expert.class=X``, ``--shares a,b,c`` as a list, a file as its settings.

    Where a part is named again, what a file says of the part that it replaces is dropped.
    """
    told = list(_told(arguments))
    last: dict[str, str] = {}
    named: dict[tuple[int, str], str] = {}  # what each source names a part; the last word counts
    for source, word in told:
        option, _, value = word.removeprefix("--").partition("=")
        if option.endswith(".class"):
            part = option.removesuffix(".class")
            last[part] = named[source, part] = value

    def stale(source: int, word: str) -> bool:
        part = word.removeprefix("--").partition(".")[0]
        return source > 0 and (source, part) in named and named[source, part] != last[part]

    return [word for source, word in told if not stale(source, word)]


def _told(arguments: Sequence[str], source: int = 0) -> Iterator[tuple[int, str]]:
    """Yield each word in its full spelling, with where it comes from: 0 the command line, 1 and up a file."""
    words, files = iter(arguments), 0
    for word in words:
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").removesuffix(".class")
        if not option.startswith("--") or name not in (*PARTS, *_LISTS, "config", "task", "lr"):
            last = value if equals else word
            numbers = re.fullmatch(r"[-+.\de]+(,[-+.\de]+)+", last)
            yield source, f"{word.removesuffix(last)}[{last}]" if numbers else word
            continue
        value = value if equals else next(words, "")
        if name == "config":
            files += 1
            yield from _told(list(flatten(read_yaml(Path(value)))), files)
        elif name in PARTS:
            if not value or value.startswith("--"):
                raise Refusal(f"--{name} needs a value: {known(name)}.")
            if value != "null":  # null is the default, whatever that is
                yield source, f"--{name}.class={canonical(name, value)}"
        elif name in ("task", "lr"):
            if value != "null":
                yield source, f"{option}={value}"
        elif value not in ("", "null"):
            yield source, f"{option}=[{value.strip('[]() ')}]"
        elif name == "stages":
            yield source, f"{option}=null"


_LISTS = ("shares", "stages", "betas")
"""Settings that are lists, spelled with commas."""


def read_yaml(path: Path) -> Config:
    """Read a file of settings; refuse one that is missing or holds none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Refusal(
            f"--config {path} can't be read: {str(error).splitlines()[0]}. Give a YAML file of settings."
        ) from None
    if not isinstance(content, dict):
        raise Refusal(f"--config {path} holds {type(content).__name__}, not settings. Write `name: value` lines.")
    check_plain(content, path)
    return content


def _last(words: Sequence[str], option: str) -> str | None:
    """The value that the last ``option=value`` among the words gives, or None."""
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{option}=")), None)
