"""Make the tables and figures of README and docs: ``python -m dagdiff.benchmarks.readme study=runs/study``.

Each ``NAME=FOLDER`` keeps the results of a folder, without samples and rounded to six digits, in
``benchmarks/results/NAME`` and writes all tables that are made from them (:mod:`dagdiff.benchmarks.pages`); ``study``
also draws ``docs/study.png``, ``dmd2.png`` and ``steps.png``. ``figure=FOLDER`` draws ``docs/biased.png`` from the
students of seed 0 of a study, and ``pictures=FOLDER`` and ``faces=FOLDER`` draw ``docs/images.png`` and
``docs/faces.png`` from those of image suites. What pages show is tested against what is kept.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dagdiff.benchmarks.pages import TABLES, filled
from dagdiff.benchmarks.suites.study import NARROW
from dagdiff.benchmarks.tables import CONTRAST, plain
from dagdiff.checkpoint import save_json, save_text
from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval
from dagdiff.report import figures
from dagdiff.report.curves import quality_by_nfe
from dagdiff.report.forest import forest_figure
from dagdiff.report.glossary import OBJECTIVES, quantity, scale_of, variant_name
from dagdiff.report.images import image_panels
from dagdiff.report.overview import Line
from dagdiff.report.plane import scatter_panels
from dagdiff.report.results import Results, read_results
from dagdiff.report.study import overview_figure
from dagdiff.report.summary import write_summary
from dagdiff.report.verdict import scaled

KEPT = Path("benchmarks/results")
FIGURE, PICTURES, FACES = Path("docs/biased.png"), Path("docs/images.png"), Path("docs/faces.png")
TASK, IMAGE_TASK, FACE_TASK = "gaussians8-biased", "digits-biased", "avatars-glasses-biased"


def main(words: Sequence[str]) -> None:
    """Keep results, write the tables made from what is kept, and draw the figures."""
    for name, _, folder in (word.partition("=") for word in words):
        if name in _FIGURES:
            path, draw = _FIGURES[name]
            figures.save(draw(Results.load(Path(folder))), path)
            continue
        keep(Path(folder), KEPT / name)
        for page in dict.fromkeys(made.page for made in TABLES.values() if name in made.results):
            save_text(page, filled(page.read_text(encoding="utf-8"), page, KEPT))
        for place, drawn in STUDY_FIGURES.items() if name == "study" else ():
            figures.save(drawn(Results.load(KEPT / name)), place, source=source(KEPT / name))


def keep(folder: Path, place: Path) -> None:
    """Copy a folder's results, rounded, and write their summary; samples stay behind."""
    save_json(place / "results.json", rounded(read_results(folder, dict)))
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


def study_figure(results: Results) -> Figure:
    """Draw the headline's energy distances, by objective and task, with the experts'."""
    panels: dict[str, dict[str, dict[str, Interval]]] = {}
    experts: dict[str, dict[str, float]] = {}
    found = plain(results.rows)
    tasks = list(dict.fromkeys(task for task, _, variant in found if variant == "published"))
    for (task, objective, variant), row in found.items():
        energy, same = (
            row.metrics["energy"],
            variant == "published" and found[task, objective, "forward"].runs == row.runs,
        )
        if task in tasks and variant in CONTRAST and energy and not same:
            panels.setdefault(OBJECTIVES[objective], {}).setdefault(task, {})[variant] = scaled(energy, "energy")
            experts.setdefault(OBJECTIVES[objective], {})[task] = (scale_of("energy") or 1.0) * row.expert
    return overview_figure(panels, experts, quantity("energy"))


def dmd2_figure(results: Results) -> Figure:
    """Draw what DMD2's mixture changes against the published method, on each dataset of which half is trained on."""
    found = plain(results.rows)
    lines = [
        Line(row.task, OBJECTIVES[objective], {variant: row})
        for (task, objective, variant), row in found.items()
        if (objective, variant) == ("distribution", "mixture") and task.endswith("-biased")
    ]
    drawn = forest_figure(lines, ("published",))
    if drawn is None:
        raise Refusal("the results hold no DMD2 of both kinds. Run the block headline of `dagdiff bench study`.")
    return drawn


def steps_figure(results: Results) -> Figure:
    """Draw the energy distance by the number of steps, on the dataset on which the study varies one thing at a time.

    Each number of steps has the seeds that all have. Results without that dataset show their first.
    """
    case = NARROW[0] if NARROW[0] in results.references else next(iter(results.references))
    few = results.settings.get("few_seeds", math.inf)
    panels: dict[str, dict[str, dict[int, Interval]]] = {}
    for row in replace(results, records=[record for record in results.records if record.seed < few]).rows:
        shown = row.variant in CONTRAST and (row.variant != "published" or row.objective == "distribution")
        if row.case == case and shown and row.distance:
            variants = panels.setdefault(OBJECTIVES[row.objective], {})
            variants.setdefault(row.variant, {})[row.steps] = scaled(row.distance, row.judged_by)
    reference, scale = results.references[case], scale_of("energy") or 1.0
    expert = {steps: scale * found["energy"] for steps, found in reference["expert_by_nfe"].items()}
    return quality_by_nfe(panels, expert, scale * reference["floor"]["energy"], quantity("energy"))


STUDY_FIGURES: dict[Path, Callable[[Results], Figure]] = {
    Path("docs/study.png"): study_figure,
    Path("docs/dmd2.png"): dmd2_figure,
    Path("docs/steps.png"): steps_figure,
}
"""The figures that are made from the results of the study."""


def figure(results: Results) -> Figure:
    """Draw the data, the expert, and each objective's 4-step student after forward training and after the mixture."""
    reference = results.arrays(results.references[TASK]["samples"])
    panels, colours = {"training data": reference["data"]}, {}
    for variant in ("forward", "mixture"):
        for objective, name in OBJECTIVES.items():
            wanted = (TASK, objective, variant, 0)
            record = next(r for r in results.records if (r.task, r.objective, r.variant, r.seed) == wanted)
            title = f"{name}: {variant_name(variant)}"
            panels[title], colours[title] = results.arrays(record.samples)["x"], figures.VARIANTS[variant]
        panels.setdefault("expert, 32 steps", reference["x"])
    return scatter_panels(panels, colours=colours)


def pictures(results: Results, task: str, shown: int = 32) -> Figure:
    """Draw images: the data and the teacher's, and each objective's after forward training and after the mixture.

    Equal places start from equal noise. Objectives that were not run are left out.
    """
    reference = results.arrays(results.references[task]["samples"])
    found = {(r.objective, r.variant): r for r in results.records if (r.task, r.steps, r.seed) == (task, 4, 0)}
    panels = {"training data": reference["data"]}
    for variant in ("forward", "mixture"):
        for objective, name in OBJECTIVES.items():
            if record := found.get((objective, variant)):
                panels[f"{name}: {variant_name(variant)}"] = results.arrays(record.samples)["x"]
        panels.setdefault("teacher, 16 steps", reference["x"])
    return image_panels(panels, columns=len(panels) // 2, shown=shown)


_FIGURES: dict[str, tuple[Path, Callable[[Results], Figure]]] = {
    "figure": (FIGURE, figure),
    "pictures": (PICTURES, partial(pictures, task=IMAGE_TASK)),
    "faces": (FACES, partial(pictures, task=FACE_TASK)),
}


if __name__ == "__main__":
    main(sys.argv[1:])
