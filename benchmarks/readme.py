"""Make README's table and figure from the results of the demo: ``python -m dagdiff.benchmarks.readme runs/demo``.

The results (without the samples) are kept in ``benchmarks/results/toy2d-quick``; README's table is written from them.


import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dagdiff import plots
from dagdiff.checkpoint import save_text
from dagdiff.report import Results, Row, summarise, write_summary

KEPT = Path("benchmarks/results/toy2d-quick")
FIGURE = Path("docs/biased.png")
TASK = "gaussians8-biased"
START, END = "<!-- table: made from benchmarks/results/toy2d-quick -->", "<!-- end of table -->"
NAMES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}


def main(folder: Path) -> None:
    """Keep the demo's results and write README's table and figure from them."""
    results = Results.load(folder)
    save_text(KEPT / "results.json", (folder / "results.json").read_text(encoding="utf-8"))
    write_summary(results, KEPT / "summary.csv")
    readme = Path("README.md").read_text(encoding="utf-8")
    save_text(Path("README.md"), with_table(readme, table(summarise(results))))
    plots.save(figure(results), FIGURE)


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
    """Draw what the student was shown, the expert, and students of two objectives with and without the mixture."""
    reference = results.arrays(results.references[TASK]["samples"])
    panels = {"shown to the student": reference["data"], "the expert, 32 steps": reference["x"]}
    for objective in ("distribution", "consistency"):
        for variant, name in (("forward", "forward states"), ("ddil", "dagdiff")):
            wanted = (TASK, objective, variant, 0)
            record = next(r for r in results.records if (r.task, r.objective, r.variant, r.seed) == wanted)
            panels[f"{NAMES[objective]}, 4 steps, {name}"] = results.arrays(record.samples)["x"]
    return plots.scatter_panels(panels)


def _order(cell: tuple[str, str]) -> tuple[bool, int]:
    task, objective = cell
    return not task.endswith("matched"), list(NAMES).index(objective)


def _interval(row: Row) -> str:
    energy = row.metrics["energy"]
    return f"{energy:.4f}" if energy else "not measured"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
