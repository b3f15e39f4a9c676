"""Results of a suite: read from their folder, and summarised over seeds.

Runs that differ only in the states they were trained on share their seeds, so they are compared *seed by seed*: a
difference is the mean over common seeds, with a bootstrap interval. Beside every student stand its two yardsticks: the
*expert* it imitates, and the *floor*, real points scored as if they were samples.
"""

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from dagdiff.checkpoint import save_csv
from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval, bootstrap_mean, paired_difference, probability_of_improvement
from dagdiff.report.excess import Excess, excess_left
from dagdiff.report.glossary import (
    BASELINES,
    CHANCE,
    COMPARED,
    DISTANCES,
    EXCESSES,
    LARGER_IS_BETTER,
    METRICS,
    variant_name,
)

IDENTITY = 2
"""Version of what identifies a run: its settings, their defaults, and how their key is made. Results of an older one
stay readable and are marked so."""


@dataclass(frozen=True)
class Record:
    """One run, as ``results.json`` holds it; metrics that are null there are NaN here.

    ``about`` says in words what sets its comparison apart from the plain one, ``place`` names its yardsticks, and
    ``milliseconds`` is the CPU time of an update, in suites that measure it.
    """

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
    setup: str
    config: str
    samples: str
    metrics: dict[str, float]
    by_step: dict[str, list[float]]
    about: str = ""
    place: str = ""
    substeps: int = 0
    milliseconds: float = math.nan


@dataclass(frozen=True)
class Results:
    """A folder of results: its records, and for each place (a task) the ``floor`` and the ``expert``.

    ``identity`` is the :data:`IDENTITY` under which they were made; 1 where the file does not say.
    """

    folder: Path
    suite: str
    version: str
    settings: dict[str, Any]
    records: list[Record]
    references: dict[str, dict[str, Any]]
    versions: dict[str, str]
    failures: dict[str, str]
    identity: int = 1

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read ``results.json``; refuse a folder without it, or one that holds something else or no finished run."""
        file = folder / "results.json"
        if not file.exists():
            raise Refusal(f"{folder} holds no results.json. Name the --out folder of `dagdiff bench`.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            records = [_record(entry) for entry in content["records"]]
            places = dict.fromkeys(record.place for record in records)
            references = {place: _reference(content["references"][place]) for place in places}
            parts = content["suite"], content["dagdiff"], dict(content["settings"]), records, references
            versions, failures = content.get("versions", {}), content.get("failures", {})
            found = cls(folder, *parts, versions, failures, int(content.get("identity", 1)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refusal(f"{file} does not hold results ({error!r}). Run `dagdiff bench` into a new folder.") from None
        if not records:
            raise Refusal(f"{file} holds no finished run. Wait for `dagdiff bench`, or run it again.")
        return found

    @cached_property
    def judged_by(self) -> str:
        """The metric that counts: the last of :data:`~dagdiff.report.glossary.DISTANCES` that any run holds."""
        held = [name for name in DISTANCES if any(math.isfinite(record.metrics[name]) for record in self.records)]
        return (held or list(DISTANCES))[-1 if held else 0]

    @cached_property
    def rows(self) -> list["Row"]:
        """A row for each task, objective, number of steps and variant, in the order of the records; made once."""
        groups: dict[Hashable, dict[str, list[Record]]] = {}
        for record in self.records:
            group = groups.setdefault((record.task, record.objective, record.steps, record.setup), {})
            group.setdefault(record.variant, []).append(record)
        return [_row(self, group, variant) for group in groups.values() for variant in group]

    @property
    def made_with(self) -> str:
        """What made them, in words: version, machine, torch, and the number of seeds."""
        seeds = len({record.seed for record in self.records})
        torch = self.versions.get("torch", "unknown").partition("+")[0]
        machine = self.versions.get("system", "an unknown machine")
        return f"dagdiff {self.version} on {machine} (torch {torch}), {seeds} seed{'s' * (seeds > 1)}"

    def arrays(self, path: str) -> dict[str, Any]:
        """Read the arrays of a record's or a reference's ``samples`` file; refuse a missing or broken one."""
        try:
            with (self.folder / path).open("rb") as file, np.load(file, allow_pickle=False) as kept:
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

    ``judged_by`` is the metric that counts. ``metrics`` hold the mean over seeds and its interval (None: never
    measured), ``expert`` the expert's own distance on the same grid, ``excess`` the mean distances minus the expert's,
    ``against`` the paired differences, baseline -> metric -> difference, without baselines that are the same runs, and
    ``remaining`` the part of each baseline's gap to the expert that remains.
    """

    task: str
    objective: str
    variant: str
    steps: int
    records: tuple[Record, ...]
    judged_by: str
    metrics: dict[str, Interval | None]
    expert: float
    excess: dict[str, float]
    against: dict[str, dict[str, Difference]]
    remaining: dict[str, Excess]

    @property
    def group(self) -> tuple[str, str, int, str]:
        """Task, objective, steps and setup: rows of one group differ in their variant alone."""
        return self.task, self.objective, self.steps, self.records[0].setup

    @property
    def place(self) -> str:
        """The task, and what sets the comparison apart: whose yardsticks the row stands beside."""
        return self.records[0].place

    @property
    def distance(self) -> Interval | None:
        """The metric that counts."""
        return self.metrics[self.judged_by]

    @property
    def left(self) -> Excess | None:
        """The part of forward's gap to the expert that remains."""
        return self.remaining.get("forward")

    def minus(self, baseline: str) -> Difference | None:
        """Return the distance minus that of a baseline, if they were compared."""
        return self.against.get(baseline, {}).get(self.judged_by)

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


