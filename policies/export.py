"""Students that leave: a folder that ``DiffusionPipeline.from_pretrained`` loads with nothing of dagdiff installed.

What leaves is the network, and a scheduler that makes the very chain the student was trained for. Two of diffusers'
schedulers are ours step by step: DDIM (progressive distillation), and LCM's, which perturbs each guess anew
(consistency and distribution matching). The timesteps that they take for the student's number of steps K are the
student's own grid where K divides the length of the table. What can't be told to a scheduler is refused by name.
"""

import inspect
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DiffusionPipeline, LCMScheduler
from torch import nn

from dagdiff.checks import Refusal
from dagdiff.policies.lora import merged
from dagdiff.policies.pretrained import PretrainedNetwork
from dagdiff.policies.student import Student
from dagdiff.policies.unet import UNet
from dagdiff.prediction import EPSILON, X0, Prediction, V
from dagdiff.schedule import FlowSchedule, Schedule
from dagdiff.shapes import Times
from dagdiff.threshold import DynamicThreshold, NoThreshold, StaticThreshold, Threshold
from dagdiff.transition import Ddim, Renoise, Transition


def build_pipeline(
    student: nn.Module, transition: Transition, times: Times, threshold: Threshold, base: str | None = None
) -> Any:
    """Return the student as a diffusers pipeline.

    Args:
        student: of images, or of a pipeline's states.
        transition: its law of motion.
        times: its grid, ``(K + 1,)``.
        threshold: of its guesses.
        base: the teacher's pipeline, from which the rest is taken (autoencoder, text encoders); for networks of pixels
            there is no rest.

    Raises:
        Refusal: if no stock pipeline has such a network, or no scheduler such a chain.
    """
    if not isinstance(student, Student):
        raise Refusal(f"a {type(student).__name__} is not one network, and a pipeline has one. Train without stepwise.")
    scheduler = few_step_scheduler(transition, times, student.schedule, student.prediction, threshold)
    network = student.network
    if isinstance(network, UNet):
        return _of_pixels(network.unet, scheduler)
    if not isinstance(network, PretrainedNetwork):
        raise Refusal(f"no diffusers pipeline holds a {type(network).__name__}. Export a student of images.")
    body: Any = merged(network.body)
    if base is None or _is_of_pixels(base):
        return _of_pixels(body, scheduler)
    if isinstance(scheduler, DDIMScheduler) and _clips(scheduler):
        raise Refusal(
            f"text pipelines let DDIM keep the noise of the guess before a {type(threshold).__name__}; this student's "
            "chain computes it anew. Export a student that was trained without threshold."
        )
    pipeline: Any = DiffusionPipeline.from_pretrained(base)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    body.to(getattr(pipeline, name).dtype)
    pipeline.register_modules(**{name: body, "scheduler": scheduler})
    return pipeline


def few_step_scheduler(
    transition: Transition, times: Times, schedule: Schedule, prediction: Prediction, threshold: Threshold
) -> Any:
    """Return the diffusers scheduler whose default chain of K steps is the student's.

    Raises:
        Refusal: for a law, grid, schedule, prediction or threshold that it can't be told.
    """
    steps = _check_grid(times)
    told: dict[str, Any] = {"num_train_timesteps": ENTRIES, "trained_betas": _betas(schedule), **_clipping(threshold)}
    told["steps_offset"] = 1  # what text pipelines expect to see; these grids have none
    told["prediction_type"] = _predicted(prediction)
    if isinstance(transition, Renoise):
        return LCMScheduler(**told, original_inference_steps=steps, set_alpha_to_one=True)
    if isinstance(transition, Ddim) and transition.eta == 0.0:
        return DDIMScheduler(**told, timestep_spacing="trailing", set_alpha_to_one=True)
    raise Refusal(f"no scheduler of diffusers moves by {transition}. Export a student sampled by DDIM or re-noising.")


def call_arguments(pipeline: Any, steps: int) -> dict[str, Any]:
    """Return what an exported pipeline must be called with, so that it makes the student's chain."""
    told: dict[str, Any] = {"num_inference_steps": steps}
    scheduler: Any = pipeline.scheduler
    if isinstance(pipeline, DDIMPipeline) and _clips(scheduler):
        told["use_clipped_model_output"] = True
    if "guidance_scale" in inspect.signature(pipeline.__call__).parameters:
        told["guidance_scale"] = 1.0
    return told


def model_card(name: str, teacher: str, arguments: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the README.md of an exported folder: what it is, how it is loaded, and what was measured.

    Args:
        name: of the student.
        teacher: what it was distilled from.
        arguments: of the pipeline's call, see :func:`call_arguments`.
        facts: more lines, name -> value: objective, updates, metrics.
    """
    steps, call = arguments["num_inference_steps"], ", ".join(f"{key}={value}" for key, value in arguments.items())
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
library_name: diffusers
tags: [distillation, few-step]
---
# {name}

A student of {steps} step{"s" if steps > 1 else ""}, distilled from {teacher} with dagdiff.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline({call}).images[0]  # text-to-image pipelines take a prompt first
```

Its scheduler holds the grid it was trained for: keep the number of steps. What guidance the teacher was given is in
the student already, so leave the pipeline's own off.

| | |
|---|---|
{lines}

The licence of the teacher, and of the data it was shown, holds for this student too.
"""


ENTRIES = 1000
"""T, the length of the table that a scheduler is given."""


def _of_pixels(network: Any, scheduler: Any) -> Any:
    """The stock pipeline of a pixel network: each of the two leaves its scheduler as it is."""
    if network.config.num_class_embeds is not None:
        raise Refusal(
            "diffusers has no pipeline that tells a UNet2DModel a class. Save the network itself, with "
            "student.network.save(folder), or distil an unlabelled task."
        )
    kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    return kind(unet=network, scheduler=scheduler)


def _is_of_pixels(base: str) -> bool:
    index = DiffusionPipeline.load_config(base)
    return not {"vae", "vqvae"} & set(index)


def _check_grid(times: Times) -> int:
    """The number of steps of an even grid that the table's length is a multiple of; others are refused."""
    steps = len(times) - 1
    even = torch.linspace(1.0, 0.0, steps + 1)
    if ENTRIES % steps or not torch.allclose(times.cpu(), even, atol=1e-4):
        told = [round(t, 4) for t in times.tolist()]
        raise Refusal(
            f"a scheduler takes even grids whose steps divide {ENTRIES}; got times {told}. "
            "Distil to 1, 2, 4, 5 or 8 steps."
        )
    return steps


def _betas(schedule: Schedule) -> list[float]:
    """The table of betas by which a scheduler rebuilds the noise law: entry i is the time (i + 1) / T."""
    if isinstance(schedule, FlowSchedule):
        raise Refusal("students on rectified flow have no few-step scheduler here. Export a student of a VP schedule.")
    t = torch.arange(1, ENTRIES + 1, dtype=torch.float64) / ENTRIES
    alpha, sigma = (part.double() for part in schedule(t.float()))
    cumulated = alpha**2 / (alpha**2 + sigma**2)
    before = torch.cat([cumulated.new_ones(1), cumulated[:-1]])
    betas: list[float] = (1.0 - cumulated / before).clamp(0.0, 1.0).tolist()
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


def _clips(scheduler: Any) -> bool:
    return bool(scheduler.config.clip_sample or scheduler.config.thresholding)
