"""Tables of what a gap is made of, how errors grow with the chain, and what longer labels change."""

from collections.abc import Iterable, Sequence

from dagdiff.benchmarks.suites.horizon import growth
from dagdiff.benchmarks.tables import head, line, plain, spoken
from dagdiff.metrics.statistics import Interval, bootstrap_mean
from dagdiff.report.glossary import OBJECTIVES, quantity, variant_name
from dagdiff.report.records import Record
from dagdiff.report.rows import Row
from dagdiff.report.verdict import bracketed, level


def claim(rows: Sequence[Row]) -> str:
    """The sentence about errors that compound where nothing is missing from the data."""
    found = _by_variant(rows)
    cloned, dagger = (found["gaussians8-matched, width 128", variant] for variant in ("bc", "dagger"))
    steps = [number for number in sorted({record.steps for record in dagger}) if number >= 8]
    changes = {number: _relative(cloned, dagger, number) for number in steps}
    told = ", ".join(f"{change:+.0f} % at {number}" for number, change in changes.items())
    asked = [sum(record.nfe_expert for record in part) for part in (cloned, dagger)]
    return (
        "**With all of the data, errors still compound.** Training on the student's own chains instead of the expert's "
        f"changes how far it ends from the expert (ring, PD) by {told} steps, with {asked[1] / asked[0]:.1f} times the "
        "expert's evaluations. [How errors grow with the steps](horizon.md)."
    )


def walked(rows: Sequence[Row]) -> str:
    """The sentence about labels that walk to data: the distance before and after, where the data are biased."""
    found = {(row.task, row.objective, row.variant): row for row in rows if row.records[0].about == "label ends"}
    told = []
    for objective, before, after in (
        ("consistency", "one step", "data, 16"),
        ("distribution", "none", "data, 16, weight 1"),
    ):
        tasks = [task for task, mine, _ in found if mine == objective and task.endswith("-biased")]
        pairs = [[found[task, objective, label] for label in (before, after)] for task in dict.fromkeys(tasks)]
        told += [
            f"{OBJECTIVES[objective]} from {' to '.join(level(row.distance, row.judged_by) for row in pair)} "
            f"({pair[0].task})"
            for pair in pairs
        ]
    return (
        "**A label may be the expert's whole walk to data.** Each label is bought once and used often, so it may cost "
        f"more. Energy distance x 1000: {', '.join(told)}. [Labels as long as the chain](labels.md)."
    )


def by_cause(rows: Sequence[Row]) -> str:
    """A line a task and objective of forward training on half of the data: the loss there, and both parts of the gap.

    Means over steps and seeds, with the intervals of the parts over seeds; times 1000.
    """
    lines = head("dataset", "objective", "loss on forward states", "data mismatch", "own errors")
    for row in plain(rows).values():
        if row.variant == "forward" and row.task.endswith("-biased"):
            losses = (row.metrics[name] for name in ("loss_forward", "data_mismatch", "own_errors"))
            told = [bracketed(Interval(*(1e3 * bound for bound in loss)), 2) if loss else "–" for loss in losses]
            lines += line(row.task.removesuffix("-biased"), OBJECTIVES[row.objective], *told)
    return "\n".join(lines)


def by_growth(rows: Sequence[Row]) -> str:
    """A line a task, width and variant: the exponent, and the loss on student over that on expert states, by K."""
    found = _by_variant(rows)
    steps = sorted({record.steps for records in found.values() for record in records})
    lines = head("data, student", "trained on", "exponent p", *(f"K = {number}" for number in steps))
    for (case, variant), records in found.items():
        grown = growth(records)
        ratios = [f"{grown.ratios[number].mean:.2f}" for number in steps]
        lines += line(case, _NAMES.get(variant, variant), f"{grown.exponent:.2f}", *ratios)
    return "\n".join(lines)


def by_horizon(rows: Sequence[Row]) -> str:
    """A line a task and width: what DAgger changes of behaviour cloning's end error, in per cent, by K; paired."""
    found = _by_variant(rows)
    steps = sorted({record.steps for records in found.values() for record in records})
    lines = head("data, student", "seeds", *(f"K = {number}" for number in steps))
    for case in dict.fromkeys(case for case, _ in found):
        cloned, dagger = found[case, "bc"], found[case, "dagger"]
        changes = [_relative(cloned, dagger, number) for number in steps]
        seeds = len({record.seed for record in dagger})
        lines += line(case, str(seeds), *(f"{change:+.0f}" for change in changes))
    return "\n".join(lines)


