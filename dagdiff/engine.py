"""Devices and processes: what a network in training is where it is not alone, on Hugging Face accelerate.

``accelerate launch -m dagdiff distill ...`` or ``torchrun --no-python dagdiff distill ...`` starts several processes, a
GPU each. Each rolls out chains and draws batches of its own, its part of the run's. A network that learns is prepared
once: its forward, called in a loss, averages gradients over the processes (DDP), so the weights are the same everywhere
at all times. Where the launcher asks for FSDP2, each process holds its part of them alone, and of the frozen networks.
In a lone process nothing is wrapped.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, first_line
from dagdiff.launch import joined as joined
from dagdiff.launch import rank as rank
from dagdiff.launch import sharding as sharding
from dagdiff.launch import world_size as world_size


class Prepared(NamedTuple):
    """A network in training.

    ``forward`` is what a loss calls; ``accelerator`` is None in a lone process.
    """

    forward: nn.Module
    accelerator: Any

    def apart(self) -> AbstractContextManager[Any]:
        """Return a context in which a loss leaves gradients of this process's own, to be averaged with the next."""
        context: AbstractContextManager[Any] = (
            nullcontext() if self.accelerator is None else self.accelerator.no_sync(self.forward)
        )
        return context


class Whole:
    """A network or its optimiser, whose state is whole and on the CPU though each process may hold a part of it.

    Where weights are sharded all processes must ask for it at once. In other cases it is the part's own state.

    Args:
        part: has ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, part: Any) -> None:
        self.part = part

    def state_dict(self) -> dict[str, Any]:
        """Return the state, under the names that it has where nothing is sharded."""
        state: dict[str, Any] = whole(self.part.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a whole state; each process keeps its part of it."""
        if isinstance(self.part, torch.optim.Optimizer):
            weights = [weight for group in self.part.param_groups for weight in group["params"]]
            moments = {
                place: {name: _like(value, weights[place]) for name, value in kept.items()}
                for place, kept in state["state"].items()
            }
            self.part.load_state_dict({**state, "state": moments})
        else:
            own = self.part.state_dict()
            self.part.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})


def find_device(name: str) -> torch.device:
    """Return the device of that name, or for ``auto`` the GPU where there is one; reject one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"device {name!r} is not there ({first_line(error)}). Pass --device cpu or auto.") from None
    return device


def adam(device: torch.device, eight_bits: bool = False) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes Adam of parameters, ``lr`` and ``betas``, in one fused operation an update.

    Args:
        device: where the parameters are.
        eight_bits: keep both moments in 8 bits, by the package bitsandbytes (Dettmers et al. 2022,
            https://arxiv.org/abs/2110.02861): 2 bytes a trained weight in place of 8.

    Raises:
        Refusal: for 8 bits without a GPU or without the package, or with weights shared out over processes (FSDP2).
    """
    if not eight_bits:
        return partial(torch.optim.Adam, fused=True)
    if device.type != "cuda":
        raise Refusal(f"adam8bit needs a GPU, and this run is on {str(device)!r}. Leave --adam8bit away.")
    if sharding():
        raise Refusal("adam8bit can't keep moments of weights that are shared out (FSDP2). Take DDP, or leave it away.")
    try:
        made: Callable[..., torch.optim.Optimizer] = import_module("bitsandbytes").optim.Adam8bit
    except Exception as error:  # it is missing, or finds no library for this GPU
        raise Refusal(
            f"adam8bit needs the package bitsandbytes, which can't be loaded ({first_line(error):.150}). Run: pip "
            "install bitsandbytes, or leave --adam8bit away."
        ) from None
    return made


def part(name: str, rows: int) -> int:
    """Return this process's part of a number of rows; reject one that does not split evenly."""
    if rows % world_size():
        raise Refusal(f"{name} must split evenly over {world_size()} processes; got {rows}.")
    return rows // world_size()


def prepare(network: nn.Module, optimiser: torch.optim.Optimizer) -> Prepared:
    """Return a network ready to learn in all processes, from the weights of the first.

    Its copies are made before; under FSDP2 a network can't be copied.

    Args:
        network: keeps its name for rollouts, measurement and saving; there its forward is this process's alone.
        optimiser: of its parameters; where these are sharded it is given the parts.
    """
    if world_size() == 1:
        return Prepared(network, None)
    from accelerate import Accelerator

    share(network)
    accelerator = Accelerator(cpu=_on_cpu(network))
    if sharding():
        if not accelerator.is_fsdp2:
            raise Refusal("accelerate shards weights on GPUs alone, and this run is on none. Leave FSDP away there.")
        return Prepared(accelerator.prepare(network, optimiser)[0], accelerator)
    wrapped: nn.Module = accelerator.prepare_model(network, device_placement=False)
    _check_reached_once(network, optimiser)
    return Prepared(wrapped, accelerator)


def share(network: nn.Module) -> None:
    """Give every process the weights and buffers of process 0."""
    if world_size() > 1 and not sharded(network):
        from accelerate.utils import broadcast

        for values in network.state_dict().values():
            values.copy_(broadcast(values.contiguous()))


def shard(network: Any) -> None:
    """Let each process hold its part alone of a frozen network, where FSDP2 is asked for; it answers as before."""
    if sharding() and isinstance(network, nn.Module) and not sharded(network):
        from accelerate import Accelerator

        weights = list(network.parameters())
        if weights:  # accelerate takes no network without an optimiser
            Accelerator(cpu=_on_cpu(network)).prepare(network, torch.optim.SGD(weights))


def sharded(network: nn.Module) -> bool:
    """Whether a network's weights are shared out over the processes."""
    return any(map(_is_part, network.parameters()))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state, whole though it may be sharded; then all processes must ask at once."""
    return Whole(network).state_dict()


def whole(state: Any) -> Any:
    """Return a nested state in which sharded tensors are whole and on the CPU; all processes must ask at once."""
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(whole, state))
    return state.full_tensor().cpu() if _is_part(state) else state


def mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return metrics as their means over the processes."""
    if world_size() == 1:
        return dict(values)
    from accelerate.utils import reduce

    found: dict[str, Tensor] = reduce({name: whole(value) for name, value in values.items()}, "mean")
    return found


def totals(counts: Iterable[int], device: torch.device) -> list[int]:
    """Return the sums of whole numbers over the processes."""
    mine = list(counts)
    if world_size() == 1:
        return mine  # without a look at the device
    from accelerate.utils import gather

    found: list[int] = gather(torch.tensor([mine], device=device)).sum(0).tolist()
    return found


def _on_cpu(network: nn.Module) -> bool:
    return next(network.parameters()).device.type == "cpu"


def _check_reached_once(network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Before the first step, reject weights that the loss does not reach: the processes would wait for them."""

    def check(*_: Any) -> None:
        once.remove()
        idle = [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
        if idle:
            some = ", ".join(idle[:3]) + (f", ... ({len(idle)} in all)" if len(idle) > 3 else "")
            raise Refusal(
                f"the loss does not reach {some} of {type(network).__name__}, which several processes would wait for. "
                "Freeze them with requires_grad_(False), or take one process."
            )

    once = optimiser.register_step_pre_hook(check)


def _is_part(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _like(value: Any, own: Any) -> Any:
    """A whole tensor, shared out as one's own tensor of that shape is."""
    if not _is_part(own) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
