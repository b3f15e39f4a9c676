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
# # Solutions to lesson 5
#
# Try the [exercises](../05_your_own_parts.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/05_your_own_parts.ipynb

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

from dagdiff import CosineSchedule, DAgger, Expert, Renoise, Shares, sample
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.sets import Points
from dagdiff.envs.toy2d import world
from dagdiff.learner import Learning
from dagdiff.metrics.samples import energy_distance
from dagdiff.objectives import Loss, Objective
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.report.plane import scatter_panels
from dagdiff.schedule import step_grid

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small run, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


schedule, times = CosineSchedule(), step_grid(4)
moons = world("moons")
table = moons.sample(400, seeded(1))
count = 300 if FAST else 1500
noise = torch.randn(count, 2, generator=seeded(3))
target = moons.reference(count, seeded(4))


class TableExpert:
    """The exact denoiser of a table of points, each blurred to a Gaussian of that width; lesson 5 derives it."""

    def __init__(self, blur=0.05, shift=0.0):
        self.blur, self.shift = blur, shift

    def __call__(self, x_t, t, condition=None):
        """Return E[x0 | x_t], moved up by ``shift`` where it lies in the left half."""
        alpha, sigma = (values[:, None] for values in schedule(t))
        variance = (alpha * self.blur) ** 2 + sigma**2
        apart = (x_t[:, None] - alpha[:, None] * table).square().sum(2)
        mean = torch.softmax(-apart / (2 * variance).clamp(min=1e-12), dim=1) @ table
        mean = mean + alpha * self.blur**2 / variance.clamp(min=1e-12) * (x_t - alpha * mean)
        wrong = torch.stack([torch.zeros(len(mean)), self.shift * (mean[:, 0] < 0)], dim=1)
        return mean + wrong


class PathEnd(Objective):
    """Regress on where the expert's path from this state ends, to a power of the distance."""

    sampler = Renoise

    def __init__(self, power=1):
        self.power = power

    def annotate(self, expert, states):
        """Add ``end``, the clean end of the expert's path."""
        return states.set("end", expert.advance(states["x_t"], states["t"], torch.zeros_like(states["t"])))

    def loss(self, student, batch):
        """Return the mean distance, or its square."""
        distance = (student(batch["x_t"], batch["t"]) - batch["end"]).norm(dim=1).pow(self.power).mean()
        return Loss(distance, {"distance": distance.detach()})


def train(expert, objective, shares=(0.25, 0.5, 0.25)):
    """Samples of a student of this expert."""
    torch.manual_seed(0)  # for the weights of its network
    env = DenoisingEnv((2,), objective.sampler(schedule), times, batch_size=128, generator=seeded(2))
    learning = Learning(partial(torch.optim.Adam, lr=3e-3), lr_ramp=lambda progress: 1.0 - progress)
    options = {"shares": Shares(*shares), "rounds": 2 if FAST else 20, "updates_per_round": 40, "learning": learning}
    loop = DAgger(Student(MLP(), schedule), expert, objective, env, Points(table), generator=seeded(0), **options)
    for _ in loop:
        pass
    return sample(loop.policy, env.transition, times, noise, generator=seeded(5))


# %% [markdown]
# ## Predict
#
# Without blur the expert knows the 400 points and nothing between them: every sample of its own ends on or beside one
# of them. It has overfitted perfectly. The student is a smooth network of few weights; it cannot follow every point,
# and fills the gaps. With blur or without, the students are nearly the same: the smoothness is their own.

# %%
sharp, soft = (Expert(TableExpert(blur), schedule, substeps=16) for blur in (0.0, 0.05))
clouds = {
    "expert, no blur": sharp.walk(noise, times)[-1],
    "its student": train(sharp, PathEnd()),
    "student, blur 0.05": train(soft, PathEnd()),
}
for name, points in clouds.items():
    nearest = torch.cdist(points, table).min(1).values.mean()
    print(f"{name:19} energy distance {energy_distance(points, target):.4f}, to the nearest table point {nearest:.4f}")
scatter_panels({name: points.numpy() for name, points in clouds.items()}, half=2.2)

# %% [markdown]
# ## Change one thing
#
# The squared distance asks for the *mean* of all ends that a state may lead to, the plain distance for something like
# their *median*. Under fresh noise many ends fit one state, and a mean lies between them. So the squared distance blurs
# more: its samples lie farther from the table. Its energy distance is no worse here, for blur within a moon costs
# little. One run each.

# %%
clouds = {"distance": train(soft, PathEnd(1)), "squared distance": train(soft, PathEnd(2))}
for name, points in clouds.items():
    nearest = torch.cdist(points, table).min(1).values.mean()
    print(f"{name:17} energy distance {energy_distance(points, target):.4f}, to the nearest table point {nearest:.4f}")
scatter_panels({name: points.numpy() for name, points in clouds.items()}, half=2.2)

# %% [markdown]
# ## Explain
#
# From both. The label is the expert's at every state, whatever its source, so a wrong expert teaches wrong labels
# everywhere that training looks. On-policy states do not mend a wrong teacher: they only say *where* it is asked.

# %%
wrong = Expert(TableExpert(shift=0.3), schedule, substeps=16)
clouds = {
    name: train(wrong, PathEnd(), shares)
    for name, shares in (("forward states", (1, 0, 0)), ("student states", (0, 1, 0)))
}
figure, panels = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", sharex=True, sharey=True)
for panel, (name, points) in zip(panels, clouds.items(), strict=True):
    panel.scatter(*target.T, s=2, color="#CCCCCC")
    panel.scatter(*points.T, s=2, color="#0072B2")
    panel.set(title=name, aspect="equal", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
figure.suptitle("blue: students of an expert that is 0.3 too high on the left; grey: the target")
plt.show()
