"""The report: one page that says what a folder of results says: a figure first, then a sentence, then tables.

It is one file that asks the network for nothing.
"""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from dagdiff import __version__
from dagdiff.checkpoint import save_text
from dagdiff.metrics.statistics import Interval
from dagdiff.report.curves import StepLosses, loss_by_step, quality_by_evaluations, quality_by_nfe
from dagdiff.report.explorer import explored
from dagdiff.report.figures import OTHER, ROLES, VARIANTS, Points, to_data_uri
from dagdiff.report.forest import MOST, forest_figure
from dagdiff.report.glossary import OPERATORS, objective_name, quantity, scale_of, variant_name
from dagdiff.report.images import image_chains, image_panels
from dagdiff.report.overview import HEAD, SHOWN, Line, caption, lead, overview
from dagdiff.report.plane import chain_panels, half_width, scatter_panels
from dagdiff.report.results import Results
from dagdiff.report.rows import Row, distinct
from dagdiff.report.study import Shares, growth_figure, shares_figure, thresholds_figure
from dagdiff.report.verdict import (
    caveat,
    change,
    counts,
    findings,
    level,
    number,
    outcome,
    remaining_gap,
    scaled,
    spell,
    title,
)

_FIRST = 6  # kinds of training in the first figure
_LARGEST = " Of all comparisons this one has the largest gap between forward training and the expert."
_VIEWS = 12  # of the explorer: a page is to stay light

