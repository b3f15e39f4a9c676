"""What a few-step student's scheduler says about its chain: the grid of times, and the law by which it moves.

For a teacher only the noise law of its scheduler counts (:mod:`dagdiff.pipelines.noise_law`); a student is also the
sampler that it was made for. Each sampler that is served is one of dagdiff's laws in other words: LCM's renoises, Euler
and DDIM take the deterministic step, DDPM and ancestral Euler the one with eta = 1. Words can deceive, since options
bend a sampler (Karras' noise levels, solver orders, clipping), so the scheduler is *tried*: it steps down its own
timesteps with random answers of a network, and where a step lands elsewhere than the law's it is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.conditions import PromptBank
from dagdiff.pipelines.grids import read_grid, unshifted
from dagdiff.pipelines.loading import PICKLES, safetensors_only
from dagdiff.pipelines.lora import has_adapters, merged
from dagdiff.pipelines.noise_law import NoiseLaw
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.schedule import FlowSchedule, Schedule
from dagdiff.shapes import Times
from dagdiff.transition import Ddim, Renoise, Transition


class Sampler(NamedTuple):
    """How a student is sampled."""

    transition: Transition
    """Its law of motion."""
    times: Times
    """Its grid, ``(K + 1,)``, down to 0."""
    call: Mapping[str, Any] = MappingProxyType({})
    """What its pipeline must be called with to be sampled so."""


class _Kind(NamedTuple):
    """A scheduler's law, and whether it keeps states divided by alpha."""

    law: Callable[[Schedule], Transition]
    divided: bool = False


SAMPLERS = {
    "LCMScheduler": _Kind(Renoise),
    "FlowMatchLCMScheduler": _Kind(Renoise),
    "DDIMScheduler": _Kind(Ddim),
    "DPMSolverMultistepScheduler": _Kind(Ddim),
    "EulerDiscreteScheduler": _Kind(Ddim, divided=True),
    "FlowMatchEulerDiscreteScheduler": _Kind(Ddim),
    "DDPMScheduler": _Kind(partial(Ddim, eta=1.0)),
    "EulerAncestralDiscreteScheduler": _Kind(partial(Ddim, eta=1.0), divided=True),
}
"""The schedulers that may be served, by class; of DPM-Solver only what is of first order passes the trial."""


def read_scheduler(path: str, kind: str | None = None) -> Any:
    """Return the scheduler of the pipeline in a folder, or of the hub's of that name.

    Args:
        path: the pipeline.
        kind: another class to build from the same configuration, such as LCMScheduler; None keeps the pipeline's.

    Raises:
        Refusal: if it can't be read, or is of no class of diffusers.
    """
    try:
        name = kind or DiffusionPipeline.load_config(path)["scheduler"][1]
        place = {} if (Path(path) / "scheduler_config.json").exists() else {"subfolder": "scheduler"}
        return getattr(diffusers, name).from_pretrained(path, **place)
    except Exception as error:  # missing and foreign files raise many kinds; all mean that there is no scheduler
        reason = first_line(error)
        raise Refusal(
            f"the scheduler of {path!r} can't be read ({reason}). Save the pipeline again with one of {_served()}."
        ) from None


