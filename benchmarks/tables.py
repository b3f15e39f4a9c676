"""The Markdown tables of README and docs, made from committed results.

:data:`TABLES` maps a table's name to the results it is made from, the page it stands on and the function that makes it.
A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dagdiff.benchmarks.peers import milliseconds
from dagdiff.benchmarks.study import CRITICS, MIXES, NARROW, THRESHOLDED
from dagdiff.checks import Refusal
from dagdiff.glossary import DISTANCES
from dagdiff.metrics.statistics import Interval, paired_difference
from dagdiff.results import Results, Row
from dagdiff.verdict import number, spell, told_excess

NAMES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}
CONTRAST = ("forward", "base", "ddil")
END = "<!-- end of table -->"


class Made(NamedTuple):
    """How a table is made: from which results, on which page, by which function of their rows.

    With ``few`` only the seeds that all of a study's blocks have: cells that are the headline's too have more.
    """

    results: str
    page: Path
    make: Callable[[Sequence[Row]], str]
    few: bool = False


def with_table(text: str, name: str, lines: str) -> str:
    """Return a page's text with the table of that name replaced; refuse a page without a place for it."""
    start = f"<!-- table: {name} -->"
    before, found, rest = text.partition(start)
    if not found or END not in rest:
        raise Refusal(f"there is no place for the table {name!r}. Put in the lines {start!r} and {END!r}.")
    return f"{before}{start}\n{lines}\n{END}{rest.partition(END)[2]}"


def filled(text: str, page: Path, results: Path) -> str:
    """Return the text of a page with each of its tables made anew from what is kept in the folder ``results``."""
    mine = {name: made for name, made in TABLES.items() if made.page == page and (results / made.results).exists()}
    rows = {sort: _rows(results / sort[0], sort[1]) for sort in {(made.results, made.few) for made in mine.values()}}
    for name, made in mine.items():
        text = with_table(text, name, made.make(rows[made.results, made.few]))
    return text


def _rows(folder: Path, few: bool) -> list[Row]:
    """The rows of what is kept in a folder, of all seeds or of the few that every block has."""
    results = Results.load(folder)
    seeds = results.settings.get("few_seeds", math.inf) if few else math.inf
    return replace(results, records=[record for record in results.records if record.seed < seeds]).rows


def quick(rows: Sequence[Row]) -> str:
    """The demo's table: the distance of each kind of training states, by task and objective."""
    lines = _head("world, shown", "objective", "forward states", "published method", "dagdiff's mixture")
    found = plain(rows)
    for task, objective in dict.fromkeys((row.task, row.objective) for row in rows):
        forward, base, ddil = (found[task, objective, variant] for variant in CONTRAST)
        published = "the same" if base.runs == forward.runs else _interval(base)
        cells = _interval(forward), published, _interval(ddil)
        lines += _line(task.replace("-", ", "), NAMES[objective], *cells)
    return "\n".join(lines)


def headline(rows: Sequence[Row], about: str = "") -> str:
    """A line a task, a column an objective: the distances of the contrast, and what ddil leaves of the excess.

    A cell holds forward-only's, the published method's where that is another, ddil's, and of forward-only's excess over
    the expert the part that ddil leaves; a dash where the objective was not run.
    """
    found = plain(rows, about)
    lines = _head("world, shown", *NAMES.values())
    for task in dict.fromkeys(task for task, _, variant in found if variant == "base"):
        told = []
        for objective in NAMES:
            mine = [found[key] for variant in CONTRAST if (key := (task, objective, variant)) in found]
            told.append(_contrast(*mine) if len(mine) == 3 else "–")
        lines += _line(task.replace("-", ", "), *told)
    return "\n".join(lines)


def by_steps(rows: Sequence[Row]) -> str:
    """A line an objective and kind of states, a column a number of steps."""
    mine = [row for row in rows if row.place == NARROW[0] and row.variant in CONTRAST]
    mine.sort(key=lambda row: (list(NAMES).index(row.objective), CONTRAST.index(row.variant), row.steps))
    told = [row for row in mine if row.objective == "distribution" or row.variant != "base"]
    return pivot(told, _objective_and_states, lambda row: f"{row.steps} step{'s' * (row.steps > 1)}")


def by_variant(rows: Sequence[Row], variants: Sequence[str], about: str = "") -> str:
    """A line an objective, a column a variant, in the study's narrow world."""
    place = f"{NARROW[0]}, {about}" if about else NARROW[0]
    mine = [row for name in variants for row in rows if (row.variant, row.steps, row.place) == (name, 4, place)]
    return pivot(mine, lambda row: NAMES[row.objective], lambda row: row.variant)


