"""Rows: the runs of each variant, summarised over seeds and compared seed by seed.

Runs that differ only in the states they were trained on share their seeds, so a difference is the mean over common
seeds, with a bootstrap interval. Beside every student stand its two yardsticks: the *expert* it imitates, and the
*floor*, real points scored as if they were samples.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from dagdiff.metrics.base import Number
from dagdiff.metrics.statistics import Interval, bootstrap_mean, paired_difference, probability_of_improvement
from dagdiff.report.excess import Excess, excess_left
from dagdiff.report.glossary import BASELINES, METRICS, variant_name
from dagdiff.report.records import Record, Scores


class Means(dict[str, Interval | None]):
    """Means over seeds with their intervals, by id; None for what was not measured."""

    def __missing__(self, name: str) -> None:
        """Return None."""
        return None


class Difference(NamedTuple):
    """One metric of a variant minus that of another over ``seeds`` common seeds: the interval, and both means.

    ``improvement`` is the probability that a run of the one beats a run of the other.
    """

    interval: Interval
    ours: float
    theirs: float
    seeds: int
    improvement: float


class Look(NamedTuple):
    """What students scored at a moment of their training: the expert's evaluations by then, and the distance."""

    evaluations: float
    distance: Interval


@dataclass(frozen=True)
class Row:
    """One line of the summary: the runs of a variant, one a seed.

    ``judged_by`` is the metric that counts. ``metrics`` hold the mean over seeds and its interval (None: never
    measured), ``scores_of_expert`` the expert's own numbers on the same grid, ``excess`` the mean distances minus
    those, ``against`` the paired differences, baseline -> metric -> difference, without baselines that are the same
    runs, and ``remaining`` the part of each baseline's gap to the expert that remains.
    """

    task: str
    objective: str
    variant: str
    steps: int
    records: tuple[Record, ...]
    judged_by: str
    metrics: Means
    scores_of_expert: Mapping[str, float]
    excess: Scores
    against: dict[str, dict[str, Difference]]
    remaining: dict[str, Excess]

    @property
    def group(self) -> tuple[str, str, int, str]:
        """Task, objective, steps and setup: rows of one group differ in their variant alone."""
        return self.task, self.objective, self.steps, self.records[0].setup

    @property
    def case(self) -> str:
        """The task, and what sets the comparison apart: whose yardsticks the row stands beside."""
        return self.records[0].case

    @property
    def expert(self) -> float:
        """The distance of the expert in the student's place."""
        return self.scores_of_expert[self.judged_by]

    @property
    def distance(self) -> Interval | None:
        """The metric that counts."""
        return self.metrics[self.judged_by]

    @property
    def left(self) -> Excess | None:
        """The part of forward's gap to the expert that remains."""
        return self.remaining.get("forward")

    @cached_property
    def course(self) -> list[Look]:
        """The looks at its runs while they trained, means over seeds; empty where nobody looked."""
        courses = [record.course for record in self.records if self.judged_by in record.course]
        columns = [zip(*(each[name] for each in courses), strict=True) for name in ("nfe_expert", self.judged_by)]
        looks = [(sum(spent) / len(spent), mean_over(found)) for spent, found in zip(*columns, strict=True)]
        return [Look(evaluations, distance) for evaluations, distance in looks if distance]

    def at(self, evaluations: float) -> Interval | None:
        """The distance at the last look before the expert had answered more often than that."""
        return next((look.distance for look in reversed(self.course) if look.evaluations <= evaluations), None)

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
        """Loss on student states over loss on forward states, each a mean over seeds; NaN if unknown."""
        own, forward = self.metrics["loss_own"], self.metrics["loss_forward"]
        return own.mean / forward.mean if own and forward and forward.mean > 0 else math.nan


def make_rows(
    records: Sequence[Record], references: Mapping[str, Any], numbers: Mapping[str, Number], judged_by: str
) -> list[Row]:
    """Return a row for each task, objective, number of steps and variant, in the order of the records."""
    groups: dict[Hashable, dict[str, list[Record]]] = {}
    for record in records:
        group = groups.setdefault((record.task, record.objective, record.steps, record.setup), {})
        group.setdefault(record.variant, []).append(record)
    measured = {name: numbers[name] for name in dict.fromkeys(name for record in records for name in record.metrics)}
    return [_row(group, name, references, measured, judged_by) for group in groups.values() for name in group]


