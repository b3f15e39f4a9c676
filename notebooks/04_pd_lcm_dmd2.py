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
# # 4. PD, LCM and DMD2 side by side
#
# dagdiff changes *which states* a student is trained on. What it is asked to match there is the business of the
# **objective**. Three are built in, and this lesson puts the same states before all of them.
#
# | objective | the expert annotates | the loss compares | sampler |
# |---|---|---|---|
# | `Progressive` (PD) | the prediction that its k sub-steps amount to | the student's prediction with it | DDIM |
# | `Consistency` (LCM) | the state one small step on | the output here with a slow copy's there | re-noise |
# | `DistributionMatching` (DMD2) | nothing | two scores at the perturbed output | re-noise |
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/04_pd_lcm_dmd2.ipynb

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

from dagdiff import Consistency, DAgger, DistributionMatching, Expert, Progressive, Shares, sample
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.learner import Learning
from dagdiff.mixture import LinearRamp
from dagdiff.schedule import step_grid
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import exact_expert, student_from_teacher

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small lesson, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


task = make_task("gaussians8-biased")
expert = Expert(exact_expert(task), task.schedule, substeps=8)
times = step_grid(4)
start = student_from_teacher(task, updates=300 if FAST else 4000)  # trained on first use, then cached

# %% [markdown]
# ## The same states
#
# 256 states at t = 0.5 on their way to s = 0.25, from chains that the starting student rolls. Each objective
# annotates a copy of them, and the expert's ledger says what that cost in network evaluations (NFE).

# %%
from tensordict import TensorDict

from dagdiff.transition import Ddim, chain

noise = torch.randn(256, 2, generator=seeded(1))
with torch.no_grad():
    step = list(chain(start, Ddim(task.schedule), times, noise))[2]
states = TensorDict({"x_t": step.x_t, "t": step.t, "s": step.s}, [256])

objectives = {"PD": Progressive(), "LCM": Consistency(), "DMD2": DistributionMatching()}
annotated = {}
for name, objective in objectives.items():
    before = expert.nfe
    annotated[name] = objective.annotate(expert, states.clone())
    added = sorted(set(annotated[name].keys()) - {"x_t", "t", "s"})
    print(f"{name:>4}: adds {added}, asking the expert {(expert.nfe - before) / 256:g} times a state")

# %% [markdown]
# PD asks most, but once: the label is stored with the state, and every later batch uses it without cost. LCM asks once.
# DMD2 asks nothing now, and pays at each update, because its loss depends on the student's output at that moment.
#
# ## Three kinds of labels
#
# In 2-D they can be drawn. Every panel shows the same states as grey dots.


# %%
def train(objective, shares):
    """Train a copy of the start on these shares (forward, student, expert); return the loop and its last round."""
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
    for round in loop:
        last = round
    return loop, last


mixtures = {"PD": (0.25, 0.5, 0.25), "LCM": (0.25, 0.5, 0.25), "DMD2": (0, 0.5, 0.5)}  # forward, student, expert
loops = {}
for name, kind in (("PD", Progressive), ("LCM", Consistency), ("DMD2", DistributionMatching)):
    loops[name, "forward"] = train(kind(), (1, 0, 0))
    loops[name, "mixture"] = train(kind(), mixtures[name])

# %%
from dagdiff.objectives.distribution import score_difference
from dagdiff.schedule import perturb

judged, _ = loops["DMD2", "forward"]  # its fake score knows what this student makes
with torch.no_grad():
    answer = judged.policy(states["x_t"], states["t"])
    tau, push = torch.full((256,), 0.3), torch.zeros(256, 2)
    for draw in range(50):  # the mean over 50 draws of the noise; training takes one at a time
        x_tau = perturb(answer, torch.randn(256, 2, generator=seeded(draw)), tau, task.schedule)
        push -= score_difference(answer, expert(x_tau, tau), judged.objective.fake(x_tau, tau, None, states["t"])) / 50

