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
# # Solutions to lesson 4
#
# Try the [exercises](../04_pd_lcm_dmd2.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/04_pd_lcm_dmd2.ipynb

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

from dagdiff import DAgger, DistributionMatching, Expert, Shares, sample
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.learner import Learning
from dagdiff.metrics.samples import energy_distance
from dagdiff.mixture import LinearRamp
from dagdiff.report.plane import scatter_panels
from dagdiff.schedule import step_grid
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import exact_expert, student_from_teacher

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small run, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


task = make_task("gaussians8-biased")
expert = Expert(exact_expert(task), task.schedule, substeps=8)
times = step_grid(4)
start = student_from_teacher(task, updates=300 if FAST else 4000)  # trained on first use, then cached
count = 300 if FAST else 2000
noise = torch.randn(count, 2, generator=seeded(4))
target = task.world.reference(count, seeded(5))


def train(objective, shares):
    """Samples of a student that was trained on these shares (forward, student, expert)."""
    env = DenoisingEnv(task.shape, objective.sampler(task.schedule), times, generator=seeded(2))
    loop = DAgger(
        copy.deepcopy(start),
        expert,
        objective,
        env,
        task.data,
        shares=Shares(*shares),
        rounds=1 if FAST else 20,
        updates_per_round=10 if FAST else 40,
        learning=Learning(partial(torch.optim.Adam, lr=2e-3), LinearRamp(1.0, 0.0, until=1.0)),
        generator=seeded(0),
    )
    for _ in loop:
        pass
    return sample(loop.policy, env.transition, times, noise, generator=seeded(6))


clouds = {
    "forward states": train(DistributionMatching(), (1, 0, 0)),
    "student states (published)": train(DistributionMatching(), (0, 1, 0)),
    "mixture": train(DistributionMatching(), (0, 0.5, 0.5)),
    "mixture, 1 critic update": train(DistributionMatching(critic_updates=1), (0, 0.5, 0.5)),
}
for name, points in clouds.items():
    print(f"{name:27} energy distance {energy_distance(points, target):8.4f}")
scatter_panels({name: points.numpy() for name, points in clouds.items()}, columns=4, half=2.2)

# %% [markdown]
# ## Predict
#
# Near the mixture. Student states cover both halves, because the noise does, and the student starts from a teacher that
# knows the whole ring. So the published method has no covariate shift to begin with. Whether the mixture is better than
# it needs many seeds: the documentation's page *DMD2 in detail* has five.
#
# ## Change one thing
#
# The critic must know what the student makes *now*: the student follows the difference between the critic and the
# expert. A critic that is behind points to where the student was. Here one update instead of two leaves the samples
# several times as far from the target.
#
# ## Explain
#
# At states made from the right half a right output lies on the right, but the pool of all outputs has to look like the
# whole ring. The only way to match it is to send some of those outputs to the left, which is wrong at those states. In
# use, states come from both sides, the left ones are answered rightly, and the wrong ones come on top: the left half is
# overfull. Batches without forward states do not have this conflict.
