"""Draw the figures of a lecture, one a slide, in 16:9 and with large letters: `python docs/make_slides.py FOLDER`.

Everything is drawn from the formulas of make_pictures.py and from benchmarks/results; nothing is trained.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from make_pictures import HERE, draw_errors, draw_horizon, draw_process, draw_states
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from dagdiff.report.forest import forest_figure
from dagdiff.report.overview import overview
from dagdiff.report.results import Results

RESULTS = HERE.parent / "benchmarks/results"
SIZE = (10.0, 5.625)  # inches
LARGER = 1.5
PANELS: dict[str, Callable[[Axes], None]] = {
    "01-the-chain": draw_process,
    "02-three-kinds-of-states": draw_states,
    "03-how-mistakes-add-up": draw_errors,
}
COPIED = {"04-four-steps-forward-and-mixture": "biased.png", "07-digits": "images.png"}


def main(folder: Path) -> None:
    """Write the slides' figures, in their order, and name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PANELS.items():
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot())
        save(figure, folder / f"{name}.png")
    for name, picture in COPIED.items():
        shutil.copy(HERE / picture, folder / f"{name}.png")
    save(effects(), folder / "05-effects-by-dataset.png")
    figure = Figure(figsize=SIZE, layout="constrained")
    draw_horizon(figure, Results.load(RESULTS / "horizon").records)
    save(figure, folder / "06-errors-by-steps.png")
    print("\n".join(str(path) for path in sorted(folder.glob("0*.png"))))


def effects() -> Figure:
    """What the mixture changes in LCM and PD on half of the data, with intervals."""
    rows = [row for row in Results.load(RESULTS / "study").rows if not row.records[0].about and row.steps == 4]
    lines = [line for line in overview(rows) if line.case.endswith("-biased") and line.title in ("PD", "LCM")]
    figure = forest_figure(lines, ("forward",))
    if figure is None:
        raise SystemExit("the study's results hold no mixture: run dagdiff bench study --blocks headline")
    figure.set_size_inches(*SIZE)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure for a screen of 1,920 pixels, its letters enlarged to be read from the last row."""
    for text in figure.findobj(Text):
        text.set_fontsize(LARGER * text.get_fontsize())
    figure.savefig(path, dpi=192, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("slides"))
