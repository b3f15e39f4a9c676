"""Students that leave: a folder that ``DiffusionPipeline.from_pretrained`` loads with nothing of dagdiff installed.

What leaves is the network, in the stock pipeline of its kind, and a scheduler that makes the very chain the student was
trained for (:mod:`dagdiff.pipelines.schedulers`). Of a teacher with prompts all the rest comes along as it is:
autoencoder, tokenizers, text encoders.
"""

import copy
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
from dagdiff.pipelines.calling import clips, parameters_of
from dagdiff.pipelines.loading import empty_parts, safetensors_only
from dagdiff.pipelines.lora import merged
from dagdiff.pipelines.pretrained import PretrainedNetwork
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
    strange = [name for name in record.call if name not in parameters_of(pipeline)]
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
        empty = dict.fromkeys(empty_parts(DiffusionPipeline.load_config(base)))
        reading = {"variant": variant, "use_safetensors": safetensors_only(allow_pickle)}
        return DiffusionPipeline.from_pretrained(base, **reading, **empty)
    except Exception as error:  # missing, truncated and foreign files raise many kinds; all mean the folder is no good
        reason = first_line(error)
        raise Refusal(
            f"{base!r} can't be read whole ({reason}), and all beside the network comes from it. Download or save it "
            "again, whole."
        ) from None


def is_of_pixels(base: str) -> bool:
    """Return whether a pipeline has no autoencoder."""
    index = DiffusionPipeline.load_config(base)
    return not {"vae", "vqvae"} & set(index)


def _check_clipping(scheduler: Any) -> None:
    """Refuse DDIM with a threshold in pipelines that can't ask it for the clipped guess's own noise."""
    if isinstance(scheduler, DDIMScheduler) and clips(scheduler):
        raise Refusal(
            "pipelines with prompts or classes let DDIM keep the noise of the guess before its threshold; this "
            "student's chain computes it anew. Export a student that was trained without threshold."
        )
