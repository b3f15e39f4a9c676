"""Students that leave: a folder that ``DiffusionPipeline.from_pretrained`` loads with nothing of dagdiff installed.

What leaves is the network, in the stock pipeline of its kind, and a scheduler that makes the very chain the student was
trained for (:mod:`dagdiff.pipelines.schedulers`). Of a teacher with prompts all the rest comes along as it is:
autoencoder, tokenizers, text encoders.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import diffusers
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from torch import nn

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.families import FAMILIES, Family
from dagdiff.pipelines.lora import merged
from dagdiff.pipelines.pretrained import PretrainedNetwork, safetensors_only
from dagdiff.pipelines.schedulers import ChainRecord, own_law, record_chain
from dagdiff.policies.student import Student
from dagdiff.policies.unet import UNet
from dagdiff.shapes import Times
from dagdiff.threshold import Threshold
from dagdiff.transition import Transition


def build_pipeline(
    student: nn.Module,
    transition: Transition,
    times: Times,
    threshold: Threshold,
    base: str | None = None,
    variant: str | None = None,
    size: tuple[int, ...] | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """Return the student as a diffusers pipeline, all of it in one precision.

    Args:
        student: of images, or of a pipeline's states.
        transition: its law of motion.
        times: its grid, ``(K + 1,)``.
        threshold: of its guesses.
        base: the teacher's pipeline, from which the rest is taken (autoencoder, text encoders); for networks of pixels
            there is no rest.
        variant: of the base's weight files, such as fp16.
        size: of its states, where it is not the network's usual one.
        allow_pickle: read the base's weights from pickles where there are no safetensors; a pickle can run code.
        dtype: of all weights; None takes that of the base's network as it is saved, or of the student's own.

    Raises:
        Refusal: if no stock pipeline has such a network, no scheduler such a chain, or the base can't be read.
    """
    body: Any = merged(body_of(student))
    record = chain_of(student, transition, times, threshold)
    if base is None or is_of_pixels(base):
        made = _of_pixels(body if size is None else _sized(body, size), record)
        made.register_modules(unet=_cast(made.unet, dtype or body_of(student).dtype))
        return made
    _check_clipping(record.scheduler)
    pipeline = _whole(base, variant, allow_pickle)
    check_told(pipeline, record)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    wanted = dtype or getattr(pipeline, name).dtype
    pipeline.register_modules(**{name: _cast(body, wanted), "scheduler": record.scheduler})
    return pipeline.to(wanted)


def check_export(
    student: nn.Module, transition: Transition, times: Times, threshold: Threshold, base: str | None = None
) -> None:
    """Refuse a student that :func:`build_pipeline` would refuse, without reading the base's weights.

    Arguments as there.
    """
    body = body_of(student)
    record = chain_of(student, transition, times, threshold)
    if base is None or is_of_pixels(base):
        _of_pixels(body, record)
    else:
        _check_clipping(record.scheduler)
        check_told(getattr(diffusers, DiffusionPipeline.load_config(base)["_class_name"]), record)


def chain_of(student: nn.Module, transition: Transition, times: Times, threshold: Threshold) -> ChainRecord:
    """Return the record of the student's chain, on the clock that its network reads.

    Raises:
        Refusal: if no scheduler can be told it.
    """
    read = cast(Any, student)
    pretrained = isinstance(read.network, PretrainedNetwork)
    law = read.network.law if pretrained else own_law(read.schedule, read.prediction)
    return record_chain(transition, times, law, threshold)


def check_told(pipeline: Any, record: ChainRecord) -> None:
    """Refuse a pipeline, or its class, whose call can't be told the timesteps or sigmas that a chain needs."""
    strange = [name for name in record.call if name not in inspect.signature(pipeline.__call__).parameters]
    if strange:
        kind = pipeline if isinstance(pipeline, type) else type(pipeline)
        raise Refusal(
            f"a {kind.__name__} can't be called with {strange[0]} of one's own, and this student has "
            f"{[round(each, 3) for each in record.timesteps]}. Distil on the usual grid: without timesteps."
        )


def _cast(body: Any, dtype: torch.dtype) -> Any:
    """A network in another precision; the student keeps its own."""
    same = all(weight.dtype == dtype for weight in body.parameters())
    return body if same else copy.deepcopy(body).to(dtype)


