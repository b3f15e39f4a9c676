"""Files that are whole or absent: weights in safetensors, records in JSON, rows in CSV; written aside, then moved."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_path, first_line
from dagdiff.state import Shard


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a neighbour of ``path``, then move it there in one step: no reader sees half a file.

    File and folder reach the disk before this returns, so what is written later never outlives what was written
    before. Its mode is what the user's umask gives new files, whatever the writer made of it (safetensors: 0600).
    Threads, processes and machines may write the same path at once: the last one stands.

    Raises:
        Refusal: if it can't be written, whichever library says so; what was there before stands.
    """
    partial = _neighbour(path)
    with refused_writes(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            mode = partial.stat().st_mode
            write(partial)
            partial.chmod(mode)
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _neighbour(path: Path) -> Path:
    """A hidden name beside ``path`` that no other thread, process or machine takes: a process number isn't enough."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextlib.contextmanager
def refused_writes(path: Path) -> Iterator[None]:
    """Turn what libraries raise where a file can't be written into an error of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
    except SafetensorError as error:  # it wraps the system's words: I/O error: No space left on device (os error 28)
        reason = first_line(error)
    else:
        return
    raise Refusal(f"{path} can't be written ({reason}). Make room, or name another place.")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the system can say so."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folder
            return
        raise
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # no such call for this kind of file
            raise
    finally:
        os.close(opened)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def check_writable(name: str, folder: Path) -> None:
    """Reject a folder that files can't be written to, or that can't be made; nothing is left there."""
    check_path(name, folder)
    try:
        whole = folder.absolute()
        nearest = next(each for each in (whole, *whole.parents) if each.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise Refusal(f"{name} {folder} can't be written ({error.strerror or error}). Name another folder.") from None


def save_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically; NaN and infinity, which JSON lacks, become null."""
    save_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def save_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically: a column for each name that any row holds; what a row lacks stays empty."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    table = csv.DictWriter(text, fieldnames=list(names), restval="", lineterminator="\n")
    if rows:
        table.writeheader()
        table.writerows(rows)
    save_text(path, text.getvalue())


def save_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda partial: _write_text(partial, text))


def save_arrays(path: Path, **columns: "Tensor | np.ndarray") -> None:
    """Write tensors and arrays as the named arrays of a compressed .npz file, atomically."""
    arrays: dict[str, Any] = {
        name: values.numpy(force=True) if isinstance(values, Tensor) else values for name, values in columns.items()
    }

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
        reason = first_line(error)
        raise Refusal(
            f"{path} does not hold the weights of this network ({reason}). Delete it, or fix the settings."
        ) from None


def follow_umask(folder: Path) -> None:
    """Give the files below ``folder``, which others have written, the mode that the user's umask gives new ones."""
    probe = _neighbour(folder / "mode")
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def save_state(path: Path, state: Any, keep: Callable[[Shard], str] | None = None) -> None:
    """Write nested dicts, lists and tuples of tensors and numbers, such as what ``state_dict()`` returns, atomically.

    The file is safetensors; its metadata hold all but the tensors as JSON. Of a shard they hold the name under which
    ``keep`` has kept it.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    told = {"state": json.dumps(_taken_apart(state, tensors, keep))}
    write_atomically(path, lambda partial: save_file(tensors, str(partial), told))


def read_state(path: Path, shard: Callable[[str], dict[str, Tensor]] | None = None) -> Any:
    """Return what :func:`save_state` wrote; ``shard`` returns one by its name.

    Raises:
        Refusal: if the file is broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {})["state"])
            return _put_together(told, file.get_tensor, shard)
    except (SafetensorError, *_BROKEN) as error:
        raise Refusal(f"{path} is not a state to resume from ({first_line(error)}). Delete it to start over.") from None


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Load what :func:`save_state` wrote: each of ``parts`` takes its own state back; return the whole.

    Raises:
        Refusal: if the file is broken, or holds the state of other parts.
    """
    state: dict[str, Any] = read_state(path)
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except _BROKEN as error:
        raise Refusal(f"{path} is not a state to resume from ({first_line(error)}). Delete it to start over.") from None
    return state


_BROKEN = OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError


def kept_tensors(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the named tensors that a file holds; where there is none they are made, and written first.

    Raises:
        Refusal: if the file can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    if not path.exists():
        made = {name: values.contiguous() for name, values in make().items()}
        write_atomically(path, lambda partial: save_file(made, str(partial)))
        return made
    try:
        found: dict[str, Tensor] = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{path} can't be read ({first_line(error)}). Delete it to make it afresh.") from None
    return found


def content_hash(*parts: Tensor | str) -> str:
    """Return the SHA-256 of texts, and of tensors' types, shapes and values, in hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def cache_folder() -> Path:
    """Where trained teachers and data are kept between runs: ``$DAGDIFF_CACHE``, else ``~/.cache/dagdiff``."""
    return Path(os.environ.get("DAGDIFF_CACHE") or Path.home() / ".cache" / "dagdiff")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def finite(content: Any) -> Any:
    """Return content as JSON can hold it: NaN and infinity become None."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _taken_apart(state: Any, tensors: dict[str, Tensor], keep: Callable[[Shard], str] | None) -> Any:
    """A state as JSON can hold it: each container is {its kind: content}, each tensor {"tensor": its name}."""
    if isinstance(state, Tensor):
        name = str(len(tensors))
        tensors[name] = state.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(state, Shard) and keep is not None:
        return {"shard": keep(state)}
    if isinstance(state, Mapping):
        return {"dict": [[key, _taken_apart(value, tensors, keep)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        kind = "list" if isinstance(state, list) else "tuple"
        return {kind: [_taken_apart(value, tensors, keep) for value in state]}
    if not isinstance(state, str | int | float | None):
        raise TypeError(f"a state holds tensors and numbers, not a {type(state).__name__}")
    return state


def _put_together(
    told: Any, tensor: Callable[[str], Tensor], shard: Callable[[str], dict[str, Tensor]] | None = None
) -> Any:
    """Undo :func:`_taken_apart`."""
    if not isinstance(told, dict):
        return told
    ((kind, content),) = told.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "shard" and shard is not None:
        return shard(content)
    if kind == "dict":
        return {key: _put_together(value, tensor, shard) for key, value in content}
    return {"list": list, "tuple": tuple}[kind](_put_together(value, tensor, shard) for value in content)
