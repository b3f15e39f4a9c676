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
# # 6. When there is no gap
#
# The lessons before this one were staged: the data held half of the target, so forward states were the wrong states.
# Now the data are the whole target. **Nothing is wrong, and DAgger should change nothing.** If it seemed to, our
# measuring would be at fault.
#
# We run both cases side by side, three seeds each, and let intervals speak.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/06_when_there_is_no_gap.ipynb

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
from dagdiff.metrics.shift import measure_shift
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


# %% [markdown]
# ## The experiment
#
# Progressive distillation, 4 steps. A seed fixes everything random: forward noise, rollouts, batches, and the noise
# that is sampled from. The two variants of a seed share it, so that they can be compared **in pairs**; only the
# shares differ. The student starts as a copy of a learned teacher, as it would in earnest. To be done in minutes, the
# runs are short, with small batches and three times our usual learning rate.

# %%
objective, times, seeds = Progressive(), step_grid(4), range(3)
variants = {"forward": Shares(1, 0, 0), "mixture": Shares(0.25, 0.5, 0.25)}
tasks = {name: make_task(f"gaussians8-{name}") for name in ("matched", "biased")}
expert = Expert(exact_expert(tasks["matched"]), tasks["matched"].schedule, substeps=8)
start = student_from_teacher(tasks["matched"], updates=300 if FAST else 4000)  # trained on first use, then cached


def run(task, shares, seed):
    """Train; return the samples' energy distance to the target, the student, and the network evaluations."""
    env = DenoisingEnv(task.shape, objective.sampler(task.schedule), times, generator=seeded(100 + seed))
    loop = DAgger(
        copy.deepcopy(start),
        expert,
        objective,
        env,
        task.data,
        shares=shares,
        rounds=1 if FAST else 8,
        updates_per_round=10 if FAST else 40,
        learning=Learning(partial(torch.optim.Adam, lr=6e-3), LinearRamp(1.0, 0.0, until=1.0), batch_size=128),
        generator=seeded(seed),
    )
    for round in loop:
        last = round
    count = 300 if FAST else 2000
    noise = torch.randn(count, 2, generator=seeded(200 + seed))
    quality = energy_distance(
        sample(loop.policy, env.transition, times, noise), task.world.reference(count, seeded(300 + seed))
    )
    return quality, loop.policy, last.nfe_student + last.nfe_expert


results = {
    (name, variant): [run(task, shares, seed) for seed in seeds]
    for name, task in tasks.items()
    for variant, shares in variants.items()
}

# %% [markdown]
# ## Quality, with intervals
#
# `bootstrap_mean` gives the mean over seeds and a 95 % interval; `paired_difference` does so for the difference, seed
# by seed. If that interval holds 0, the data do not say which is better.

# %%
from dagdiff.metrics.statistics import bootstrap_mean, paired_difference

quality = {key: [found[0] for found in runs] for key, runs in results.items()}
for name in tasks:
    for variant in variants:
        print(f"{name}, {variant}: {bootstrap_mean(quality[name, variant]):.4f}")
    gain = paired_difference(quality[name, "forward"], quality[name, "mixture"])
    print(f"{name}, forward minus mixture: {gain:.4f}, excludes 0: {gain.clear_of_zero}\n")

# %%
figure, panels = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", sharey=True)
for panel, name in zip(panels, tasks, strict=True):
    for seed in seeds:
        pair = [quality[name, variant][seed] for variant in variants]
        panel.plot([0, 1], pair, "-", color="#BBBBBB", zorder=1)
    for place, (variant, colour) in enumerate(zip(variants, ("#D55E00", "#0072B2"), strict=True)):
        panel.scatter([place] * len(seeds), quality[name, variant], color=colour, zorder=2)
    panel.axhline(0.0, color="#999999", ls=":")
    panel.set(xticks=[0, 1], xticklabels=list(variants), xlim=(-0.5, 1.5), title=name)
panels[0].set_ylabel("energy distance to the target")
figure.suptitle("a line joins the two runs of a seed; dotted: equal distributions")
plt.show()