def body_of(student: nn.Module) -> Any:
    """Return the diffusers network inside a student.

    Raises:
        Refusal: if there is none, or more than one.
    """
    if not isinstance(student, Student):
        raise Refusal(f"a {type(student).__name__} is not one network, and a pipeline has one. Train without stepwise.")
    network = student.network
    if isinstance(network, UNet):
        return network.unet
    if isinstance(network, PretrainedNetwork):
        return network.body
    raise Refusal(f"no diffusers pipeline holds a {type(network).__name__}. Export a student of images.")


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
    known, network = _parameters(pipeline), _network(pipeline)
    scheduler: Any = pipeline.scheduler
    if isinstance(pipeline, DDIMPipeline) and _clips(scheduler):
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
    own = (_parameters(pipeline)[name].default for name in ("height", "width"))
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
    known = _parameters(pipeline)
    asked = next((text for name, text in _ASKED.items() if name in known), "")
    if "prompt" in known and next(iter(known)) != "prompt":
        asked = f"prompt={asked}"
    call = asked + ", ".join(f"{key}={value}" for key, value in arguments.items())
    kind, place = type(pipeline.scheduler).__name__, '"path/to/this/folder"'
    wanted = [part for part in _empty(pipeline.config) if part not in pipeline._optional_components]
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


def _of_pixels(network: Any, record: ChainRecord) -> Any:
    """The stock pipeline of a pixel network: each of the three leaves its scheduler as it is."""
    config, scheduler = network.config, record.scheduler
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchLCMScheduler):
        raise Refusal("diffusers has no pipeline of pixels on rectified flow. Export a student of a VP schedule.")
    if config.out_channels != config.in_channels:
        raise Refusal(
            f"this network tells a variance too ({config.out_channels} channels for {config.in_channels}), which few-"
            "step schedulers take for a part of the guess. Distil a teacher that predicts the mean alone."
        )
    if config.num_class_embeds is not None or record.call:  # of the three, one can be told timesteps
        return _labelled(network, scheduler)
    kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    return kind(unet=network, scheduler=scheduler)


def _labelled(network: Any, scheduler: Any) -> Any:
    """The one stock pipeline that tells a UNet2DModel a class: made for consistency models, it asks any scheduler.

    It is also the one whose call takes timesteps.
    """
    _check_clipping(scheduler)
    size = network.config.sample_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise Refusal(
            f"diffusers' pipeline with classes or timesteps makes squares; got {tuple(size)}. Distil an unlabelled "
            "task on the usual grid."
        )
    return ConsistencyModelPipeline(unet=_sized(network, sides.pop()), scheduler=scheduler)


def _sized(network: Any, size: Any) -> Any:
    """A copy whose configuration tells another size; its weights know none."""
    twin = copy.deepcopy(network)
    twin.register_to_config(sample_size=size)
    return twin


def _whole(base: str, variant: str | None, allow_pickle: bool) -> Any:
    """The teacher's pipeline with all its parts, of which the expert had left some aside."""
    try:
        empty = dict.fromkeys(_empty(DiffusionPipeline.load_config(base)))
        reading = {"variant": variant, "use_safetensors": safetensors_only(allow_pickle)}
        return DiffusionPipeline.from_pretrained(base, **reading, **empty)
    except Exception as error:  # missing, truncated and foreign files raise many kinds; all mean the folder is no good
        reason = first_line(error)
        raise Refusal(
            f"{base!r} can't be read whole ({reason}), and all beside the network comes from it. Download or save it "
            "again, whole."
        ) from None


def _empty(index: Any) -> list[str]:
    """The parts that a pipeline was saved without, such as SD3's third encoder; diffusers wants them named."""
    return [part for part, value in index.items() if value in ([None, None], (None, None))]


def is_of_pixels(base: str) -> bool:
    """Return whether a pipeline has no autoencoder."""
    index = DiffusionPipeline.load_config(base)
    return not {"vae", "vqvae"} & set(index)


def _check_clipping(scheduler: Any) -> None:
    """Refuse DDIM with a threshold in pipelines that can't ask it for the clipped guess's own noise."""
    if isinstance(scheduler, DDIMScheduler) and _clips(scheduler):
        raise Refusal(
            "pipelines with prompts or classes let DDIM keep the noise of the guess before its threshold; this "
            "student's chain computes it anew. Export a student that was trained without threshold."
        )


def _clips(scheduler: Any) -> bool:
    return bool(scheduler.config.clip_sample or scheduler.config.thresholding)


def _network(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def _parameters(pipeline: Any) -> Any:
    return inspect.signature(pipeline.__call__).parameters