def read_sampler(scheduler: Any, law: NoiseLaw, steps: int, timesteps: Sequence[float] | None = None) -> Sampler:
    """Return the sampler that a student's scheduler is, set to so many steps or to timesteps of one's own.

    The grid goes on to clean data where Stable Diffusion's DDIM stops at the first entry of its table
    (``set_alpha_to_one=False``); chains start from noise of unit variance.

    Args:
        scheduler: a diffusers scheduler; its timesteps are set.
        law: the noise law of the same states, and what their pipeline's call tells a scheduler.
        steps: K.
        timesteps: at which the network is asked instead of the usual ones; None takes those of the pipeline's call.

    Raises:
        Refusal: if its class is not served, it has no such grid, or its steps are not its law's.
    """
    name = type(scheduler).__name__
    if name not in SAMPLERS:
        raise Refusal(f"the steps of {name} are not known here. Save the student with one of {_served()}.")
    kind = SAMPLERS[name]
    if timesteps is not None and isinstance(law.schedule, FlowSchedule):
        scheduler = unshifted(scheduler)
    found = Sampler(kind.law(law.schedule), read_grid(scheduler, law, steps, timesteps))
    if timesteps is None and found.times[0] < 0.5:
        raise Refusal(
            f"{name} begins {steps} step{'s' * (steps > 1)} at the time {found.times[0]:.3f}, with hardly any noise. "
            "Name more steps, or save the student with timestep_spacing='trailing'."
        )
    fault = _fault(scheduler, found, law, kind.divided)
    if fault and isinstance(scheduler, DDIMScheduler):  # it keeps the noise of the guess before its threshold
        found = found._replace(call={"use_clipped_model_output": True})
        fault = _fault(scheduler, found, law, kind.divided) and fault
    if fault:
        raise Refusal(fault)
    return found


def with_adapters(
    student: DiffusersExpert,
    path: str,
    adapters: str,
    variant: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
) -> DiffusersExpert:
    """Put a file's adapters on a student that was loaded from ``path``, as the pipeline there loads them; return it.

    Its weights are read again, in ``dtype``; None takes the one that it has.

    Raises:
        Refusal: if the file holds none that fit, or some of a text encoder, or a package is missing.
    """
    body = student.network.body
    try:
        reading = {"use_safetensors": safetensors_only(allow_pickle)}
        pipeline = DiffusionPipeline.from_pretrained(path, variant=variant, dtype=dtype or body.dtype, **reading)
        pipeline.load_lora_weights(adapters, **reading)
        network = getattr(pipeline, "unet" if hasattr(pipeline, "unet") else "transformer")
        found = has_adapters(network)
    except Exception as error:  # missing and foreign files and packages raise many kinds
        raise Refusal(
            f"the adapters {adapters!r} can't be put on {path!r} ({first_line(error)}). Give a file or folder that "
            f"load_lora_weights reads, and install peft. {PICKLES}"
        ) from None
    if not found:
        raise Refusal(f"{adapters!r} holds no adapters of the network of {path!r}. Name the pipeline they are for.")
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None and has_adapters(part):
            raise Refusal(
                f"{adapters!r} holds adapters of the {name} too, and prompts are embedded without. Merge them first: "
                "pipeline.load_lora_weights(FILE), pipeline.fuse_lora(), pipeline.save_pretrained(FOLDER)."
            )
    student.network.body = network.to(body.device).requires_grad_(False).eval()
    return student


def with_lora(
    teacher: DiffusersExpert, path: str, adapters: str, variant: str | None = None, allow_pickle: bool = False
) -> DiffusersExpert:
    """Add a file's adapters to a teacher's weights, both in float32, and cast once; return it. Arguments as above."""
    kind = teacher.network.body.dtype
    with_adapters(teacher, path, adapters, variant, allow_pickle, torch.float32)
    teacher.network.body = merged(teacher.network.body).to(kind).requires_grad_(False).eval()
    return teacher


def load_start(
    teacher: DiffusersExpert,
    path: str,
    dtype: str = "float32",
    variant: str | None = None,
    allow_pickle: bool = False,
) -> DiffusersExpert:
    """Load the few-step model that a student is to start from; it is asked with the teacher's own prompts or classes.

    Args:
        teacher: the many-step model.
        path: a pipeline's folder (an export of ours is one) or a hub id.
        dtype: of the network's weights.
        variant: of the weight files, such as fp16.
        allow_pickle: read weights from pickles; a pickle can run code.

    Raises:
        Refusal: if there is no such pipeline, or its states are not the teacher's.
    """
    conditions, shape = teacher.network.conditions, teacher.shape
    known = conditions if isinstance(conditions, PromptBank) else ()
    side = shape[1] if shape[1] == shape[2] else None
    null, device = getattr(conditions, "null", None), str(next(teacher.network.parameters()).device)
    read = DiffusersExpert.from_pretrained(
        path, known, side, null, dtype, device, variant, allow_pickle=allow_pickle
    )  # fmt: skip
    check_alike(teacher, read, "the expert", f"--policy {path}")
    if type(read.network.body) is not type(teacher.network.body):
        names = [type(each.network.body).__name__ for each in (read, teacher)]
        raise Refusal(f"--policy {path} is a {names[0]}, and the expert a {names[1]}. Start from one of its kind.")
    read.network.conditions = conditions
    if teacher.network.family.embedded(teacher.network.body.config) is not None:
        read.network.family = teacher.network.family  # both are told one weight of guidance
    return read


