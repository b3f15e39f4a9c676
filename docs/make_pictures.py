"""Draw docs/chain.svg, the chain as a decision process, docs/horizon.svg, how errors grow with its steps, and faces.

Run: python docs/make_pictures.py
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dagdiff.envs import avatars
from dagdiff.metrics.statistics import bootstrap_mean
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.report.figures import ROLES, VARIANTS
from dagdiff.report.records import Record
from dagdiff.report.results import Results
from dagdiff.schedule import CosineSchedule, refine, step_grid
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Ddim, chain

HERE = Path(__file__).resolve().parent
STEPS, SHOWN = 4, 5
DATA, STUDENT, EXPERT = "#7aa6c2", VARIANTS["forward"], ROLES["expert"]
SCHEDULE = CosineSchedule()
MEANS, WIDTH = torch.tensor([[-1.0], [1.0]]), 0.18


def main() -> None:
    """Write both pictures, the same bytes every time."""
    matplotlib.rcParams |= {"svg.hashsalt": "dagdiff", "font.size": 9.5}
    figure = Figure(figsize=(10, 7.0))
    grid = figure.add_gridspec(2, 2, height_ratios=[1.0, 1.45], width_ratios=[1.65, 1.0], hspace=0.12, wspace=0.18)
    draw_process(figure.add_subplot(grid[0, :]))
    draw_states(figure.add_subplot(grid[1, 0]))
    draw_errors(figure.add_subplot(grid[1, 1]))
    save(figure, "chain.svg")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    draw_horizon(figure, Results.load(HERE.parent / "benchmarks/results/horizon").records)
    save(figure, "horizon.svg")
    draw_faces().save(HERE / "avatars.png", optimize=True)


def draw_faces(across: int = 12, edge: int = 48) -> Image.Image:
    """A row a kind: a style bare, and the same faces with glasses where it wears them."""
    sheet = Image.new("RGB", (across * edge, 4 * edge), "white")
    names = [name for name, glasses in avatars.STYLES.items() if glasses]
    for place in range(2 * across):
        for worn in (False, True):
            face = Image.fromarray(avatars.draw(names[place % len(names)], place, worn))
            row = 2 * (place // across) + worn
            sheet.paste(face.resize((edge, edge), Image.Resampling.NEAREST), (place % across * edge, row * edge))
    return sheet


def save(figure: Figure, name: str) -> None:
    """Write a picture beside this file."""
    figure.savefig(HERE / name, bbox_inches="tight", facecolor="white", metadata={"Date": None})


def draw_process(axes: Axes) -> None:
    """States in a row; the policy predicts, the environment moves, the expert may be asked anywhere."""
    axes.set(xlim=(-0.45, 4.45), ylim=(-1.0, 1.75))
    axes.axis("off")
    axes.set_title("1  A rollout: a chain of K = 4 steps", loc="left", fontweight="bold", x=0.0)
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "linewidth": 1.3}
    for k in range(STEPS + 1):
        name = ["noise", "", "", "", "data"][k]
        axes.text(
            k, 0, f"$x_{{t_{STEPS - k}}}$", ha="center", va="center", fontsize=14, bbox={**box, "edgecolor": "#444"}
        )
        axes.text(
            k, -0.52, f"t = {1 - k / STEPS:g}" + (f"\n{name}" if name else ""), ha="center", va="top", color="#444"
        )
    for k in range(STEPS):
        axes.annotate("", (k + 0.8, 0), (k + 0.2, 0), arrowprops={"arrowstyle": "-|>", "color": "#444", "lw": 1.4})
        axes.text(k + 0.5, -0.1, "transition", ha="center", va="top", fontsize=8, color="#444")
        axes.text(k + 0.5, 0.62, "prediction of $x_0$", ha="center", va="center", fontsize=9, color=STUDENT)
        axes.annotate("", (k + 0.36, 0.5), (k + 0.08, 0.24), arrowprops={"arrowstyle": "-|>", "color": STUDENT})
        axes.text(k + 0.5, 1.08, "expert's label", ha="center", va="center", fontsize=9, color=EXPERT)
        axes.annotate(
            "", (k + 0.5, 0.98), (k + 0.5, 0.73), arrowprops={"arrowstyle": "<->", "color": EXPERT, "ls": ":"}
        )
        axes.annotate("", (k + 0.5, 0.06), (k + 0.5, 0.48), arrowprops={"arrowstyle": "-|>", "color": STUDENT})
    words = (("state: a box", "#444"), ("action: the student's prediction", STUDENT))
    for (text, colour), x in zip(
        (*words, ("label: the expert's prediction there", EXPERT)), (-0.4, 0.35, 2.25), strict=True
    ):
        axes.text(x, 1.52, text, color=colour, va="center", fontsize=10)


def draw_states(axes: Axes) -> None:
    """A target of one dimension and two modes: noised data as a shade, chains of expert and student in lines."""
    t = torch.linspace(1.0, 0.0, 161)
    x = torch.linspace(-3.0, 3.0, 241)
    alpha, sigma = (values[:, None, None] for values in SCHEDULE(t))
    deviation = (alpha**2 * WIDTH**2 + sigma**2).sqrt()
    density = (torch.exp(-0.5 * ((x[None, :, None] - alpha * MEANS.T[None]) / deviation) ** 2) / deviation).mean(-1)
    shade = (density / density.max(1, keepdim=True).values).T
    axes.imshow(
        shade, extent=(0, 1, -3, 3), origin="lower", aspect="auto", cmap="Blues", vmax=2.2, interpolation="bilinear"
    )
    teacher = GaussianMixtureExpert(MEANS, torch.full((2,), WIDTH), torch.tensor([0.5, 0.5]), SCHEDULE)
    noise = torch.tensor([[-1.6], [-0.8], [-0.25], [0.55], [1.3]])
    for path, times, style in (
        (
            states(teacher, refine(step_grid(STEPS), 16), noise),
            refine(step_grid(STEPS), 16),
            {"color": EXPERT, "lw": 1.2},
        ),
        (
            states(clumsy(teacher), step_grid(STEPS), noise),
            step_grid(STEPS),
            {"color": STUDENT, "lw": 1.5, "marker": "o", "ms": 4},
        ),
    ):
        axes.plot(1 - times, path, **style)
    axes.set_title("2  Three kinds of states at each time", loc="left", fontweight="bold")
    axes.set(xlim=(0, 1.02), ylim=(-2.9, 2.9), ylabel="x")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["noise\nt = 1", "0.75", "0.5", "0.25", "data\nt = 0"])
    axes.text(0.02, 2.55, "forward: data with noise added (shade), off-policy", color="#35749c")
    axes.text(0.02, 2.2, "expert: its own chains, many small steps", color=EXPERT)
    axes.text(0.02, -2.7, "student: its own chains, on-policy, each step a little wrong", color=STUDENT)


def draw_errors(axes: Axes) -> None:
    """The two bounds of imitation learning, for a mistake of size e a step."""
    k = np.arange(1, 9)
    axes.plot(k, k**2, color=STUDENT, marker="o", ms=4)
    axes.plot(k, k, color=VARIANTS["mixture"], marker="o", ms=4)
    axes.annotate("$e\\,K^2$: trained on\nothers' states", (7.15, 51), (2.0, 44), color=STUDENT)
    axes.annotate("$e\\,K$: trained on\nits own states", (5.0, 6), (4.9, 11.5), color=VARIANTS["mixture"])
    axes.set_title("3  How a mistake e adds up", loc="left", fontweight="bold")
    axes.set(
        xlabel="K, steps of the chain", ylabel="worst case at the end, in units of e", xlim=(0.7, 8.3), ylim=(0, 67)
    )
    axes.spines[["top", "right"]].set_visible(False)


def draw_horizon(figure: Figure, records: Sequence[Record]) -> None:
    """With all of the data: how far chains end from the expert's, by the number of steps and the states trained on."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, width in zip(panels, (32, 128), strict=True):
        for variant, name in (("bc", "expert states"), ("dagger", "student states (DAgger)")):
            mine = [each for each in records if each.variant == variant and each.about == f"width {width}"]
            ends: dict[int, list[float]] = {}
            for each in mine:
                if each.task == "gaussians8-matched":
                    ends.setdefault(each.steps, []).append(each.metrics["end_error"])
            steps = sorted(ends)
            found = [bootstrap_mean(ends[number]) for number in steps]
            colour = EXPERT if variant == "bc" else VARIANTS["mixture"]
            axes.plot(steps, [each.mean for each in found], color=colour, marker="o", ms=4, label=f"trained on {name}")
            axes.fill_between(
                steps, [each.low for each in found], [each.high for each in found], color=colour, alpha=0.2
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(number) for number in steps])
        axes.set_title(f"student of width {width}", loc="left", fontweight="bold")
        axes.set(xlabel="K, steps of the chain", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("distance of the chain's end\nfrom the expert's, same noise")
    panels[0].legend(frameon=False, loc="lower right")


def clumsy(teacher: Denoiser, error: float = 0.22) -> Denoiser:
    """A student for the sketch: the teacher's prediction, always pushed outwards by ``error``."""

    def prediction(x_t: States, t: Times, condition: Condition = None) -> States:
        return teacher(x_t, t, condition) + error * torch.sign(x_t)

    return prediction


def states(policy: Denoiser, times: Times, noise: States) -> np.ndarray:
    """The states of the chains from ``noise``, ``(K + 1, n)``."""
    steps = chain(policy, Ddim(SCHEDULE), times, noise)
    return torch.stack([noise, *(step.x_s for step in steps)]).squeeze(-1).numpy()


if __name__ == "__main__":
    main()
