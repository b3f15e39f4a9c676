"""Files that are whole or absent: weights in safetensors, records in JSON, each written aside and moved into place."""

import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a neighbour of ``path``, then move it there in one step: no reader sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise Refusal(f"{path} can't be written ({error.strerror or error}). Name another place.") from None
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def check_writable(name: str, folder: Path) -> None:
    """Refuse a folder that files can't be written to, or that can't be made; nothing is left there."""
    try:
        whole = folder.absolute()
        nearest = next(each for each in (whole, *whole.parents) if each.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise Refusal(f"{name} {folder} can't be written ({error.strerror or error}). Name another folder.") from None


def save_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically; NaN and infinity, which JSON lacks, become null."""
    save_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda partial: _write_text(partial, text))


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; refuse a file that is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} is not JSON ({error}). Make it again, or name another folder.") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds a {type(content).__name__}, not an object. Make it again, or name another folder.")
    return content


def save_arrays(path: Path, **columns: Tensor) -> None:
    """Write tensors as the named arrays of a compressed .npz file, atomically."""
    arrays: dict[str, Any] = {name: values.numpy(force=True) for name, values in columns.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's parameters and buffers as safetensors, atomically."""
    from safetensors.torch import save_model

    write_atomically(path, lambda partial: save_model(module, str(partial)))


def load_weights(path: Path, module: nn.Module) -> None:
    """Load weights saved by :func:`save_weights` into a module of the same build, in place.

    Raises:
        Refusal: if the file is missing, broken, or holds another network's weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    if not path.exists():
        raise Refusal(f"no weights at {path}. Train first, or name the folder of a finished run.")
    try:
        load_model(module, str(path))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise Refusal(
            f"{path} does not hold the weights of this network ({reason}). Delete it, or fix the settings."
        ) from None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts of tensors and numbers, such as what ``state_dict()`` returns, atomically."""
    write_atomically(path, lambda partial: torch.save(state, partial))


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Load what :func:`save_state` wrote: each of ``parts`` takes its own state back; return the whole.

    Raises:
        Refusal: if the file is broken, or holds the state of other parts.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(f"{path} is not a state to go on from ({reason}). Delete it to begin anew.") from None
    return state


def cache_folder() -> Path:
    """Where trained teachers and data are kept between runs: ``$DAGDIFF_CACHE``, else ``~/.cache/dagdiff``."""
    return Path(os.environ.get("DAGDIFF_CACHE") or Path.home() / ".cache" / "dagdiff")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
