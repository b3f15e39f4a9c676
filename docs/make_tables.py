"""Fill the tables of docs/commands.md and docs/metrics.md from the program itself.

Run: python docs/make_tables.py

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is around it is written by hand.
"""

import re
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dagdiff import cli
from dagdiff.benchmarks.command import SUITES
from dagdiff.runs import config
from dagdiff.runs.parts import HELP, PARTS, resolve

HERE = Path(__file__).resolve().parent
COMMANDS = tuple(cli.COMMANDS)
FLOOR_SEEDS, FLOOR_POINTS = 5, 2000


class _Seen(Exception):
    """Carries a command's parser out of it."""


def main() -> None:
    """Rewrite both pages."""
    for page, make in (("commands.md", commands), ("metrics.md", floors)):
        path = HERE / page
        path.write_text(filled(path.read_text(encoding="utf-8"), make()), encoding="utf-8")


def filled(text: str, tables: dict[str, str]) -> str:
    """Return a page's text with its tables replaced; every table must have its place."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if start not in text or end not in text:
            raise SystemExit(f"no place for the table {name!r}: add {start.strip()} and {end}")
        text = text.partition(start)[0] + start + table + end + text.partition(end)[2]
    return text


def commands() -> dict[str, str]:
    """The options of each command, the parts of a run, and the options of each part."""
    tables = {name: options(_plain(parser(name))) for name in COMMANDS if name != "bench"}
    for suite in SUITES:
        tables[f"bench {suite}"] = options(_plain(parser("bench", [suite])))
    rows = [f"| `--{part}` | {_cell(HELP[part])} | {_default(part)} |" for part in PARTS]
    tables["parts"] = "| part | what it is | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    alike: dict[tuple[str, ...], list[str]] = {}
    for part in PARTS:
        alike.setdefault(tuple(PARTS[part].values()), []).append(part)
    tables["parts in full"] = "".join(_of_parts(parts) for parts in alike.values())
    return tables


def parser(command: str, words: Sequence[str] = ()) -> Any:
    """The parser that a command reads its words with."""

    def seen(found: Any, words: Sequence[str]) -> None:
        raise _Seen(found)

    with patch.object(config, "read", seen):
        try:
            cli.find(command)(list(words))
        except _Seen as found:
            return found.args[0]
    raise RuntimeError(f"{command} read no words")


def options(actions: Sequence[Action]) -> str:
    """A table of options."""
    rows = []
    for action in actions:
        names = [name for name in action.option_strings if not name.endswith("+")] or [action.dest.upper()]
        known = ", ".join(f"`{choice}`" for choice in action.choices or ())
        told = f"{_cell(action.help or '')}{': ' + known if known else ''}"
        rows.append(f"| `{names[-1]}` | {_value(action)} | {told} |")
    return "| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def floors() -> dict[str, str]:
    """Real points scored as if they were samples, over some seeds: what each metric says where nothing is wrong."""
    from dagdiff.envs.toy2d import world
    from dagdiff.metrics.base import score
    from dagdiff.metrics.truth import Truth
    from dagdiff.tasks.base import Task

    law, found = world("gaussians8"), []
    for seed in range(FLOOR_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        truth, real = law.reference(FLOOR_POINTS, generator), law.sample(FLOOR_POINTS, generator)
        found.append(score(Task.metrics, real, Truth(truth, law.mixture, generator=generator)))
    rows = []
    for name in found[0]:
        values = [each[name] for each in found]
        rows.append(f"| `{name}` | {sum(values) / len(values):.2g} | {min(values):.2g} to {max(values):.2g} |")
    return {"floors": "| metric | mean | least to most |\n|---|---|---|\n" + "\n".join(rows) + "\n"}


def _plain(found: Any) -> list[Action]:
    """A parser's options but those of parts, which have a table of their own."""
    return [action for action in _told(found) if action.dest.partition(".")[0] not in PARTS]


def _told(found: Any) -> Iterator[Action]:
    hidden = ("help", "print_config") if found.prog != "dagdiff distill" else ("help",)
    for action in found._actions:
        if action.dest not in hidden and action.help is not SUPPRESS and not action.dest.endswith(".help"):
            yield action


def _of_parts(parts: Sequence[str]) -> str:
    """What may be named, and the options that come with the name; parts that may be the same are told once."""
    part = parts[0]
    shown = f" Options are shown for `--{part}`." if len(parts) > 1 else ""
    names = "; ".join(f"`--{name}`: {_cell(HELP[name])}" for name in parts)
    lines = ["\n### " + ", ".join(parts) + f"\n\n{names}.{shown}\n"]
    for name in PARTS[part]:
        summary = (resolve(part, name).__doc__ or "").split("\n\n")[0]
        lines.append(f"\n**{name}**: {_cell(summary)}.\n")
        chosen = _told(parser("distill", [f"--{part}", name]))
        own = [action for action in chosen if action.dest.startswith(f"{part}.") and action.dest != f"{part}.class"]
        if own:
            lines.append("\n" + options(own))
    if not PARTS[part]:
        lines.append("\nThere are no short names: give an import path.\n")
    return "".join(lines)


def _default(part: str) -> str:
    from dagdiff.runs.parts import DEFAULTS

    chosen = dict(DEFAULTS.get(part, {}))
    name = chosen.pop("class", None)
    values = ", ".join(f"{key} {value}" for key, value in chosen.items())
    return f"`{name}`{f' ({values})' if values else ''}" if name else "the task's own"


def _value(action: Action) -> str:
    value = action.default
    if action.option_strings == [] or value is None or value is SUPPRESS:
        return ""
    if callable(value):
        return f"`{getattr(value, '__name__', value)}`"
    if isinstance(value, list | tuple):
        return "`" + ",".join(map(str, value)) + "`"
    return f"`{value}`"


def _cell(text: str) -> str:
    """One cell: one line, without what jsonargparse adds, names as code."""
    text = re.sub(r"\s*\((type|required|default):.*\)$", "", " ".join(text.split()))
    text = text.replace("``", "`").replace("|", r"\|")
    return text if text.endswith("..") else text.removesuffix(".")


if __name__ == "__main__":
    main()
