"""The Markdown tables of README and docs: functions from rows of results to the lines of a table.

Which table stands where, and what it is made from, is in :mod:`dagdiff.benchmarks.pages`.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence

from dagdiff.benchmarks.suites.peers import milliseconds
from dagdiff.benchmarks.suites.study import CRITICS, MIXES, NARROW
from dagdiff.metrics.statistics import Interval, paired_difference
from dagdiff.report.glossary import OBJECTIVES, quantity, variant_name
from dagdiff.report.results import Row
from dagdiff.report.verdict import change, level, number, outcome, tally, told_excess

CONTRAST = ("forward", "base", "ddil")


def glance(study: Sequence[Row], images: Sequence[Row]) -> str:
    """README's table: the ring and the digits of which the training data lack half; one number a cell."""
    ring = [row for row in study if row.task == "gaussians8-biased" and row.steps == 4 and not _about(row)]
    digits = [row for row in images if row.task == "digits-biased" and row.steps == 4]
    lines = _head("4-step student, half of the data", "forward", "published", "mixture", "expert")
    told = []
    for name, rows, objectives in (("ring", ring, OBJECTIVES), ("digits", digits, ("consistency", "distribution"))):
        for objective in objectives:
            peers = {row.variant: row for row in rows if row.objective == objective}
            forward, base, ddil = (peers[variant] for variant in CONTRAST)
            published = "= forward" if base.runs == forward.runs else _mean(base)
            expert = level(ddil.expert, ddil.judged_by)
            lines += _line(f"{name}, {OBJECTIVES[objective]}", _mean(forward), published, _mean(ddil), expert)
            if base.runs != forward.runs:
                told.append(f"{OBJECTIVES[objective]} on the {name}, {_published(base, ddil)}")
    seeds = [len({record.seed for row in rows for record in row.records}) for rows in (ring, digits)]
    caption = (
        f"Ring: {quantity(ring[0].judged_by)}, {seeds[0]} seeds; chance may bring it just below 0. "
        f"Digits, 8 x 8: {quantity(digits[0].judged_by)}, {seeds[1]} seeds. Means; lower is better."
    )
    return "\n".join([*lines, "", f"*{caption}*", "", f"{'. '.join(told)}."])


def findings(study: Sequence[Row], images: Sequence[Row]) -> str:
    """What the study and the images show, a line each, made from the intervals."""
    plane = [row for row in study if row.variant == "ddil" and row.steps == 4 and not _about(row)]
    digits = [row for row in images if row.variant == "ddil" and row.task == "digits-biased"]
    half = {
        name: [row for row in plane if row.objective == name and row.task.endswith("-biased")] for name in OBJECTIVES
    }
    whole = [row for row in plane if row.task.endswith("-matched")]
    pictures = [row for row in digits if row.objective == "distribution"]
    told = [
        *(
            (f"{name}, half of the data, 2-D", "forward", tally(half[key], "forward"))
            for key, name in OBJECTIVES.items()
        ),
        ("DMD2, half of the data, 2-D", "published", tally(half["distribution"], "base")),
        ("All of the data, 2-D", "forward", tally(whole, "forward")),
        *(
            (f"{OBJECTIVES[name]}, half of the classes, digits", "forward", tally(found, "forward"))
            for name in OBJECTIVES
            if (found := [row for row in digits if row.objective == name])
        ),
        ("DMD2, half of the classes, digits", "published", tally(pictures, "base")),
    ]
    return "\n".join(f"- **{where}**, mixture against {baseline}: {found}." for where, baseline, found in told)


def contrasts(rows: Sequence[Row], about: str = "") -> str:
    """A line a task and objective: the contrast, the expert, the mixture's difference to forward, and the result."""
    lines = _head("dataset, trained on", "objective", "forward", "published", "mixture", "expert",
                  "mixture minus forward", "result")  # fmt: skip
    found = plain(rows, about)
    for task, objective in dict.fromkeys((task, name) for task, name, variant in found if variant == "base"):
        peers = [found.get((task, objective, variant)) for variant in CONTRAST]
        if None not in peers:
            forward, base, ddil = (row for row in peers if row)
            published = "= forward" if base.runs == forward.runs else _mean(base)
            difference = ddil.minus("forward")
            told = change(difference.interval, ddil.judged_by) if difference else ""
            cells = _mean(forward), published, _mean(ddil), level(ddil.expert, ddil.judged_by), told
            lines += _line(task.replace("-", ", "), OBJECTIVES[objective], *cells, outcome(ddil, "forward"))
    return "\n".join([f"Cells hold the {quantity(rows[0].judged_by)}.", "", *lines])


