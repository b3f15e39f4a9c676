"""What a round gathers: how many fresh states of each source, and where they come from.

A record is labelled once and serves several batches. Where the batches of a round draw R rows, a part q of them from
one source, the round gathers q R / ``reuse`` fresh records of that source: each serves ``reuse`` batches on average.
Forward states are made in just that number, rollouts in whole batches of chains; what is too many is taken off the next
round's. But a round gathers no fewer records than one of its batches draws, and at least one batch of chains: states of
the present student are always among them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs import EnvBase

from dagdiff.buffers import MakeBuffer
from dagdiff.checks import check_at_least
from dagdiff.gathered import Gathered
from dagdiff.mixture import Constant, Ramp, as_ramp
from dagdiff.objectives.base import Objective
from dagdiff.rollout import Data, Driver, MixturePolicy, Rollout, forward_states
from dagdiff.shapes import Times


@dataclass(frozen=True)
class Gathering:
    """Which states are gathered and how long they stay.

    Args:
        beta: by progress, the part of the steps of the student's chains that the expert drives; or a number.
        per_chain: let one driver keep a chain to its end.
        driver: makes the behaviour policy of all rollouts; :mod:`dagdiff.strategies.drivers` has others.
        shares_ramp: scales the on-policy shares by progress, or by a number; forward states take the rest.
        input_perturbation: how much more noise forward states hold than they should (:func:`forward_states`).
        reuse: how many batches a record serves on average, at least 1.
        rounds_kept: how many rounds of student records stay in the aggregate: 1 the newest, as many as there are all;
            None keeps :data:`dagdiff.aggregate.ROUNDS_KEPT`.
        max_age: drop student records older than this many updates.
        folder: where the aggregate is kept, memory-mapped; None keeps it in memory.
        ready: labelled records made ahead, which are taken before any are made; None makes all.
        buffer: makes the TorchRL buffer of a source, such as :class:`dagdiff.buffers.ByLoss`; what stays is then its
            own business, not that of rounds_kept, max_age and folder. None for the usual ones.
    """

    beta: Ramp | float = Constant(0.0)  # noqa: RUF009  (frozen)
    per_chain: bool = False
    driver: Driver = MixturePolicy
    shares_ramp: Ramp | float = Constant(1.0)  # noqa: RUF009
    input_perturbation: float = 0.0
    reuse: float = 4.0
    rounds_kept: int | None = None
    max_age: int | None = None
    folder: Path | None = None
    ready: Gathered | None = None
    buffer: MakeBuffer | None = None

    def __post_init__(self) -> None:
        for name in ("beta", "shares_ramp"):
            as_ramp(name, getattr(self, name))
        check_at_least("input_perturbation", self.input_perturbation, 0.0)
        check_at_least("reuse", self.reuse, 1)
        for name in ("rounds_kept", "max_age"):
            limit = getattr(self, name)
            check_at_least(name, 1 if limit is None else limit, 1)


def fresh_records(share: float, drawn: int, batch: int, reuse: float) -> int:
    """Return how many fresh records of a source a round needs: share x drawn / reuse, and at least a batch's part.

    Args:
        share: the source's part of a batch.
        drawn: rows of all batches of the round.
        batch: rows of one.
        reuse: how many batches a record serves on average.
    """
    return max(_ceil(share * drawn / reuse), _ceil(share * batch))


def rolls(records: int, owed: float, size: int) -> tuple[int, float]:
    """Return how many batches of chains a round rolls out for so many records, and how many records are still owed.

    At least one, where any are wanted. What it makes too many is taken off the next round's, one batch at most.

    Args:
        records: that the round needs.
        owed: what the rounds before left, mostly below 0.
        size: records of a batch of chains.
    """
    if records == 0:
        return 0, owed
    owed += records
    batches = max(1, math.ceil(owed / size))
    return batches, max(owed - batches * size, -size)


class Sources:
    """Fresh states of each source, where the objective trains, and not labelled yet.

    Args:
        env: chains of the student's own sampler.
        driver: acts in them.
        beta: of the student's.
        data: clean points.
        objective: says at which times it trains.
        input_perturbation: of forward states.
        generator: of all draws.
        rows: the most forward states that are drawn at once.
    """

    def __init__(
        self,
        env: EnvBase,
        driver: MixturePolicy,
        beta: Ramp,
        data: Data,
        objective: Objective,
        input_perturbation: float,
        generator: torch.Generator,
        rows: int,
    ) -> None:
        self.env, self.driver, self.beta, self.data, self.objective = env, driver, beta, data, objective
        self.input_perturbation, self.generator, self.rows = input_perturbation, generator, rows
        self.grid: Times = objective.grid(env.times)
        self.focused: int | None = None
        self.owed = {"student": 0.0, "expert": 0.0}

    def focus(self, step: int) -> None:
        """From now on make states of one step alone."""
        self.focused, self.grid = step, self.env.times[step : step + 2]

    @property
    def size(self) -> int:
        """Records of one batch of chains."""
        return int(self.env.batch_size.numel()) * (len(self.env.times) - 1 if self.focused is None else 1)

    @cached_property
    def rollout(self) -> Rollout:
        """The chains at work, built when first needed: that asks the driver about one batch of chains."""
        return Rollout(self.env, self.driver, self.beta)

    def state_dict(self) -> dict[str, Any]:
        """Return the chains at work, what the driver remembers, and what is owed."""
        rollout = self.rollout.state_dict() if "rollout" in vars(self) else None
        return {"rollout": rollout, "driver": self.driver.state_dict(), "owed": dict(self.owed), "focus": self.focused}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take that back."""
        if state["focus"] is not None:
            self.focus(state["focus"])
        vars(self).pop("rollout", None)
        if state["rollout"] is not None:
            self.rollout.load_state_dict(state["rollout"])
        self.driver.load_state_dict(state["driver"])
        self.owed = dict(state["owed"])

    def fresh(self, source: str, records: int, progress: float) -> Iterator[TensorDict]:
        """Yield so many fresh records of a source; of chains the nearest number of whole batches."""
        if source == "forward":
            several = max(self.rows, self._at_once // self.rows * self.rows)
            for start in range(0, records, several):
                yield self._forward(min(several, records - start))
            return
        batches, self.owed[source] = rolls(records, self.owed[source], self.size)
        for _ in range(batches):
            visited = self.rollout.of(source, progress)
            if self.focused is not None:
                visited = visited.reshape(-1, len(self.env.times) - 1)[:, self.focused]
            yield self.objective.settle(visited, self.generator)

    @property
    def _at_once(self) -> int:
        """Forward states that are labelled at once: as many as a batch of chains has, or more where they are small."""
        numbers = int(self.env.observation_spec["x_t"].shape[1:].numel())
        return max(self.size, SMALL // max(1, numbers))

    def _forward(self, rows: int) -> TensorDict:
        return forward_states(
            self.data,
            self.env.transition.schedule,
            self.grid,
            rows,
            self.generator,
            self.env.conditions is not None,
            self.input_perturbation,
            self.rows,
        )


SMALL = 2**14
"""Numbers in states that any device labels at once."""


def _ceil(records: float) -> int:
    """The next whole number, where a rounding error makes no more of one."""
    return math.ceil(records - 1e-6)
