"""The commands of ``dagdiff``, one module each; :mod:`dagdiff.cli` finds them by name.

A command is a function of its words. It builds a parser from its docstring, reads the words, refuses what can't be, and
prints what it did.
"""

from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser

from dagdiff.checks import Refusal, check_path

MOST = 10**8
"""The largest number of points that a command draws."""


def make_parser(command: str, function: Callable[..., None]) -> ArgumentParser:
    """Return a command's parser, which its function's docstring describes."""
    return ArgumentParser(
        prog=f"dagdiff {command}", description=function.__doc__, exit_on_error=False, allow_abbrev=False
    )


def check_given(value: Path | None, option: str) -> Path:
    """Refuse a folder that was not named, or can't be one."""
    if value is None:
        raise Refusal(f"{option} is missing. Name a folder, e.g. {option} runs/first.")
    check_path(option, value)
    return value


def add_trust(parser: ArgumentParser) -> None:
    """Give a command that opens somebody's files the option without which they name dagdiff's own parts alone."""
    parser.add_argument("--trust_code", action="store_true", help="run the code that it names by import path")
