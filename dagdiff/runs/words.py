"""Words: what a command line, a YAML file or a mapping says of a run, as one mapping of names to values.

A name is an option's, dots and all: ``expert.width``. A part is named by ``expert.class``, which words spell
``--expert X`` and YAML ``expert: X`` or ``expert: {class: X, width: 16}``. Lists of numbers may be told with commas.
Text is left as it is; types are checked where all is known (:mod:`dagdiff.runs.config`).
"""

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal
from dagdiff.reading import MEGABYTE, parse_yaml, read_text
from dagdiff.runs.parts import PARTS, RAMPS, canonical, known
from dagdiff.runs.settings import NAMES, Settings, lists_of
from dagdiff.runs.trust import check_plain

Given = dict[str, Any]
"""Name -> value, of what was given and nothing else."""

_LISTS = lists_of(Settings)
SWITCHES = frozenset(field.name for field in fields(Settings) if field.type is bool)
"""Settings that are true or false: ``--bf16`` alone means ``--bf16 true``."""


def spell(arguments: Sequence[str], flags: Collection[str] = ()) -> Given:
    """Return what the words of a command line say of a run, and the files of settings that they name.

    Of two that say the same thing the later wins. Where a part is named again, what a file says of the part that it
    replaces is dropped. A setting or a part that is told as null takes its default.

    Args:
        arguments: the words.
        flags: names of options without a value.
    """
    return _merged(_told(arguments, flags))


def spread(settings: Mapping[str, Any]) -> Given:
    """Return what a mapping says of a run, nested or not, by the same rules."""
    return _merged((0, name, value) for name, value in _flat(settings))


def split(arguments: Iterable[str], flags: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the name and the text of each option on a command line, True for a flag; a stray word has the name "".

    A switch without a value is on.
    """
    words = deque(arguments)
    while words:
        word = words.popleft()
        name, equals, text = word.removeprefix("--").partition("=")
        if word == "-h":
            yield "help", True
        elif not word.startswith("--"):
            yield "", word
        elif name in flags or name == "help":
            yield name, text != "false"
        elif name in SWITCHES and not equals and (not words or words[0].startswith("-")):
            yield name, "true"
        else:
            text = text if equals else words.popleft() if words else ""
            if not equals and (not text or text.startswith("--")):
                part = name.removesuffix(".class")
                raise Refusal(f"--{part} needs a value{': ' + known(part) if part in PARTS else ''}.")
            yield name, text


def listed(text: str) -> str:
    """Write ``a,b`` as the list it means, as YAML has it."""
    return f"[{text.strip('[]() ')}]"


def metric_names(value: Any) -> list[str]:
    """Return the metrics that a list, or text with commas, names."""
    each = re.findall(r"[^\s,]+", value.strip("[]() ")) if isinstance(value, str) else value
    if not isinstance(each, list) or not all(isinstance(name, str) for name in each):
        raise Refusal(f"--metric takes names or import paths; got {value!r}. `dagdiff list metrics` names some.")
    return each


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return names with dots as mappings within mappings."""
    tree: dict[str, Any] = {}
    for name, value in given.items():
        *path, last = name.split(".")
        branch: Any = tree
        for key in path:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise Refusal(f"--{key} has a value and options of its own, as in --{name}. Leave one of them away.")
        if isinstance(branch.get(last), dict):
            raise Refusal(f"--{name} has a value and options of its own. Leave one of them away.")
        branch[last] = value
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of settings; reject one that is missing or holds none."""
    content = parse_yaml(read_text(path, MEGABYTE), str(path))
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds {type(content).__name__}, not settings. Write `name: value` lines.")
    check_plain(content, path)
    return content


def _told(arguments: Sequence[str], flags: Collection[str]) -> Iterator[tuple[int, str, Any]]:
    """Yield each name and value with where it comes from: 0 the command line, 1 and up a file."""
    files = 0
    for name, text in split(arguments, flags):
        if name == "config":
            files += 1
            yield from ((files, *each) for each in _flat(read_yaml(Path(text))))
        else:
            yield 0, f"{name}.class" if name in PARTS else name, text


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}{'.class' * (key in PARTS and not prefix)}", value


def _merged(told: Iterable[tuple[int, str, Any]]) -> Given:
    said = [(source, name, _value(name, value)) for source, name, value in _constants(told)]
    named = {(source, name): value for source, name, value in said if _part(name)}
    last = {name: value for _, name, value in said if _part(name)}
    given: Given = {}
    for source, name, value in said:
        chosen = f"{name.partition('.')[0]}.class"
        if source and named.get((source, chosen), last.get(chosen)) != last.get(chosen):
            continue
        if value is None and (name in NAMES or _part(name)):
            given.pop(name, None)
        elif name == "metric":
            given[name] = list(dict.fromkeys([*given.get(name, []), *value]))
        else:
            given[name] = value
    return given


def _constants(told: Iterable[tuple[int, str, Any]]) -> Iterator[tuple[int, str, Any]]:
    """Yield what is told; a number where a ramp is named becomes the constant ramp of that value."""
    for source, name, value in told:
        part = _part(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if part in RAMPS and (number or (isinstance(value, str) and _NUMBER.fullmatch(value))):
            yield source, name, "constant"
            yield source, f"{part}.value", value
        else:
            yield source, name, value


def _part(name: str) -> str:
    """The part that a name chooses, or nothing."""
    part = name.removesuffix(".class")
    return part if part in PARTS and part != name else ""


def _value(name: str, value: Any) -> Any:
    """A value as the parser takes it: parts by their short names, lists with brackets, null as None."""
    part = _part(name)
    if value == "null" and (part or name in NAMES):
        return None
    if part and value is not None:
        if not isinstance(value, str) or not value:
            raise Refusal(f"--{part} needs a name; got {value!r}. Pass {known(part)}.")
        return canonical(part, value)
    if name == "metric" and value is not None:
        return [canonical(name, each) for each in metric_names(value)]
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and (name in _LISTS or _NUMBERS.fullmatch(value)):
        return listed(value)
    if name == "pipeline.timesteps" and isinstance(value, str) and value != "null":  # one number alone is a list too
        return listed(value)
    return value


_NUMBERS = re.compile(r"[-+.\de]+(,[-+.\de]+)+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")
