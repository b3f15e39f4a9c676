"""The report: one page that says what a folder of results says, in words first, then in tables, then in figures.

It is one file that asks the network for nothing.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from dagdiff import __version__, plots
from dagdiff.checkpoint import save_text
from dagdiff.metrics.statistics import Interval
from dagdiff.results import METRICS, Results, Row, distinct, summarise
from dagdiff.verdict import caveat, judge, number, spell, title

_SHOWN = ("forward", "ddil")  # the contrast that losses and chains are drawn for


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
        "strayed": title(strayed, rows),
        "losses": plots.to_data_uri(_losses(rows)) if pair else "",
        "quality": plots.to_data_uri(_quality(rows, reference)),
    }


def _clouds(results: Results, world: Mapping[str, plots.Points], rows: Sequence[Row]) -> dict[str, Figure]:
    """The yardsticks under "", then each objective's students, all on the same square."""
    half = plots.half_width([world["data"], world["truth"], world["x"]])
    clouds = {"shown to the student": world["data"], "the truth": world["truth"], "the expert": world["x"]}
    roles = dict(zip(clouds, (plots.ROLES["data"], plots.ROLES["data"], plots.ROLES["expert"]), strict=True))
    figures = {"": plots.scatter_panels(clouds, colours=roles, half=half)}
    for name in dict.fromkeys(title(row, rows) for row in rows):
        group = [(label, row) for label, row in distinct(rows) if title(row, rows) == name]
        colours = {label: plots.VARIANTS.get(row.variant, "#555555") for label, row in group}
        made = {label: _arrays(results, row)["x"] for label, row in group}
        figures[name] = plots.scatter_panels(made, columns=5, colours=colours, half=half)
    return figures


def _losses(rows: Sequence[Row]) -> Figure:
    panels: dict[str, dict[str, plots.StepLosses]] = {}
    for row in (row for row in rows if row.variant in _SHOWN):
        forward, own = ([record.by_step[name] for record in row.records] for name in ("loss_forward", "loss_own"))
        losses = plots.StepLosses(row.records[0].by_step["t"], forward, own)
        panels.setdefault(title(row, rows), {})[row.variant] = losses
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
