"""The report: what a folder of results says, in words first, then in tables, then in figures.

Runs that differ only in the states they were trained on share their seeds, so they are compared *seed by seed*: a
difference is the mean over common seeds, with a bootstrap interval, and the words follow from the interval alone. If it
is clear of zero, something is claimed; if it is not, nothing is; with a single seed there is no interval at all. Beside
every student stand its two yardsticks: the *expert* it imitates, and the *floor*, real points scored as if they were
samples. The page is one file that asks the network for nothing.
"""

import csv
import io
import json
import math
import platform
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from dagdiff import __version__, plots
from dagdiff.checkpoint import save_text
from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval, bootstrap_mean, paired_difference, probability_of_improvement

METRICS = {
    "energy": "Energy distance to the true law, in units of x: 0 for equal laws, by chance perhaps just below.",
    "w2": "Wasserstein distance: how far samples must be moved (root mean square) to become real ones; never quite 0.",
    "sliced_w2": "The same along random lines through the plane, averaged.",
    "mmd": "Maximum mean discrepancy, squared: how far averages of smooth bumps differ; 0 for equal laws.",
    "precision": "Share of samples that lie among real points.",
    "recall": "Share of real points that lie among samples.",
    "density": "How crowded with real points the places of the samples are; 1 for equal laws.",
    "coverage": "Share of real points that have a sample near by; about 0.97 for equal laws.",
    "on_mode": "Share of samples within 3 standard deviations of a mode of the true law; 0.989 for equal laws.",
    "mode_kl": "How far the shares of the modes are from the true ones, in nats: 0 when each gets its own.",
    "spread": "Width of the modes over their true width: 1 is right, 0 is collapse.",
    "loss_forward": "Imitation loss on forward states, noised data: the student's guess against the expert's, squared.",
    "loss_own": "Imitation loss on own states: the same, where the student's own chains have led it.",
    "loss_gap": "Loss on own states minus on forward states: what training on noised data alone does not see.",
}
"""Metric -> what it means, in a sentence."""

COMPARED = ("energy", "w2", "loss_gap", "coverage")
LARGER_IS_BETTER = ("coverage",)
_SHOWN = ("forward", "ddil")  # the contrast that losses and chains are drawn for
BASELINES = {"forward": "forward-only", "base": "the base method"}
"""What every variant is compared with -> its name in a sentence."""


@dataclass(frozen=True)
class Record:
    """One run, as ``results.json`` holds it; metrics that are null there are NaN here."""

    task: str
    objective: str
    variant: str
    steps: int
    seed: int
    shares: list[float]
    updates: int
    nfe_student: int
    nfe_expert: int
    seconds: float
    config: str
    samples: str
    metrics: dict[str, float]
    by_step: dict[str, list[float]]


