"""A family by its name: the class of its network in diffusers, or an import path of one's own."""

import inspect
from typing import Any

from dagdiff.checks import Refusal, check_in
from dagdiff.importing import imported, reach_working_folder
from dagdiff.pipelines.families import FAMILIES
from dagdiff.pipelines.families.base import Family


def named_family(name: str) -> Family:
    """Return the family of that name; refuse what is none, with the near miss.

    Args:
        name: the class of a network, such as ``FluxTransformer2DModel``, or the import path of a subclass of
            :class:`~dagdiff.pipelines.families.base.Family`.
    """
    if "." not in name:
        return FAMILIES[check_in("family", name, FAMILIES)]
    reach_working_folder()
    kind: Any = imported("family", name)
    made = kind() if inspect.isclass(kind) and not inspect.isabstract(kind) else kind
    if not isinstance(made, Family):
        raise Refusal(
            f"family {name!r} is no subclass of dagdiff.pipelines.families.Family with all its methods. Write one with "
            "conditions and __call__."
        )
    return made


def family_of(network: Any) -> Family:
    """Return the family that serves a network; refuse one that none serves, and say how one is written."""
    kind = type(network).__name__
    if kind not in FAMILIES:
        raise Refusal(
            f"unknown network {kind!r}. Known: {', '.join(sorted(FAMILIES))}. Write its family in a file of your own "
            "and name it: --pipeline.family mine.MyFamily."
        )
    return FAMILIES[kind]
