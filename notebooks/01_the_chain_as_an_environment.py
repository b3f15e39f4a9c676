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
# # 1. The denoising chain as an environment
#
# A diffusion model makes a sample by starting from noise and cleaning it in a few steps. Seen by a reinforcement
# learner, that is an **episode**: the noisy point is the state, the model is the policy, and each step of the sampler
# is a step of the environment.
#
# Here we walk through one episode by hand, with nothing but Gymnasium. No network is trained in this lesson.
#
# Three words first. Time runs from 1 (pure noise) to 0 (data). A step starts at time **t** and lands at time **s <
# t**. The noisy point at time t is **x_t**.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/01_the_chain_as_an_environment.ipynb

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
import numpy as np
import torch

import dagdiff.envs.denoising  # noqa: F401  (registers dagdiff/Denoising-v0)

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small lesson, for the tests

# %% [markdown]
# ## One chain
#
# `reset` creates a chain: a draw of standard normal noise at t = 1. The observation says where the point is,
# at what time, and where the next step will land.

# %%
env = gymnasium.make("dagdiff/Denoising-v0", steps=4)
observation, info = env.reset(seed=0)
observation

# %% [markdown]
# **The action is a prediction of the clean point x0**, not the next state. It has the shape of `x_t`. We are not
# obliged to be clever: let us always predict the point (1, 0).

# %%
prediction = np.array([1.0, 0.0], dtype=np.float32)
done = False
while not done:
    t, s, x_t = observation["t"][0], observation["s"][0], observation["x_t"]
    observation, reward, done, truncated, info = env.step(prediction)
    print(f"t = {t:.2f} -> s = {s:.2f}    x_t = {x_t.round(3)}  ->  x_s = {observation['x_t'].round(3)}")

# %% [markdown]
# The chain ends exactly at our prediction. That is what a prediction is for: at s = 0 no noise is left, and the state
# *is* the last prediction. The predictions before it only decide how the point gets there.
#
# ## What a step does
#
# A state mixes data and noise, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. If the prediction $x_0$ were true, the
# noise in $x_t$ would be $\varepsilon = (x_t - \alpha_t x_0) / \sigma_t$. The step keeps prediction and noise, and
# mixes them anew for the time s (this is DDIM):
#
# $$x_s = \alpha_s\, x_0 + \sigma_s\, \frac{x_t - \alpha_t\, x_0}{\sigma_t}$$

# %%
from dagdiff import CosineSchedule

schedule = CosineSchedule()  # the environment's own, unless it is given another transition
alpha, sigma = (values.numpy() for values in schedule(torch.tensor([1.0, 0.75])))  # at t = 1 and at s = 0.75

before, _ = env.reset(seed=0)
after, *_ = env.step(prediction)
noise = (before["x_t"] - alpha[0] * prediction) / sigma[0]
by_hand = alpha[1] * prediction + sigma[1] * noise
print("by hand:", by_hand.round(4), "   environment:", after["x_t"].round(4))

# %% [markdown]
# ## Who knows the right prediction?
#
# Our target is a distribution in 2-D: eight narrow Gaussians on a ring. For a mixture of Gaussians the best prediction,
# the mean of all clean points that could lie behind $x_t$, has a closed form. So there is an **exact expert**: no
# network, no training error.

# %%
from dagdiff import Expert
from dagdiff.envs.toy2d import world
from dagdiff.policies.gaussian import GaussianMixtureExpert

ring = world("gaussians8")
modes = ring.mixture
expert = Expert(GaussianMixtureExpert(modes.means, modes.stds, modes.weights, schedule), schedule)

x_t = torch.tensor([[0.6, 0.3]])
for t in (1.0, 0.75, 0.5, 0.25, 0.05):
    advice = expert(x_t, torch.tensor([t]))
    print(f"t = {t:.2f}: seeing {x_t[0].numpy()}, the expert predicts {advice[0].numpy().round(3)}")

# %% [markdown]
# The same point means different things at different times. Near t = 1 it is almost all noise, and the expert names the
# middle of the target. As t falls the point counts for more and its nearest modes pull harder; near t = 0 it is almost
# clean, and the expert moves it only a little. Below, arrows point from the state to the prediction (at a fifth of
# their length); watch how the arrows turn towards single modes.

# %%
ticks = torch.linspace(-2, 2, 15)
states = torch.cartesian_prod(ticks, ticks)
figure, panels = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
for panel, t in zip(panels, (1.0, 0.6, 0.4, 0.15), strict=True):
    advice = expert(states, torch.full((len(states),), t))
    panel.scatter(*modes.means.T, s=30, color="#D55E00", zorder=3)
    arrows = 0.2 * (advice - states)
    panel.quiver(*states.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.006)
    panel.set(title=f"t = {t}", aspect="equal", xticks=[], yticks=[])
figure.suptitle("where the expert's prediction lies, seen from each state (orange: the modes)")
plt.show()