# %% [markdown]
# ## A trap
#
# On `biased` every forward run is worse than its partner, and the interval excludes 0. On `matched` it holds 0.
# But do not lean on that flag alone. A bootstrap can only reshuffle what it has, so it excludes 0 for *any*
# three numbers of one sign; and three tosses of a fair coin fall alike once in four. Where nothing is to be found, one
# such comparison in four would still claim something. So ask a second question: **is the difference large beside what
# two sets of real samples differ by?**

# %%
count = 300 if FAST else 2000
world = tasks["matched"].world
real = [
    energy_distance(world.sample(count, seeded(600 + i)), world.reference(count, seeded(700 + i))) for i in range(8)
]
print("real samples against the target:", " ".join(f"{value:.4f}" for value in real))
for name in tasks:
    pairs = zip(quality[name, "forward"], quality[name, "mixture"], strict=True)
    print(f"{name}, forward minus mixture, by seed:", " ".join(f"{a - b:.5f}" for a, b in pairs))

# %% [markdown]
# The real samples lie within 0.0005 of one another. On `matched` the differences are a quarter of that or less; on
# `biased` even the least of the three is larger, and the others are many times so. The honest result on `matched`:
# no difference that these runs could show.
#
# ## Why
#
# The states of the expert's chain have the same distributions as forward diffusion of the *whole* target: that is
# what it means to sample correctly. A student close to the expert therefore meets, in use, the states it was trained
# on. On `matched` the forward states *are* the on-policy states, and rollouts gather nothing that was not there.
#
# The shift by step says the same, and says it before any training on the mixture: for the **forward** students, the
# distance of student from forward states, and the ratio of the losses on the two. On `matched` that ratio is about 1 or
# below; on `biased` it climbs towards the data, where the student ends on modes that it was never trained on.


# %%
def shift_of(task, student, seed):
    """The student's covariate shift by step, on as many chains as data."""
    clean = task.data.sample(200 if FAST else 1000, seeded(400 + seed))
    law = objective.sampler(task.schedule)
    return measure_shift(student, expert, law, times, clean, generator=seeded(500 + seed)).rows


figure, (distance, ratio) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, colour in (("matched", "#009E73"), ("biased", "#D55E00")):
    for seed, (_, student, _) in zip(seeds, results[name, "forward"], strict=True):
        shift, label = shift_of(tasks[name], student, seed), name if seed == 0 else None
        distance.plot(times[:-1], [row.energy_forward for row in shift], "o-", color=colour, alpha=0.7, label=label)
        ratio.plot(times[:-1], [row.loss_own / row.loss_forward for row in shift], "o-", color=colour, alpha=0.7)
distance.set(title="student states to forward states", ylabel="energy distance")
distance.legend(frameon=False)
ratio.axhline(1.0, color="#999999", ls=":")
ratio.set(title="loss on student states / on forward states")
for panel in (distance, ratio):
    panel.set(xlabel="time t (noise 1 → data 0)", xlim=(1.05, 0.2))
plt.show()

# %%
for name in tasks:
    for variant in variants:
        cost = sum(found[2] for found in results[name, variant]) / len(seeds)
        print(f"{name}, {variant}: {cost:12,.0f} network evaluations, student and expert together")

# %% [markdown]
# ## The honest lesson
#
# - **Measure the shift first.** It takes a handful of chains. If student states cost what forward states cost, there is
#   nothing for DAgger to gain, and a paper or a product that claims otherwise has measured something else.
# - **Three seeds say little.** The interval never leaves the range of the three values, and is too narrow. Take it as
#   a warning against claims, not as a licence for them.
# - **Look at differences in pairs.** Seeds differ more from one another than variants do. Pairing takes that out.
# - **A number near the floor is no ranking.** The energy distance estimate is unbiased, so good samplers scatter
#   around 0, some below.
# - **Say what it costs.** Equal updates are not equal work. Here the mixture takes about twice the
#   evaluations, because rollouts come on top of the labels.
#
# ## Exercises
#
# **Predict.** `gaussians8-scarce` trains on sixteen points of the ring. Will it behave like `matched` or like `biased`?
#
# **Change one thing.** On `matched`, make the student worse: a tenth of the updates, from random weights
# (`fresh_student`). Its own states now differ from the expert's. Is there something to gain?
#
# **Explain.** Run six seeds on `biased` instead of three. Does the interval get wider or narrower, and which would you
# expect?
#
# [Solutions](solutions/06_when_there_is_no_gap.ipynb)
