"""What an import path leads to: classes and functions that a user names, such as ``mypkg.MyExpert``."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal, check_in


def reach_working_folder() -> None:
    """Let import paths lead into the working folder too, last of all: a ``profile.py`` there hides nobody's module."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def imported(part: str, path: str) -> Callable[..., Any]:
    """Return the callable at an import path; refuse with the near miss, by what it is to be (``part``)."""
    found, rest = _longest_module(part, path)
    for attribute in rest:
        if not hasattr(found, attribute):
            check_in(f"{part} in {getattr(found, '__name__', path)}", attribute, _public(found))
        found = getattr(found, attribute)
    if not callable(found):
        raise Refusal(f"{part} {path!r} is not a class or a function. Name one, such as mypkg.mine.MyClass.")
    kind: Callable[..., Any] = found
    return kind


def _public(owner: Any) -> list[str]:
    """The names of what an import path may lead to next: classes, functions, and a package's modules."""
    named = [key for key, value in vars(owner).items() if callable(value) and not key.startswith("_")]
    return named + [module.name for module in pkgutil.iter_modules(getattr(owner, "__path__", []))]


def _longest_module(part: str, path: str) -> tuple[Any, list[str]]:
    """Import the longest leading part of ``path`` that is a module; return it and the attributes that are left."""
    names = path.split(".")
    for cut in range(len(names) - 1, 0, -1):
        module = ".".join(names[:cut])
        try:
            return importlib.import_module(module), names[cut:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise Refusal(f"{part} {path!r} needs the package {error.name!r}, which is not installed.") from None
    raise Refusal(f"{part} {path!r}: no module named {names[0]!r}. Run from its folder, or install it.")
