"""The options of a suite: what is rejected before its first run."""

from collections.abc import Iterable, Mapping
from typing import Any

from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.tasks.names import read_name


def check_settings(settings: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Reject settings that are the suite's own to set; ``own`` maps each to its cure."""
    for name in set(settings) & set(own):
        raise Refusal(f"--settings may not hold {name!r}: the suite sets it. {own[name]}")


def check_choices(suite: Any, variants: Iterable[str], own: Mapping[str, str]) -> None:
    """Reject a suite's options before its first run: an empty list, an unknown task or variant, steps or seeds below 1.

    Args:
        suite: options with ``tasks``, ``variants``, ``steps``, ``seeds`` and ``settings``.
        variants: the known ones.
        own: as in :func:`check_settings`.
    """
    check_at_least("seeds", suite.seeds, 1)
    for steps in suite.steps:
        check_at_least("steps", steps, 1)
    for name, value in vars(suite).items():
        if value == []:
            raise Refusal(f"--{name} is empty. Name at least one, or leave the option away.")
    check_settings(suite.settings, own)
    for task in suite.tasks:
        read_name(task)
    for variant in suite.variants:
        check_in("variant", variant, variants)
