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
# # Solutions to lesson 6
#
# Try the [exercises](../06_when_there_is_no_gap.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/06_when_there_is_no_gap.ipynb

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
import copy
import os
from functools import partial

import matplotlib.pyplot as plt
import torch

from dagdiff import DAgger, Expert, Progressive, Shares, sample
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.learner import Learning
from dagdiff.metrics.samples import energy_distance
from dagdiff.metrics.statistics import paired_difference
from dagdiff.mixture import LinearRamp
from dagdiff.schedule import step_grid
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import exact_expert, fresh_student, student_from_teacher

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small run, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


objective, times = Progressive(), step_grid(4)
variants = {"forward": Shares(1, 0, 0), "mixture": Shares(0.25, 0.5, 0.25)}
tasks = {name: make_task(f"gaussians8-{name}") for name in ("matched", "scarce", "biased")}
expert = Expert(exact_expert(tasks["matched"]), tasks["matched"].schedule, substeps=8)
taught = student_from_teacher(tasks["matched"], updates=300 if FAST else 4000)  # trained on first use, then cached


def quality(task, shares, seed, start, rounds=8):
    """Train as lesson 6 does; return the samples' energy distance to the target."""
    env = DenoisingEnv(task.shape, objective.sampler(task.schedule), times, generator=seeded(100 + seed))
    loop = DAgger(
        copy.deepcopy(start),
        expert,
        objective,
        env,
        task.data,
        shares=shares,
        rounds=1 if FAST else rounds,
        updates_per_round=10 if FAST else 40,
        learning=Learning(partial(torch.optim.Adam, lr=6e-3), LinearRamp(1.0, 0.0, until=1.0), batch_size=128),
        generator=seeded(seed),
    )
    for _ in loop:
        pass
    count = 300 if FAST else 2000
    noise = torch.randn(count, 2, generator=seeded(200 + seed))
    points = sample(loop.policy, env.transition, times, noise)
    return energy_distance(points, task.world.reference(count, seeded(300 + seed)))


def compare(name, seeds, **options):
    """Both kinds of training, seed by seed."""
    found = {
        variant: [quality(tasks[name], shares, seed, **{"start": taught, **options}) for seed in range(seeds)]
        for variant, shares in variants.items()
    }
    gain = paired_difference(found["forward"], found["mixture"])
    print(f"{name:8} {seeds} seeds, forward minus mixture: {gain:.5f}")
    return found


# %% [markdown]
# ## Predict
#
# Sixteen points lie all around the ring, so nothing large is missing. Noise fills the space between them at all but the
# last step. The difference is small: `scarce` behaves like `matched`, or lies just beside it.

# %%
found = {name: compare(name, 3) for name in tasks}
figure, panels = plt.subplots(1, 3, figsize=(8, 3), layout="constrained", sharey=True)
for panel, (name, runs) in zip(panels, found.items(), strict=True):
    for pair in zip(*runs.values(), strict=True):
        panel.plot([0, 1], pair, "o-", color="#0072B2")
    panel.axhline(0.0, color="#999999", ls=":")
    panel.set(title=name, xticks=[0, 1], xticklabels=list(variants), xlim=(-0.3, 1.3))
panels[0].set_ylabel("energy distance to the target")
plt.show()

# %% [markdown]
# ## Change one thing
#
# A beginner after 40 updates is far from its expert, so its states are not the forward states, and the mixture gains a
# little: the interval excludes 0. But look at the distances themselves. Both students are hundreds of times as far from
# the target as a trained one. What they lack is training; more updates gain far more than other states.

# %%
poor = compare("matched", 3, start=fresh_student(tasks["matched"]), rounds=1)
print({variant: [round(value, 3) for value in values] for variant, values in poor.items()})

# %% [markdown]
# ## Explain
#
# More seeds bring the *mean* nearer to its true value, so one expects a narrower interval, and here it is narrower. It
# need not be. A bootstrap over three values can never leave their range, so it is too narrow from the start. One new
# seed outside that range makes the interval wider, and more honest.

# %%
found = compare("biased", 3), compare("biased", 6)
