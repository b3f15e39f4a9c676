"""Make README's tables and figures: ``python -m dagdiff.benchmarks.readme study=runs/study toy2d-quick=runs/demo``.

Each ``NAME=FOLDER`` keeps the results of a folder, without samples and rounded to six digits, in
``benchmarks/results/NAME`` and writes the table between README's comments of that name; ``study`` also draws
``docs/study.png``. ``figure=FOLDER`` draws ``docs/biased.png`` from the students of a run of one seed, by the command
that README names beside it. What README shows is tested against what is kept.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dagdiff import plots, plots_study
from dagdiff.checkpoint import load_json, save_json, save_text
from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval
from dagdiff.results import Results, Row, summarise, write_summary
from dagdiff.verdict import told_excess

KEPT = Path("benchmarks/results")
FIGURE, STUDY_FIGURE = Path("docs/biased.png"), Path("docs/study.png")
TASK = "gaussians8-biased"
NAMES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}
CONTRAST = ("forward", "base", "ddil")
END = "<!-- end of table -->"


def main(words: Sequence[str]) -> None:
    """Keep results, write README's tables from what is kept, and draw its figures."""
    for name, _, folder in (word.partition("=") for word in words):
        if name == "figure":
            plots.save(figure(Results.load(Path(folder))), FIGURE)
            continue
        keep(Path(folder), KEPT / name)
        results = Results.load(KEPT / name)
        text = Path("README.md").read_text(encoding="utf-8")
        save_text(Path("README.md"), with_table(text, name, table_of(name, summarise(results))))
        if name == "study":
            plots.save(study_figure(results), STUDY_FIGURE, source=source(KEPT / name))


def keep(folder: Path, place: Path) -> None:
    """Copy a folder's results, rounded, and write their summary; samples stay behind."""
    save_json(place / "results.json", rounded(load_json(folder / "results.json")))
    write_summary(Results.load(place), place / "summary.csv")


def rounded(content: Any, digits: int = 6) -> Any:
    """Return JSON content with every float to so many significant digits."""
    if isinstance(content, dict):
        return {key: rounded(value, digits) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value, digits) for value in content]
    return float(f"{content:.{digits}g}") if isinstance(content, float) else content


def source(place: Path) -> str:
    """Return what a figure made from the results kept there carries in its PNG: their content hash."""
    return hashlib.sha256((place / "results.json").read_bytes()).hexdigest()[:16]


def with_table(text: str, name: str, lines: str) -> str:
    """Return README's text with the table of the results ``name`` replaced."""
    start = f"<!-- table: made from benchmarks/results/{name} -->"
    before, found, rest = text.partition(start)
    if not found or END not in rest:
        raise Refusal(f"README.md has no place for a table of {name!r}. Put in the lines {start!r} and {END!r}.")
    return f"{before}{start}\n{lines}\n{END}{rest.partition(END)[2]}"


def table_of(name: str, rows: Sequence[Row]) -> str:
    """Return the table that README shows of the results ``name``."""
    return headline(rows) if name == "study" else table(rows)


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table: energy distance of each kind of training states, by task and objective."""
    lines = _head("world, shown", "objective", "forward states", "published method", "dagdiff's mixture")
    for task, objective in dict.fromkeys((row.task, row.objective) for row in rows):
        forward, base, ddil = (_plain(rows)[task, objective, variant] for variant in CONTRAST)
        published = "the same" if base.runs == forward.runs else _energy(base)
        lines += _line(task.replace("-", ", "), NAMES[objective], _energy(forward), published, _energy(ddil))
    return "\n".join(lines)


def headline(rows: Sequence[Row]) -> str:
    """Return the study's table: a line a task, a column an objective, with mean energy distances and what is left.

    A cell holds forward-only's, the published method's where that is another, ddil's, and of forward-only's excess over
    the expert the part that ddil leaves; a dash where the objective was not run.
    """
    found = _plain(rows)
    lines = _head("world, shown", *NAMES.values())
    for task in dict.fromkeys(task for task, _, variant in found if variant == "base"):
        told = []
        for objective in NAMES:
            mine = [found[key] for variant in CONTRAST if (key := (task, objective, variant)) in found]
            told.append(_told(*mine) if mine else "–")
        lines += _line(task.replace("-", ", "), *told)
    return "\n".join(lines)


def _told(forward: Row, base: Row, ddil: Row) -> str:
    published = "" if base.runs == forward.runs else f" (published: {_mean(base)})"
    return f"{_mean(forward)}{published} → {_mean(ddil)}; {told_excess(ddil)}"


def study_figure(results: Results) -> Figure:
    """Draw the headline's energy distances, by objective and task, with the experts'."""
    panels: dict[str, dict[str, dict[str, Interval]]] = {}
    found = _plain(summarise(results))
    tasks = list(dict.fromkeys(task for task, _, variant in found if variant == "base"))
    for (task, objective, variant), row in found.items():
        energy, same = row.metrics["energy"], variant == "base" and found[task, objective, "forward"].runs == row.runs
        if task in tasks and variant in CONTRAST and energy and not same:
            panels.setdefault(NAMES[objective], {}).setdefault(task, {})[variant] = energy
    expert = {task: results.references[task]["expert"]["energy"] for task in tasks}
    return plots_study.overview_figure(panels, expert, "energy distance")


def figure(results: Results) -> Figure:
    """Draw the data and the expert, and beneath each other each objective's student without and with the mixture."""
    reference = results.arrays(results.references[TASK]["samples"])
    panels, colours = {"shown to the student": reference["data"]}, {}
    for variant, states in (("forward", "forward states"), ("ddil", "dagdiff")):
        for objective, name in NAMES.items():
            wanted = (TASK, objective, variant, 0)
            record = next(r for r in results.records if (r.task, r.objective, r.variant, r.seed) == wanted)
            title = f"{name}, 4 steps: {states}"
            panels[title], colours[title] = results.arrays(record.samples)["x"], plots.VARIANTS[variant]
        panels.setdefault("the expert, 32 steps", reference["x"])
    return plots.scatter_panels(panels, colours=colours)


def _plain(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    """The rows of four steps in the plain comparison, by task, objective and variant."""
    plain = [row for row in rows if row.steps == 4 and row.place == row.task]
    return {(row.task, row.objective, row.variant): row for row in plain}


def _head(*words: str) -> list[str]:
    return [*_line(*words), "|---" * len(words) + "|"]


def _line(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _energy(row: Row) -> str:
    energy = row.metrics["energy"]
    return f"{energy:.4f}" if energy else "not measured"


def _mean(row: Row) -> str:
    energy = row.metrics["energy"]
    return f"{energy.mean:.4f}" if energy else "not measured"


if __name__ == "__main__":
    main(sys.argv[1:])
