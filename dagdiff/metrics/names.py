"""The registry of metrics: every metric class of this room, found by its name, and what all their numbers mean.

A new metric is one new file here: a class with a ``name``. ``--metric NAME`` then measures it; a kind of task that
always measures it has it in its list, ``Task.metrics``.
"""

import pkgutil
from functools import cache
from importlib import import_module

from dagdiff import metrics as room
from dagdiff.metrics.base import Metric, Number
from dagdiff.metrics.imitation import LOSSES


@cache
def metric_paths() -> dict[str, str]:
    """Name -> import path of each metric class of the room."""
    return {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in _kinds().items()}


@cache
def all_numbers() -> dict[str, Number]:
    """Id -> meaning of every number that the room's metrics return, and of the imitation losses."""
    found = {name: number for kind in _kinds().values() for name, number in kind.numbers.items()}
    return found | LOSSES


@cache
def _kinds() -> dict[str, type[Metric]]:
    modules = [import_module(f"{room.__name__}.{module.name}") for module in _siblings()]
    kinds = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return {kind.name: kind for kind in kinds if issubclass(kind, Metric) and kind.name}


def _siblings() -> list[pkgutil.ModuleInfo]:
    return [module for module in pkgutil.iter_modules(room.__path__) if module.name != __name__.rpartition(".")[2]]
