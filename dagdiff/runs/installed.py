"""Parts that installed packages register under short names, by the entry points of the group ``dagdiff.parts``.

``"objective.mine" = "pkg.mine:Mine"`` makes ``--objective mine`` stand for the class ``Mine`` of the module
``pkg.mine``. Nothing is imported until the part is chosen. What is installed is trusted, as dagdiff's own parts are.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from dagdiff.checks import Refusal, check_in

GROUP = "dagdiff.parts"


def with_installed(own: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return part -> short name -> import path of ``own`` and of what installed packages add.

    Raises:
        Refusal: for an entry that names no part, or a name that is taken.
    """
    parts = {part: dict(names) for part, names in own.items()}
    makers: dict[tuple[str, str], str] = {}
    for entry in _entries():
        part, _, name = entry.name.partition(".")
        package = entry.dist.name if entry.dist else entry.value
        told = f"the package {package!r} registers {entry.name!r}"
        if not re.fullmatch(r"[\w-]+", name) or not re.fullmatch(r"[\w.]+:[\w.]+", entry.value):
            raise Refusal(f"{told} for {entry.value!r}. Write an entry as objective.mine = package.module:Class.")
        try:
            check_in("part", part, own)
        except Refusal as error:
            raise Refusal(f"{told}: {error}") from None
        if name in parts[part]:
            taken = makers.get((part, name), "dagdiff itself")
            raise Refusal(f"{told}, but {part} {name!r} is a name of {taken}. Uninstall it, or rename its entry.")
        parts[part][name] = entry.value.replace(":", ".")
        makers[part, name] = f"the package {package!r}"
    return parts


@cache
def _entries() -> tuple[EntryPoint, ...]:
    """The entries of all installed packages, read once a process."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)))
