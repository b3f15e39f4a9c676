# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Your own parts
#
# Every part of a run can be yours, and none needs more than a screen of code. In this lesson we write an expert, a
# policy and an objective, plug them into the loop, and distil **two moons**: a target that has no closed form.
#
# | part | what it must be |
# |---|---|
# | data | anything with `sample(n, generator)` |
# | expert | a callable `(x_t, t, condition) -> x0` |
# | policy | a `torch.nn.Module`, called the same way |
# | objective | `annotate(expert, states)` and `loss(student, batch)` |
# | ramps (beta, shares, learning rate) | any callable `progress -> value` |
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/05_your_own_parts.ipynb

# %%
# Where dagdiff is missing (Colab), install it: from the checkout around this notebook, or from the repository.
# %matplotlib inline
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("dagdiff") is None:
    checkouts = [str(folder) for folder in Path.cwd().parents if (folder / "dagdiff/__init__.py").exists()]
    source = [*checkouts, "git+https://github.com/dagdiff/dagdiff"][0]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

# %%
import os
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn

from dagdiff import CosineSchedule, DAgger, Expert, Refusal, Renoise, Shares, sample
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.sets import Points
from dagdiff.envs.toy2d import world
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.metrics.samples import energy_distance
from dagdiff.objectives import Loss, Objective
from dagdiff.schedule import step_grid

torch.set_num_threads(1)
torch.manual_seed(0)  # for the weights of the network below
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small lesson, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


schedule, times = CosineSchedule(), step_grid(4)
moons = world("moons")

# %% [markdown]
# ## Data
#
# All that anyone knows of the moons here is a table of 400 points. It is the student's data, and will be the expert's
# knowledge too.

# %%
table = moons.sample(400, seeded(1))
data = Points(table)
figure, panel = plt.subplots(figsize=(3, 3), layout="constrained")
panel.scatter(*table.T, s=4, color="#222222")
panel.set(aspect="equal", title="the table")
plt.show()

# %% [markdown]
# ## An expert
#
# If the target is a **table of points** $x_1, \dots, x_N$, each equally likely, the best prediction of the clean point
# behind $x_t$ is again a closed form: the mean of the points, weighted by how likely each is to have become $x_t$,
#
# $$E[x_0 \mid x_t] = \sum_i w_i x_i,$$
# $$w = \mathrm{softmax}\Big(-\frac{\lVert x_t - \alpha_t x_i \rVert^2}{2 \sigma_t^2}\Big).$$
#
# That makes an exact expert for any data set small enough to look through. `blur` adds some noise to every point, so
# that the expert does not learn the table by heart.


# %%
class TableExpert:
    """The exact denoiser of a table of points, each blurred to a Gaussian of that width."""

    def __init__(self, points, blur=0.05):
        self.points, self.blur = points, blur

    def __call__(self, x_t, t, condition=None):
        """Return E[x0 | x_t], (B, 2)."""
        alpha, sigma = (values[:, None] for values in schedule(t))
        variance = (alpha * self.blur) ** 2 + sigma**2
        apart = (x_t[:, None] - alpha[:, None] * self.points).square().sum(2)
        mean = torch.softmax(-apart / (2 * variance), dim=1) @ self.points
        return mean + alpha * self.blur**2 / variance * (x_t - alpha * mean)


# %% [markdown]
# ## A policy
#
# A student is any module that predicts x0 at a state. This one starts from the best linear prediction and corrects it:
# little can be known at t = 1, and little need be corrected near t = 0.


# %%
class Residual(nn.Module):
    """The best linear prediction, alpha_t x_t, plus sigma_t times the output of a small network."""

    def __init__(self, width=96):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x_t, t, condition=None):
        """Return the prediction of x0, (B, 2)."""
        alpha, sigma = (values[:, None] for values in schedule(t))
        seen = torch.cat([x_t, alpha, sigma, (4 * t[:, None]).sin(), (4 * t[:, None]).cos()], dim=1)
        return alpha * x_t + sigma * self.net(seen)


# %% [markdown]
# ## An objective
#
# The simplest of all: **predict the end of the expert's path**. (Luhman and Luhman 2021 did so from pure noise; here it
# is done at any state.) `annotate` runs once, when a state enters the aggregate: it may be expensive. `loss` sees the
# labelled batch, and never where a state came from. `sampler` says how such a student is used: its output is clean, so
# it is perturbed again.


# %%
class PathEnd(Objective):
    """Regress on where the expert's path from this state ends."""

    sampler = Renoise

    def annotate(self, expert, states):
        """Add ``end``, the clean end of the expert's path."""
        return states.set("end", expert.advance(states["x_t"], states["t"], torch.zeros_like(states["t"])))

    def loss(self, student, batch):
        """Return the mean distance, a robust one: far ends count linearly."""
        distance = (student(batch["x_t"], batch["t"]) - batch["end"]).norm(dim=1).mean()
        return Loss(distance, {"distance": distance.detach()})


# %% [markdown]
# ## Together
#
# Beta and the learning rate change along plain functions of progress.

# %%
expert = Expert(TableExpert(table), schedule, substeps=16)
objective = PathEnd()


def make_loop(student, expert, **options):
    """A loop made of our own parts."""
    env = DenoisingEnv((2,), objective.sampler(schedule), times, batch_size=128, generator=seeded(2))
    return DAgger(student, expert, objective, env, data, updates_per_round=40, **options)


loop = make_loop(
    Residual(),
    expert,
    shares=Shares(0.25, 0.5, 0.25),
    rounds=2 if FAST else 30,
    gathering=Gathering(beta=lambda progress: max(0.0, 1.0 - 4.0 * progress)),
    learning=Learning(partial(torch.optim.Adam, lr=3e-3), lr_ramp=lambda progress: 1.0 - progress),
)
for round in loop:
    if round.number % 5 == 1:
        print(f"round {round.number:>2}: beta {round.beta:.2f}, loss {round.losses['loss']:.3f}")

# %%
from dagdiff.report.plane import scatter_panels

noise = torch.randn(300 if FAST else 1500, 2, generator=seeded(3))
clouds = {
    "the target": moons.reference(len(noise), seeded(4)),
    "the expert, 64 evaluations": expert.walk(noise, times)[-1],
    "our student, 4": sample(loop.policy, loop.env.transition, times, noise, generator=seeded(5)),
}
for name, points in clouds.items():
    print(f"{name:27} energy distance to the target {energy_distance(points, moons.sample(len(noise), seeded(6))):.4f}")
scatter_panels({name: points.numpy() for name, points in clouds.items()}, half=2.2)

# %% [markdown]
# ## When a part is wrong
#
# Mistakes are rejected before any time is lost, with one line that says what to do: here an expert that forgets a
# column.

# %%
try:
    next(iter(make_loop(Residual(), Expert(lambda x_t, t, condition=None: x_t[:, :1], schedule))))
except Refusal as refusal:
    print(refusal)

# %% [markdown]
# ## On the command line
#
# Put the classes in a file `mine.py`, and name them by import path. Arguments of a constructor become options:
#
# ```sh
# dagdiff distill --task moons-matched --objective mine.PathEnd --policy mine.Residual --policy.width 64 --out
# runs/mine
# ```
#
# ## Exercises
#
# **Predict.** Set `blur=0` in the expert. What do its samples become, and what do the student's?
#
# **Change one thing.** Let the objective ask for the *squared* distance. Which of the two students blurs the moons
# more?
#
# **Explain.** Write an expert that predicts wrongly in the left half. Does the student learn the fault from forward
# states, from student states, or from both?
#
# [Solutions](solutions/05_your_own_parts.ipynb)
