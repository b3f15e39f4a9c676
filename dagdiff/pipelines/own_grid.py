"""The timesteps at which a few-step model was trained, read from its files before anything is loaded.

A student that starts from a few-step model is good at that model's timesteps and knows little of others. Exports of
dagdiff tell theirs in ``chain.json``; for all others the scheduler is set to so many steps, as the pipeline's own call
sets it: LCM's takes every (50 / K)-th of its 50 training timesteps, so four steps are 999, 759, 499, 259.
"""

from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict

from dagdiff.checks import Refusal
from dagdiff.pipelines.families import FAMILIES
from dagdiff.pipelines.few_step import read_scheduler
from dagdiff.pipelines.grids import read_grid
from dagdiff.pipelines.noise_law import NoiseLaw, no_spacing, read_noise_law
from dagdiff.reading import read_json
from dagdiff.schedule import FlowSchedule, step_grid
from dagdiff.shapes import Times


def own_timesteps(start: str, base: str, steps: int, sample_size: int | None = None) -> list[float] | None:
    """Return the timesteps of a few-step model's own chain of K steps; None where they are the usual ones of ``base``.

    None too where its scheduler has no such chain that begins in noise: a many-step model's own sampler says nothing
    of a few steps.

    Args:
        start: the few-step pipeline's folder, or its hub id.
        base: the expert's.
        steps: K.
        sample_size: the side of the states, where it is not the network's usual one.
    """
    try:
        law, scheduler = _law(start, sample_size)
        times = _told(Path(start), law, steps)
        times = read_grid(scheduler, law, steps) if times is None else times
        usual = step_grid(steps)
        if isinstance(law.schedule, FlowSchedule):
            of_base, own = _law(base, sample_size)
            usual = read_grid(own, of_base, steps)
    except Refusal:  # who loads them says what is wrong with them; some schedulers have no so many steps
        return None
    if float((times - usual).abs().max()) < _SAME / law.entries or float(times[0]) < _NOISE:
        return None
    timesteps = [round(float(each), 6) for each in law.timestep(times[:-1])]
    flow = isinstance(law.schedule, FlowSchedule)
    return timesteps if flow or all(each.is_integer() for each in timesteps) else None


def _told(folder: Path, law: NoiseLaw, steps: int) -> Times | None:
    """The times that an export of dagdiff was trained at, if it is one of so many steps."""
    file = folder / "chain.json"
    found = read_json(file, {"timesteps": [float]})["timesteps"] if file.is_file() else []
    return law.times(torch.tensor(found)) if len(found) == steps else None


def _law(path: str, sample_size: int | None) -> tuple[NoiseLaw, Any]:
    """A pipeline's noise law, which knows how its call spaces timesteps, and its scheduler; no weights are read.

    Raises:
        Refusal: if a file is missing, or says nothing of it.
    """
    try:
        index = DiffusionPipeline.load_config(path)
        name = "unet" if "unet" in index else "transformer"
        kind = index[name][1]
        place = {} if (Path(path) / "config.json").is_file() else {"subfolder": name}
        config = FrozenDict(getattr(diffusers, kind).load_config(path, **place))
    except Exception as error:  # missing and foreign files raise many kinds
        raise Refusal(f"{path!r} does not say what its network is. Save the pipeline again.") from error
    scheduler = read_scheduler(path)
    law = read_noise_law(scheduler, latent=bool({"vae", "vqvae"} & set(index)))
    family, spacing = FAMILIES.get(kind), no_spacing
    if family is not None:
        size = sample_size or family.size(config) or 1
        height, width = size if isinstance(size, list | tuple) else (size, size)
        spacing = partial(family.spacing, config, (height, width))
    return NoiseLaw(**{**vars(law), "spacing": spacing}), scheduler


_SAME = 0.999
"""How far timesteps may be from the usual ones, which stand at whole numbers, to be these."""

_NOISE = 0.99
"""The time at which a chain that starts from noise begins, at least."""
