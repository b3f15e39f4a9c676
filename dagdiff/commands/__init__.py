"""The commands of ``dagdiff``, one module each; :mod:`dagdiff.cli` finds them by name.

A command is a function of its words. It builds a parser from its docstring, reads the words, rejects what can't be, and
prints what it did.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from dagdiff.checks import Refusal, check_at_least, check_path, check_range
from dagdiff.runs.parts import GIVEN, known, resolve

USUAL = "processes"
"""What runs many runs where no executor is named."""

MOST = 10**8
"""The largest number of points that a command draws."""


def make_parser(command: str, function: Callable[..., None]) -> ArgumentParser:
    """Return a command's parser, which its function's docstring describes."""
    return ArgumentParser(
        prog=f"dagdiff {command}", description=function.__doc__, exit_on_error=False, allow_abbrev=False
    )


def check_given(value: Path | None, option: str) -> Path:
    """Reject a folder that was not named, or can't be one."""
    if value is None:
        raise Refusal(f"{option} is missing. Name a folder, e.g. {option} runs/first.")
    check_path(option, value)
    return value


def add_trust(parser: ArgumentParser) -> None:
    """Give a command that opens somebody's files the option without which they name dagdiff's own parts alone."""
    parser.add_argument("--trust_code", action="store_true", help="run the code that it names by import path")


def add_batches(parser: ArgumentParser) -> None:
    """Give a command that asks networks the option that bounds its memory."""
    told = "rows that a network is shown at once; null takes what suits their size. Results do not depend on it"
    parser.add_argument("--batch_size", type=int | None, default=None, help=told)


def check_batches(batch_size: int | None) -> None:
    """Reject a batch of no rows."""
    if batch_size is not None:
        check_at_least("batch_size", batch_size, 1)


def read_range(text: str | None) -> tuple[float, float] | None:
    """Read black and white, ``0,1``; None stays None."""
    if text is None:
        return None
    try:
        black, white = (float(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        raise Refusal(
            f"--value_range must be two numbers, black and white; got {text!r:.80}. Pass e.g. --value_range 0,1."
        ) from None
    check_range(black, white)
    return black, white


def make_executor(kind: Callable[..., Any], told: Mapping[str, Any]) -> Executor:
    """Return the executor that ``kind`` makes of its options; it is also given what it asks for of workers and out.

    Raises:
        Refusal: if it makes anything else.
    """
    wanted = inspect.signature(kind).parameters
    made = kind(**{name: value for name, value in told.items() if name in wanted})
    if not isinstance(made, Executor):
        raise Refusal(
            f"the executor must be a concurrent.futures.Executor; got a {type(made).__name__}. Name another with "
            "--executor."
        )
    return made


def add_executor(parser: ArgumentParser, name: str) -> Callable[..., Any]:
    """Add the options of the executor that is named; return what makes it."""
    kind = resolve("executor", name)
    try:
        wanted: set[str | int] = set(inspect.signature(kind).parameters)
    except ValueError:  # some that are written in C
        raise Refusal(f"executor {name!r} does not say what it takes. Name a function that returns one.") from None
    parser.add_argument("--executor.class", default=name, help=f"what does the work: {known('executor')}")
    add = parser.add_class_arguments if inspect.isclass(kind) else parser.add_function_arguments
    given: set[str | int] = set(GIVEN["executor"])
    add(kind, "executor", skip=given & wanted, fail_untyped=False)
    return kind


def help_of(parser: ArgumentParser) -> str:
    """Return the help of a command with an executor, which is spelled like a part."""
    text = re.sub(r"\[--executor CONFIG\]\s*", "", parser.format_help())
    return text.replace("--executor.class", "--executor")
