"""The entries with which DistillBench begins: students of ours and of a peer, and diffusers' samplers.

====================  ================================================================================================
entry                 what it is
====================  ================================================================================================
PD, LCM, DMD2         our three objectives in 4 steps, trained on the mixture, and on forward-diffused states alone
ModelOpt DMD2         NVIDIA ModelOpt's losses on the student's own states, in 4 steps on rectified flow
pairs from noise      one step that is taught where the expert's whole walk ends, from noise alone (Luhman and Luhman
                      2021, https://arxiv.org/abs/2101.02388)
DDIM, DPM-Solver++,   diffusers' own schedulers, as they come (with trailing timesteps, on Stable Diffusion's table), on
UniPC, Heun, LCM      the exact expert in 1 to 16 evaluations: what a sampler does without any training
====================  ================================================================================================

A trained entry is a student for each seed of the bench, so its spread holds that of training.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagdiff.benchmarks.running.variants import shares_of
from dagdiff.benchmarks.suites import modelopt_dmd2, peers
from dagdiff.checkpoint import save_arrays
from dagdiff.checks import Refusal
from dagdiff.judging import terms
from dagdiff.judging.judge import judge
from dagdiff.judging.judgement import Judgement
from dagdiff.pipelines.noise_law import read_noise_law
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.prediction import V
from dagdiff.policy import StudentPolicy
from dagdiff.runs.config import Config, configure
from dagdiff.runs.experiment import Experiment
from dagdiff.schedule import Schedule
from dagdiff.tasks.names import make_task
from dagdiff.transition import Renoise


class Budget(NamedTuple):
    """Of every trained entry.

    Args:
        seeds: of the bench, and students that are trained.
        updates: of each student.
    """

    seeds: int
    updates: int


Entry = Callable[[str, str, Budget], Judgement]
"""``(name, task, budget) -> judgement``: makes the entry's students, or samples, and judges them."""


def trained(name: str, task: str, budget: Budget, objective: str, states: str, steps: int = 4) -> Judgement:
    """Students of one of our objectives, trained on states of one kind."""
    chosen: Config = {"task": task, "objective": objective, "steps": steps, "shares": shares_of(states, objective)}
    return _judged(name, task, [_of_run(chosen, budget, seed) for seed in range(budget.seeds)])


def pairs(name: str, task: str, budget: Budget) -> Judgement:
    """Students of one step, taught from pairs of noise and the end of the expert's walk from it."""
    chosen: Config = {"task": task, "objective": "progressive", "steps": 1, "shares": [0.0, 0.0, 1.0], "substeps": 32}
    return _judged(name, task, [_of_run(chosen, budget, seed) for seed in range(budget.seeds)])


def modelopt(name: str, task: str, budget: Budget, backward_simulation: bool) -> Judgement:
    """Students of NVIDIA ModelOpt's DMD2."""
    variant = "modelopt-student" if backward_simulation else "modelopt-forward"
    suite = peers.Suite([task], [variant], seeds=budget.seeds, updates=budget.updates)
    found = []
    for cell in peers.cells(suite):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.config["seed"])
            it = Experiment.build(cell.config)
            for _ in modelopt_dmd2.train(it, backward_simulation):
                pass
        found.append(it)
    return _judged(name, task, found, "flow")


def sampled(name: str, task: str, budget: Budget, scheduler: str, steps: int) -> Judgement:
    """Samples of a diffusers scheduler on the exact expert."""
    made = [samples(task, scheduler, steps, seed) for seed in terms.check_seeds(budget.seeds)]
    asked = made[0][1]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npz"
        save_arrays(file, x=torch.cat([points for points, _ in made]))
        return judge(file, task, asked, budget.seeds, entry=name, device="cpu")


def samples(task: str, scheduler: str, steps: int, seed: int) -> tuple[Tensor, int]:
    """Return the points of a seed, ``(n, 2)``, that a scheduler makes, and how often it asks the exact expert."""
    import diffusers

    common: dict[str, Any] = {**TABLE, "prediction_type": "v_prediction"}
    spaced = {} if scheduler == "LCMScheduler" else {"timestep_spacing": "trailing"}
    clip = {"clip_sample": False} if scheduler in ("DDIMScheduler", "LCMScheduler") else {}
    sampler = getattr(diffusers, scheduler)(**common, **spaced, **clip)
    law = read_noise_law(sampler, latent=True)
    expert = exact(task, law.schedule)
    draws = torch.Generator().manual_seed(seed)
    sampler.set_timesteps(steps)
    x = torch.randn(terms.POINTS, 2, generator=draws) * sampler.init_noise_sigma
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # LCM's fresh noise
        for timestep in sampler.timesteps:
            x_t = sampler.scale_model_input(x, timestep)
            t = ((timestep.float() + law.first) / law.entries).expand(len(x))
            alpha, sigma = (values.unsqueeze(1) for values in law.schedule(t))
            output = V.from_x0(x_t, expert(x_t, t), alpha, sigma)
            x = sampler.step(output, timestep, x).prev_sample
    return x, len(sampler.timesteps)


def exact(task: str, schedule: Schedule) -> GaussianMixtureExpert:
    """The exact expert of a task's world on a schedule; refuse a world that is no mixture."""
    mixture = make_task(task).world.mixture
    if mixture is None:
        raise Refusal(f"{task!r} has no exact expert for the samplers. Leave them away with --entries, or the task.")
    return GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, schedule)


def _of_run(chosen: Config, budget: Budget, seed: int) -> Experiment:
    """A student of our own, trained."""
    common = {"updates": budget.updates, "heldout": 0, "device": "cpu", "seed": seed}
    it = Experiment.build(configure({**chosen, **common}))
    for _ in it.rounds():
        pass
    return it


def _judged(name: str, task: str, trained: list[Experiment], schedule: str | None = None) -> Judgement:
    """Judge students by their own law, one a seed."""
    first = trained[0]
    law = "renoise" if isinstance(first.transition, Renoise) else "ddim"
    students = [StudentPolicy(each.student, each.threshold) for each in trained]
    steps = len(first.times) - 1
    return judge(students, task, steps, law=law, schedule=schedule, entry=name, device="cpu")


TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise of Stable Diffusion, for which these schedulers are most used."""

SAMPLERS = {
    "DDIM": ("DDIMScheduler", (1, 2, 4, 8, 16)),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", (1, 2, 4, 8, 16)),
    "UniPC": ("UniPCMultistepScheduler", (1, 2, 4, 8, 16)),
    "Heun": ("HeunDiscreteScheduler", (1, 2, 4, 8)),
    "LCM": ("LCMScheduler", (1, 2, 4, 8, 16)),
}
"""Name -> the class of diffusers, and the numbers of steps; Heun asks twice in all but its last, 15 times in 8."""

ENTRIES: dict[str, Entry] = {
    **{
        f"{name} {states}": partial(trained, objective=objective, states=states)
        for name, objective in {"PD": "progressive", "LCM": "consistency", "DMD2": "distribution"}.items()
        for states in ("mixture", "forward")
    },
    "pairs from noise": pairs,
    "ModelOpt DMD2 student": partial(modelopt, backward_simulation=True),
    "ModelOpt DMD2 forward": partial(modelopt, backward_simulation=False),
    **{
        f"{name} x {steps} on the expert": partial(sampled, scheduler=kind, steps=steps)
        for name, (kind, numbers) in SAMPLERS.items()
        for steps in numbers
    },
}
"""Name -> what makes and judges it."""
