"""Pipelines loaded from a folder or the hub, without what an expert never uses; what can't be is refused by its cause.

Importing this module imports diffusers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.suited import check_from_text, check_not_quantised
from dagdiff.pipelines.whole import AGAIN, check_whole


def load_pipeline(
    path: str, dtype: torch.dtype, variant: str | None, allow_pickle: bool, bank: bool
) -> tuple[Any, Any]:
    """Return a pipeline without what an expert never uses, and its network.

    Args:
        path: a folder, or a hub id.
        dtype: of its weights; those of the autoencoder stay in float32.
        variant: of the weight files, such as fp16.
        allow_pickle: read weights from pickles where there are no safetensors.
        bank: leave out its text encoders too, for prompts are embedded already.

    Raises:
        Refusal: if it can't be had, is not whole, lacks a package, or has no network that can be asked.
    """
    unused = ["safety_checker", "feature_extractor", "image_encoder"]
    if bank:
        unused += [f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    reading = {"variant": variant, "use_safetensors": safetensors_only(allow_pickle)}
    folder = _folder(path, reading, unused)
    index = _tried(path, lambda: DiffusionPipeline.load_config(folder))
    check_from_text(path, index)
    name = next((name for name in ("unet", "transformer") if name in index), None)
    if name is None:
        raise Refusal(f"{path!r} is a {index.get('_class_name')} without a unet or a transformer: no denoiser to ask.")
    libraries = [value[0] for value in index.values() if isinstance(value, list)]
    if "transformers" in libraries and find_spec("transformers") is None:
        raise Refusal(f"{path!r} needs the package transformers. Run pip install 'dagdiff[hub]'.")
    left_out = dict.fromkeys([part for part in (*unused, *empty_parts(index)) if part in index])
    unchecked = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    precision = {"default": dtype, "vae": torch.float32, "vqvae": torch.float32}
    check_not_quantised(path, Path(folder), name)
    check_whole(Path(folder), index, unused, variant)
    pipeline = _tried(
        path,
        lambda: DiffusionPipeline.from_pretrained(folder, dtype=precision, **reading, **left_out, **unchecked),
    )
    for part, module in pipeline.components.items():
        if isinstance(module, nn.Module) and any(weight.is_meta for weight in module.parameters()):
            raise Refusal(f"{path!r} is incomplete: weights of its {part} are missing from their file. {AGAIN}")
    return pipeline, getattr(pipeline, name)


def _folder(path: str, reading: Mapping[str, Any], unused: Sequence[str]) -> str:
    """Return the folder at ``path``, or the one that the hub's files have been fetched to."""
    if Path(path).is_dir():
        return path
    if Path(path).is_file():
        raise Refusal(
            f"{path!r} is a file, not a pipeline's folder: it holds weights, but neither the scheduler nor the text "
            "encoders' settings. Make a folder: load it with from_single_file of its diffusers pipeline, which knows "
            "where to find those, then save_pretrained(FOLDER)."
        )
    if path.count("/") > 1 or path.startswith(("/", ".", "~")):
        raise Refusal(f"no pipeline at {path!r}: there is no such folder. Give one that save_pretrained wrote.")
    try:
        return str(DiffusionPipeline.download(path, **reading, **dict.fromkeys(unused)))
    except Exception as error:  # whatever the network, the hub or its client may raise
        raise Refusal(
            f"no pipeline at {path!r}: no folder here has that name, and the hub does not give it "
            f"({first_line(error)}). Check the name and the network, or give a folder.{_pickled(error)}"
        ) from None


def _tried(path: str, load: Callable[[], Any]) -> Any:
    """Return what ``load`` returns; a folder that diffusers can't read, or can't without a package, is refused."""
    try:
        return load()
    except ImportError as error:
        named = re.search(r"requires the (\S+) library|No module named '([^']+)'", str(error))
        package = "a package that is" if named is None else f"the package {named[1] or named[2]}, which is"
        raise Refusal(f"{path!r} needs {package} not installed here ({first_line(error)}). Install it.") from None
    except Exception as error:  # missing, truncated and foreign files raise many kinds; all mean the folder is no good
        raise Refusal(
            f"{path!r} can't be loaded as a diffusers pipeline ({first_line(error)}). {AGAIN}{_pickled(error)}"
        ) from None


def empty_parts(index: Any) -> list[str]:
    """The parts that a pipeline was saved without, such as SD3's third encoder; diffusers wants them named."""
    return [part for part, value in index.items() if value in ([None, None], (None, None))]


def safetensors_only(allow_pickle: bool) -> bool | None:
    """Return diffusers' ``use_safetensors``: True, or where pickles are allowed None, which takes them for want."""
    return None if allow_pickle else True


def _pickled(error: Exception) -> str:
    """A word on pickles, where an error says that there are no safetensors."""
    return f" {PICKLES}" if "safetensors" in str(error) else ""


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What --dtype may name."""

PICKLES = (
    "Weights in pickles (.bin), which can run code, are read only with --pipeline.allow_pickle true "
    "(dagdiff shift --expert: --allow_pickle true)."
)