_CONTRAST = ("forward", "mixture")  # the contrast that losses and chains are drawn for


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a folder of results, and return its path. It needs nothing beside it.

    Raises:
        Refusal: if the folder holds no results, or their samples are missing.
    """
    results = Results.load(folder)
    rows = results.rows
    dpi = 130 if len(results.references) <= 4 else 80  # a page of many cases is to stay light
    tasks = [
        {"name": case, "rows": distinct(mine), "figures": _figures(results, case, mine, dpi), **reference}
        for case, reference in results.references.items()
        if (mine := [row for row in rows if row.case == case])
    ]
    versions = {"dagdiff": __version__, "Python": platform.python_version()}
    lines = overview(rows)
    effects = forest_figure(lines)
    page = _template().render(
        results=results,
        overview=lines,
        head=HEAD,
        caption=caption(results.judged_by),
        lead=_lead(results, lead(lines)),
        forest=to_data_uri(effects) if effects else "",
        comparisons=len(lines),
        most=MOST,
        views=_views(results),
        tasks=tasks,
        findings=findings(rows),
        counts=counts(rows),
        caveat=caveat(rows),
        metrics={
            name: each.meaning for name, each in results.numbers.items() if any(row.metrics[name] for row in rows)
        },
        judged_by=results.judged_by,
        distance=quantity(results.judged_by),
        heading=quantity(results.judged_by)[0].upper() + quantity(results.judged_by)[1:],
        colours=VARIANTS,
        other=OTHER,
        settings=json.dumps(_harmless(results.settings), indent=2),
        made={"dagdiff": results.version, **results.versions},
        versions={**versions, "torch": version("torch"), "system": f"{platform.system()}, {platform.machine()}"},
    )
    save_text(folder / "report.html", page)
    return folder / "report.html"


def _lead(results: Results, line: Line | None) -> dict[str, str]:
    """The first figures: what is made in a comparison under each kind of training, and its losses by step."""
    rows, metric = results.rows, results.judged_by
    if line is None:
        first, why = rows[0], ""
        made = {row.variant: row for row in rows if row.group == first.group}
        made = dict(list(made.items())[:_FIRST])
    else:
        first, why = line.mixture, _LARGEST
        made = {kind: row for kind in SHOWN if (row := line.rows.get(kind)) and not line.is_forward(kind)}
    world = results.arrays(results.references[first.case]["samples"])
    clouds = {"training data": world["data"], "target": world["truth"]}
    clouds[f"expert: {level(first.expert, metric)}"] = world["x"]
    means = {kind: level(row.distance.mean, metric) if row.distance else "–" for kind, row in made.items()}
    clouds |= {f"{variant_name(kind)}: {means[kind]}": _arrays(results, row)["x"] for kind, row in made.items()}
    if _is_images(world):
        drawn = image_panels(clouds, columns=2)
    else:
        roles = [ROLES["data"], ROLES["data"], ROLES["expert"], *(VARIANTS.get(kind, OTHER) for kind in made)]
        drawn = scatter_panels(clouds, columns=3, colours=dict(zip(clouds, roles, strict=True)))
    pair = [row for kind, row in made.items() if kind in _CONTRAST]
    losses = to_data_uri(_losses(pair)) if pair else ""
    name = f"{first.case}, {title(first, [row for row in rows if row.case == first.case])}"
    return {"name": name, "why": why, "samples": to_data_uri(drawn), "losses": losses}


def _views(results: Results) -> list[dict[str, Any]]:
    """What the chain explorer shows, a view for each objective of each case: :data:`_VIEWS` at most."""
    found = []
    for group in dict.fromkeys(row.group for row in results.rows if row.variant in SHOWN):
        rows = {row.variant: row for row in results.rows if row.group == group and row.variant in SHOWN}
        first = next(iter(rows.values()))
        world = results.arrays(results.references[first.case]["samples"])
        arrays = {kind: _arrays(results, row) for kind, row in rows.items()}
        if len(rows) > 2 and rows["published"].runs == rows["forward"].runs:
            del arrays["published"]
        expert = next((each["expert_chains"] for each in arrays.values() if "expert_chains" in each), world["chains"])
        chains = {"expert": expert, **{kind: each["chains"] for kind, each in arrays.items()}}
        times = [*first.records[0].by_step["t"], 0.0]
        name = f"{first.case}, {title(first, [row for row in results.rows if row.case == first.case])}"
        view = explored(name, times, chains, world["truth"])
        found += [view] if view else []
        if len(found) == _VIEWS:
            break
    return found


def _figures(results: Results, case: str, rows: Sequence[Row], dpi: int) -> dict[str, Any]:
    """The figures of a case as ``data:`` addresses; ``strayed`` names the objective of the chains.

    Samples, chains and losses are drawn for the number of steps that most rows have, the largest such, the others for
    all. ``pictures`` says whether samples are images.
    """
    reference = results.references[case]
    world = results.arrays(reference["samples"])
    usual, _ = max(Counter(row.steps for row in rows).items(), key=lambda found: (found[1], found[0]))
    main = [row for row in rows if row.steps == usual]
    strayed = max((row for row in main if row.variant == "forward"), key=lambda row: row.ratio, default=main[0])
    pair = [row for row in main if row.group == strayed.group and row.variant in _CONTRAST]
    chains = {**{row.variant: _arrays(results, row)["chains"] for row in pair}, "expert": world["chains"]}
    seen = image_chains(chains) if _is_images(world) else chain_panels(chains, world["truth"])
    drawn: dict[str, Figure] = {"chains": seen}
    drawn |= {"losses": _losses(main)} if pair else {}
    drawn |= {"quality": _quality(rows, reference), **_course(rows), **_study(rows)}
    return {
        **{name: to_data_uri(figure, dpi) for name, figure in drawn.items()},
        "samples": {name: to_data_uri(figure, dpi) for name, figure in _clouds(results, world, main).items()},
        "strayed": title(strayed, main),
        "steps": usual,
        "pictures": _is_images(world),
    }


def _clouds(results: Results, world: Mapping[str, Points], rows: Sequence[Row]) -> dict[str, Figure]:
    """The yardsticks under "", then each objective's students, all on the same square."""
    clouds = {"training data": world["data"], "target": world["truth"], "expert": world["x"]}
    if _is_images(world):
        return {"": image_panels(clouds), **_pictures(results, world, rows)}
    half = half_width(clouds.values())
    roles = dict(zip(clouds, (ROLES["data"], ROLES["data"], ROLES["expert"]), strict=True))
    drawn = {"": scatter_panels(clouds, colours=roles, half=half)}
    for name in dict.fromkeys(title(row, rows) for row in rows):
        group = [(label, row) for label, row in distinct(rows) if title(row, rows) == name and not _is_mix(row)]
        colours = {label: VARIANTS.get(row.variant, OTHER) for label, row in group}
        made = {label: _arrays(results, row)["x"] for label, row in group}
        drawn |= {name: scatter_panels(made, columns=5, colours=colours, half=half)} if made else {}
    return drawn


def _pictures(results: Results, world: Mapping[str, Points], rows: Sequence[Row]) -> dict[str, Figure]:
    """Each objective's images beside the expert's, equal places from equal noise."""
    drawn = {}
    for name in dict.fromkeys(title(row, rows) for row in rows):
        made = {label: _arrays(results, row)["x"] for label, row in distinct(rows) if title(row, rows) == name}
        drawn[name] = image_panels({"expert": world["x"], **made})
    return drawn


