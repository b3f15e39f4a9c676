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
# # 3. DAgger, round by round
#
# Imitation learning has a simple method against covariate shift (Ross, Gordon and Bagnell 2011): **let the
# student act, let the expert say what it would have done there, keep all of that, and train on it. Repeat.** The data
# then come from the states that the student really visits.
#
# dagdiff does this on the denoising chain, and mixes three kinds of states: forward-diffused data, the student's own
# chains, and the expert's chains.
#
# [Open in Colab][colab]
#
# [colab]: https://colab.research.google.com/github/dagdiff/dagdiff/blob/main/notebooks/03_dagger_round_by_round.ipynb

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
from collections import Counter
from functools import partial

import matplotlib.pyplot as plt
import torch

from dagdiff import DAgger, Expert, Progressive, Shares, sample
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.metrics.samples import energy_distance
from dagdiff.mixture import ExponentialRamp, Indicator, LinearRamp
from dagdiff.schedule import step_grid
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import exact_expert, fresh_student

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 90
FAST = os.environ.get("DAGDIFF_FAST") == "1"  # a small lesson, for the tests


def seeded(seed):
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# The target is that of lesson 2: eight Gaussians, an exact expert who knows them all, data from the right half only,
# and a student who knows nothing yet. Every loop below starts from the same weights, the same noise and the same
# updates. Only what is named in the call differs.

# %%
task = make_task("gaussians8-biased")
expert = Expert(exact_expert(task), task.schedule, substeps=8)
objective, times, start = Progressive(), step_grid(4), fresh_student(task)
ROUNDS = 3 if FAST else 40


def make_loop(shares, **options):
    """A loop that trains a copy of the same start on states in these shares (forward, student, expert)."""
    env = DenoisingEnv(task.shape, objective.sampler(task.schedule), times, generator=seeded(1))
    options = {"rounds": ROUNDS, "heldout": 256, **options}
    return DAgger(
        copy.deepcopy(start),
        expert,
        objective,
        env,
        task.data,
        shares=Shares(*shares),
        learning=Learning(partial(torch.optim.Adam, lr=2e-3), LinearRamp(1.0, 0.0, until=1.0)),
        generator=seeded(0),
        **options,
    )


# %% [markdown]
# ## The loop is a generator
#
# Each round gathers (one batch of chains), lets the expert label what is new, makes 30 updates on the mixture, and
# **yields**. Between two rounds the program is yours: print, plot, save, or stop. `loss_forward` and `loss_own` are
# the imitation losses on held-out forward and student states, a number a step.

# %%
noise = torch.randn(500 if FAST else 2000, 2, generator=seeded(2))
truth = task.world.reference(len(noise), seeded(3))


def run(loop):
    """Run the loop; return its rounds, and the samples' energy distance to the target after each."""
    rounds, quality = [], []
    for round in loop:
        rounds.append(round)
        points = sample(loop.policy, loop.env.transition, times, noise)
        quality.append(energy_distance(points, truth))
        if round.number % 10 == 1:
            losses = f"loss on forward states {max(round.loss_forward):.4f}, on student {max(round.loss_own):.4f}"
            print(f"round {round.number:>2}: {losses} (worst step), {round.size:>6} records, quality {quality[-1]:.4f}")
    return rounds, quality


print("forward states only")
off_policy = make_loop((1, 0, 0))
off_rounds, off_quality = run(off_policy)
print("a mixture: a quarter forward, half student, a quarter expert states")
mixed = make_loop((0.25, 0.5, 0.25))
mixed_rounds, mixed_quality = run(mixed)

# %% [markdown]
# A record is a state with the expert's label, which serves some batches (`Gathering(reuse=...)`). The aggregate grows
# by 256 chains of 4 steps, or more, for each of two sources, until it holds the newest 20 rounds. Forward states have
# the same distribution in every round, so those of a round replace the last round's: off-policy training keeps no more.

# %%
figure, (loss, distance) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
for name, rounds, quality, colour in (
    ("forward only", off_rounds, off_quality, "#D55E00"),
    ("mixture", mixed_rounds, mixed_quality, "#0072B2"),
):
    x = [round.number for round in rounds]
    loss.plot(x, [round.loss_own[-1] for round in rounds], color=colour, label=f"{name}: student states")
    loss.plot(x, [round.loss_forward[-1] for round in rounds], "--", color=colour, label=f"{name}: forward states")
    distance.plot(x, quality, color=colour, label=name)
