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
# # Solutions to lesson 3
#
# Try the [exercises](../03_dagger_round_by_round.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/03_dagger_round_by_round.ipynb

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
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.metrics.samples import energy_distance
from dagdiff.mixture import LinearRamp
from dagdiff.schedule import step_grid
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import exact_expert, fresh_student

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small run, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


task = make_task("gaussians8-biased")
expert = Expert(exact_expert(task), task.schedule, substeps=8)
times, start = step_grid(4), fresh_student(task)
noise = torch.randn(300 if FAST else 2000, 2, generator=seeded(2))
target = task.world.reference(len(noise), seeded(3))


def run(shares, **options):
    """Train on these shares (forward, student, expert); return the quality and the expert's evaluations by round."""
    objective = Progressive()
    env = DenoisingEnv(task.shape, objective.sampler(task.schedule), times, generator=seeded(1))
    loop = DAgger(
        copy.deepcopy(start),
        expert,
        objective,
        env,
        task.data,
        shares=Shares(*shares),
        rounds=3 if FAST else 40,
        learning=Learning(partial(torch.optim.Adam, lr=2e-3), LinearRamp(1.0, 0.0, until=1.0)),
        generator=seeded(0),
        **options,
    )
    quality, cost = [], []
    for round in loop:
        quality.append(energy_distance(sample(loop.policy, env.transition, times, noise), target))
        cost.append(round.nfe_expert)
    return quality, cost


runs = {
    "forward": run((1, 0, 0)),
    "mixture": run((0.25, 0.5, 0.25)),
    "student states": run((0, 1, 0)),
    "expert states": run((0, 0, 1)),
    "mixture, newest round only": run((0.25, 0.5, 0.25), gathering=Gathering(rounds_kept=1)),
}
for name, (quality, cost) in runs.items():
    print(f"{name:27} quality {quality[-1]:8.4f}, {cost[-1]:9,} evaluations of the expert")

# %% [markdown]
# ## Predict
#
# The two are about the same here, and both are far better than forward states: what forward states lack is the left
# half, and both kinds of chains go there. If the student were very bad in the beginning, its chains would visit states
# that no good student meets, and expert states would be the safer start. That is what beta is for.
#
# ## Change one thing
#
# Dropping old rounds changes little. Old states of the student still carry right labels, so they do no harm. They
# also bring little, because a student that has nearly converged makes the same states again and again.
#
# ## Explain
#
# Against evaluations of the expert, student states alone are ahead: they cost as much as forward states and end far
# lower. Each new state costs one label, wherever it comes from, and each label serves several batches. Expert states
# and the mixture cost about twice as much, because the expert must also walk its own chains.

# %%
figure, (by_round, by_cost) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for name, (quality, cost) in runs.items():
    by_round.plot(range(1, len(quality) + 1), quality, label=name)
    by_cost.plot(cost, quality, label=name)
by_round.set_yscale("symlog", linthresh=1e-3)
by_round.set(xlabel="round", ylabel="energy distance to the target")
by_cost.set(xlabel="evaluations of the expert")
by_round.legend(frameon=False, fontsize=8)
plt.show()
