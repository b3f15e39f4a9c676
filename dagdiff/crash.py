"""Crash logs: what an error that nobody foresaw leaves for whoever mends it, while the terminal shows one line."""

import contextlib
import errno
import os
import platform
import shlex
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from dagdiff import __version__
from dagdiff.checks import first_line

PACKAGES = ("torch", "torchrl", "tensordict", "diffusers", "numpy", "jsonargparse")


def told(error: Exception, words: Sequence[str]) -> str:
    """Return the line that names an error and its crash log, which this writes."""
    kind, reason = type(error).__name__, first_line(error)
    what = f"{kind}: {reason:.200}" if reason != kind else kind
    text = _text(error, words)
    for folder in _folders(words):
        path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError):
            continue
        return f"{what}. The traceback is in {path}; please report it, unless it leads into code of your own."
    return f"{what}. No crash log could be written: {' | '.join(text.splitlines()[-4:])}"


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, this machine's or a GPU's, does not hold what was asked for."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory"))
    )


def disk_failure(error: BaseException | None) -> str | None:
    """Return in words which file failed, if an error, or what has caused it, is a disk's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename or 'a file'}: {error.strerror}"
        error = error.__cause__ or error.__context__
    return None


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE}
"""What the system says of a disk, and never of a program."""


def _text(error: Exception, words: Sequence[str]) -> str:
    """The command, the versions and the traceback."""
    held = [f"{name} {_version(name)}" for name in PACKAGES]
    made = [f"dagdiff {__version__}", f"Python {platform.python_version()}", platform.platform(), *held]
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return f"dagdiff {shlex.join(words)}\n{', '.join(made)}\n\n{trace}"


def _version(name: str) -> str:
    try:
        return version(name)
    except Exception:  # a broken installation may be why this is asked
        return "unknown"


def _folders(words: Sequence[str]) -> Iterator[Path]:
    """Where a crash log may go: into a run that has begun, else where temporary things are."""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        out = Path(value if equals else "".join(words[number + 1 : number + 2]))
        with contextlib.suppress(OSError, ValueError):
            if name == "--out" and out.is_dir() and os.listdir(out):
                yield out
    with contextlib.suppress(Exception):  # torch may be what is broken, or there may be no home
        from dagdiff.checkpoint import cache_folder

        yield cache_folder() / "crashes"
    yield Path(tempfile.gettempdir())
