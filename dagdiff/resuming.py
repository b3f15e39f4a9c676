"""The state of the loop: what it takes to resume training that was stopped, exactly where it was stopped."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from dagdiff import engine
from dagdiff.aggregate import Aggregate
from dagdiff.checkpoint import content_hash
from dagdiff.expert import Expert
from dagdiff.gathering import Sources
from dagdiff.learner import Learner
from dagdiff.ledger import Ledger
from dagdiff.mixture import Shares
from dagdiff.objectives.base import Objective
from dagdiff.round import Round, as_round
from dagdiff.state import Shard, load_state, random_state, set_random_state, state_of


class Resumable:
    """A loop that says its state, and takes it back: the states of its parts, and its place among them.

    ``made`` are the rounds that have closed and ``logs`` what the updates of the present round have told, so its place;
    ``replayed`` is how many rounds were made before it was resumed.
    """

    learner: Learner
    objective: Objective
    sources: Sources
    aggregate: Aggregate
    ledger: Ledger
    expert: Expert
    env: EnvBase
    generator: torch.Generator
    shares: Shares
    best: tuple[int, float, dict[str, Tensor]] | None
    _started: float
    _nfe_before: int

    def __init__(self) -> None:
        self.made, self.logs = list[Round](), list[dict[str, Tensor]]()
        self.replayed, self._resumed = 0, dict[str, Any]()
        self._good: dict[str, Any] | None = None  # what a round that goes wrong is set back to, if it is to be

    def state_dict(self) -> dict[str, Any]:
        """Return the state of training: what all processes share, and by rank what each has of its own.

        It is whole wherever :attr:`watch` is called, and holds what a curriculum has set since the last round.
        """
        best = None if self.best is None else [*self.best[:2], Shard(f"best-{self.best[0]:04d}", self._best_weights)]
        shared = {
            "learner": self.learner.state_dict(),
            "objective": self.objective.state_dict(),
            "shares": list(self.shares),
            "best": best,
            "rounds": [asdict(done) for done in self.made],
            "good": self._good if self.logs else None,
            "processes": engine.world_size(),
        }
        own = {
            "sources": self.sources.state_dict(),
            "aggregate": self.aggregate.state_dict(drawn=bool(self.logs)),
            "evaluations": [self.ledger.nfe, self.expert.nfe - self._nfe_before],
            "seconds": time.perf_counter() - self._started,
            "logs": stacked(self.logs),
            "generators": {name: state_of(each) for name, each in self._generators().items()},
            "torch": random_state(self.generator.device),
        }
        return {"shared": shared, "own": {str(engine.rank()): own}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state when the rounds are iterated over: it overwrites what a curriculum sets before them."""
        self._resumed = dict(state)

    def _replay(self) -> Iterator[Round]:
        """Yield the rounds of a state to resume from, then take the state."""
        if not self._resumed:
            return
        state, self._resumed = self._resumed, {}
        shared = state["shared"]
        self.made = [as_round(each) for each in shared["rounds"]]
        self.replayed = len(self.made)
        yield from self.made
        self.learner.load_state_dict(shared["learner"])
        self.objective.load_state_dict(shared["objective"])
        self.shares, self.best, self._good = Shares(*shared["shares"]), None, shared["good"]
        if shared["best"] is not None:
            number, loss, weights = shared["best"]
            self.best = number, loss, weights
        if shared["processes"] == engine.world_size():
            self._take_own(state["own"][str(engine.rank())])
        else:
            self._take_part(list(state["own"].values()))

    def _take_own(self, own: Mapping[str, Any]) -> None:
        """Take back what this process had of its own."""
        self.aggregate.load_state_dict(own["aggregate"])
        self.sources.load_state_dict(own["sources"])
        self._count(own["evaluations"], own)
        for name, each in self._generators().items():
            load_state(each, own["generators"][name])
        set_random_state(self.generator.device, own["torch"])

    def _take_part(self, owns: Sequence[Mapping[str, Any]]) -> None:
        """Take a part of what processes of another number had: weights are exact, and draws are new ones.

        These follow from the seed, the rank and the place in training. D is split evenly; chains begin anew.
        """
        rank, first = engine.rank(), owns[0]
        self.aggregate.load_part([own["aggregate"] for own in owns], rank, engine.world_size())
        if first["sources"]["focus"] is not None:
            self.sources.focus(first["sources"]["focus"])
        charged = [sum(own["evaluations"][kind] for own in owns) if rank == 0 else 0 for kind in (0, 1)]
        self._count(charged, first)
        place = f"{self.generator.initial_seed()} {rank} {engine.world_size()} {len(self.made)} {len(self.logs)}"
        seed = int(content_hash(place)[:8], 16)
        for number, each in enumerate([*self._generators().values(), self.aggregate.generator]):
            if each is not None:
                each.manual_seed((seed + number) % 2**32)
        torch.manual_seed((seed + 97) % 2**32)

    def _count(self, evaluations: Sequence[int], own: Mapping[str, Any]) -> None:
        """Take back counts, the clock, and what the updates of a round have told so far."""
        self.ledger.nfe, spent = evaluations
        self._nfe_before, self._started = self.expert.nfe - spent, time.perf_counter() - own["seconds"]
        self.logs = apart(own["logs"], self.generator.device)

    def _generators(self) -> dict[str, torch.Generator]:
        """The generators that draws depend on, but for the aggregate's."""
        return {"loop": self.generator, "env": self.env.generator}

    def _best_weights(self) -> dict[str, Tensor]:
        assert self.best is not None
        return self.best[2]


def stacked(logs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What some updates told, ``(n,)`` each."""
    return {name: torch.stack([log[name] for log in logs]) for name in logs[0]} if logs else {}


def apart(logs: Mapping[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    """Undo :func:`_stacked`."""
    columns = {name: values.to(device).unbind() for name, values in logs.items()}
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
