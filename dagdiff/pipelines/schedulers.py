"""A student's chain in the words of diffusers: the scheduler whose default steps are the student's own.

Two of diffusers' schedulers are ours step by step: DDIM (progressive distillation), and LCM's, which perturbs each
guess anew (consistency and distribution matching). The timesteps that they take for the student's number of steps K are
the student's own grid where K divides the length of the table. On rectified flow Euler's step is DDIM's, LCM's has a
twin, and any K will do. What can't be told to a scheduler is refused by name. The way back is
:mod:`dagdiff.pipelines.few_step`.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, LCMScheduler

from dagdiff.checks import Refusal
from dagdiff.policies.prediction import EPSILON, FLOW, X0, Prediction, V
from dagdiff.schedule import FlowSchedule, Schedule
from dagdiff.shapes import Times
from dagdiff.threshold import DynamicThreshold, NoThreshold, StaticThreshold, Threshold
from dagdiff.transition import Ddim, Renoise, Transition


def few_step_scheduler(
    transition: Transition,
    times: Times,
    schedule: Schedule,
    prediction: Prediction,
    threshold: Threshold,
    entries: int = 1000,
) -> Any:
    """Return the diffusers scheduler whose default chain of K steps is the student's.

    Args:
        transition: the student's law of motion.
        times: its grid, ``(K + 1,)``.
        schedule: of its states.
        prediction: what its network's output means.
        threshold: of its guesses.
        entries: T, the length of the clock that its network reads; the scheduler's table has as many.

    Raises:
        Refusal: for a law, grid, schedule, prediction or threshold that it can't be told.
    """
    if isinstance(schedule, FlowSchedule):
        return _of_flow(transition, times, prediction, threshold, entries)
    kind = _moved(transition, LCMScheduler, DDIMScheduler)
    steps = _check_grid(times, entries)
    told: dict[str, Any] = {"num_train_timesteps": entries, "trained_betas": _betas(schedule, entries)}
    told |= _clipping(threshold)
    told["steps_offset"] = 1  # what text pipelines expect to see; these grids have none
    told["prediction_type"] = _predicted(prediction)
    spaced = {"original_inference_steps": steps} if kind is LCMScheduler else {"timestep_spacing": "trailing"}
    return kind(**told, **spaced, set_alpha_to_one=True)


def _of_flow(transition: Transition, times: Times, prediction: Prediction, threshold: Threshold, entries: int) -> Any:
    """The schedulers of rectified flow: their grid falls evenly from 1 to the one number that it can be told."""
    kind = _moved(transition, FlowMatchLCMScheduler, FlowMatchEulerDiscreteScheduler)
    steps = _check_even(times)
    if prediction != FLOW:
        raise Refusal(f"flow schedulers read velocities alone; got {prediction.name}. Export a flow-student.")
    if not isinstance(threshold, NoThreshold):
        raise Refusal(f"no flow scheduler of diffusers can be told {threshold}. Export a student without threshold.")
    return kind(num_train_timesteps=entries, shift=1.0, shift_terminal=1.0 / steps if steps > 1 else None)


def _moved(transition: Transition, renoising: Any, deterministic: Any) -> Any:
    """Of two classes of schedulers the one that moves by a transition."""
    if isinstance(transition, Renoise):
        return renoising
    if isinstance(transition, Ddim) and transition.eta == 0.0:
        return deterministic
    raise Refusal(
        f"no scheduler of diffusers moves by {type(transition).__name__} as this student does. Export one that is "
        "sampled by DDIM with eta 0 or by re-noising, with epsilon_scale 1."
    )


def _check_even(times: Times) -> int:
    """The number of steps of an even grid; others are refused."""
    steps = len(times) - 1
    if not torch.allclose(times.cpu(), torch.linspace(1.0, 0.0, steps + 1), atol=1e-4):
        raise Refusal(f"a scheduler takes even grids; got times {_told(times)}. Distil on the usual grid.")
    return steps


def _check_grid(times: Times, entries: int) -> int:
    """The number of steps of an even grid that the table's length is a multiple of; others are refused."""
    steps = _check_even(times)
    if entries % steps:
        fitting = ", ".join(str(number) for number in range(1, 17) if entries % number == 0)
        raise Refusal(
            f"a scheduler takes even grids whose steps divide its table of {entries} timesteps; got times "
            f"{_told(times)}. Distil to a number of steps that does: {fitting}."
        )
    return steps


def _told(times: Times) -> list[float]:
    return [round(t, 4) for t in times.tolist()]


def _betas(schedule: Schedule, entries: int) -> list[float]:
    """The table of betas by which a scheduler rebuilds the noise law: entry i is the time (i + 1) / T."""
    t = torch.arange(1, entries + 1, dtype=torch.float64) / entries
    alpha, sigma = (part.double() for part in schedule(t.float()))
    cumulated = alpha**2 / (alpha**2 + sigma**2)
    before = torch.cat([cumulated.new_ones(1), cumulated[:-1]])
    kept = torch.where(before > 0, cumulated / before, 0.0)  # no signal comes back: long tables underflow to 0
    betas: list[float] = (1.0 - kept).clamp(0.0, 1.0).tolist()
    return betas


def _predicted(prediction: Prediction) -> str:
    for known, name in ((EPSILON, "epsilon"), (V, "v_prediction"), (X0, "sample")):
        if prediction == known:
            return name
    raise Refusal(f"no few-step scheduler reads the prediction {prediction}. Export an x0-, epsilon- or v-student.")


def _clipping(threshold: Threshold) -> dict[str, Any]:
    """What a scheduler is told of the threshold."""
    if isinstance(threshold, NoThreshold):
        return {"clip_sample": False}
    if isinstance(threshold, StaticThreshold) and threshold.low == -threshold.high:
        return {"clip_sample": True, "clip_sample_range": threshold.high}
    if isinstance(threshold, DynamicThreshold) and threshold.bound == 1.0:
        ratio = {"dynamic_thresholding_ratio": threshold.quantile, "sample_max_value": 1e9}
        return {"clip_sample": False, "thresholding": True, **ratio}
    raise Refusal(f"no scheduler of diffusers can be told {threshold}. Export a student without threshold, or boxed.")
