"""One run in several processes, a GPU each: ``torchrun --nproc-per-node 4 --no-python dagdiff distill ...``.

Each process rolls in chains and draws batches of its own, its part of the run's; the gradients of the student, and of a
critic, are averaged over the processes before every update, so the weights are the same everywhere at all times. In a
lone process every function here leaves things as they are.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dagdiff.checks import Refusal, first_line

_PATIENCE = timedelta(days=2)  # the others wait while process 0 trains a teacher or draws its samples


def find_device(name: str) -> torch.device:
    """Return the device of that name, or for ``auto`` the GPU where there is one; refuse one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"device {name!r} is not there ({first_line(error)}). Pass --device cpu or auto.") from None
    return device


def world_size() -> int:
    """How many processes make the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0; process 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(prepare: Callable[[], object]) -> Iterator[None]:
    """Join the processes that torchrun started together with this one, if it did, and take a GPU of one's own.

    Process 0 calls ``prepare`` before it joins, and the others wait for it: what it trains or draws and keeps in the
    cache is there when they need it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    cards, mine = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if cards:
        if mine >= cards:
            raise Refusal(f"process {mine} of this machine has no GPU of its own. Pass --nproc-per-node {cards}.")
        torch.cuda.set_device(mine)
    if int(os.environ["RANK"]) == 0:
        prepare()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo", timeout=_PATIENCE)
    try:
        yield
        dist.barrier()  # process 0 still measures when the others are done
    finally:
        dist.destroy_process_group()


def part(name: str, whole: int) -> int:
    """Return this process's part of a number of rows; refuse one that does not split evenly."""
    if whole % world_size():
        raise Refusal(f"{name} must split evenly over {world_size()} processes; got {whole}.")
    return whole // world_size()


def broadcast(module: nn.Module) -> None:
    """Give every process the weights and buffers of process 0."""
    if world_size() > 1:
        for values in module.state_dict().values():
            dist.broadcast(values, src=0)


def average(values: Iterable[Tensor]) -> None:
    """Replace tensors by their means over the processes."""
    if world_size() > 1:
        kept = list(values)
        for waiting in [dist.all_reduce(each, async_op=True) for each in kept]:
            waiting.wait()
        torch._foreach_div_(kept, world_size())


def average_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Average the gradients of the weights that learn; one that a process has no gradient for counts as 0 there."""
    if world_size() > 1:
        learning = [each for each in weights if each.requires_grad]
        for each in learning:
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        average(each.grad for each in learning if each.grad is not None)


def totals(counts: Iterable[int], device: torch.device) -> list[int]:
    """Return the sums of whole numbers over the processes."""
    mine = list(counts)
    if world_size() == 1:
        return mine  # without a look at the device
    summed = torch.tensor(mine, device=device)
    dist.all_reduce(summed)
    found: list[int] = summed.tolist()
    return found
