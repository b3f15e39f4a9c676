"""The processes of one run: started by accelerate or torchrun, joined here, and of one mind before they train."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dagdiff.checks import Refusal, first_line

_MEETING = timedelta(minutes=5)  # until all processes are there
_PATIENCE = timedelta(days=2)  # the others wait while process 0 trains a teacher or draws its samples


def world_size() -> int:
    """How many processes make the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0; process 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(told: Mapping[str, Any], prepare: Callable[[], object]) -> Iterator[None]:
    """Join the processes that a launcher started together with this one, if it did, and take a GPU of one's own.

    Process 0 calls ``prepare`` while the others wait: what it trains or draws and keeps in the cache is there when
    they need it, and what it rejects all reject.

    Args:
        told: the configuration of the run, ``device`` among it; equal in all processes.
        prepare: what only one is to do.

    Raises:
        Refusal: if there is no launcher, no device, a port in use, or a process with another configuration.
        SystemExit: with one line, if another process ends before its time.
    """
    check_launcher(os.environ)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    on_gpu = check_devices(str(told["device"]), torch.cuda.device_count(), os.environ)
    _join(on_gpu)
    from accelerate.utils import broadcast_object_list, gather_object

    number, whole = rank(), True
    try:
        check_agreement(gather_object([flat(told)]))
        refused = [_refused(prepare) if rank() == 0 else None]
        broadcast_object_list(refused)
        if refused[0] is not None:
            raise Refusal(refused[0])
        yield
        gather_object([None])  # process 0 still measures when the others are done
    except RuntimeError as error:
        if not is_lost(error):
            raise
        whole = False
        raise SystemExit(
            f"dagdiff: error: another process of this run has ended, so process {number} ends too. Its own last lines "
            "say why."
        ) from None
    finally:
        if whole or not on_gpu:  # NCCL would wait for those that are gone
            dist.destroy_process_group()  # at the interpreter's end its threads can abort the process


def check_launcher(environment: Mapping[str, str]) -> None:
    """Reject half a launcher, and what a launcher is told that the run's own settings say."""
    wanted = environment.get("WORLD_SIZE", "1")
    if not wanted.isdigit() or int(wanted) < 1:
        raise Refusal(f"WORLD_SIZE must be a number of processes, at least 1; got {wanted!r}. Unset it, or {_START}.")
    missing = [name for name in _PLACE if name not in environment]
    if int(wanted) > 1 and missing:
        raise Refusal(
            f"WORLD_SIZE={wanted} tells of several processes, but no launcher has set {', '.join(missing)}. Unset it "
            f"for a lone process, or {_START}."
        )
    if "WORLD_SIZE" not in environment and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= set(environment):
        raise Refusal(f"accelerate starts no several processes on CPUs. For these {_START}.")
    for name, (usual, cure) in _SETTINGS.items():
        if environment.get(name, usual).lower() not in ("", usual):
            raise Refusal(f"{name}={environment[name]} is not for a launcher to say. {cure}")
    if _true(environment, "ACCELERATE_USE_FSDP") and environment.get("FSDP_VERSION") != "2":
        raise Refusal("accelerate is told FSDP 1; dagdiff knows FSDP 2. Set fsdp_version: 2 in its configuration.")


def check_devices(device: str, cards: int, environment: Mapping[str, str]) -> bool:
    """Reject devices that are not there, a GPU a process; return whether the run is one on GPUs.

    Args:
        device: as the user names it.
        cards: GPUs of this machine.
        environment: of a launcher.
    """
    if device == "cpu" or (device == "auto" and not cards):
        return False
    if ":" in device:
        raise Refusal(f"device {device!r} is one GPU, and each process takes its own. Leave --device away.")
    here = int(environment.get("LOCAL_WORLD_SIZE", int(environment["LOCAL_RANK"]) + 1))
    if here > cards:
        cure = f"--nproc-per-node {cards}, or --device cpu" if cards else "--device cpu"
        raise Refusal(f"{here} processes on this machine need a GPU each, and it has {cards}. Pass {cure}.")
    return True


def check_agreement(told: list[dict[str, str]]) -> None:
    """Reject processes that were told another configuration than process 0, by their numbers and the first option."""
    others = [number for number, mine in enumerate(told) if mine != told[0]]
    if not others:
        return
    mine, first = told[others[0]], told[0]
    name = next(name for name in {**first, **mine} if mine.get(name) != first.get(name))
    which = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
    raise Refusal(
        f"process{'es' if len(others) > 1 else ''} {which} of {len(told)} disagree{'s' * (len(others) == 1)} with "
        f"process 0 on the configuration: {name} is {mine.get(name, 'not set')} instead of "
        f"{first.get(name, 'not set')}. Start all with the same words."
    )


def flat(told: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level of dotted names."""
    found: dict[str, str] = {}
    for name, value in told.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": repr(value)}
    return found


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _GONE)


def sharding() -> bool:
    """Whether the launcher asks for weights that are shared out over the processes (FSDP2)."""
    return world_size() > 1 and _true(os.environ, "ACCELERATE_USE_FSDP")


def _join(on_gpu: bool) -> None:
    """Meet the other processes."""
    from accelerate import PartialState

    port = os.environ["MASTER_PORT"]
    try:
        store, number, size = next(rendezvous("env://", timeout=_MEETING))
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_PATIENCE)
    except (dist.DistError, RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise Refusal(
                f"port {port} of {os.environ['MASTER_ADDR']} is in use by another program. Pass another one to the "
                "launcher (torchrun: --master-port, accelerate: --main_process_port)."
            ) from None
        raise Refusal(
            f"process {os.environ['RANK']} can't meet the others at {os.environ['MASTER_ADDR']}:{port} "
            f"({first_line(error)}). Check that process 0 runs there and that no other program has that port."
        ) from None
    PartialState(cpu=not on_gpu)


def _refused(prepare: Callable[[], object]) -> str | None:
    """Call ``prepare``; return what it rejects."""
    try:
        prepare()
    except Refusal as error:
        return str(error)
    return None


def _true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")


_PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_START = "start dagdiff with torchrun --nproc-per-node 2 --no-python dagdiff distill ..."
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "gloo/transport",
    "NCCL",
)
_SETTINGS = {
    "ACCELERATE_MIXED_PRECISION": ("no", "Set mixed_precision: 'no' there and pass --bf16 true to dagdiff."),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "Leave it away there and pass --accumulate to dagdiff."),
    "ACCELERATE_USE_DEEPSPEED": ("false", "DeepSpeed is not served; FSDP2 shares out the same: fsdp_version: 2."),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "Megatron-LM is not served; for sharded weights take FSDP2."),
}
"""What accelerate's launcher may set: its usual value, and what to do where it has another."""
