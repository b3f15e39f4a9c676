"""Buffers and samplers of one's own in the aggregate: anything of TorchRL's, and sampling by loss.

A source's records then live in a ``torchrl.data.ReplayBuffer`` that the user makes. Its storage says how many there is
room for (the newest stay), its sampler which are drawn. A sampler that goes by priorities is told the loss of each row
after it was drawn, and its importance weights scale the loss.

:class:`LossSampler` is prioritised sampling (Schaul et al. 2015, https://arxiv.org/abs/1511.05952) in plain torch;
TorchRL's ``PrioritizedSampler``, which needs a compiled extension, may take its place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage

from dagdiff.checks import Refusal, check_above, check_at_least, check_share
from dagdiff.state import Shard

MakeBuffer = Callable[[str], ReplayBuffer]
"""``source -> buffer``: makes the empty buffer of a source, "forward", "student" or "expert"."""


class LossSampler(Sampler):
    """Draws records in proportion to the alpha-th power of their loss when they were last drawn.

    A record that has not been drawn yet counts as the largest loss so far. The weight of a draw is (p_min / p)^beta,
    1 for the record that is drawn least.

    Args:
        size: records that the storage has room for.
        alpha: 0 draws all alike, 1 in proportion to the loss.
        beta: how far weights undo it in the mean: 0 not at all, 1 in full.
        floor: is added to each loss, so that no record is lost.
    """

    def __init__(self, size: int, alpha: float = 0.6, beta: float = 0.4, floor: float = 1e-6) -> None:
        check_at_least("size", size, 1)
        check_at_least("alpha", alpha, 0.0)
        check_share("beta", beta)
        check_above("floor", floor, 0.0)
        self.alpha, self.beta, self.floor = alpha, beta, floor
        self.priorities, self.largest = torch.ones(size), torch.ones(())

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw so many; return their places and ``priority_weight``."""
        likely = self.priorities[: len(storage)]
        index = torch.multinomial(likely, batch_size, replacement=True, generator=self._rng)
        return index, {"priority_weight": (likely.min() / likely[index]).pow(self.beta)}

    def extend(self, index: Tensor) -> None:
        """Take new records in, at these places."""
        self.priorities[index] = self.largest

    def add(self, index: int) -> None:
        """Take one new record in."""
        self.priorities[index] = self.largest

    def update_priority(self, index: Any, priority: Any, *, storage: Storage | None = None) -> None:
        """Take losses as the priorities of records; one that is not finite is left out."""
        losses = torch.as_tensor(priority, dtype=torch.float32).abs().to("cpu")
        found = (losses + self.floor).pow(self.alpha)
        sound = found.isfinite()
        self.priorities[torch.as_tensor(index).to("cpu")[sound]] = found[sound]
        self.largest = torch.cat([found[sound], self.largest[None]]).max()

    def state_dict(self) -> dict[str, Any]:
        """Return the priorities."""
        return {"priorities": self.priorities.clone(), "largest": self.largest.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.priorities, self.largest = state_dict["priorities"].clone(), state_dict["largest"].clone()

    def _empty(self) -> None:
        self.priorities.fill_(1.0)
        self.largest = torch.ones(())

    def dumps(self, path: Any) -> None:
        """Write the priorities into a folder."""
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(path) / "priorities.pt")

    def loads(self, path: Any) -> None:
        """Read them back."""
        self.load_state_dict(torch.load(Path(path) / "priorities.pt", weights_only=True))


class ByLoss:
    """Makes buffers that are drawn from by loss: ``Gathering(buffer=ByLoss(20_000))``.

    Args:
        size: records of each source that stay, the newest.
        alpha: of :class:`LossSampler`.
        beta: of the same.
    """

    def __init__(self, size: int, alpha: float = 0.6, beta: float = 0.4) -> None:
        self.size, self.alpha, self.beta = size, alpha, beta
        LossSampler(size, alpha, beta)  # what can't be is refused now

    def __call__(self, source: str) -> ReplayBuffer:
        """Make the buffer of a source."""
        return ReplayBuffer(storage=LazyTensorStorage(self.size), sampler=LossSampler(self.size, self.alpha, self.beta))


