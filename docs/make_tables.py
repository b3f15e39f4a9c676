"""Fill tables of docs from the program itself: options, recipes and their cost, commands of results, floors of metrics.

Run: python docs/make_tables.py

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is around it is written by hand.
"""

import re
import shlex
from argparse import SUPPRESS
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dagdiff import cli
from dagdiff.benchmarks.command import MEASUREMENTS, SUITES
from dagdiff.benchmarks.pages import TABLES, command
from dagdiff.benchmarks.readme import KEPT
from dagdiff.benchmarks.running.nfe import predict_nfe
from dagdiff.commands import manual
from dagdiff.report.glossary import OBJECTIVES
from dagdiff.report.results import Results
from dagdiff.runs import config
from dagdiff.runs.described import REQUIRED, Option, describe_part
from dagdiff.runs.parts import HELP, PARTS
from dagdiff.runs.recipes import RECIPES, recipe

HERE = Path(__file__).resolve().parent
COMMANDS = tuple(cli.COMMANDS)
FLOOR_SEEDS, FLOOR_POINTS = 5, 2000
_PIPELINE = {"task": "pipeline", "pipeline.path": "ID", "policy.class": "lora"}  # no more is read of it


class _Seen(Exception):
    """Carries a command's parser out of it."""


def main() -> None:
    """Rewrite the pages."""
    for page, make in _PAGES.items():
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
    others = (name for name in COMMANDS if name not in ("distill", "bench", "cache"))
    tables = {name: options(_told(parser(name))) for name in others}
    for suite in (*SUITES, *MEASUREMENTS):
        tables[f"bench {suite}"] = options(_told(parser("bench", [suite])))
    of_a_run = (group for group in manual.groups({}) if not group.title.startswith("Options of"))
    tables["distill"] = "\n".join(f"**{group.title}**\n\n{options(group.options)}" for group in of_a_run)
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


def options(found: Iterable[Option]) -> str:
    """A table of options."""
    rows = [
        f"| `{'' if option.name.isupper() else '--'}{option.name}` | {_value(option)} | {_cell(option.meaning)} |"
        for option in found
    ]
    return "| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def recipes() -> dict[str, str]:
    """What a run takes where nothing is said, by what is trained and objective, and what it costs in 4 steps."""
    head = ("trained", "objective", "shares", "updates x batch", "learning rate", "student evaluations")
    rows = [(*head, "expert evaluations")]
    for trained, objective in product(RECIPES, ("progressive", "consistency", "distribution")):
        base = {} if trained in ("plane", "images") else _PIPELINE
        chosen = config.complete({"objective.class": objective, "steps": 4, **base})
        for name, value in recipe(trained, objective).items():
            part, _, option = name.rpartition(".")
            (chosen[part] if part else chosen)[option] = list(value) if isinstance(value, tuple) else value
        cost = [f"{number / 1000:,.0f} k" for number in predict_nfe(chosen)[:2]]
        shares = " / ".join(f"{100 * share:.0f}" for share in chosen["shares"])
        size, rate = f"{chosen['updates']} x {chosen['batch_size']}", f"{chosen['lr']:g}"
        rows.append((trained, OBJECTIVES[objective], shares, size, rate, *cost))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return {"recipes": "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"}


def reproduced() -> dict[str, str]:
    """The suites whose results are kept: their pages, runs and minutes of training, and the commands that make them."""
    pages: dict[str, list[str]] = {}
    for made in TABLES.values():
        for name in made.results:
            found = pages.setdefault(name, [])
            found += [made.page.name] if made.page.name not in found else []
    rows, lines = [], []
    for name, where in sorted(pages.items()):
        results = Results.load(HERE.parent / KEPT / name)
        runs = {record.config: record.seconds for record in results.records}
        links = ", ".join("README" if page == "README.md" else f"[{_title(page)}]({page})" for page in where)
        rows.append(f"| `{name}` | {links} | {len(runs):,} | {sum(runs.values()) / 60:,.0f} | {results.made_with} |")
        lines += [f"# {name}", *_wrapped(command(results, name)), ""]
    head = "| results | pages | runs | minutes of one core | made with |\n|---|---|---|---|---|\n"
    block = "\n".join(lines).rstrip()
    return {"reproduced": head + "\n".join(rows) + f"\n\n```sh\n{block}\n```\n"}


def _title(page: str) -> str:
    """The heading of a page."""
    return (HERE / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _wrapped(line: str, width: int = 86) -> Iterator[str]:
    """A command over several lines; a long word of settings breaks between its parts, where JSON lets it."""
    shown = ""
    words = [_broken(word, width - 20) for word in map(shlex.quote, shlex.split(line))]
    for part in re.split(r" (?=--)", " ".join(words)):
        if shown and len(shown) + 1 + len(part.partition("\n")[0]) > width:
            yield f"{shown} \\"
            shown = f"  {part}"
        else:
            shown = f"{shown} {part}" if shown else part
    yield shown


def _broken(word: str, width: int) -> str:
    """A word of the shell over several lines, broken where JSON lets it: before a key or an object."""
    lines = [""]
    for part in re.split(r'(?<=[,:]) (?=["{])', word):
        joined = f"{lines[-1]} {part}".lstrip()
        lines[-1:] = [joined] if len(joined) <= width or not lines[-1] else [lines[-1], part]
    return "\n    ".join(lines)


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


def _told(found: Any) -> Iterator[Option]:
    """The options of a command's parser, as those of a run are described."""
    for action in found._actions:
        if (
            action.dest in ("help", "print_config", "executor")
            or action.help is SUPPRESS
            or action.dest.endswith(".help")
        ):
            continue
        name = action.option_strings[0].removeprefix("--") if action.option_strings else action.dest.upper()
        name = name.removesuffix(".class")
        value = action.default if action.option_strings and action.default is not SUPPRESS else None
        known = ", ".join(f"`{choice}`" for choice in action.choices or ())
        yield Option(name, value, "", f"{_cell(action.help or '')}{': ' + known if known else ''}")


def _of_parts(parts: Sequence[str]) -> str:
    """What may be named, and the options that come with the name; parts that may be the same are told once."""
    part = parts[0]
    shown = f" Options are shown for `--{part}`." if len(parts) > 1 else ""
    names = "; ".join(f"`--{name}`: {_cell(HELP[name])}" for name in parts)
    lines = ["\n### " + ", ".join(parts) + f"\n\n{names}.{shown}\n"]
    for name in PARTS[part]:
        lines.append(f"\n**{name}**: {_cell(describe_part(part, name).summary)}.\n")
        told = (option for group in manual.groups({f"{part}.class": name}) for option in group.options)
        own = [option for option in told if option.name.startswith(f"{part}.")]
        if own:
            lines.append("\n" + options(own))
    if not PARTS[part]:
        lines.append("\nThere are no short names: give an import path.\n")
    return "".join(lines)


def _value(option: Option) -> str:
    return "" if option.value in (None, []) or option.value is REQUIRED else f"`{manual.written(option.value)}`"


def _cell(text: str) -> str:
    """One cell: one line, without what jsonargparse adds, names as code."""
    text = re.sub(r"\s*\((type|required|default):.*\)$", "", " ".join(text.split()))
    text = text.replace("``", "`").replace("|", r"\|")
    return text if text.endswith("..") else text.removesuffix(".")


_PAGES = {"commands.md": commands, "settings.md": recipes, "reproduce.md": reproduced, "metrics.md": floors}

if __name__ == "__main__":
    main()