def by_label(rows: Sequence[Row]) -> str:
    """A line an objective and label, a column a task: the distance, and the expert's evaluations."""
    return _by_task([row for row in rows if row.records[0].about == "label ends"])


def by_source(rows: Sequence[Row]) -> str:
    """A line a source of states, all under one label, a column a task: the distance, and the expert's evaluations."""
    return _by_task([row for row in rows if row.records[0].about == "one label"])


def by_length(rows: Sequence[Row]) -> str:
    """A line a label and number of updates, a column a task: the distance, and the expert's evaluations."""
    return _by_task([row for row in rows if row.records[0].about.endswith("updates")])


def by_drift(rows: Sequence[Row]) -> str:
    """A line a label, a column a length of training, and the score at which a perfect imitator would stay.

    Cells hold the distance, the expert's evaluations and the seconds of the training.
    """
    long = [row for row in rows if row.records[0].about.endswith("updates")]
    lengths = list(dict.fromkeys(row.records[0].about for row in long))
    lines = head("label", *lengths, "the expert in its place")
    for label in dict.fromkeys(row.variant for row in long):
        mine = {row.records[0].about: row for row in long if row.variant == label}
        cells = [
            f"{level(row.distance, row.judged_by)}; {row.records[0].nfe_expert / 1e3:,.0f} k; {row.seconds:.0f} s"
            for row in map(mine.__getitem__, lengths)
        ]
        lines += line(label, *cells, level(mine[lengths[0]].expert, mine[lengths[0]].judged_by))
    return "\n".join([f"Cells hold the {quantity(rows[0].judged_by)}; the expert's evaluations; seconds.", "", *lines])


def by_price(rows: Sequence[Row]) -> str:
    """A line a label and price of the expert, all of one price at equal cost, a column a task: distance, updates."""
    priced = [row for row in rows if row.records[0].about.startswith("price")]
    tasks = list(dict.fromkeys(row.task for row in priced))
    found = {(row.records[0].about, row.variant, row.task): row for row in priced}
    lines = head("", *map(spoken, tasks), "updates")
    for about, variant in dict.fromkeys(key[:2] for key in found):
        mine = [found[about, variant, task] for task in tasks]
        updates = {row.records[0].updates for row in mine}
        lines += line(f"{about}: {variant}", *(level(row.distance, row.judged_by) for row in mine), f"{min(updates):,}")
    return "\n".join(lines)


def _by_task(rows: Sequence[Row]) -> str:
    tasks = list(dict.fromkeys(row.task for row in rows))
    found = {(row.objective, row.variant, row.records[0].about, row.task): row for row in rows}
    lines = head("", *map(spoken, tasks), "expert evaluations")
    for objective, variant, about in dict.fromkeys(key[:3] for key in found):
        mine = [found.get((objective, variant, about, task)) for task in tasks]
        cells = [level(row.distance, row.judged_by) if row else "–" for row in mine]
        spent = {record.nfe_expert for row in mine if row for record in row.records}
        what = (variant_name(variant),) if about != "label ends" else (OBJECTIVES[objective], variant)
        name = ", ".join((*what, about) if about.endswith("updates") else what)
        lines += line(name, *cells, f"{sum(spent) / len(spent) / 1e3:,.0f} k")
    return "\n".join(lines)


def _by_variant(rows: Iterable[Row]) -> dict[tuple[str, str], list[Record]]:
    """The records of a case and a variant, of all numbers of steps."""
    found: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        found.setdefault((row.case, row.variant), []).extend(row.records)
    return found


def _relative(first: Sequence[Record], second: Sequence[Record], steps: int) -> Interval:
    """What the second changes of the first's end error, in per cent of it, over the seeds of both."""
    ends = [{each.seed: each.metrics["end_error"] for each in part if each.steps == steps} for part in (first, second)]
    common = sorted(ends[0].keys() & ends[1].keys())
    return bootstrap_mean([100.0 * (ends[1][seed] / ends[0][seed] - 1.0) for seed in common])


_NAMES = {"bc": "expert states (BC)", "dagger": "student states (DAgger)"}