x_t = states["x_t"]
arrows = {
    "PD: from the state to the target prediction": (x_t, annotated["PD"]["target"] - x_t),
    "LCM: one solver step along the path (x 10)": (x_t, 10 * (annotated["LCM"]["x_next"] - x_t)),
    "DMD2: where the student's output is pushed": (answer, 0.5 * push),
}
figure, panels = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
for panel, (title, (base, move)) in zip(panels, arrows.items(), strict=True):
    panel.scatter(*x_t.T, s=6, color="#BBBBBB")
    panel.quiver(*base.T, *move.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="#0072B2")
    panel.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", xticks=[], yticks=[])
    panel.set_title(title, fontsize=10)
plt.show()

# %% [markdown]
# - **PD** points at a goal for this very state: it teaches the expert's *map* from noise to data. A student that
#   matched it would end where the expert ends, chain by chain.
# - **LCM** points a short way along the expert's path. The student's outputs at both ends of each arrow must agree;
#   with its output fixed at t = 0, that carries the end of the path back to every state. Arrows are short: a label
#   costs little, and information travels slowly.
# - **DMD2** says nothing about the state. It looks at the cloud of outputs, and pushes it from where it is too dense
#   towards where the target is denser (the arrows start at the outputs). It teaches the *distribution*, not the map:
#   two chains may exchange ends.
#
# ## Samples and scores
#
# Each objective was trained twice from the same start, with the same number of updates: on forward states of the
# right half alone, and on the mixture that suits it (`mixtures` above): all three sources for PD and LCM, its
# own and the expert's states for DMD2.

# %%
from dagdiff.metrics.base import score
from dagdiff.metrics.truth import Truth

count = 300 if FAST else 2000
noise = torch.randn(count, 2, generator=seeded(4))
truth = task.world.reference(count, seeded(5))
columns = ("energy", "w2", "coverage", "on_mode", "spread")
print(" " * 16 + "".join(f"{name:>10}" for name in columns) + " student NFE  expert NFE")


def line(name, points, cost=""):
    """Print the scores of a cloud of points in one line."""
    found = score(task.metrics, points, Truth(truth, task.world.mixture, generator=seeded(7)))
    print(f"{name:16}" + "".join(f"{found[column]:10.3f}" for column in columns) + cost)


line("real samples", task.world.sample(count, seeded(8)))
clouds = {}
for (name, trained_on), (loop, last) in loops.items():
    points = sample(loop.policy, loop.env.transition, times, noise, generator=seeded(6))
    line(f"{name}, {trained_on}", points, f"{last.nfe_student:12,}{last.nfe_expert:12,}")
    clouds[f"{name}, {trained_on}"] = points

# %%
from dagdiff.report.plane import scatter_panels

scatter_panels(
    {name: clouds[name].numpy() for name in sorted(clouds, key=lambda name: "mixture" in name)}, columns=3, half=2.2
)

# %% [markdown]
# All distances compare with the first line: two real samples are not at distance 0 in W2, nor fully covered. *On
# mode* counts samples within three standard deviations of a mode, and *spread* is the width of the modes relative to
# the truth.
#
# For each objective the mixture is nearer to the target than forward states of the wrong half. DMD2 shows the
# strangest failure: it had to make the *whole* target out of inputs from the right alone, and so learned to send points
# to the left. In use, inputs come from both sides, and the left is overfull. That is why its mixture holds no forward
# states: it may learn wherever its outputs should follow the whole target, and nowhere else. No number here says which
# objective is best: they had the same updates, but not the same cost, and this was one seed.
#
# The cost is in the last two columns. A label is bought once and serves several batches, on forward states as on
# others. Rollouts come on top: the student's own steps, and the chains that the expert walks for its states. So the
# mixture costs more here, and LCM's most of all, whose labels cost little beside whole chains of the expert.
#
# ## Exercises
#
# **Predict.** DMD2 as published trains on student states only: shares (0, 1, 0). Where will it stand between forward
# states and the mixture: near the first, half-way, or near the second?
#
# **Change one thing.** Set `DistributionMatching(critic_updates=1)` instead of 2, on the mixture. What changes?
#
# **Explain.** On states made from the right half, a right output lies on the right. DMD2 matches the *distribution* of
# all outputs with the whole target. What must it do with outputs at such states, and what follows for its samples?
#
# [Solutions](solutions/04_pd_lcm_dmd2.ipynb)
