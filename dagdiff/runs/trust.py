"""What a file that came from elsewhere may name: registered parts. Any other name would be imported, which runs code.

Registered are dagdiff's own parts, and those of packages that the user has installed (:mod:`dagdiff.runs.installed`).

A run's ``config.yaml`` and ``student.json``, and the settings in a suite's ``results.json``, are data. Import paths
come from the user alone: the command line, Python, or a file of settings that the user hands to ``--config``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal
from dagdiff.runs.parts import PARTS, names

_WEIGHTS = "truncated_snr", "snr", "unweighted", "v_space"
FUNCTIONS = tuple(f"dagdiff.objectives.progressive.{name}" for name in _WEIGHTS)
"""The functions that an option of a registered part may name."""

_DEPTH, _VALUES = 8, 10_000  # what a file of settings may hold


def check_registered(config: Mapping[str, Any], file: Path) -> None:
    """Reject a configuration that ``file`` holds if it names code outside the registry; nothing has been imported then.

    Raises:
        Refusal: for an import path, weights in pickles, or what is no configuration.
    """
    check_plain(config, file)
    for key in _keys(config):
        if not key.isidentifier() or key == "config":
            raise Refusal(f"{file} holds the key {_short(key)}, which names no setting. Make the run again.")
    for part in PARTS:
        chosen = config.get(part)
        options = dict(chosen) if isinstance(chosen, Mapping) else {"class": chosen}
        name = options.pop("class", None)
        if not isinstance(name, str | None):
            raise Refusal(f"{file} holds {_short(name)} where {part} has its name. Make the run again.")
        if name and "." in name and name not in names(part).values():
            raise _untrusted(file, f"{part} {_short(name)}")
        if name in _STARTS:
            if options.get("allow_pickle", False) is not False:
                raise _untrusted(file, f"{part}.allow_pickle")
            options = {option: value for option, value in options.items() if option not in ("path", "variant")}
        for option, value in options.items():
            if not _is_data(value):
                raise _untrusted(file, f"{part}.{option} {_short(value)}")
    metrics = config.get("metric") or []
    for name in metrics if isinstance(metrics, list) else [metrics]:
        if not isinstance(name, str) or not name.isidentifier():
            raise _untrusted(file, f"metric {_short(name)}")
    pipeline = config.get("pipeline", {})
    if not isinstance(pipeline, Mapping):
        raise Refusal(f"{file} holds {_short(pipeline)} where pipeline has its options. Make the run again.")
    if pipeline.get("allow_pickle", False) is not False:
        raise _untrusted(file, "pipeline.allow_pickle")
    family = pipeline.get("family")
    if family is not None and not (isinstance(family, str) and family.isidentifier()):
        raise _untrusted(file, f"pipeline.family {_short(family)}")


def check_plain(content: Any, file: Path) -> None:
    """Reject what no file of settings holds: keys that are no text, values that JSON lacks, too many or too deep."""
    left = [(content, 0)]
    for count in range(_VALUES):
        if not left:
            return
        value, depth = left.pop()
        if isinstance(value, Mapping):
            wrong = next((key for key in value if not isinstance(key, str)), None)
            left += [(inner, depth + 1) for inner in value.values()]
        else:
            wrong = None if isinstance(value, str | int | float | list | None) else value
            left += [(inner, depth + 1) for inner in value] if isinstance(value, list) else []
        if wrong is not None:
            raise Refusal(f"{file} holds {_short(wrong)}, which is no setting. Write `name: value` lines.")
        if depth > _DEPTH or count + len(left) > _VALUES:
            break
    raise Refusal(f"{file} is too large or too deep for a file of settings. Write `name: value` lines.")


def names_code(given: Mapping[str, Any]) -> bool:
    """Whether an option of a part, among names and values, names somebody's function or class by its path."""
    return any(
        (name.partition(".")[0] in PARTS or name == "pipeline.family")
        and isinstance(value, str)
        and _FOREIGN.match(value)
        for name, value in given.items()
    )


_STARTS = ("few-step", "few-step-lora")
"""Parts of ours that take a pipeline's place as plain text, which is never imported."""

_FOREIGN = re.compile(r"(?!dagdiff\.)[^\W\d]\w*\.[^\W\d]")


def _is_data(value: Any) -> bool:
    """Whether an option's value can't be read as a name of code: jsonargparse imports dotted paths, also in JSON."""
    if isinstance(value, str):
        return value in FUNCTIONS or re.fullmatch(r"[\w+-]*|[-+]?\d*\.?\d*(e[-+]?\d+)?", value, re.ASCII) is not None
    return not isinstance(value, Mapping) and not (
        isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value)
    )


def _keys(config: Mapping[str, Any]) -> Iterable[str]:
    for key, value in config.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)


def _untrusted(file: Path, what: str) -> Refusal:
    return Refusal(
        f"{file} names {what}, which is not among dagdiff's own parts: opening it would run code. Pass --trust_code "
        "(in Python trust_code=True) if you trust whoever wrote it."
    )


def _short(value: Any) -> str:
    """A foreign value, short enough for a line."""
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
