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
# # Solutions to lesson 7
#
# Try the [exercises](../07_a_strangers_model.ipynb) first. Every answer is run below.
# Change it and run it again.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/solutions/07_a_strangers_model.ipynb

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
import math
import os
from importlib.resources import files

import matplotlib.pyplot as plt
import torch

if find_spec("terrain_diffusion") is None or find_spec("onnxruntime") is None:
    # Without its dependencies: it asks for CUDA's build of onnxruntime, which is large.
    wanted = ["--no-deps", "adaptive-terrain-diffusion==0.4.1"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "onnxruntime"], check=True)

import onnxruntime

from dagdiff import sample
from dagdiff.schedule import CosineSchedule, perturb, step_grid
from dagdiff.transition import Renoise

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small run, for the tests
count = 4 if FAST else 24


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


# %%
schedule = CosineSchedule(terminal_alpha=1 / math.sqrt(1 + 80**2))  # sigma / alpha is 80 at t = 1
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
weights = files("terrain_diffusion") / "weights/terrain_consistency_unet_difficulty100.onnx"
network = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])


def policy(x_t, t, difficulty):
    """Predict terrains (B, 1, 128, 128) from states; difficulty (B,) lies in [0, 1]."""
    alpha, sigma = schedule(t)
    noisy = x_t / alpha[:, None, None, None]
    rows = {"noisy": noisy, "sigma": sigma / alpha, "difficulty": difficulty}
    parts = [
        network.run(["denoised"], {name: column[i : i + 8].numpy() for name, column in rows.items()})[0]
        for i in range(0, len(x_t), 8)
    ]
    return torch.cat([torch.from_numpy(part) for part in parts])


difficulty = torch.linspace(0, 1, count)
noise = torch.randn(count, 1, 128, 128, generator=seeded(0))


def walk(steps, policy=policy):
    """Ask the policy in so many steps, from the same noise."""
    law, times = Renoise(schedule), step_grid(steps)
    return sample(policy, law, times, noise, condition=difficulty, generator=seeded(1))


def told(terrains):
    """Two numbers in words."""
    return f"mean {terrains.mean():.3f}, standard deviation {terrains.std():.3f}"


# %% [markdown]
# ## Predict

# %%
one, eight = walk(1), walk(8)
print("1 step: ", told(one))
print("8 steps:", told(eight))
_, panels = plt.subplots(2, 4, figsize=(5, 2.6), layout="constrained")
for line, (name, terrains) in zip(panels, {"1 step": one, "8 steps": eight}.items(), strict=True):
    for panel, place in zip(line, torch.linspace(0, count - 1, 4).long(), strict=True):
        panel.imshow(terrains[place, 0], cmap="terrain", vmin=-1, vmax=1)
        panel.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
plt.show()

# %% [markdown]
# It shrinks a little, from 0.265 to 0.250. Eight steps ask more often at small noise, where the model smooths.
#
# ## Change one thing


# %%
def unscaled(x_t, t, difficulty):
    """The policy of the lesson without the division by alpha."""
    alpha, _ = schedule(t)
    return policy(x_t * alpha[:, None, None, None], t, difficulty)


for steps in (1, 2, 4):
    terrains = walk(steps, unscaled)
    rough = terrains.diff(dim=2).abs().mean() / one.diff(dim=2).abs().mean()
    print(f"{steps} steps: {told(terrains)}, slope x {rough:.1f}")

# %% [markdown]
# No, it fails in another way. After one step the ground is ten times as rough: the state is 80 times too small, so the
# network takes its noise for terrain. After four steps the roughness is gone, and the standard deviation is too small.
# The last states hold little noise, alpha is near 1 there, and both units say the same. A wrong scale heals along this
# chain; the wrong label of the lesson grew.
#
# ## Explain
#
# `Renoise` makes the second state of the prediction and *fresh* noise: $\alpha \hat x_0 + \sigma\varepsilon$. The
# predictions of the first step are the one-step answers, which we took for data. Adding noise to them is forward
# diffusion, word for word. So at the second step own states are forward states, and the two numbers differ by chance
# alone; from the third step on they need not agree.

# %%
half = torch.full((count,), 0.5)
second = Renoise(schedule)(noise, one, torch.ones(count), half, torch.randn(noise.shape, generator=seeded(3)))
forward = perturb(one, torch.randn(noise.shape, generator=seeded(3)), half, schedule)
print("largest difference for the same fresh noise:", float((second - forward).abs().max()))