def _is_images(world: Mapping[str, Points]) -> bool:
    return world["x"].ndim == 4


def _losses(rows: Sequence[Row]) -> Figure:
    panels: dict[str, dict[str, StepLosses]] = {}
    for row in (row for row in rows if row.variant in _CONTRAST):
        forward, own = ([record.by_step[name] for record in row.records] for name in ("loss_forward", "loss_own"))
        losses = StepLosses(row.records[0].by_step["t"], forward, own)
        panels.setdefault(title(row, rows), {})[row.variant] = losses
    return loss_by_step(panels)


def _quality(rows: Sequence[Row], reference: Mapping[str, Any]) -> Figure:
    panels: dict[str, dict[str, dict[int, Interval]]] = {}
    for _, row in distinct(rows):
        if row.distance and not _is_mix(row):
            found = scaled(row.distance, row.judged_by)
            panels.setdefault(objective_name(row.objective), {}).setdefault(row.variant, {})[row.steps] = found
    metric = rows[0].judged_by
    scale = scale_of(metric) or 1.0
    expert = {steps: scale * found[metric] for steps, found in reference["expert_by_nfe"].items()}
    panels = panels or {"no student measured": {}}
    return quality_by_nfe(panels, expert, scale * reference["floor"][metric], quantity(metric))


def _course(rows: Sequence[Row]) -> dict[str, Figure]:
    """Quality against what the expert was asked, where students were scored while they trained."""
    panels: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
    for _, row in distinct([row for row in rows if row.course]):
        looks = [(look.evaluations, scaled(look.distance, row.judged_by)) for look in row.course]
        panels.setdefault(title(row, rows), {})[row.variant] = looks
    return {"course": quality_by_evaluations(panels, quantity(rows[0].judged_by))} if panels else {}


def _study(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures of what a study varies, each where it varies enough: shares, steps, thresholds."""
    shares: dict[str, dict[Shares, float]] = {}
    growth: dict[str, dict[str, dict[int, tuple[float, Interval]]]] = {}
    thresholds: dict[str, dict[str, Interval]] = {}
    for row in rows:
        forward, own = (row.metrics[name] for name in ("loss_forward", "loss_own"))
        states, _, operator = row.variant.partition("-")
        if row.distance and states == "mixture" and operator in ("", *OPERATORS):
            name = operator or "none"
            thresholds.setdefault(title(row, rows), {})[name] = scaled(row.distance, row.judged_by)
        if row.distance and operator not in OPERATORS:
            first, second, third = row.records[0].shares
            shares.setdefault(title(row, rows), {})[first, second, third] = scaled(row.distance, row.judged_by).mean
        if forward and own and row.variant in _CONTRAST:
            summed = Interval(*(value * row.steps for value in own))
            by_variant = growth.setdefault(objective_name(row.objective), {})
            by_variant.setdefault(row.variant, {})[row.steps] = forward.mean, summed
    shares = {name: found for name, found in shares.items() if len(found) > 5}
    growth = {name: found for name, found in growth.items() if all(len(by_steps) > 2 for by_steps in found.values())}
    thresholds = {name: found for name, found in thresholds.items() if len(found) > 2}
    drawn = {"shares": shares_figure(shares)} if shares else {}
    drawn |= {"growth": growth_figure(growth)} if growth else {}
    distance = quantity(rows[0].judged_by)
    return drawn | ({"thresholds": thresholds_figure(thresholds, distance)} if thresholds else {})


def _is_mix(row: Row) -> bool:
    """Whether the row is one of the many mixtures or operators of a study, which have figures of their own."""
    return row.variant not in VARIANTS


def _arrays(results: Results, row: Row) -> dict[str, Points]:
    """Samples and chains of the row's first seed."""
    return results.arrays(row.records[0].samples)


def _harmless(value: Any) -> Any:
    """Settings without the folders of the machine they come from: of an absolute path only the name is kept."""
    if isinstance(value, dict):
        return {key: _harmless(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_harmless(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _template() -> Template:
    world = Environment(
        loader=PackageLoader("dagdiff.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters |= {
        "number": number,
        "spell": spell,
        "remaining_gap": remaining_gap,
        "level": level,
        "change": change,
    }
    world.filters |= {"outcome": outcome, "objective": objective_name}
    return world.get_template("report.html.j2")
