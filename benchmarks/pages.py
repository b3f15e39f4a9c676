"""Which table stands on which page, from which results, and what made them.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``, and under it a line that names the
version, the machine and the seeds of its results. Results of an older
:data:`~dagdiff.report.results.IDENTITY` are marked.
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from dagdiff.benchmarks import compounding, tables
from dagdiff.benchmarks.suites.study import THRESHOLDED
from dagdiff.checks import Refusal
from dagdiff.report.results import IDENTITY, Results

END = "<!-- end of table -->"


class Made(NamedTuple):
    """How a table is made: from which results, on which page, by which function of the rows of each.

    With ``few`` only the seeds that all of a study's blocks have: cells that are the headline's too have more.
    """

    results: tuple[str, ...]
    page: Path
    make: Callable[..., str]
    few: bool = False


def with_table(text: str, name: str, lines: str) -> str:
    """Return a page's text with the table of that name replaced; reject a page without a place for it."""
    start = f"<!-- table: {name} -->"
    before, found, rest = text.partition(start)
    if not found or END not in rest:
        raise Refusal(f"there is no place for the table {name!r}. Put in the lines {start!r} and {END!r}.")
    return f"{before}{start}\n{lines}\n{END}{rest.partition(END)[2]}"


def filled(text: str, page: Path, folder: Path) -> str:
    """Return the text of a page with each of its tables made anew from what is kept in a folder."""
    mine = {
        name: made
        for name, made in TABLES.items()
        if made.page == page and all((folder / each).exists() for each in made.results)
    }
    sorts = {(each, made.few) for made in mine.values() for each in made.results}
    kept = {sort: load(folder / sort[0], sort[1]) for sort in sorts}  # the rows of each are made once
    for name, made in mine.items():
        found = {each: kept[each, made.few] for each in made.results}
        rows = [results.rows for results in found.values()]
        text = with_table(text, name, f"{made.make(*rows)}\n\n{origin(found)}")
    return text


def load(folder: Path, few: bool = False) -> Results:
    """The results that are kept in a folder, of all seeds or of the few that every block has."""
    results = Results.load(folder)
    seeds = results.settings.get("few_seeds", math.inf) if few else math.inf
    return replace(results, records=[record for record in results.records if record.seed < seeds])


def origin(found: dict[str, Results]) -> str:
    """The line under a table: what made its results, which teachers taught, how older results are made again."""
    several = len(found) > 1
    lines = [f"{f'`{name}`: made' if several else 'Made'} with {each.made_with}." for name, each in found.items()]
    taught = dict.fromkeys(each for results in found.values() for each in results.teachers)
    if taught:
        named = ", ".join(f"`{weights}` (seed {seed})" for seed, weights in taught)
        lines.append(f"Learned teachers, by the hash of their weights: {named}.")
    old = [command(each, name) for name, each in found.items() if each.identity < IDENTITY]
    if old:
        again = " and ".join(f"`{line}`" for line in old)
        lines.append(
            f"Results of an older version: keys and defaults have changed since; they are made again with {again}."
        )
    return " ".join(lines)


def command(results: Results, name: str) -> str:
    """The command that makes results again into ``runs/NAME``: the suite, and what is not its usual setting."""
    suite = import_module(f"dagdiff.benchmarks.suites.{results.suite}")
    settings, usual = results.settings, dataclasses.asdict(suite.Suite())
    options = [f"--{option} {_word(value)}" for option, value in settings.items() if value != usual.get(option)]
    chosen = ["--quick"] if settings == dataclasses.asdict(suite.QUICK) else options
    return " ".join(["dagdiff bench", results.suite, *chosen, f"--out runs/{name}"])


def _word(value: object) -> str:
    """An option's value as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return shlex.quote(json.dumps(value)) if isinstance(value, dict) else str(value)


_README, _RESULTS = Path("README.md"), Path("docs/results.md")
_STUDY, _DMD2, _IMAGES = Path("docs/study.md"), Path("docs/dmd2.md"), Path("docs/images.md")
_HORIZON, _LABELS = Path("docs/horizon.md"), Path("docs/labels.md")
_few = partial(Made, ("study",), _STUDY, few=True)
TABLES = {
    "glance": Made(("study", "images"), _README, tables.glance),
    "findings": Made(("study", "images"), _RESULTS, tables.findings),
    "study": Made(("study",), _RESULTS, tables.contrasts),
    "cause": Made(("study",), _RESULTS, compounding.by_cause),
    "demo": Made(("toy2d-quick",), _RESULTS, tables.contrasts),
    "steps": _few(make=tables.by_steps),
    "sources": _few(make=partial(tables.by_variant, variants=("forward", "student", "expert", "mixture"))),
    "equal NFE": Made(("equal-nfe",), _STUDY, partial(tables.contrasts, about="equal NFE")),
    "learned expert": _few(make=partial(tables.by_variant, variants=("forward", "mixture"), about="learned expert")),
    "thresholds": _few(make=partial(tables.by_variant, variants=THRESHOLDED)),
    "shares": _few(make=tables.by_share),
    "mixture": Made(("study",), _DMD2, tables.by_world),
    "critic": Made(("study",), _DMD2, tables.by_critic, few=True),
    "schedules": Made(("schedules",), _STUDY, tables.by_schedule),
    "compounding": Made(("horizon",), _RESULTS, compounding.claim),
    "whole walk": Made(("labels",), _RESULTS, compounding.walked),
    "growth": Made(("horizon",), _HORIZON, compounding.by_growth),
    "end error": Made(("horizon",), _HORIZON, compounding.by_horizon),
    "labels": Made(("labels",), _LABELS, compounding.by_label),
    "label sources": Made(("labels",), _LABELS, compounding.by_source),
    "label lengths": Made(("labels-long",), _LABELS, compounding.by_length),
    "label prices": Made(("labels-long",), _LABELS, compounding.by_price),
    "labels, digits": Made(("labels-digits",), _LABELS, compounding.by_label),
    "label sources, digits": Made(("labels-digits",), _LABELS, compounding.by_source),
    "imitation": Made(("imitation",), Path("docs/which-one.md"), tables.which_one),
    "imitation, equal evaluations": Made(("imitation",), Path("docs/which-one.md"), tables.at_equal_evaluations),
    "peers": Made(("peers",), _DMD2, tables.by_peer),
    "images": Made(("images",), _IMAGES, tables.by_steps_and_task),
    "long": Made(("images-long",), _IMAGES, tables.by_steps_and_task),
    "drift": Made(("labels-long-digits",), _IMAGES, compounding.by_drift),
    "faces": Made(("avatars", "avatars-pd"), _IMAGES, tables.by_steps_and_task),
    "fashion": Made(("fashion",), _IMAGES, tables.by_steps_and_task),
}
"""Every table, by name."""
