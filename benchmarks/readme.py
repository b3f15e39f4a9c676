"""Make README's table and figure: ``python -m dagdiff.benchmarks.readme runs/demo runs/figure``.

The first folder is what ``make demo`` leaves; the second comes from ``dagdiff bench toy2d --tasks gaussians8-biased
--variants forward,ddil --seeds 1 --updates 3000 --out runs/figure``. The demo's results (without the samples) are kept
in ``benchmarks/results/toy2d-quick``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dagdiff import plots
from dagdiff.checkpoint import save_text
from dagdiff.results import Results, Row, summarise, write_summary

KEPT = Path("benchmarks/results/toy2d-quick")
FIGURE = Path("docs/biased.png")
TASK = "gaussians8-biased"
START, END = "<!-- table: made from benchmarks/results/toy2d-quick -->", "<!-- end of table -->"
NAMES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}


def main(demo: Path, longer: Path) -> None:
    """Keep the demo's results and write README's table from them; draw its figure from a longer run's students."""
    results = Results.load(demo)
    save_text(KEPT / "results.json", (demo / "results.json").read_text(encoding="utf-8"))
    write_summary(results, KEPT / "summary.csv")
    readme = Path("README.md").read_text(encoding="utf-8")
    save_text(Path("README.md"), with_table(readme, table(summarise(results))))
    plots.save(figure(Results.load(longer)), FIGURE)


def with_table(text: str, lines: str) -> str:
    """Return README's text with the table between its two marks replaced."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{lines}\n{END}{after}"


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table: energy distance of each kind of training states, by task and objective."""
    lines = ["| shown | objective | forward states | published method | dagdiff's mixture |", "|---|---|---|---|---|"]
    found = {(row.task, row.objective, row.variant): row for row in rows}
    for task, objective in sorted({(row.task, row.objective) for row in rows}, key=_order):
        forward, base, ddil = (found[task, objective, variant] for variant in ("forward", "base", "ddil"))
        published = "the same" if base.runs == forward.runs else _interval(base)
        cells = [task.split("-")[1], NAMES[objective], _interval(forward), published, _interval(ddil)]
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


def _order(cell: tuple[str, str]) -> tuple[bool, int]:
    task, objective = cell
    return not task.endswith("matched"), list(NAMES).index(objective)


def _interval(row: Row) -> str:
    energy = row.metrics["energy"]
    return f"{energy:.4f}" if energy else "not measured"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