def check_alike(teacher: DiffusersExpert, student: DiffusersExpert, expert: str, of: str) -> None:
    """Refuse a student whose states are not its teacher's; ``expert`` and ``of`` name both."""
    if teacher.shape != student.shape:
        raise Refusal(
            f"the states of {expert} are {teacher.shape}, those of {of} {student.shape}. Name a student of this "
            "teacher, or pass --sample_size."
        )
    times = torch.linspace(0.0, 1.0, 101)
    noise, other = (torch.stack(each.schedule(times)) for each in (teacher, student))
    far = float((noise - other).abs().max())
    if far > 1e-3:
        raise Refusal(
            f"{expert} and {of} differ in their noise law, by up to {far:.2g} in alpha or sigma. "
            "Compare their scheduler_config.json; a student keeps its teacher's betas."
        )


@torch.no_grad()
def _fault(scheduler: Any, sampler: Sampler, law: NoiseLaw, divided: bool) -> str:
    """Where a scheduler lands elsewhere than the law on its own chain under random answers, in words; or nothing."""
    draws = torch.Generator().manual_seed(0)
    fresh, again = (torch.Generator().manual_seed(1) for _ in range(2))
    x_t = torch.randn((2, 4, 8, 8), generator=draws)
    scheduler._step_index = None  # a second trial begins anew
    grid = zip(scheduler.timesteps, sampler.times[:-1], sampler.times[1:], strict=True)
    for step, (timestep, t, s) in enumerate(grid):
        t, s = t.expand(len(x_t)), s.expand(len(x_t))
        output = torch.randn(x_t.shape, generator=draws)
        x0 = law.threshold(law.prediction.guess(x_t, output, t, law.schedule))
        want = sampler.transition(x_t, x0, t, s, torch.randn(x_t.shape, generator=again))
        here, there = _divisors(scheduler.sigmas, step) if divided else (1.0, 1.0)
        if divided:
            scheduler.scale_model_input(x_t / here, timestep)  # Euler complains where nobody has asked
        x_s = scheduler.step(output, timestep, x_t / here, generator=fresh, **sampler.call).prev_sample * there
        error = float((x_s - want).norm() / want.norm())
        last = step == len(sampler.times) - 2
        if not error < (_LAST if last else _EXACT):
            return (
                f"step {step} of {type(scheduler).__name__} is not that of {type(sampler.transition).__name__} on its "
                f"own noise law: it lands {error:.2g} of the state away. {_other()}"
            )
        x_t = x_s
    return ""


def _divisors(sigmas: Tensor, step: int) -> tuple[float, float]:
    """What a scheduler has divided its states by before and after a step: alpha, by its own table of sigma / alpha."""
    before, after = (float((1.0 + sigmas[place].double() ** 2) ** -0.5) for place in (step, step + 1))
    return before, after


def _served() -> str:
    return ", ".join(SAMPLERS)


def _other() -> str:
    return f"Name another number of steps, or save the student with another of {_served()}, without extra options."


_EXACT = 3e-3
"""What a step may be off, as a part of the state: interpolation, and LCM's skip connection."""

_LAST = 5e-2
"""What the last step may be off: tables end a little short of clean data."""