def by_steps(rows: Sequence[Row]) -> str:
    """A line an objective and kind of states, a column a number of steps."""
    mine = [row for row in rows if row.place == NARROW[0] and row.variant in CONTRAST]
    mine.sort(key=lambda row: (list(OBJECTIVES).index(row.objective), CONTRAST.index(row.variant), row.steps))
    told = [row for row in mine if row.objective == "distribution" or row.variant != "base"]
    return pivot(told, _objective_and_states, lambda row: f"{row.steps} step{'s' * (row.steps > 1)}")


def by_variant(rows: Sequence[Row], variants: Sequence[str], about: str = "") -> str:
    """A line an objective, a column a variant, in the study's narrow world."""
    place = f"{NARROW[0]}, {about}" if about else NARROW[0]
    mine = [row for name in variants for row in rows if (row.variant, row.steps, row.place) == (name, 4, place)]
    return pivot(mine, lambda row: OBJECTIVES[row.objective], lambda row: variant_name(row.variant))


def by_share(rows: Sequence[Row]) -> str:
    """A line a point of the triangle of shares, a column an objective."""
    names = ("forward", "student", "expert", "ddil", *MIXES)
    mine = [row for row in rows if row.place == NARROW[0] and row.steps == 4 and row.variant in names]
    mine.sort(key=lambda row: (row.records[0].shares, list(OBJECTIVES).index(row.objective)))
    return pivot(mine, _shares, lambda row: OBJECTIVES[row.objective], _mean)


def by_world(rows: Sequence[Row]) -> str:
    """DMD2's mixture beside its published method, a line a dataset: distances, differences, the chance to be better.

    Differences are paired by seed; the chance is that of any run of the mixture against any of the published method.
    """
    lines = _head(
        "dataset", "published", "mixture", "difference", "difference in coverage", "P(mixture better)", "result"
    )
    found = plain(rows)
    tasks = dict.fromkeys(row.task for row in rows if row.task.endswith("-biased"))
    pairs = [(found[task, "distribution", "base"], found[task, "distribution", "ddil"]) for task in tasks]
    for published, mixed in pairs:
        paired = mixed.against["base"]
        changes = change(paired["energy"].interval, "energy"), f"{paired['coverage'].interval:+.3f}"
        told = _mean(published), _mean(mixed), *changes, f"{paired['energy'].improvement:.2f}"
        lines += _line(mixed.task.removesuffix("-biased"), *told, outcome(mixed, "base"))
    energy, coverage = (_pooled(pairs, name) for name in ("energy", "coverage"))
    wins = statistics.mean(mixed.against["base"]["energy"].improvement for _, mixed in pairs)
    pooled = change(energy, "energy"), f"{coverage:+.3f}", f"{wins:.2f}"
    return "\n".join([*lines, *_line("all", "", "", *pooled, "")])


def by_critic(rows: Sequence[Row]) -> str:
    """A line a critic of DMD2 on its own states, then one for other states: distance, width and shares of the modes."""
    worlds = ("grid25-matched", "imbalanced-matched")
    dmd2 = [row for row in rows if row.objective == "distribution" and row.steps == 4 and row.task in worlds]
    kinds = [("base", about) for about in ("", *CRITICS)] + [("forward", ""), ("ddil", "")]
    mine = [row for kind in kinds for row in dmd2 if (row.variant, _about(row)) == kind]
    others = {"forward": "forward states", "ddil": "mixture"}
    return pivot(
        mine,
        lambda row: others.get(row.variant) or _about(row) or "conditioned on the step",
        lambda row: row.task.replace("-", ", "),
        _modes,
    )


def by_schedule(rows: Sequence[Row]) -> str:
    """A line a course of training, a column an objective: distances by world, and what all change against the first."""
    variants, tasks = (
        list(dict.fromkeys(names)) for names in zip(*((row.variant, row.task) for row in rows), strict=True)
    )
    found = {(row.variant, row.objective, row.task): row for row in rows}
    lines = _head(", ".join(task.removesuffix("-biased") for task in tasks), *OBJECTIVES.values())
    for variant in variants:
        told = []
        for objective in OBJECTIVES:
            pairs = [(found[variants[0], objective, task], found[variant, objective, task]) for task in tasks]
            difference = f"; {change(_pooled(pairs, 'energy'), 'energy')}" if variant != variants[0] else ""
            told.append(", ".join(_mean(mine) for _, mine in pairs) + difference)
        lines += _line(variant_name(variant), *told)
    return "\n".join(lines)