class Own:
    """The records of one source in a buffer of the user's.

    Args:
        buffer: it, empty.
        generator: of its draws.
    """

    def __init__(self, buffer: ReplayBuffer, generator: torch.Generator | None) -> None:
        if not isinstance(buffer, ReplayBuffer) or len(buffer):
            got = f"{len(buffer)} records" if isinstance(buffer, ReplayBuffer) else f"a {type(buffer).__name__}"
            raise Refusal(
                f"buffer must make an empty torchrl ReplayBuffer for a source; got {got}. Pass a function, such as "
                "lambda source: ReplayBuffer(storage=LazyTensorStorage(10_000))."
            )
        if generator is not None:
            buffer.set_rng(generator)
        self.buffer, self.written = buffer, 0
        self.by_priority = type(buffer.sampler).update_priority is not Sampler.update_priority
        self.next = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.buffer)

    def clear(self) -> None:
        """Forget all records."""
        self.buffer.empty()

    def add(self, records: TensorDict, number: int) -> None:
        """Let records of a round enter."""
        self.buffer.extend(records)
        self.written += len(records)

    def draw(self, count: int, weighed: bool) -> TensorDict:
        """Let the sampler draw so many records; with their ``index`` in the buffer and, if wanted, their ``weight``.

        One that draws in passes may give fewer where a pass ends, and is asked again.
        """
        parts: list[TensorDict] = []
        while (missing := count - sum(map(len, parts))) > 0:
            records, told = self.buffer.sample(missing, return_info=True)
            records = records.exclude("index", "priority_weight").set("index", torch.as_tensor(told["index"]))
            if weighed:
                weight = told.get("priority_weight", torch.ones(len(records)))
                records["weight"] = torch.as_tensor(weight, dtype=torch.float32)
            parts.append(records)
        return torch.cat(parts)

    def take(self, numbers: Tensor) -> TensorDict:
        """Return copies of records by their place, sorted by the round in which they entered."""
        found: TensorDict = self.buffer.storage[: len(self)].clone()
        return found[found["round"].argsort(stable=True)][numbers]

    def state_dict(self, source: str) -> dict[str, Any]:
        """Return the records as they lie, and what sampler and writer remember."""
        shards = [Shard(f"{source}-own-{self.written}", self._columns)] if len(self) else []
        held = {"sampler": self.buffer.sampler.state_dict(), "writer": self.buffer.writer.state_dict()}
        return {"rounds": [0] * len(shards), "records": shards, "written": self.written, **held}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None) -> None:
        """Take that back, to a device."""
        self.buffer.empty()
        for columns in state["records"]:
            rows = len(next(iter(columns.values())))
            self.buffer.extend(TensorDict(columns, [rows]).unflatten_keys(".").to(device or "cpu"))
        self.written = state["written"]
        self.buffer.sampler.load_state_dict(state["sampler"])
        self.buffer.writer.load_state_dict(state["writer"])

    def load_part(self, states: Any, part: int, parts: int, device: torch.device | None) -> None:
        """Reject: a sampler's memory can't be split."""
        raise Refusal("a buffer of one's own is resumed by as many processes as it was made by. Start as many.")

    def _columns(self) -> dict[str, Tensor]:
        return dict(self.buffer.storage[: len(self)].clone().flatten_keys(".").items())


def made(make: MakeBuffer, source: str, generator: torch.Generator | None) -> Own:
    """Return the window of a source whose buffer ``make`` makes; reject what is no such function."""
    if not callable(make) or isinstance(make, ReplayBuffer):
        raise Refusal(
            f"buffer must be a function source -> ReplayBuffer, one buffer a source; got a {type(make).__name__}. "
            "Pass e.g. dagdiff.buffers.ByLoss(20_000)."
        )
    return Own(make(source), generator)