def by_share(rows: Sequence[Row]) -> str:
    """A line a point of the triangle of shares, a column an objective."""
    names = ("forward", "student", "expert", "ddil", *MIXES)
    mine = [row for row in rows if row.place == NARROW[0] and row.steps == 4 and row.variant in names]
    mine.sort(key=lambda row: (row.records[0].shares, list(NAMES).index(row.objective)))
    return pivot(mine, _shares, lambda row: NAMES[row.objective], _mean)


def by_world(rows: Sequence[Row]) -> str:
    """DMD2's mixture beside its published method, a line a world: distances, the mixture's changes, its chance to win.

    Changes are paired by seed; the chance is that of any run of the mixture against any of the published method.
    """
    lines = _head("world", "own states", "the mixture", "change", "change in coverage", "the mixture wins")
    found = plain(rows)
    tasks = dict.fromkeys(row.task for row in rows if row.task.endswith("-biased"))
    pairs = [(found[task, "distribution", "base"], found[task, "distribution", "ddil"]) for task in tasks]
    for published, mixed in pairs:
        change = mixed.against["base"]
        changes = (f"{change[name].interval:+.4f}" for name in ("energy", "coverage"))
        told = _mean(published), _mean(mixed), *changes, f"{change['energy'].improvement:.2f}"
        lines += _line(mixed.task.removesuffix("-biased"), *told)
    pooled = (f"{_pooled(pairs, name):+.4f}" for name in ("energy", "coverage"))
    wins = statistics.mean(mixed.against["base"]["energy"].improvement for _, mixed in pairs)
    return "\n".join([*lines, *_line("all", "", "", *pooled, f"{wins:.2f}")])


def by_critic(rows: Sequence[Row]) -> str:
    """A line a critic of DMD2 on its own states, then one for other states: distance, width and shares of the modes."""
    worlds = ("grid25-matched", "imbalanced-matched")
    dmd2 = [row for row in rows if row.objective == "distribution" and row.steps == 4 and row.task in worlds]
    kinds = [("base", about) for about in ("", *CRITICS)] + [("forward", ""), ("ddil", "")]
    mine = [row for kind in kinds for row in dmd2 if (row.variant, _about(row)) == kind]
    others = {"forward": "forward states", "ddil": "the mixture"}
    return pivot(
        mine,
        lambda row: others.get(row.variant) or _about(row) or "told the origin",
        lambda row: row.task.replace("-", ", "),
        _modes,
    )


def by_schedule(rows: Sequence[Row]) -> str:
    """A line a course of training, a column an objective: distances by world, and what all change against the first."""
    variants, tasks = (
        list(dict.fromkeys(names)) for names in zip(*((row.variant, row.task) for row in rows), strict=True)
    )
    found = {(row.variant, row.objective, row.task): row for row in rows}
    lines = _head(", ".join(task.removesuffix("-biased") for task in tasks), *NAMES.values())
    for variant in variants:
        told = []
        for objective in NAMES:
            pairs = [(found[variants[0], objective, task], found[variant, objective, task]) for task in tasks]
            change = f"; {_pooled(pairs, 'energy'):+.4f}" if variant != variants[0] else ""
            told.append(", ".join(_mean(mine) for _, mine in pairs) + change)
        lines += _line(variant, *told)
    return "\n".join(lines)


def by_steps_and_task(rows: Sequence[Row]) -> str:
    """The image suite: a line a task, objective and number of steps; the contrast, what is left, missing classes."""
    judge = DISTANCES[rows[0].judged_by]
    lines = _head("data, shown", "objective", "steps", "forward", "published", "ddil", "reflected ddil", "excess left",
                  "missing classes: forward → ddil")  # fmt: skip
    for task, steps, objective in dict.fromkeys((row.task, row.steps, row.objective) for row in rows):
        group = {row.variant: row for row in rows if (row.task, row.steps, row.objective) == (task, steps, objective)}
        told = [number(row.distance.mean) if (row := group.get(name)) and row.distance else "–" for name in _SHOWN]
        missing = [group[name].metrics["missing"] for name in ("forward", "ddil") if name in group]
        classes = " → ".join(f"{share.mean:.2f}" for share in missing if share)
        left = told_excess(group["ddil"]) if "ddil" in group else ""
        lines += _line(task.replace("-", ", "), NAMES[objective], str(steps), *told, left, classes or "–")
    return "\n".join([f"Cells hold {judge}.", "", *lines])


def which_one(rows: Sequence[Row]) -> str:
    """The imitation suite: a line a variant, a column a task: the distance; then what a run cost."""
    lines = _head("variant", *dict.fromkeys(row.place for row in rows), "NFE student", "NFE expert")
    for variant in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == variant]
        told = [spell(row.distance, 2) for row in mine]
        nfe = [f"{getattr(mine[0].records[0], name) / 1e6:.2f} M" for name in ("nfe_student", "nfe_expert")]
        lines += _line(variant, *told, *nfe)
    return "\n".join(lines)