def by_steps_and_task(rows: Sequence[Row]) -> str:
    """The image suite: a line a task, objective and number of steps; the contrast, its result, missing classes."""
    lines = _head("dataset, trained on", "objective", "steps", *map(variant_name, _SHOWN), "expert", "remaining gap",
                  "result", "missing classes: forward → mixture")  # fmt: skip
    for task, steps, objective in dict.fromkeys((row.task, row.steps, row.objective) for row in rows):
        group = {row.variant: row for row in rows if (row.task, row.steps, row.objective) == (task, steps, objective)}
        told = [_mean(row) if (row := group.get(name)) else "–" for name in _SHOWN]
        if "base" in group and "forward" in group and group["base"].runs == group["forward"].runs:
            told[1] = "= forward"
        missing = [group[name].metrics["missing"] for name in ("forward", "ddil") if name in group]
        classes = " → ".join(f"{share.mean:.2f}" for share in missing if share)
        ddil = group.get("ddil")
        left = [level(ddil.expert, ddil.judged_by), told_excess(ddil), outcome(ddil, "forward")] if ddil else [""] * 3
        lines += _line(task.replace("-", ", "), OBJECTIVES[objective], str(steps), *told, *left, classes or "–")
    return "\n".join([f"Cells hold the {quantity(rows[0].judged_by)}.", "", *lines])


def which_one(rows: Sequence[Row]) -> str:
    """The imitation suite: a line a variant, a column a task: the distance; then what a run cost."""
    lines = _head("variant", *dict.fromkeys(row.place for row in rows), "NFE student", "NFE expert")
    for variant in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == variant]
        told = [level(row.distance, row.judged_by) for row in mine]
        nfe = [f"{getattr(mine[0].records[0], name) / 1e6:.2f} M" for name in ("nfe_student", "nfe_expert")]
        lines += _line(variant_name(variant), *told, *nfe)
    return "\n".join(lines)


def by_peer(rows: Sequence[Row]) -> str:
    """The peers suite: a line a variant, a column a task: distance, coverage; then update time to the first's."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    lines = _head("variant", *dict.fromkeys(row.place for row in rows), "time of an update")
    times = {name: statistics.mean(milliseconds(row) for row in rows if row.variant == name) for name in variants}
    for name in variants:
        told = [_covering(row) for row in rows if row.variant == name]
        lines += _line(variant_name(name), *told, f"{times[name] / times[variants[0]]:.2f}×")
    return "\n".join(lines)


def pivot(
    rows: Iterable[Row],
    line: Callable[[Row], str],
    column: Callable[[Row], str],
    number_of: Callable[[Row], str] = lambda row: level(row.distance, row.judged_by),
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


def _published(base: Row, ddil: Row) -> str:
    """The published method against the mixture: both means, their difference, and the result for the mixture."""
    difference = ddil.minus("base")
    told = change(difference.interval, ddil.judged_by) if difference else "not measured"
    return f"published against mixture: {_mean(base)} and {_mean(ddil)}, difference {told}: {outcome(ddil, 'base')}"


def _pooled(pairs: Iterable[tuple[Row, Row]], metric: str) -> Interval:
    """What the second rows change against the first in a metric, over all their common seeds."""
    common = [(a, b) for first, second in pairs for a in first.records for b in second.records if a.seed == b.seed]
    return paired_difference([b.metrics[metric] for _, b in common], [a.metrics[metric] for a, _ in common])


def _modes(row: Row) -> str:
    spread, shares = row.metrics["spread"], row.metrics["mode_kl"]
    widths = f"width {spread.mean:.2f}, shares off {number(shares.mean, 2)}" if spread and shares else ""
    return f"{level(row.distance, row.judged_by)}; {widths}"


def _covering(row: Row) -> str:
    coverage = row.metrics["coverage"]
    told = level(row.distance, row.judged_by)
    return f"{told}; covers {coverage.mean:.2f}" if coverage else told


def _objective_and_states(row: Row) -> str:
    return f"{OBJECTIVES[row.objective]}, {variant_name(row.variant)}"


def _shares(row: Row) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in row.records[0].shares)


def _about(row: Row) -> str:
    return row.place.removeprefix(row.task).removeprefix(", ")


def _mean(row: Row) -> str:
    return level(row.distance.mean, row.judged_by) if row.distance else "not measured"


def _head(*words: str) -> list[str]:
    return [*_line(*words), "|---" * len(words) + "|"]


def _line(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


_SHOWN = ("forward", "base", "ddil", "reflected-ddil")