loss.set(yscale="log", xlabel="round", title="imitation loss at the last step")
distance.set_yscale("symlog", linthresh=1e-3)  # near equal distributions the estimate may fall below 0
distance.set(xlabel="round", title="samples: energy distance to the target")
for panel in (loss, distance):
    panel.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# On *forward* states the two students are alike (dashed): judged by its own training loss, off-policy training works.
# On *own* states (solid) it stalls, and the mixture does not.
#
# ## Shares: what a batch is made of
#
# `shares` splits every batch exactly. `aggregate.draw` shows one: the source of each row and the round it came from
# in which it entered.

# %%
batch = mixed.aggregate.draw(256, Shares(0.25, 0.5, 0.25))
sources = ("forward", "student", "expert")
print(Counter(sources[i] for i in batch["source"].tolist()))
print("oldest and newest round of the student's rows:", batch["round"][batch["source"] == 1].aminmax())
print("columns:", sorted(batch.keys()))

# %% [markdown]
# The oldest records were made by a poorer student, and are still there: that is the *aggregation* in DAgger. Their
# labels are still right, since the expert is frozen. (The newest 20 rounds stay; `Gathering(rounds_kept=1)` would keep
# the newest one only.)
#
# ## Beta: who drives
#
# **beta** is DAgger's other dial: the part of the student chains' steps that the *expert* takes. At 0 the student
# drives alone. At 1 the expert does, and we are back at behaviour cloning. Whoever acts, the label is the expert's.
# `sources.rollout` rolls the loop's chains with any beta; here with the off-policy student. Its first three steps are
# good, so its states at t = 0.25 are much like the expert's: it is the next step that goes wrong.

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharex=True, sharey=True)
for panel, beta in zip(panels, (0.0, 0.5, 1.0), strict=True):
    records = off_policy.sources.rollout(beta)
    late = records[records["t"] == 0.25]
    acted = late["actor"] == 1
    panel.scatter(*late["x_t"][~acted].T, s=8, color="#882255", label="student acts")
    panel.scatter(*late["x_t"][acted].T, s=8, color="#222222", label="expert acts")
    panel.set(title=f"beta = {beta:g}", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
labelled = panels[1].get_legend_handles_labels()
figure.legend(*labelled, loc="outside lower center", ncols=2, frameon=False)
figure.suptitle("states at t = 0.25, by who takes the next step")
plt.show()

# %% [markdown]
# Beta usually starts high, so that early rounds see sensible states, and falls. Any function of progress (0 to 1)
# will do; DAgger's own proposals are "1, then 0" and a power law.

# %%
progress = torch.linspace(0, 1, 200)[:-1]
ramps = {
    "1, then 0": Indicator(),
    "exponential": ExponentialRamp(half_life=0.1),
    "linear": LinearRamp(1.0, 0.0, until=0.5),
    "always 0": lambda progress: 0.0,
}
figure, (shape, result) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name, beta in ramps.items():
    shape.plot(progress, [beta(float(p)) for p in progress], label=name)
    loop = make_loop((0.25, 0.75, 0.0), gathering=Gathering(beta=beta), rounds=3 if FAST else 20)
    losses = [round.loss_own[-1] for round in loop]
    result.plot(range(1, len(losses) + 1), losses, label=name)
shape.set(xlabel="progress", title="beta")
shape.legend(frameon=False, fontsize=9)
result.set(xlabel="round", yscale="log", title="imitation loss on student states, last step")
plt.show()

# %% [markdown]
# Here the less the expert drives, the better the end, though only by a little: even a beginner's chains visit useful
# states in this small target, and the sooner they are gathered, the more is learned from them. (One seed; lesson 6
# says how far to trust that.) Beta is for targets in which a beginner's states are useless, or the expert's predictions
# there are poor.
#
# ## Diverging and reconciled
#
# Last, the chains themselves. Each student chain (colour) runs beside the expert's (grey) from the same noise, moving
# as the step does between the times at which it asks for a prediction. Chains that start on the left are drawn:
# the half of the target that is missing from the forward states.

# %%
from dagdiff.transition import chain, ddim


def movie(policy, noise, frames):
    """The chain's states at ``frames`` moments of each step, ``(K * frames + 1, n, 2)``."""
    path = [noise]
    for step in chain(policy, mixed.env.transition, times, noise):
        for part in range(1, frames + 1):
            between = torch.lerp(step.t, step.s, part / frames)
            path.append(ddim(step.x_t, step.x0, step.t, between, task.schedule))
    return torch.stack(path)


def expert_movie(noise, frames):
    """The expert's own chain at the same moments: it asks itself anew at each."""
    return torch.stack(expert.walk(noise, step_grid(4 * frames)))


frames = 3 if FAST else 12
starts = noise[(noise[:, 0] < -0.4) & (noise.norm(dim=1) < 2.2)][:36]
theirs = expert_movie(starts, frames).numpy()
ours = {
    "trained on forward states": (movie(off_policy.policy, starts, frames).numpy(), "#D55E00"),
    "trained on the mixture": (movie(mixed.policy, starts, frames).numpy(), "#0072B2"),
}

# %%
import base64
import io
import tempfile
from pathlib import Path

from IPython.display import display
from matplotlib.animation import FuncAnimation, PillowWriter

figure, panels = plt.subplots(1, 2, figsize=(7.6, 4.1), layout="constrained", dpi=80)
moving = []
for panel, (title, (path, colour)) in zip(panels, ours.items(), strict=True):
    panel.scatter(*task.world.sample(400, seeded(4)).T, s=2, color="#DDDDDD")
    panel.set(title=title, xlim=(-2.4, 1.2), ylim=(-2.2, 2.2), aspect="equal", xticks=[], yticks=[])
    for each in range(len(starts)):
        (their_line,) = panel.plot([], [], color="#999999", lw=0.8)
        (their_dot,) = panel.plot([], [], "o", ms=3.5, color="#222222")
        (our_line,) = panel.plot([], [], color=colour, lw=0.8, alpha=0.7)
        (our_dot,) = panel.plot([], [], "o", ms=3.5, color=colour)
        moving.append((theirs[:, each], their_line, their_dot))
        moving.append((path[:, each], our_line, our_dot))
title = figure.suptitle("t = 1.00")


def draw(frame):
    """Draw all chains up to one moment; the last moment is held for a while."""
    now = min(frame, len(theirs) - 1)
    for path, line, dot in moving:
        line.set_data(*path[: now + 1].T)
        dot.set_data(*path[now : now + 1].T)
    title.set_text(f"t = {1 - now / (len(theirs) - 1):.2f}     black: the expert     colour: the student, 4 steps")


film = FuncAnimation(figure, draw, frames=len(theirs) + (2 if FAST else 16))
with tempfile.TemporaryDirectory() as folder:
    film.save(Path(folder) / "chains.gif", writer=PillowWriter(fps=12))
    gif = base64.b64encode((Path(folder) / "chains.gif").read_bytes()).decode()
still = io.BytesIO()
figure.savefig(still, format="png")
plt.close(figure)
picture = f'<img alt="student and expert chains from noise to data" src="data:image/gif;base64,{gif}">'
display({"text/html": picture, "image/png": base64.b64encode(still.getvalue()).decode()}, raw=True)

# %% [markdown]
# On the left the first steps agree, and the last one, taken at states that training never contained, moves the chains
# off their modes. On the right the student has been corrected at just those states.
#
# ## Exercises
#
# **Predict.** Train with shares (0, 1, 0) and with (0, 0, 1): student states alone, expert states alone. Which is
# better here, and by how much: the same, twice, ten times?
#
# **Change one thing.** Pass `gathering=Gathering(rounds_kept=1)`: old rounds are dropped. Does that hurt or help?
#
# **Explain.** `round.nfe_expert` counts the expert's evaluations. Plot the quality against it instead of against
# rounds. Which loop costs less now, and why? (A label in the aggregate is paid for once and used often.)
#
# [Solutions](solutions/03_dagger_round_by_round.ipynb)
