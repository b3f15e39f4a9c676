"""What a diffusers scheduler says about noise, and nothing of how it steps.

A pipeline's scheduler mixes two things: the law that its network was trained under, and a sampler. Only the law is read
here: the table ``alphas_cumprod`` (or rectified flow), what the network predicts, and the range of clean data. Its
``add_noise`` and ``step`` are never called: EulerDiscrete's noise explodes where its network was trained on a
variance-preserving law, and steps bring in offsets, spacings and histories that are the sampler's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.policies.prediction import EPSILON, FLOW, X0, Prediction, V
from dagdiff.schedule import FlowSchedule, Schedule, VPSchedule
from dagdiff.shapes import Times
from dagdiff.threshold import DynamicThreshold, NoThreshold, StaticThreshold, Threshold

Spacing = Callable[[Any, int], dict[str, Any]]
"""``(scheduler, steps) -> arguments``: what a pipeline's call tells ``set_timesteps`` beside the number of steps."""


def no_spacing(scheduler: Any, steps: int) -> dict[str, Any]:
    """Return nothing: most pipelines leave timesteps to their scheduler."""
    return {}


@dataclass(frozen=True)
class NoiseLaw:
    """The law a network was trained under, and the clock it reads.

    Args:
        schedule: of its states.
        prediction: what its output means.
        threshold: the range of clean data as the scheduler's ``clip_sample`` or ``thresholding`` tells it.
        entries: T, the length of its clock.
        first: the table's entry i is the time (i + first) / T: 1 for tables, whose time 0 is clean data, 0 for flow.
        scheduler: the pipeline's own, whose configuration tells how rectified flow is spaced; None if there is none.
        spacing: what the pipeline's call tells a scheduler beside the number of steps.
    """

    schedule: Schedule
    prediction: Prediction
    threshold: Threshold
    entries: int
    first: int
    scheduler: Any = field(default=None, compare=False, repr=False)
    spacing: Spacing = field(default=no_spacing, compare=False, repr=False)

    def timestep(self, t: Times) -> Tensor:
        """Return the network's own timesteps at times ``t``, ``(B,)`` floats.

        A time that stands for an entry gives that whole number exactly. Between two entries the timestep is a fraction,
        as the schedule's angle is: networks see sines and cosines of it. Below the first entry, where data are cleaner
        than any the network was trained on, it is asked as at the first.
        """
        place = t.float() * self.entries - self.first
        entry = place.round()
        return torch.where((place - entry).abs() < 1e-3, entry, place).clamp(min=0)

    def times(self, timesteps: Tensor) -> Times:
        """Return a sampler's ``timesteps`` as a falling grid of times that ends at 0: a teacher's own steps.

        Steps that a sampler takes twice (PNDM) count once. Where ``set_alpha_to_one`` is False (Stable Diffusion 1.x)
        a pipeline stops at the first entry, 1 / T; this grid goes on to clean data.
        """
        times = (timesteps.double().cpu() + self.first) / self.entries
        rising: Tensor = torch.cat([times, times.new_zeros(1)]).unique()
        return rising.flip(0).float()


def read_noise_law(scheduler: Any, latent: bool = False) -> NoiseLaw:
    """Read the law from a diffusers scheduler. Latents are never clipped, whatever the scheduler's file says.

    Raises:
        Refusal: if the scheduler has no such law, or its networks can't be read under it.
    """
    config = scheduler.config
    entries = config.get("num_train_timesteps")
    threshold = NoThreshold() if latent else _threshold(config)
    flow = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)
    if isinstance(scheduler, flow) or config.get("prediction_type") == "flow_prediction":
        if config.get("invert_sigmas"):
            raise Refusal(
                f"{_name(scheduler)} runs its noise upside down (invert_sigmas), which is not served. {_CURE}"
            )
        return NoiseLaw(FlowSchedule(), FLOW, threshold, entries, first=0, scheduler=scheduler)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or config.get("timestep_type") == "continuous":
        raise Refusal(
            f"{_name(scheduler)} tells no alphas_cumprod by which its network was trained, and is no flow matching: "
            f"its noise law can't be read. {_CURE}"
        )
    prediction = _prediction(scheduler)
    if config.get("rescale_betas_zero_snr"):  # Euler keeps a trace of signal there to divide by, and its table rises
        table = torch.cat([table[:-1], table.new_zeros(1)])
    return NoiseLaw(VPSchedule(table), prediction, threshold, entries, first=1, scheduler=scheduler)


def _prediction(scheduler: Any) -> Prediction:
    """What the network predicts; epsilon where the file does not say, as diffusers takes it."""
    config = scheduler.config
    told = config.get("prediction_type", "epsilon")
    known = {"epsilon": EPSILON, "v_prediction": V, "sample": X0}
    if told not in known:
        raise Refusal(f"{_name(scheduler)} has prediction_type {told!r}; served are {', '.join(known)}. {_CURE}")
    silent = config.get("rescale_betas_zero_snr") or float(scheduler.alphas_cumprod[-1]) == 0.0
    if silent and told == "epsilon":
        raise Refusal(
            f"{_name(scheduler)} has no signal left at the last timestep (rescale_betas_zero_snr), so epsilon tells "
            "nothing of x0 there. Set its prediction_type to v_prediction or sample if the network was trained so, or "
            "rescale_betas_zero_snr to false."
        )
    return known[told]


def _threshold(config: Any) -> Threshold:
    """The range of clean data; of dynamic thresholding the ceiling ``sample_max_value`` is left out unless it is 1."""
    if config.get("thresholding"):
        if config.get("sample_max_value", 1.0) <= 1.0:
            return StaticThreshold()
        return DynamicThreshold(config.get("dynamic_thresholding_ratio", 0.995))
    if config.get("clip_sample"):
        reach = config.get("clip_sample_range", 1.0)
        return StaticThreshold(-reach, reach)
    return NoThreshold()


def _name(scheduler: Any) -> str:
    return f"the scheduler {type(scheduler).__name__}"


_CURE = "Name a pipeline with a DDPM, DDIM, PNDM, Euler, DPM-Solver or FlowMatch scheduler."