@dataclass(frozen=True)
class Results:
    """A folder of results: its records, and for each task the ``floor`` and the ``expert``."""

    folder: Path
    suite: str
    version: str
    settings: dict[str, Any]
    records: list[Record]
    references: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read ``results.json``; refuse a folder without it, or one that holds something else or no finished run."""
        file = folder / "results.json"
        if not file.exists():
            raise Refusal(f"{folder} holds no results.json. Name the --out folder of `dagdiff bench`.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            records = [_record(entry) for entry in content["records"]]
            references = {record.task: _reference(content["references"][record.task]) for record in records}
            found = cls(folder, content["suite"], content["dagdiff"], dict(content["settings"]), records, references)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refusal(f"{file} does not hold results ({error!r}). Run `dagdiff bench` into a new folder.") from None
        if not records:
            raise Refusal(f"{file} holds no finished run. Wait for `dagdiff bench`, or run it again.")
        return found

    def arrays(self, path: str) -> dict[str, Any]:
        """Read the arrays of a record's or a reference's ``samples`` file; refuse a missing or broken one."""
        try:
            with (self.folder / path).open("rb") as file, np.load(file) as kept:
                return dict(kept)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise Refusal(f"{self.folder / path} is missing or broken ({error}). Run `dagdiff bench` again.") from None


class Difference(NamedTuple):
    """One metric of a variant minus that of another over ``seeds`` common seeds: the interval, and both means.

    ``improvement`` is the probability that a run of the one beats a run of the other.
    """

    interval: Interval
    ours: float
    theirs: float
    seeds: int
    improvement: float


@dataclass(frozen=True)
class Row:
    """One line of the summary: the runs of a variant, one a seed.

    ``metrics`` hold the mean over seeds and its interval (None: never measured), ``excess`` the mean energy distance
    minus the expert's, ``against`` the paired differences, baseline -> metric -> difference, without baselines that are
    the same runs.
    """

    task: str
    objective: str
    variant: str
    steps: int
    records: tuple[Record, ...]
    metrics: dict[str, Interval | None]
    excess: float
    against: dict[str, dict[str, Difference]]

    @property
    def group(self) -> tuple[str, str, int]:
        """Task, objective and steps: rows of one group differ in their variant alone."""
        return self.task, self.objective, self.steps

    @property
    def runs(self) -> frozenset[str]:
        """The configurations it stands for; two variants with equal ones are the same runs."""
        return _runs(self.records)

    @property
    def seconds(self) -> float:
        """Mean training time of a run."""
        return sum(record.seconds for record in self.records) / len(self.records)

    @property
    def ratio(self) -> float:
        """Loss on own states over loss on forward states, each a mean over seeds; NaN if unknown."""
        own, forward = self.metrics["loss_own"], self.metrics["loss_forward"]
        return own.mean / forward.mean if own and forward and forward.mean > 0 else math.nan


def summarise(results: Results) -> list[Row]:
    """One row for each task, objective, number of steps and variant, in the order of the records."""
    groups: dict[Hashable, dict[str, list[Record]]] = {}
    for record in results.records:
        group = groups.setdefault((record.task, record.objective, record.steps), {})
        group.setdefault(record.variant, []).append(record)
    return [_row(results, group, variant) for group in groups.values() for variant in group]


def write_summary(results: Results, path: Path) -> None:
    """Write the summary as CSV, a line a row: costs, then mean, low and high of each metric and paired difference."""
    lines = [_flat(row) for row in summarise(results)]
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for line in lines for name in line)), restval="")
    table.writeheader()
    table.writerows(lines)
    save_text(path, text.getvalue())


class Verdict(NamedTuple):
    """A sentence, and which way it goes: better, worse, or open."""

    way: str
    text: str


def verdicts(results: Results) -> list[str]:
    """What may be claimed of ddil, in words: for each task and objective against forward-only, and another base."""
    return [verdict.text for verdict in judge(summarise(results))]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on rows of :func:`summarise`, each with its way."""
    found = []
    for row in (row for row in rows if row.variant == "ddil"):
        peers = {other.variant: other for other in rows if other.group == row.group}
        for baseline, name in BASELINES.items():
            difference = row.against.get(baseline, {}).get("energy")
            told = baseline == "base" and "forward" in peers and peers["forward"].runs == peers.get("base", row).runs
            if difference and not told:
                verdict = _compare(difference, name)
                more = _shift(row, peers["forward"], verdict.way) if baseline == "forward" else ""
                found.append(Verdict(verdict.way, f"{row.task}, {_title(row, rows)}: {verdict.text}.{more}"))
    return found or [Verdict("open", "ddil and a baseline were not run on a common seed: nothing can be compared.")]


def caveat(rows: Sequence[Row]) -> str:
    """How far the intervals can be trusted; empty from six common seeds on."""
    seeds = [found["energy"].seeds for row in rows for found in row.against.values() if "energy" in found]
    if not seeds or min(seeds) > 5:
        return ""
    if min(seeds) == 1:
        return "With one seed there is no interval. Run at least five."
    chance = 2 ** (min(seeds) - 1)
    return (
        f"With {min(seeds)} seeds an interval is clear of zero as soon as all differences have one sign, or nearly so, "
        f"which chance alone brings about once in {chance} comparisons. Read such intervals as hints; run more seeds."
    )


