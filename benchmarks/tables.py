"""The Markdown tables of README and docs: functions from rows of results to the lines of a table.

Which table stands where, and what it is made from, is in :mod:`dagdiff.benchmarks.pages`.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from dagdiff.benchmarks.running.variants import MIXES
from dagdiff.benchmarks.suites.peers import milliseconds
from dagdiff.benchmarks.suites.study import CRITICS, NARROW
from dagdiff.metrics.statistics import Interval, paired_difference
from dagdiff.report.glossary import OBJECTIVES, quantity, variant_name
from dagdiff.report.rows import Row
from dagdiff.report.verdict import change, level, number, outcome, remaining_gap, tally

CONTRAST = ("forward", "published", "mixture")


def spoken(task: str) -> str:
    """A task's name in a table, such as ``avatars-glasses, biased``."""
    plain = task.removesuffix("-labelled")
    return ", ".join(plain.rsplit("-", 1)) + task[len(plain) :].replace("-", ", ")


def glance(study: Sequence[Row], images: Sequence[Row]) -> str:
    """README's table: the ring and the digits of which the training data lack half; one number a cell."""
    ring = [row for row in study if row.task == "gaussians8-biased" and row.steps == 4 and not _about(row)]
    digits = [row for row in images if row.task == "digits-biased" and row.steps == 4]
    lines = head("4-step student, half of the data", "forward", "published", "mixture", "expert")
    sentences = []
    for name, rows, objectives in (("ring", ring, OBJECTIVES), ("digits", digits, ("consistency", "distribution"))):
        for objective in objectives:
            peers = {row.variant: row for row in rows if row.objective == objective}
            forward, published, mixture = (peers[variant] for variant in CONTRAST)
            expert = level(mixture.expert, mixture.judged_by)
            means = _mean(forward), _unlike(published, forward), _mean(mixture)
            lines += line(f"{name}, {OBJECTIVES[objective]}", *means, expert)
            if published.runs != forward.runs:
                sentences.append(f"{OBJECTIVES[objective]} on the {name}, {_published(published, mixture)}")
    seeds = [len({record.seed for row in rows for record in row.records}) for rows in (ring, digits)]
    caption = (
        f"Ring: {quantity(ring[0].judged_by)}, {seeds[0]} seeds; chance may bring it just below 0. "
        f"Digits, 8 x 8: {quantity(digits[0].judged_by)}, {seeds[1]} seeds. Means; lower is better."
    )
    return "\n".join([*lines, "", f"*{caption}*", "", f"{'. '.join(sentences)}."])


def findings(study: Sequence[Row], images: Sequence[Row]) -> str:
    """What the study and the images show, a line each, made from the intervals."""
    plane = [row for row in study if row.variant == "mixture" and row.steps == 4 and not _about(row)]
    digits = [row for row in images if row.variant == "mixture" and row.task == "digits-biased"]
    half = {
        name: [row for row in plane if row.objective == name and row.task.endswith("-biased")] for name in OBJECTIVES
    }
    whole = [row for row in plane if row.task.endswith("-matched")]
    pictures = [row for row in digits if row.objective == "distribution"]
    counted = [
        *(
            (f"{name}, half of the data, 2-D", "forward", tally(half[key], "forward"))
            for key, name in OBJECTIVES.items()
        ),
        *(
            (f"{OBJECTIVES[key]}, half of the data, 2-D", "published", tally(half[key], "published"))
            for key in ("consistency", "distribution")
        ),
        ("All of the data, 2-D", "forward", tally(whole, "forward")),
        *(
            (f"{OBJECTIVES[name]}, half of the classes, digits", "forward", tally(found, "forward"))
            for name in OBJECTIVES
            if (found := [row for row in digits if row.objective == name])
        ),
        ("DMD2, half of the classes, digits", "published", tally(pictures, "published")),
    ]
    return "\n".join(f"- **{where}**, mixture against {baseline}: {found}." for where, baseline, found in counted)


def contrasts(rows: Sequence[Row], about: str = "") -> str:
    """A line a task and objective: the contrast, the expert, the mixture's difference to forward, and the result."""
    lines = head("dataset, trained on", "objective", "forward", "published", "mixture", "expert",
                  "mixture minus forward", "result")  # fmt: skip
    found = plain(rows, about)
    for task, objective in dict.fromkeys((task, name) for task, name, variant in found if variant == "published"):
        peers = [found.get((task, objective, variant)) for variant in CONTRAST]
        if None not in peers:
            forward, published, mixture = (row for row in peers if row)
            difference = mixture.minus("forward")
            shown = change(difference.interval, mixture.judged_by) if difference else ""
            means = _mean(forward), _unlike(published, forward), _mean(mixture)
            cells = *means, level(mixture.expert, mixture.judged_by), shown
            lines += line(spoken(task), OBJECTIVES[objective], *cells, outcome(mixture, "forward"))
    return "\n".join([f"Cells hold the {quantity(rows[0].judged_by)}.", "", *lines])