def distinct(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Each set of runs once, under all its names: "forward = published"; with the steps where these differ."""
    twins: dict[Hashable, list[Row]] = {}
    for row in rows:
        twins.setdefault((row.group, row.runs), []).append(row)
    several = len({row.steps for row in rows}) > 1
    names = [" = ".join(variant_name(row.variant) for row in same) for same in twins.values()]
    firsts = [same[0] for same in twins.values()]
    return [(f"{name}, {row.steps} steps" if several else name, row) for name, row in zip(names, firsts, strict=True)]


def _row(
    group: Mapping[str, list[Record]],
    variant: str,
    references: Mapping[str, Any],
    numbers: Mapping[str, Number],
    judged_by: str,
) -> Row:
    records = tuple(sorted(group[variant], key=lambda record: record.seed))
    first = records[0]
    metrics = Means({name: mean_over(record.metrics[name] for record in records) for name in numbers})
    others = {name: group[name] for name in BASELINES if name in group and _runs(group[name]) != _runs(records)}
    against = {name: _differences(records, theirs, numbers) for name, theirs in others.items()}
    reference = references[first.case]
    expert = _expert(records, reference)
    found = {name: mean for name, number in numbers.items() if number.excess and (mean := metrics[name])}
    excess = Scores({name: mean.mean - expert[name] for name, mean in found.items()})
    chance = (METRICS[judged_by].chance or 0.0) * abs(reference["floor"][judged_by])
    gaps = {name: _left(records, theirs, judged_by, expert[judged_by], chance) for name, theirs in others.items()}
    left = {name: gap for name, gap in gaps.items() if gap}
    labels = first.task, first.objective, variant, first.steps
    return Row(*labels, records, judged_by, metrics, expert, excess, against, left)


def _expert(records: Sequence[Record], reference: Mapping[str, Any]) -> Mapping[str, float]:
    """The expert's mean scores in the student's place; in older files its own chain's, of as many evaluations."""
    if all(record.expert for record in records):
        means = {name: mean_over(record.expert[name] for record in records) for name in records[0].expert}
        return Scores({name: mean.mean for name, mean in means.items() if mean})
    first = records[0]
    scores: Mapping[str, float] = reference["expert_by_nfe"].get(first.steps * first.substeps, reference["expert"])
    return scores


def _left(ours: Iterable[Record], other: Iterable[Record], metric: str, expert: float, noise: float) -> Excess | None:
    """The part of another's gap to the expert that remains, over the seeds at which both were measured."""
    mine, theirs = (
        {record.seed: record.metrics[metric] - record.expert.get(metric, expert) for record in records}
        for records in (ours, other)
    )
    common = sorted(seed for seed in mine.keys() & theirs.keys() if math.isfinite(mine[seed] + theirs[seed]))
    if not common or not math.isfinite(noise):
        return None
    return excess_left([mine[seed] for seed in common], [theirs[seed] for seed in common], noise)


def _differences(
    ours: Iterable[Record], theirs: Iterable[Record], numbers: Mapping[str, Number]
) -> dict[str, Difference]:
    """Compare seed by seed, over the seeds at which both have a number."""
    found = {}
    for metric, number in numbers.items():
        if not number.compared:
            continue
        mine, other = (
            {record.seed: record.metrics[metric] for record in records if math.isfinite(record.metrics[metric])}
            for records in (ours, theirs)
        )
        if common := sorted(mine.keys() & other.keys()):
            a, b = [mine[seed] for seed in common], [other[seed] for seed in common]
            chance = probability_of_improvement(*((b, a) if number.larger_is_better else (a, b)))
            means = sum(a) / len(a), sum(b) / len(b)
            found[metric] = Difference(paired_difference(a, b), *means, len(common), chance)
    return found


def mean_over(values: Iterable[float]) -> Interval | None:
    """Return the mean of the values that are finite, with its interval over seeds; None if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return bootstrap_mean(finite) if finite else None


def _runs(records: Iterable[Record]) -> frozenset[str]:
    return frozenset(record.config for record in records)
