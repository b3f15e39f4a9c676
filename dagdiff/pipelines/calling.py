"""How an exported pipeline is called: the arguments that make the student's chain, a program, and the model card."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMPipeline

from dagdiff.pipelines.families import FAMILIES, Family
from dagdiff.pipelines.loading import empty_parts


def call_arguments(
    pipeline: Any,
    steps: int,
    size: tuple[int, ...] | None = None,
    call: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> dict[str, Any]:
    """Return what an exported pipeline must be called with, so that it makes the student's chain.

    Guidance is off, for it is in the student; networks that are told a weight (FLUX.1-dev) hear the one they were
    trained with here.

    Args:
        pipeline: what was exported.
        steps: K.
        size: of states; told where it is not the one that the call takes by itself.
        call: timesteps or sigmas of the chain's record, in place of K.
        family: of the student's network, which knows its weight; None takes the usual one.
    """
    told: dict[str, Any] = dict(call) if call else {"num_inference_steps": steps}
    known, network = parameters_of(pipeline), _network(pipeline)
    scheduler: Any = pipeline.scheduler
    if isinstance(pipeline, DDIMPipeline) and clips(scheduler):
        told["use_clipped_model_output"] = True
    family = family or FAMILIES.get(type(network).__name__)
    if family is None:
        return told
    told |= {name: value for name, value in family.calling(network.config).items() if name in known}
    if size is not None and "height" in known:
        cell = family.cell(pipeline)
        wanted = {name: side * cell for name, side in zip(("height", "width"), size, strict=True)}
        told |= {} if wanted == _usual_pixels(pipeline, family) else wanted
    return told


def _usual_pixels(pipeline: Any, family: Family) -> dict[str, int]:
    """The height and width of the image that a pipeline makes where its call names none."""
    usual = family.size(_network(pipeline).config)
    sides = usual if isinstance(usual, list | tuple) else (usual, usual)
    own = (parameters_of(pipeline)[name].default for name in ("height", "width"))
    cell = family.cell(pipeline)
    return {
        name: default if default is not None else (side or 0) * cell
        for name, side, default in zip(("height", "width"), sides, own, strict=True)
    }


def loading_program(
    pipeline: Any,
    arguments: dict[str, Any],
    adapters_of: str | None = None,
    variant: str | None = None,
    seeded: bool = True,
) -> str:
    """Return the few lines of Python that load an exported folder and make an image.

    Args:
        pipeline: what was exported.
        arguments: of its call, see :func:`call_arguments`.
        adapters_of: the pipeline that the folder's adapters are for; None if the folder is a whole pipeline.
        variant: of the weight files of the pipeline that the adapters are for.
        seeded: whether the pipeline hands its generator to its scheduler; else the program does.
    """
    known = parameters_of(pipeline)
    asked = next((text for name, text in _ASKED.items() if name in known), "")
    if "prompt" in known and next(iter(known)) != "prompt":
        asked = f"prompt={asked}"
    call = asked + ", ".join(f"{key}={value}" for key, value in arguments.items())
    kind, place = type(pipeline.scheduler).__name__, '"path/to/this/folder"'
    wanted = [part for part in empty_parts(pipeline.config) if part not in pipeline._optional_components]
    without = "".join(f", {part}=None" for part in wanted)
    dtype = next(_network(pipeline).parameters()).dtype
    half = dtype != torch.float32
    without = f", dtype={dtype}{without}" if half else without
    imported, loaded = "DiffusionPipeline", [f"pipeline = DiffusionPipeline.from_pretrained({place}{without})"]
    if adapters_of is not None:
        imported, read = f"DiffusionPipeline, {kind}", f', variant="{variant}"' if variant else ""
        loaded = [
            f'pipeline = DiffusionPipeline.from_pretrained("{adapters_of}"{read}{without})',
            f"pipeline.load_lora_weights({place})",
            f'pipeline.scheduler = {kind}.from_pretrained({place}, subfolder="scheduler")',
        ]
    first = [f"from diffusers import {imported}", ""]
    if half or not seeded:
        first.insert(0, "import torch")
    if not seeded:  # the noise that is drawn between steps would not follow the call's generator
        first.insert(0, "from functools import partial\n")
        loaded += [
            "generator = torch.Generator().manual_seed(0)",
            "pipeline.scheduler.step = partial(pipeline.scheduler.step, generator=generator)",
        ]
        call += ", generator=generator"
    return "\n".join([*first, *loaded, f"image = pipeline({call}).images[0]"])


def model_card(
    name: str,
    teacher: str,
    steps: int,
    program: str,
    facts: dict[str, Any],
    tags: Sequence[str] = (),
    beside: str = "",
    language: str = "python",
    weights: Sequence[float] = (),
) -> str:
    """Return the README.md of an exported folder: what it is, how it is called, and what was measured.

    Args:
        name: of the student.
        teacher: what it was distilled from.
        steps: K.
        program: that loads it, see :func:`loading_program`.
        facts: more lines, name -> value: objective, updates, metrics.
        tags: more lines of what the hub reads, such as the library.
        beside: more of it, below the call: pictures, the recipe.
        language: of the program.
        weights: of guidance, the least and the greatest, where the student is told one by its call.
    """
    guidance = (
        "What guidance the\nteacher was given is in the student already: another weight than the one in this call is "
        "applied on top of it."
    )
    if weights:
        guidance = (
            f"Only the\n`guidance_scale` is free, from {weights[0]:g} to {weights[1]:g}: the student is told it, and "
            "asked once a step whatever it is."
        )
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    read = "\n".join(tags or ("library_name: diffusers",))
    return f"""---
{read}
tags: [distillation, few-step]
---
# {name}

A student of {steps} step{"s" if steps > 1 else ""}, distilled from {teacher} with dagdiff.

```{language}
{program}
```

Call it with just these arguments. It was trained for {steps} step{"s" if steps > 1 else ""}, and its scheduler holds
that grid: any other number is another chain, which it has not learned, and nothing will warn you. {guidance}
{beside}
| | |
|---|---|
{lines}

The licence of the teacher, and of the data it was shown, holds for this student too.
"""


_ASKED = {"prompt": '"a prompt", ', "class_labels": "class_labels=[0], "}
"""What an image is asked for by, as the first words of a call."""


def clips(scheduler: Any) -> bool:
    """Whether a scheduler clips its guesses, to a range or dynamically."""
    return bool(scheduler.config.clip_sample or scheduler.config.thresholding)


def _network(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def parameters_of(pipeline: Any) -> Any:
    """Return the parameters of the call of a pipeline, or of its class, by name."""
    return inspect.signature(pipeline.__call__).parameters
