"""Is a pipeline a teacher? One that starts from a picture, and one that needs few steps already, are told apart.

What a network was trained for is in none of its files; what is looked at are signs: the pipeline's class, its
scheduler, and its name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from dagdiff.checks import Refusal
from dagdiff.reading import parse_json, read_text


def check_from_text(path: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline that starts from more than text or a class: its call, and so its card, would want a picture.

    Args:
        path: its folder, or its hub id.
        index: the content of its ``model_index.json``.
    """
    name = str(index.get("_class_name"))
    twin = _MORE.sub("", name)
    if twin == name:
        return
    cure = "Name a plain text-to-image, class-conditional or unconditional pipeline."
    if hasattr(diffusers, twin):
        cure = f"Save its text-to-image twin and name that: {twin}.from_pretrained({path!r}).save_pretrained(FOLDER)."
    raise Refusal(f"{path!r} is a {name}, which starts from more than text, and only that is distilled. {cure}")


def check_not_quantised(path: str, folder: Path, part: str) -> None:
    """Refuse a network whose weights are kept as integers: it can't be trained, copied or merged with adapters.

    Args:
        path: the pipeline's folder, or its hub id.
        folder: where its files are.
        part: of the pipeline, its network.
    """
    place = folder / part if (folder / part).is_dir() else folder
    config = place / "config.json"
    try:
        told = parse_json(read_text(config), str(config), strict=False) if config.is_file() else {}
    except (OSError, ValueError):  # the loader says what is wrong with it
        return
    kept = told.get("quantization_config") if isinstance(told, dict) else None
    method = kept.get("quant_method", "quantised") if isinstance(kept, dict) else None
    method = "quanto" if (place / "quanto_qmap.json").is_file() else method
    if method is not None:
        raise Refusal(
            f"the {part} of {path!r} is quantised ({method}): integers can't be trained, copied or merged with "
            "adapters. Name the pipeline in float32, float16 or bfloat16; --pipeline.dtype bfloat16 halves its memory."
        )


def few_step_sign(path: str, index: Mapping[str, Any], scheduler: Any, network: Any) -> str | None:
    """Return what says that a pipeline is a few-step model already, in words; None where nothing does.

    Args:
        path: its folder, or its hub id.
        index: the content of its ``model_index.json``.
        scheduler: its own.
        network: its own.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if kind in _FEW_STEPS:
        return f"its scheduler is {kind}"
    if index.get("is_distilled"):
        return "its model_index.json says is_distilled"
    if network.config.get("time_cond_proj_dim"):
        return "its network is told a weight of guidance (time_cond_proj_dim), as latent consistency models are"
    if (Path(path) / "chain.json").is_file():
        return "dagdiff exported it as a student"
    spaced = config.get("timestep_spacing") == "trailing" and config.get("prediction_type", "epsilon") == "epsilon"
    if spaced and not config.get("rescale_betas_zero_snr"):
        return "its scheduler's timestep_spacing is trailing, as that of Turbo and Lightning is"
    named = [Path(path).name, *_hub_names(str(network.config.get("_name_or_path", "")))]
    found = next((name for name in named if _NAMES & set(re.split(r"[^a-z0-9]+", name.lower()))), None)
    return None if found is None else f"its name is {found}"


def check_many_steps(path: str, sign: str | None, option: str) -> None:
    """Refuse a few-step model as the expert.

    Args:
        path: the pipeline's folder, or its hub id.
        sign: what says that it is one, as :func:`few_step_sign` tells it; None if nothing does.
        option: of the command, which takes it as it is.
    """
    if sign is not None:
        raise Refusal(
            f"{path!r} seems to be a few-step model already ({sign}): many steps of it are no better than few, so it "
            f"has nothing to teach. Name the many-step model that it was made from, or pass {option} true to take it "
            "as it is."
        )


def _hub_names(origin: str) -> list[str]:
    """The name on the hub of what a network was loaded from, if it was loaded from there."""
    cached = re.search(r"models--[^/]+--([^/]+)", origin)
    if cached is not None:
        return [cached[1]]
    return [origin.partition("/")[2]] if re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else []


_MORE = re.compile(
    "ControlNet(Union|XS)?|Control(?!ler)|Img2Img|Inpaint(ing)?|InstructPix2Pix|Depth2Img|Edit(Plus)?|Adapter|PAG"
    "|ImageVariation|(Latent)?Upscale|Kontext|Fill|Layered|Omni|ImageToVideo|VideoToVideo|Attend ?AndExcite"
)
"""Words in the names of pipelines that start from a picture, or change what the network is asked."""

_FEW_STEPS = ("LCMScheduler", "FlowMatchLCMScheduler", "TCDScheduler")
_NAMES = {"turbo", "lightning", "lcm", "hyper", "schnell", "flash", "sprint", "dmd", "dmd2", "tcd", "pcm"}
"""What few-step models are called."""
