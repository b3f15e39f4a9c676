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
# # Solutions to lesson 2
#
# Try the [exercises](../02_covariate_shift_seen.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/02_covariate_shift_seen.ipynb

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

from dagdiff import DAgger, Expert, Progressive, Shares
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.learner import Learning
from dagdiff.metrics.shift import measure_shift
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


task, whole = make_task("gaussians8-biased"), make_task("gaussians8-matched")
expert = Expert(exact_expert(task), task.schedule, substeps=8)
times = step_grid(4)


def train(task, start, rounds, shares=(1, 0, 0)):
    """Train a copy of ``start`` by PD on states in these shares (forward, student, expert)."""
    env = DenoisingEnv(task.shape, Progressive().sampler(task.schedule), times, generator=seeded(1))
    loop = DAgger(
        copy.deepcopy(start),
        expert,
        Progressive(),
        env,
        task.data,
        shares=Shares(*shares),
        rounds=2 if FAST else rounds,
        learning=Learning(partial(torch.optim.Adam, lr=2e-3), LinearRamp(1.0, 0.0, until=1.0)),
        generator=seeded(0),
    )
    for _ in loop:
        pass
    return loop


def losses(loop, task):
    """The losses on forward and on student states, by step."""
    clean = task.data.sample(200 if FAST else 2000, seeded(3))
    found = measure_shift(loop.policy, expert, loop.env.transition, times, clean, generator=seeded(5)).rows
    return [row.loss_forward for row in found], [row.loss_own for row in found]


def show(panel, title, forward, student):
    """Draw both losses by step, and print their ratio at the last one."""
    panel.plot(times[:-1], forward, "o-", color="#999999", label="forward states")
    panel.plot(times[:-1], student, "o-", color="#882255", label="student states")
    panel.set(title=title, yscale="log", xlim=(1.05, 0.2), xlabel="time t")
    print(f"{title}: student / forward at the last step {student[-1] / forward[-1]:.1f}")


# %% [markdown]
# ## Predict
#
# With all of the data, student states lie where forward states lie. The ratio at the last step is about 1.

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
show(panels[0], "half of the data", *losses(train(task, fresh_student(task), 40), task))
show(panels[1], "all of the data", *losses(train(whole, fresh_student(whole), 40), whole))
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Change one thing
#
# The teacher has seen the whole ring, so a student that starts from it starts without a shift. Training on the right
# half then makes it forget the left half, and the longer it trains, the more.

# %%
start = student_from_teacher(task, updates=300 if FAST else 4000)  # trained on first use, then cached
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for panel, rounds in zip(panels, (40, 160), strict=True):
    show(panel, f"from the teacher, {rounds} rounds", *losses(train(task, start, rounds), task))
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Explain
#
# If the student fails on the expert's chains as well, its own mistakes are not the main cause. What it lacks are states
# of the left half, whoever makes them. So expert states would serve here as well as student states. The next cell says
# so: both lower the loss on student states far below that of forward training.

# %%
for name, shares in (("forward", (1, 0, 0)), ("student states", (0, 1, 0)), ("expert states", (0, 0, 1))):
    _, student = losses(train(task, fresh_student(task), 40, shares), task)
    print(f"trained on {name:14}: loss on student states at the last step {student[-1]:.4f}")
