"""The grid of a scheduler: which times its chain of K steps visits, read back by running its own ``set_timesteps``.

A pipeline's call tells it more than K (FLUX its own sigmas, and a shift that grows with the image), and so does a user
who names timesteps; both are told here too. Grids that are a formula of ours would drift away from what is run.
"""

import inspect
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_at_least, first_line
from dagdiff.pipelines.noise_law import NoiseLaw
from dagdiff.schedule import FlowSchedule
from dagdiff.shapes import Times


def read_grid(scheduler: Any, law: NoiseLaw, steps: int, timesteps: Sequence[float] | None = None) -> Times:
    """Return the times of a scheduler's chain, ``(K + 1,)``, down to 0; its timesteps are set.

    Args:
        scheduler: a diffusers scheduler.
        law: the noise law of the same states, and what their pipeline's call tells a scheduler.
        steps: K.
        timesteps: at which the network is asked instead of the usual ones, falling; None takes those of the call.

    Raises:
        Refusal: if it has no such grid.
    """
    check_at_least("steps", steps, 1)
    name = type(scheduler).__name__
    asked = law.spacing(scheduler, steps) if timesteps is None else explicit(law, timesteps)
    known = inspect.signature(scheduler.set_timesteps).parameters
    strange = [word for word in asked if word not in known]
    if strange and timesteps is not None:
        raise Refusal(
            f"{name} takes no {strange[0]} of your own. Name another with --scheduler (LCMScheduler, "
            "DPMSolverMultistepScheduler or EulerDiscreteScheduler; of rectified flow FlowMatchEulerDiscreteScheduler)."
        )
    number = {} if {"sigmas", "timesteps"} & set(asked) else {"num_inference_steps": steps}
    try:
        scheduler.set_timesteps(**number, **asked)
    except (ValueError, TypeError, AssertionError, IndexError) as error:
        raise Refusal(
            f"{name} has no grid of {steps} steps ({first_line(error)}). Name another number of steps."
        ) from None
    times = _visited(scheduler, law)
    if len(times) != steps + 1:
        raise Refusal(
            f"{name} takes {len(times) - 1} different steps where {steps} are asked. Name another number of steps."
        )
    return times


def explicit(law: NoiseLaw, timesteps: Sequence[float]) -> dict[str, Any]:
    """Return timesteps of one's own in the words of ``set_timesteps``: sigmas on rectified flow, else whole numbers.

    Raises:
        Refusal: if they do not fall, or lie outside the network's clock.
    """
    flow = isinstance(law.schedule, FlowSchedule)
    last = law.entries if flow else law.entries - 1
    told = ",".join(f"{each:g}" for each in timesteps)
    falling = all(before > after for before, after in pairwise(timesteps))
    whole = flow or all(float(each).is_integer() for each in timesteps)
    if not timesteps or not falling or not whole or not (timesteps[-1] >= 0 and timesteps[0] <= last):
        kind = "numbers above 0" if flow else "whole numbers"
        raise Refusal(
            f"--timesteps {told} must be {kind} that fall, at most {last}: this network's clock has {law.entries} "
            f"timesteps. Pass e.g. --timesteps {last},{last // 2}."
        )
    if flow:
        return {"sigmas": [each / law.entries for each in timesteps]}
    return {"timesteps": [int(each) for each in timesteps]}


def unshifted(scheduler: Any) -> Any:
    """Return a scheduler of rectified flow that takes sigmas as they are told: without shift and respacing."""
    plain = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    respaced = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    return type(scheduler).from_config(scheduler.config, **plain, **dict.fromkeys(respaced, False))


def _visited(scheduler: Any, law: NoiseLaw) -> Times:
    """The times of the timesteps that are set; where its noise levels are others, as Karras' are, those of the noise.

    Steps that a sampler takes twice (PNDM) count once.
    """
    levels: Tensor | None = getattr(scheduler, "sigmas", None)
    if levels is None or len(levels) != len(scheduler.timesteps) + 1:
        return law.times(scheduler.timesteps)
    levels = levels[:-1].double().cpu()
    if isinstance(law.schedule, FlowSchedule):
        falling: Tensor = torch.cat([levels, levels.new_zeros(1)]).unique().flip(0)
        return falling.float()
    times = law.times(scheduler.timesteps)
    if len(times) == len(levels) + 1:
        alpha, sigma = law.schedule(times[:-1])
        if bool(((torch.atan2(sigma, alpha).double() - torch.atan(levels)).abs() < _ALIKE).all()):
            return times
    entries = torch.linspace(0.0, 1.0, law.entries + 1)
    alpha, sigma = law.schedule(entries)
    found = np.interp(torch.atan(levels).numpy(), torch.atan2(sigma, alpha).double().numpy(), entries.double().numpy())
    return torch.cat([torch.from_numpy(found), torch.zeros(1, dtype=torch.float64)]).float()


_ALIKE = math.pi / 6000
"""Angles of noise, atan2(sigma, alpha), that are the same: table entries that a scheduler has rounded."""
