"""The identity of a run: what it is, apart from where it stands.

That is its resolved configuration, in which every default is written out, and the versions of the code that makes
labels, losses and scores. Equal identities are one run, whatever the processor, the versions of Python and of packages,
or the spelling. No number in it comes from a computation: parts that need one, such as the box of a world, are given
the task when they are built.
"""

import json
from collections.abc import Mapping
from typing import Any

from dagdiff.checkpoint import content_hash
from dagdiff.runs.parts import resolve
from dagdiff.versions import CODE

_PLACES = ("memmap",)
"""Settings that say where things are kept and change no result."""

_LATER: dict[str, Any] = {"on_nonfinite": "stop", "start": None}
"""Settings with the value that leaves a run what it was before they were there."""


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is: its configuration, without places, and the versions of the code that defines it.

    Args:
        config: as :func:`dagdiff.runs.config.configure` returns it, or some of its settings.
    """
    parts = {
        part: chosen["class"] for part, chosen in config.items() if isinstance(chosen, Mapping) and "class" in chosen
    }
    own = {part: getattr(resolve(part, name), "version", 1) for part, name in parts.items() if name is not None}
    own |= {f"metric {name}": getattr(resolve("metric", name), "version", 1) for name in config.get("metric") or []}
    settings = {
        name: value for name, value in config.items() if name not in _PLACES and (name, value) not in _LATER.items()
    }
    return {"settings": settings, "code": CODE, "parts": own}


def digest(config: Mapping[str, Any]) -> str:
    """Return the content hash of a configuration's identity: the key under which a run's result is kept."""
    return content_hash(json.dumps(identity(config), sort_keys=True))[:16]
