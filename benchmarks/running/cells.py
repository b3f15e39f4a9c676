"""Cells: the runs of a suite, each one configuration under the name of a variant.

Cells with equal configurations are one run, listed under each name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from dagdiff.checks import Refusal
from dagdiff.runs.config import Config
from dagdiff.runs.identity import digest
from dagdiff.tasks.names import read_name

_LABELS = ("task", "steps", "seed", "shares", "threshold")
YARDSTICK = ("task", "samples", "substeps", "guidance", "expert", "schedule", "data", "metric")
"""Settings on which the floor and the expert's own score depend."""


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a configuration, the objective as it was named, and the variant it stands for.

    Variants are compared where task, objective, steps and ``setup`` agree. ``about`` says in words what sets a
    comparison apart from the suite's plain one ("learned expert"), and ``free`` names settings in which the variants of
    that comparison may differ. ``looks`` is how often the student is scored while it trains, at even distances and the
    last time at the end: they make the curve of quality against cost.
    """

    objective: str
    variant: str
    config: Config
    about: str = ""
    free: tuple[str, ...] = ()
    looks: int = 0

    def __str__(self) -> str:
        where = f"{self.case} {self.objective} {self.variant}"
        return f"{where}, {self.config['steps']} steps, seed {self.config['seed']}"

    @cached_property
    def key(self) -> str:
        """Content hash of the configuration; equal keys are the same run."""
        return digest(self.config)

    @property
    def entry(self) -> tuple[str, str, str]:
        """What makes a record one of its kind: the run, the variant it stands for, the comparison it stands in."""
        return self.key, self.variant, self.setup

    @property
    def case(self) -> str:
        """The task and what sets the comparison apart: the name of its yardsticks."""
        return ", ".join(filter(None, (self.config["task"], self.about)))

    @property
    def labels(self) -> dict[str, Any]:
        """What a record says of the cell."""
        task = self.config["task"]
        name = read_name(task)
        copied = {name: self.config[name] for name in ("shares", "seed", "steps", "updates", "substeps")}
        return {
            "task": task,
            "world": name.world,
            "data": name.set,
            "objective": self.objective,
            "variant": self.variant,
            "about": self.about,
            "case": self.case,
            "setup": self.setup,
            **copied,
        }

    @cached_property
    def setup(self) -> str:
        """Hash of what the labels leave out: the configuration but for task, steps, seeds, shares and threshold."""
        rest = {name: value for name, value in self.config.items() if name not in (*_LABELS, *self.free)}
        if "expert" in rest:
            rest["expert"] = {name: value for name, value in rest["expert"].items() if name != "seed"}
        return digest({**rest, "about": self.about} if self.free else rest)

    @property
    def yardstick(self) -> str:
        """Hash of what the floor and the expert's own score depend on."""
        return digest({name: self.config[name] for name in YARDSTICK})


def at_seed(cell: Cell, seed: int, settings: Mapping[str, Any]) -> Cell:
    """Return a cell at another seed, with a learned expert of its own: its seed is the run's.

    An interval over seeds is one over teachers then. Settings that name the expert's seed keep it.
    """
    config = {**cell.config, "seed": seed}
    own = settings.get("expert")
    named = "expert.seed" in settings or (isinstance(own, Mapping) and "seed" in own)
    if "seed" in cell.config["expert"] and not named:
        config["expert"] = {**cell.config["expert"], "seed": seed}
    return replace(cell, config=config)


class Shard(NamedTuple):
    """A part of a suite's runs: every ``parts``-th, from the ``number``-th on."""

    number: int = 1
    parts: int = 1

    @classmethod
    def read(cls, text: str) -> "Shard":
        """Read ``3/16``."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise Refusal(f"--shard must be K/N with K from 1 to N; got {text!r}. Pass e.g. --shard 3/16.")
        return cls(int(number), int(count))

    def of(self, keys: Iterable[str]) -> list[str]:
        """Return the part's keys, of all the suite's in their order."""
        return list(dict.fromkeys(keys))[self.number - 1 :: self.parts]