def by_steps(rows: Sequence[Row]) -> str:
    """A line an objective and kind of states, a column a number of steps."""
    mine = [row for row in rows if row.case == NARROW[0] and row.variant in CONTRAST]
    mine.sort(key=lambda row: (list(OBJECTIVES).index(row.objective), CONTRAST.index(row.variant), row.steps))
    forward = {runs for row in mine if row.variant == "forward" for runs in row.runs}
    others = [row for row in mine if row.variant != "published" or not row.runs <= forward]
    return pivot(others, _objective_and_states, lambda row: f"{row.steps} step{'s' * (row.steps > 1)}")


def by_variant(rows: Sequence[Row], variants: Sequence[str], about: str = "") -> str:
    """A line an objective, a column a variant, on the study's narrow dataset."""
    case = f"{NARROW[0]}, {about}" if about else NARROW[0]
    mine = [row for name in variants for row in rows if (row.variant, row.steps, row.case) == (name, 4, case)]
    return pivot(mine, lambda row: OBJECTIVES[row.objective], lambda row: variant_name(row.variant))


def by_share(rows: Sequence[Row]) -> str:
    """A line a point of the triangle of shares, a column an objective."""
    names = ("forward", "student", "expert", "mixture", *MIXES)
    mine = [row for row in rows if row.case == NARROW[0] and row.steps == 4 and row.variant in names]
    mine.sort(key=lambda row: (row.records[0].shares, list(OBJECTIVES).index(row.objective)))
    return pivot(mine, _shares, lambda row: OBJECTIVES[row.objective], _mean)


def by_world(rows: Sequence[Row]) -> str:
    """DMD2's mixture beside its published method, a line a dataset: distances, differences, the chance to be better.

    Differences are paired by seed; the chance is that of any run of the mixture against any of the published method.
    """
    lines = head(
        "dataset", "published", "mixture", "difference", "difference in coverage", "P(mixture better)", "result"
    )
    found = plain(rows)
    tasks = dict.fromkeys(row.task for row in rows if row.task.endswith("-biased"))
    pairs = [(found[task, "distribution", "published"], found[task, "distribution", "mixture"]) for task in tasks]
    for published, mixed in pairs:
        paired = mixed.against["published"]
        changes = change(paired["energy"].interval, "energy"), f"{paired['coverage'].interval:+.3f}"
        cells = _mean(published), _mean(mixed), *changes, f"{paired['energy'].improvement:.2f}"
        lines += line(mixed.task.removesuffix("-biased"), *cells, outcome(mixed, "published"))
    energy, coverage = (_pooled(pairs, name) for name in ("energy", "coverage"))
    wins = statistics.mean(mixed.against["published"]["energy"].improvement for _, mixed in pairs)
    pooled = change(energy, "energy"), f"{coverage:+.3f}", f"{wins:.2f}"
    return "\n".join([*lines, *line("all", "", "", *pooled, "")])


def by_critic(rows: Sequence[Row]) -> str:
    """A line a critic of DMD2 on student states, then one for other states: distance, width and shares of the modes."""
    worlds = ("grid25-matched", "imbalanced-matched")
    dmd2 = [row for row in rows if row.objective == "distribution" and row.steps == 4 and row.task in worlds]
    kinds = [("published", about) for about in ("", *CRITICS)] + [("forward", ""), ("mixture", "")]
    mine = [row for kind in kinds for row in dmd2 if (row.variant, _about(row)) == kind]
    others = {"forward": "forward states", "mixture": "mixture"}
    return pivot(
        mine,
        lambda row: others.get(row.variant) or _about(row) or "conditioned on the step",
        lambda row: spoken(row.task),
        _modes,
    )


def by_schedule(rows: Sequence[Row]) -> str:
    """A line a course of training, a column an objective: distances by dataset, and the change against the first."""
    variants, tasks = (
        list(dict.fromkeys(names)) for names in zip(*((row.variant, row.task) for row in rows), strict=True)
    )
    found = {(row.variant, row.objective, row.task): row for row in rows}
    lines = head(", ".join(task.removesuffix("-biased") for task in tasks), *OBJECTIVES.values())
    for variant in variants:
        cells = []
        for objective in OBJECTIVES:
            pairs = [(found[variants[0], objective, task], found[variant, objective, task]) for task in tasks]
            difference = f"; {change(_pooled(pairs, 'energy'), 'energy')}" if variant != variants[0] else ""
            cells.append(", ".join(_mean(mine) for _, mine in pairs) + difference)
        lines += line(variant_name(variant), *cells)
    return "\n".join(lines)