# %% [markdown]
# ## What the reward is
#
# Given an expert, the environment rewards each prediction with **minus its mean squared distance to the expert's
# prediction** at that state. (Without an expert the reward is 0.) It is a measure of imitation, and the expert itself
# earns 0, the best there is. It says nothing about *how* to do better; that is why the following lessons learn from the
# expert's prediction and not from this number.

# %%
env = gymnasium.make("dagdiff/Denoising-v0", steps=4, expert=expert)


def ask_expert(observation):
    """The expert's prediction for one observation."""
    x_t, t = torch.from_numpy(observation["x_t"])[None], torch.from_numpy(observation["t"])
    return expert(x_t, t)[0].numpy()


def nearest_mode(observation):
    """Always bet on the mode nearest to the state."""
    apart = np.linalg.norm(modes.means.numpy() - observation["x_t"], axis=1)
    return modes.means.numpy()[apart.argmin()]


def believe_state(observation):
    """Take the state for clean."""
    return observation["x_t"]


for policy in (ask_expert, nearest_mode, believe_state):
    observation, _ = env.reset(seed=3)
    rewards, done = [], False
    while not done:
        observation, reward, done, _, _ = env.step(policy(observation))
        rewards.append(round(reward, 3) + 0.0)
    print(f"{policy.__name__:>14}: rewards {rewards}, ends at {observation['x_t'].round(2)}")

# %% [markdown]
# ## Many chains at once
#
# `make_vec` gives a vector environment: the same chain, many times, in one array. It is what one would train on.

# %%
chains = 100 if FAST else 1000
envs = gymnasium.make_vec("dagdiff/Denoising-v0", num_envs=chains, steps=4, expert=expert)
observations, _ = envs.reset(seed=0)
print({name: value.shape for name, value in observations.items()})


# %%
def roll(steps, num=chains):
    """Let the expert act in chains of that many steps; return them as (num, steps + 1, 2)."""
    envs = gymnasium.make_vec("dagdiff/Denoising-v0", num_envs=num, steps=steps)
    observations, _ = envs.reset(seed=0)
    path = [observations["x_t"]]
    for _ in range(steps):
        x_t, t = torch.from_numpy(observations["x_t"]), torch.from_numpy(observations["t"])[:, 0]
        observations, *_ = envs.step(expert(x_t, t).numpy())
        path.append(observations["x_t"])
    return np.stack(path, axis=1)


# %%
from dagdiff.report.plane import chain_panels

truth = ring.reference(chains, torch.Generator().manual_seed(1)).numpy()
chain_panels({f"K = {steps}": roll(steps)[:120] for steps in (1, 4, 32)}, truth)

# %% [markdown]
# Rings are the noise, dots the ends, grey the target, K the number of steps. All three panels show the *same*
# expert from the *same* noise. With one step, its first prediction is the end: the middle of the target, where nothing
# lives. With four it does better. With 32 its chains bend onto the modes.
#
# The expert is right at every state, and still its four-step samples are poor: between t and s it is not asked, and
# the right prediction changes on the way. How far the samples are from the target can be put in one number, the energy
# distance (0 for equal distributions):

# %%
from dagdiff.metrics.samples import energy_distance

counts = (1, 2, 4, 8) if FAST else (1, 2, 4, 8, 16, 32, 64)
far = [energy_distance(torch.from_numpy(roll(steps)[:, -1]), torch.from_numpy(truth)) for steps in counts]
for steps, distance in zip(counts, far, strict=True):
    print(f"{steps:>2} steps: energy distance {distance:8.4f}")

# %% [markdown]
# That is the gap which **distillation** is to close: a student that takes four steps and ends where the expert ends
# with 32 or more.
#
# ## The same step everywhere
#
# Training, environment and inference step through one function. Started from the same noise, `dagdiff.sample` ends
# where the environment's chains ended, to the last bit.

# %%
from dagdiff import Ddim, sample
from dagdiff.schedule import step_grid

path = roll(4)
ends = sample(expert, Ddim(schedule), step_grid(4), torch.from_numpy(path[:, 0]))
print("largest difference:", float((ends - torch.from_numpy(path[:, -1])).abs().max()))

# %% [markdown]
# ## Exercises
#
# **Predict.** A policy asks the expert at the first step only, and repeats that prediction at all later steps. Where do
# its chains end with 4 steps, and where with 32? Write your answer down before you run it.
#
# **Change one thing.** Let the policy ask the expert at the first *two* steps and repeat the second prediction. Measure
# the energy distance for K = 4, 8 and 32. Does a longer chain help?
#
# **Explain.** The expert asked at every step improves with K. The repeating policy does not. Why?
#
# To go on: pass `transition=Renoise(schedule)` (from `dagdiff`) to `make_vec`. What would the expert's prediction have
# to be, for one such step to be right? And which starts, `reset(options={"x_t": ...})`, lie between two modes?
#
# [Solutions](solutions/01_the_chain_as_an_environment.ipynb)