def table(results: Results) -> str:
    """A text table of all students with the floor and the expert of each task, and the verdicts below it."""
    rows = summarise(results)
    lines = [
        ["task", "objective", "variant", "energy distance", "minus forward", "coverage", "loss own/forward", "seconds"]
    ]
    for task, reference in results.references.items():
        for name in ("floor", "expert"):
            energy, coverage = (number(reference[name][metric]) for metric in ("energy", "coverage"))
            lines.append([task, f"({name})", "", energy, "", coverage, "", ""])
        lines += [[task, *_cells(label, row)] for label, row in distinct(rows) if row.task == task]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    words = [verdict.text for verdict in judge(rows)] + [caveat(rows)]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], "", *words]).rstrip() + "\n"


def distinct(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Each set of runs once, under all its names: ``forward = base``. With several numbers of steps, they are told."""
    twins: dict[Hashable, list[Row]] = {}
    for row in rows:
        twins.setdefault((row.group, row.runs), []).append(row)
    several = len({row.steps for row in rows}) > 1
    names = [" = ".join(row.variant for row in same) for same in twins.values()]
    firsts = [same[0] for same in twins.values()]
    return [(f"{name}, {row.steps} steps" if several else name, row) for name, row in zip(names, firsts, strict=True)]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a folder of results, and return its path. It needs nothing beside it.

    Raises:
        Refusal: if the folder holds no results, or their samples are missing.
    """
    results = Results.load(folder)
    rows = summarise(results)
    tasks = [
        {"name": task, "rows": distinct(mine), "figures": _figures(results, task, mine), **reference}
        for task, reference in results.references.items()
        if (mine := [row for row in rows if row.task == task])
    ]
    versions = {"dagdiff": __version__, "Python": platform.python_version()}
    page = _template().render(
        results=results,
        tasks=tasks,
        verdicts=judge(rows),
        caveat=caveat(rows),
        metrics=METRICS,
        colours=plots.VARIANTS,
        settings=json.dumps(_harmless(results.settings), indent=2),
        versions={**versions, "torch": version("torch"), "system": f"{platform.system()}, {platform.machine()}"},
    )
    save_text(folder / "report.html", page)
    return folder / "report.html"


def number(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, where that is readable; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.0e}" if 0.0 < abs(value) < 1e-6 else f"{value:,.{_decimals(value, digits)}f}"


def spell(interval: Interval | None, digits: int = 3) -> str:
    """``mean [low, high]`` with equal decimals, or the mean alone where one seed gives no interval; a dash for None.

    The greatest of the three gets so many significant digits; a bound that is not 0 gets enough not to look like it.
    """
    if interval is None or interval.low == interval.high:
        return number(interval.mean if interval else math.nan, digits)
    decimals = _decimals(max(map(abs, interval)), digits)
    decimals = max(decimals, *(_decimals(bound, 1) for bound in interval[1:] if bound))
    mean, low, high = (f"{value:,.{decimals}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits; 9 at most."""
    return min(9, max(0, digits - 1 - math.floor(math.log10(abs(value))))) if value else digits - 1


def _figures(results: Results, task: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a task as ``data:`` addresses; ``strayed`` names the objective of the chains."""
    reference = results.references[task]
    world = results.arrays(reference["samples"])
    strayed = max((row for row in rows if row.variant == "forward"), key=lambda row: row.ratio, default=rows[0])
    pair = [row for row in rows if row.group == strayed.group and row.variant in _SHOWN]
    chains = {row.variant: _arrays(results, row)["chains"] for row in pair}
    return {
        "samples": {title: plots.to_data_uri(figure) for title, figure in _clouds(results, world, rows).items()},
        "chains": plots.to_data_uri(plots.chain_panels({**chains, "expert": world["chains"]}, world["truth"])),
        "strayed": _title(strayed, rows),
        "losses": plots.to_data_uri(_losses(rows)) if pair else "",
        "quality": plots.to_data_uri(_quality(rows, reference)),
    }


def _clouds(results: Results, world: Mapping[str, plots.Points], rows: Sequence[Row]) -> dict[str, Figure]:
    """The yardsticks under "", then each objective's students, all on the same square."""
    half = plots.half_width([world["data"], world["truth"], world["x"]])
    clouds = {"shown to the student": world["data"], "the truth": world["truth"], "the expert": world["x"]}
    roles = dict(zip(clouds, (plots.ROLES["data"], plots.ROLES["data"], plots.ROLES["expert"]), strict=True))
    figures = {"": plots.scatter_panels(clouds, colours=roles, half=half)}
    for title in {_title(row, rows): row for row in rows}:
        group = [(label, row) for label, row in distinct(rows) if _title(row, rows) == title]
        colours = {label: plots.VARIANTS.get(row.variant, "#555555") for label, row in group}
        made = {label: _arrays(results, row)["x"] for label, row in group}
        figures[title] = plots.scatter_panels(made, columns=5, colours=colours, half=half)
    return figures


def _losses(rows: Sequence[Row]) -> Figure:
    panels: dict[str, dict[str, plots.StepLosses]] = {}
    for row in (row for row in rows if row.variant in _SHOWN):
        forward, own = ([record.by_step[name] for record in row.records] for name in ("loss_forward", "loss_own"))
        losses = plots.StepLosses(row.records[0].by_step["t"], forward, own)
        panels.setdefault(_title(row, rows), {})[row.variant] = losses
    return plots.loss_by_step(panels)


def _quality(rows: Sequence[Row], reference: Mapping[str, Any]) -> Figure:
    panels: dict[str, dict[str, dict[int, Interval]]] = {}
    for _, row in distinct(rows):
        if energy := row.metrics["energy"]:
            panels.setdefault(row.objective, {}).setdefault(row.variant, {})[row.steps] = energy
    expert = {steps: found["energy"] for steps, found in reference["expert_by_nfe"].items()}
    return plots.quality_by_nfe(panels or {"no student measured": {}}, expert, reference["floor"]["energy"])


def _arrays(results: Results, row: Row) -> dict[str, plots.Points]:
    """Samples and chains of the row's first seed."""
    return results.arrays(row.records[0].samples)


def _row(results: Results, group: Mapping[str, list[Record]], variant: str) -> Row:
    records = tuple(sorted(group[variant], key=lambda record: record.seed))
    first = records[0]
    metrics = {name: _mean([record.metrics[name] for record in records]) for name in METRICS}
    energy, expert = metrics["energy"], results.references[first.task]["expert"]["energy"]
    others = {name: group[name] for name in BASELINES if name in group}
    against = {
        name: _differences(records, theirs) for name, theirs in others.items() if _runs(theirs) != _runs(records)
    }
    excess = energy.mean - expert if energy else math.nan
    return Row(first.task, first.objective, variant, first.steps, records, metrics, excess, against)


def _differences(ours: Iterable[Record], theirs: Iterable[Record]) -> dict[str, Difference]:
    """Compare seed by seed, over the seeds at which both have a number."""
    found = {}
    for metric in COMPARED:
        mine, other = (
            {record.seed: record.metrics[metric] for record in records if math.isfinite(record.metrics[metric])}
            for records in (ours, theirs)
        )
        if common := sorted(mine.keys() & other.keys()):
            a, b = [mine[seed] for seed in common], [other[seed] for seed in common]
            chance = probability_of_improvement(*((b, a) if metric in LARGER_IS_BETTER else (a, b)))
            means = sum(a) / len(a), sum(b) / len(b)
            found[metric] = Difference(paired_difference(a, b), *means, len(common), chance)
    return found


def _mean(values: Iterable[float]) -> Interval | None:
    finite = [value for value in values if math.isfinite(value)]
    return bootstrap_mean(finite) if finite else None


def _runs(records: Iterable[Record]) -> frozenset[str]:
    return frozenset(record.config for record in records)


def _record(entry: Mapping[str, Any]) -> Record:
    plain = {field.name: entry[field.name] for field in fields(Record)}
    by_step = {name: list(entry["by_step"][name]) for name in ("t", "loss_forward", "loss_own")}
    return Record(**{**plain, "metrics": _scores(entry["metrics"]), "by_step": by_step})


def _reference(entry: Mapping[str, Any]) -> dict[str, Any]:
    by_nfe = {int(steps): _scores(found) for steps, found in entry["expert_by_nfe"].items()}
    scores = {name: _scores(entry[name]) for name in ("floor", "expert")}
    return {**scores, "expert_by_nfe": by_nfe, "samples": entry["samples"]}


def _scores(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Every metric as a float: NaN where it is null or missing."""
    found = {name: metrics.get(name) for name in METRICS}
    return {name: math.nan if value is None else float(value) for name, value in found.items()}


def _flat(row: Row) -> dict[str, Any]:
    """A row of the summary as one line of CSV; what is unknown stays empty."""
    line: dict[str, Any] = {name: getattr(row, name) for name in ("task", "objective", "variant", "steps")}
    line["seeds"] = len(row.records)
    for name in ("updates", "nfe_student", "nfe_expert", "seconds"):
        line[name] = sum(getattr(record, name) for record in row.records) / len(row.records)
    line["excess_energy"] = row.excess if math.isfinite(row.excess) else ""
    for name, interval in row.metrics.items():
        line |= {f"{name}_{part}": getattr(interval, part, "") for part in Interval._fields}
    for baseline, found in row.against.items():
        for name, difference in found.items():
            line |= {f"{name}_minus_{baseline}_{part}": getattr(difference.interval, part) for part in Interval._fields}
            line |= {f"{name}_pairs_{baseline}": difference.seeds, f"{name}_beats_{baseline}": difference.improvement}
    return line


def _compare(found: Difference, name: str) -> Verdict:
    """Put a difference in energy distance into words: a claim only where the interval is clear of zero."""
    levels = f"({number(found.ours, 2)} for {number(found.theirs, 2)}"
    if found.seeds < 2:
        return Verdict(
            "open", f"nothing can be claimed against {name} {levels}): with one common seed no interval exists"
        )
    levels += f", {found.seeds} seeds)"
    if not found.interval.clear_of_zero:
        change = spell(found.interval, 2)
        text = f"no difference to {name} can be claimed: the energy distance changes by {change} {levels}"
        return Verdict("open", f"{text}; the interval includes zero")
    if found.interval.mean < 0:
        mean, low, high = found.interval
        text = f"ddil lowers the energy distance by {spell(Interval(-mean, -high, -low), 2)} against {name} {levels}"
        return Verdict("better", f"{text}; the interval is clear of zero")
    text = f"ddil is worse than {name}: it raises the energy distance by {spell(found.interval, 2)} {levels}"
    return Verdict("worse", f"{text}; the interval is clear of zero")


def _shift(row: Row, forward: Row, way: str) -> str:
    """Say how much worse each student imitates on its own states, and whether there was anything to repair."""
    if not math.isfinite(row.ratio + forward.ratio):
        return ""
    before, after = number(forward.ratio, 2), number(row.ratio, 2)
    text = f" Loss on own states is {before}x that on forward states under forward-only training, {after}x under ddil"
    return f"{text}: there is hardly a shift to repair here." if way == "open" and forward.ratio < 1.1 else f"{text}."


def _title(row: Row, rows: Iterable[Row]) -> str:
    """Objective, and the number of steps where several were run."""
    return f"{row.objective}, {row.steps} steps" if len({other.steps for other in rows}) > 1 else row.objective


def _cells(label: str, row: Row) -> list[str]:
    """A row of the text table, from the objective on."""
    forward = row.against.get("forward", {}).get("energy")
    energy, coverage = spell(row.metrics["energy"]), row.metrics["coverage"]
    covered = number(coverage.mean) if coverage else "–"
    difference = spell(forward.interval) if forward else ""
    return [row.objective, label, energy, difference, covered, number(row.ratio), number(row.seconds)]


def _harmless(value: Any) -> Any:
    """Settings without the folders of the machine they come from: of an absolute path only the name is kept."""
    if isinstance(value, dict):
        return {key: _harmless(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_harmless(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _template() -> Template:
    world = Environment(
        loader=PackageLoader("dagdiff"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters |= {"number": number, "spell": spell}
    return world.get_template("report.html.j2")
