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
# # Solutions to lesson 1
#
# Try the [exercises](../01_the_chain_as_an_environment.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/01_the_chain_as_an_environment.ipynb

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

import gymnasium
import matplotlib.pyplot as plt
import torch

import dagdiff.envs.denoising  # noqa: F401  (registers dagdiff/Denoising-v0)
from dagdiff import CosineSchedule, Expert
from dagdiff.envs.toy2d import world
from dagdiff.metrics.samples import energy_distance
from dagdiff.policies.gaussian import GaussianMixtureExpert

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small run, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


ring, schedule = world("gaussians8"), CosineSchedule()
modes = ring.mixture
expert = Expert(GaussianMixtureExpert(modes.means, modes.stds, modes.weights, schedule), schedule)
chains = 100 if FAST else 1000
target = ring.reference(chains, seeded(1))


def roll(steps, asked):
    """The ends of chains whose policy asks the expert at its first ``asked`` steps, and repeats its last prediction."""
    envs = gymnasium.make_vec("dagdiff/Denoising-v0", num_envs=chains, steps=steps)
    observations, _ = envs.reset(seed=0)
    for step in range(steps):
        if step < asked:
            x_t, t = torch.from_numpy(observations["x_t"]), torch.from_numpy(observations["t"])[:, 0]
            prediction = expert(x_t, t).numpy()
        observations, *_ = envs.step(prediction)
    return torch.from_numpy(observations["x_t"])


# %% [markdown]
# ## Predict
#
# The chains end at the first prediction, whatever K is. A step keeps the prediction and the noise that it implies, and
# only mixes them anew. If the prediction does not change, the noise does not change either, and at s = 0 no noise is
# left. At t = 1 the expert can only predict the middle of the ring, so all chains end near it.

# %%
ends = {steps: roll(steps, asked=1) for steps in (4, 32)}
print("largest difference between K = 4 and K = 32:", f"{(ends[4] - ends[32]).abs().max():.1e}")
print("mean distance of the ends from the middle:  ", f"{ends[4].norm(dim=1).mean():.3f}")

# %% [markdown]
# ## Change one thing
#
# Asked twice, the policy does *worse* with longer chains: its second question comes at t = 1 - 1/K, and the longer the
# chain, the nearer to pure noise that is. The expert asked at every step does better with longer chains.

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", sharex=True, sharey=True)
for panel, (steps, asked) in zip(panels, ((4, 2), (8, 2), (32, 2), (32, 32)), strict=True):
    points = roll(steps, asked)
    far = energy_distance(points, target)
    print(f"K = {steps:>2}, asked {asked:>2} times: energy distance {far:.4f}")
    panel.scatter(*target.T, s=2, color="#CCCCCC")
    panel.scatter(*points.T, s=2, color="#882255")
    panel.set(title=f"K = {steps}, asked {asked} times", aspect="equal", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Explain
#
# A prediction is right for the state at which it was made. Between t and s the state moves, and the right prediction
# moves with it. More steps mean more questions and smaller moves between them: that is what helps the expert. A policy
# that stops asking gets only the cost of a long chain, not its benefit. A few-step student is in between: it may ask
# only K times, so each of its predictions must be right for a long way. That is what it is trained for.