def write_summary(results: Results, path: Path) -> None:
    """Write the summary as CSV, a line a row: costs, then mean, low and high of each metric and paired difference."""
    save_csv(path, [_flat(row) for row in results.rows])


def distinct(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Each set of runs once, under all its names: "forward = published"; with the steps where these differ."""
    twins: dict[Hashable, list[Row]] = {}
    for row in rows:
        twins.setdefault((row.group, row.runs), []).append(row)
    several = len({row.steps for row in rows}) > 1
    names = [" = ".join(variant_name(row.variant) for row in same) for same in twins.values()]
    firsts = [same[0] for same in twins.values()]
    return [(f"{name}, {row.steps} steps" if several else name, row) for name, row in zip(names, firsts, strict=True)]


def _row(results: Results, group: Mapping[str, list[Record]], variant: str) -> Row:
    records = tuple(sorted(group[variant], key=lambda record: record.seed))
    first = records[0]
    metrics = {name: _mean([record.metrics[name] for record in records]) for name in METRICS}
    others = {name: group[name] for name in BASELINES if name in group and _runs(group[name]) != _runs(records)}
    against = {name: _differences(records, theirs) for name, theirs in others.items()}
    reference = results.references[first.place]
    expert = _expert(first, reference)
    excess = {name: mean.mean - expert[name] if (mean := metrics[name]) else math.nan for name in EXCESSES}
    judge = results.judged_by
    chance = CHANCE[judge] * abs(reference["floor"][judge])
    gaps = {name: _left(records, theirs, judge, expert[judge], chance) for name, theirs in others.items()}
    left = {name: gap for name, gap in gaps.items() if gap}
    labels = first.task, first.objective, variant, first.steps
    return Row(*labels, records, judge, metrics, expert[judge], excess, against, left)


def _expert(record: Record, reference: Mapping[str, Any]) -> Mapping[str, float]:
    """The expert's scores on the grid of the record: as many sub-steps a step, on as many steps."""
    scores: Mapping[str, float] = reference["expert_by_nfe"].get(record.steps * record.substeps, reference["expert"])
    return scores


def _left(ours: Iterable[Record], other: Iterable[Record], metric: str, expert: float, noise: float) -> Excess | None:
    """The part of another's gap to the expert that remains, over the seeds at which both were measured."""
    mine, theirs = ({record.seed: record.metrics[metric] - expert for record in records} for records in (ours, other))
    common = sorted(seed for seed in mine.keys() & theirs.keys() if math.isfinite(mine[seed] + theirs[seed]))
    if not common or not math.isfinite(noise):
        return None
    return excess_left([mine[seed] for seed in common], [theirs[seed] for seed in common], noise)


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
    later = {"setup": "", "about": "", "place": entry["task"], "substeps": 0, "milliseconds": math.nan}
    plain = {field.name: entry[field.name] for field in fields(Record) if field.name not in later}
    plain |= {name: entry.get(name, value) for name, value in later.items()}
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
    line["about"] = row.records[0].about
    line["seeds"] = len(row.records)
    line["updates"] = row.records[0].updates
    for name in ("nfe_student", "nfe_expert", "seconds"):
        line[name] = sum(getattr(record, name) for record in row.records) / len(row.records)
    line |= {f"excess_{name}": value if math.isfinite(value) else "" for name, value in row.excess.items()}
    ratio = row.left.ratio if row.left else None
    line |= {f"excess_over_forward_{part}": getattr(ratio, part, "") for part in Interval._fields}
    line["excess_told"] = row.left.words if row.left else ""
    for name, interval in row.metrics.items():
        line |= {f"{name}_{part}": getattr(interval, part, "") for part in Interval._fields}
    for baseline, found in row.against.items():
        for name, difference in found.items():
            line |= {f"{name}_minus_{baseline}_{part}": getattr(difference.interval, part) for part in Interval._fields}
            line |= {f"{name}_pairs_{baseline}": difference.seeds, f"{name}_beats_{baseline}": difference.improvement}
    return line