def by_steps_and_task(*several: Sequence[Row]) -> str:
    """The image suite: a line a task, objective and number of steps; the contrast, its result, missing classes."""
    rows = [row for each in several for row in each]
    lines = head("dataset, trained on", "objective", "steps", *map(variant_name, _SHOWN), "expert", "remaining gap",
                  "result", "missing classes: forward → mixture, expert")  # fmt: skip
    for task, steps, objective in dict.fromkeys((row.task, row.steps, row.objective) for row in rows):
        group = {row.variant: row for row in rows if (row.task, row.steps, row.objective) == (task, steps, objective)}
        cells = [_mean(row) if (row := group.get(name)) else "–" for name in _SHOWN]
        if "published" in group and "forward" in group:
            cells[1] = _unlike(group["published"], group["forward"])
        missing = [group[name].metrics["missing"] for name in ("forward", "mixture") if name in group]
        classes = " → ".join(f"{share.mean:.2f}" for share in missing if share)
        mixture = group.get("mixture")
        if classes and mixture and math.isfinite(taught := mixture.scores_of_expert["missing"]):
            classes += f", {taught:.2f}"
        cells += [level(mixture.expert, mixture.judged_by)] if mixture else [""]
        cells += [remaining_gap(mixture), outcome(mixture, "forward")] if mixture else ["", ""]
        lines += line(spoken(task), OBJECTIVES[objective], str(steps), *cells, classes or "–")
    return "\n".join([f"Cells hold the {quantity(rows[0].judged_by)}.", "", *lines])


def which_one(rows: Sequence[Row]) -> str:
    """The imitation suite: a line a variant, a column a task: the distance; then what a run cost."""
    lines = head("variant", *dict.fromkeys(row.case for row in rows), "NFE student", "NFE expert")
    for variant in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == variant]
        cells = [level(row.distance, row.judged_by) for row in mine]
        nfe = [f"{getattr(mine[0].records[0], name) / 1e6:.2f} M" for name in ("nfe_student", "nfe_expert")]
        lines += line(variant_name(variant), *cells, *nfe)
    return "\n".join(lines)


def at_equal_evaluations(rows: Sequence[Row], of: str = "dagger") -> str:
    """The imitation suite while it trains: distances when the expert had answered as often for each variant.

    That is as often as in the whole training of the variant ``of``.
    """
    looked = [row for row in rows if row.course]
    budgets = {row.case: row.course[-1].evaluations for row in looked if row.variant == of}
    if not budgets:
        return f"No student of {variant_name(of)} was scored while it trained."
    lines = head("variant", *(f"{case}: {budget / 1e3:.0f} k" for case, budget in budgets.items()))
    for variant in dict.fromkeys(row.variant for row in looked):
        found = {row.case: row.at(budgets[row.case]) for row in looked if row.variant == variant}
        cells = [level(found.get(case), looked[0].judged_by) if found.get(case) else "–" for case in budgets]
        lines += line(variant_name(variant), *cells)
    return "\n".join(lines)


def by_peer(rows: Sequence[Row]) -> str:
    """The peers suite: a line a variant, a column a task: distance, coverage; then update time to the first's."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    lines = head("variant", *dict.fromkeys(row.case for row in rows), "time of an update")
    times = {name: statistics.mean(milliseconds(row) for row in rows if row.variant == name) for name in variants}
    for name in variants:
        cells = [_covering(row) for row in rows if row.variant == name]
        lines += line(variant_name(name), *cells, f"{times[name] / times[variants[0]]:.2f}×")
    return "\n".join(lines)


def pivot(
    rows: Iterable[Row],
    name_of: Callable[[Row], str],
    column: Callable[[Row], str],
    number_of: Callable[[Row], str] = lambda row: level(row.distance, row.judged_by),
) -> str:
    """Return a table with a cell a row of the results; where there is none stands a dash."""
    cells = {(name_of(row), column(row)): number_of(row) for row in rows}
    names, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    lines = head("", *columns)
    for name in names:
        lines += line(name, *(cells.get((name, each), "–") for each in columns))
    return "\n".join(lines)


def plain(rows: Sequence[Row], about: str = "") -> dict[tuple[str, str, str], Row]:
    """The rows of four steps in one kind of comparison, by task, objective and variant."""
    mine = [row for row in rows if row.steps == 4 and _about(row) == about]
    return {(row.task, row.objective, row.variant): row for row in mine}


def _published(published: Row, mixture: Row) -> str:
    """The published method against the mixture: both means, their difference, and the result for the mixture."""
    difference = mixture.minus("published")
    shown = change(difference.interval, mixture.judged_by) if difference else "not measured"
    result = outcome(mixture, "published")
    return f"published against mixture: {_mean(published)} and {_mean(mixture)}, difference {shown}: {result}"


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
    distance = level(row.distance, row.judged_by)
    return f"{distance}; covers {coverage.mean:.2f}" if coverage else distance


def _objective_and_states(row: Row) -> str:
    return f"{OBJECTIVES[row.objective]}, {variant_name(row.variant)}"


def _shares(row: Row) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in row.records[0].shares)


def _about(row: Row) -> str:
    return row.case.removeprefix(row.task).removeprefix(", ")


def _mean(row: Row) -> str:
    return level(row.distance.mean, row.judged_by) if row.distance else "not measured"


def _unlike(row: Row, forward: Row) -> str:
    """The mean of a row, or that it is the same runs as forward."""
    return "= forward" if row.runs == forward.runs else _mean(row)


def head(*words: str) -> list[str]:
    """Return the head of a table."""
    return [*line(*words), "|---" * len(words) + "|"]


def line(*cells: str) -> list[str]:
    """Return a line of a table."""
    return [f"| {' | '.join(cells)} |"]


_SHOWN = ("forward", "published", "mixture", "mixture-box")