def by_peer(rows: Sequence[Row]) -> str:
    """The peers suite: a line a variant, a column a task: distance, coverage; then update time to the first's."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    lines = _head("variant", *dict.fromkeys(row.place for row in rows), "time of an update")
    times = {name: statistics.mean(milliseconds(row) for row in rows if row.variant == name) for name in variants}
    for name in variants:
        told = [_covering(row) for row in rows if row.variant == name]
        lines += _line(name, *told, f"{times[name] / times[variants[0]]:.2f}×")
    return "\n".join(lines)


def pivot(
    rows: Iterable[Row],
    line: Callable[[Row], str],
    column: Callable[[Row], str],
    number_of: Callable[[Row], str] = lambda row: spell(row.distance, 2),
) -> str:
    """Return a table with a cell a row of the results; where there is none stands a dash."""
    cells = {(line(row), column(row)): number_of(row) for row in rows}
    names, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    lines = _head("", *columns)
    for name in names:
        lines += _line(name, *(cells.get((name, each), "–") for each in columns))
    return "\n".join(lines)


def plain(rows: Sequence[Row], about: str = "") -> dict[tuple[str, str, str], Row]:
    """The rows of four steps in one kind of comparison, by task, objective and variant."""
    mine = [row for row in rows if row.steps == 4 and _about(row) == about]
    return {(row.task, row.objective, row.variant): row for row in mine}


def _interval(row: Row) -> str:
    """Mean and interval to four decimals."""
    return f"{row.distance:.4f}" if row.distance else "not measured"


def _contrast(forward: Row, base: Row, ddil: Row) -> str:
    published = "" if base.runs == forward.runs else f" (published: {_mean(base)})"
    return f"{_mean(forward)}{published} → {_mean(ddil)}; {told_excess(ddil)}"


def _pooled(pairs: Iterable[tuple[Row, Row]], metric: str) -> Interval:
    """What the second rows change against the first in a metric, over all their common seeds."""
    common = [(a, b) for first, second in pairs for a in first.records for b in second.records if a.seed == b.seed]
    return paired_difference([b.metrics[metric] for _, b in common], [a.metrics[metric] for a, _ in common])


def _modes(row: Row) -> str:
    spread, shares = row.metrics["spread"], row.metrics["mode_kl"]
    widths = f"width {spread.mean:.2f}, shares off {number(shares.mean, 2)}" if spread and shares else ""
    return f"{spell(row.distance, 2)}; {widths}"


def _covering(row: Row) -> str:
    coverage = row.metrics["coverage"]
    return f"{spell(row.distance, 2)}; covers {coverage.mean:.2f}" if coverage else spell(row.distance, 2)


def _objective_and_states(row: Row) -> str:
    return f"{NAMES[row.objective]}, {row.variant}"


def _shares(row: Row) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in row.records[0].shares)


def _about(row: Row) -> str:
    return row.place.removeprefix(row.task).removeprefix(", ")


def _mean(row: Row) -> str:
    return f"{row.distance.mean:.4f}" if row.distance else "not measured"


def _head(*words: str) -> list[str]:
    return [*_line(*words), "|---" * len(words) + "|"]


def _line(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


_SHOWN = ("forward", "base", "ddil", "reflected-ddil")
_README, _STUDY, _IMAGES = Path("README.md"), Path("docs/study.md"), Path("docs/images.md")
TABLES = {
    "demo": Made("toy2d-quick", _README, quick),
    "study": Made("study", _README, headline),
    "steps": Made("study", _STUDY, by_steps, few=True),
    "sources": Made("study", _STUDY, partial(by_variant, variants=("forward", "student", "expert", "ddil")), few=True),
    "equal NFE": Made("equal-nfe", _STUDY, partial(headline, about="equal NFE")),
    "learned expert": Made("study", _STUDY, partial(by_variant, variants=("forward", "ddil"), about="learned expert")),
    "thresholds": Made("study", _STUDY, partial(by_variant, variants=THRESHOLDED), few=True),
    "shares": Made("study", _STUDY, by_share, few=True),
    "mixture": Made("study", _STUDY, by_world),
    "critic": Made("study", _STUDY, by_critic, few=True),
    "schedules": Made("schedules", _STUDY, by_schedule),
    "imitation": Made("imitation", Path("docs/which-one.md"), which_one),
    "peers": Made("peers", _STUDY, by_peer),
    "images": Made("images", _README, by_steps_and_task),
    "fashion": Made("fashion", _IMAGES, by_steps_and_task),
    "LCM": Made("lcm-long", _IMAGES, by_steps_and_task),
    "PD": Made("pd-long", _IMAGES, by_steps_and_task),
}
"""Every table, by name."""
