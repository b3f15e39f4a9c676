"""Make README's tables and figure: ``python -m dagdiff.benchmarks.readme runs/demo runs/study runs/figure``.

The first folder is what ``make demo`` leaves; the others come from the commands that README names beside its second
table and its figure. The results of the first two (without the samples) are kept in ``benchmarks/results``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dagdiff import plots
from dagdiff.checkpoint import save_text
from dagdiff.results import Results, Row, summarise, write_summary

KEPT = Path("benchmarks/results")
FIGURE = Path("docs/biased.png")
TASK = "gaussians8-biased"
NAMES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}
END = "<!-- end of table -->"


def main(demo: Path, study: Path, longer: Path) -> None:
    """Keep the results, write README's tables from them, and draw its figure from a longer run's students."""
    text = Path("README.md").read_text(encoding="utf-8")
    for name, folder in {"toy2d-quick": demo, "toy2d": study}.items():
        results = Results.load(folder)
        save_text(KEPT / name / "results.json", (folder / "results.json").read_text(encoding="utf-8"))
        write_summary(results, KEPT / name / "summary.csv")
        text = with_table(text, name, table(summarise(results)))
    save_text(Path("README.md"), text)
    plots.save(figure(Results.load(longer)), FIGURE)


def with_table(text: str, name: str, lines: str) -> str:
    """Return README's text with the table of the results ``name`` replaced."""
    start = f"<!-- table: made from benchmarks/results/{name} -->"
    before, rest = text.split(start)
    _, after = rest.split(END, 1)
    return f"{before}{start}\n{lines}\n{END}{after}"


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table: energy distance of each kind of training states, by task and objective."""
    head = ["world, shown", "objective", "forward states", "published method", "dagdiff's mixture"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    found = {(row.task, row.objective, row.variant): row for row in rows}
    for task, objective in dict.fromkeys((row.task, row.objective) for row in rows):
        forward, base, ddil = (found[task, objective, variant] for variant in ("forward", "base", "ddil"))
        published = "the same" if base.runs == forward.runs else _energy(base)
        cells = [task.replace("-", ", "), NAMES[objective], _energy(forward), published, _energy(ddil)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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


def _energy(row: Row) -> str:
    energy = row.metrics["energy"]
    return f"{energy:.4f}" if energy else "not measured"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
