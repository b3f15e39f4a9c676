"""What the numbers of a run depend on beside its configuration: versions, the processor, and the number of threads."""

import platform
from importlib.metadata import version

import torch


def versions(threads: int) -> dict[str, str]:
    """Return them by name, where the run had so many torch ``threads``.

    A sum over more threads is rounded in another order, and so it is by another processor's instructions: where all of
    these are equal, and the kind of processor too, a run on the CPU is the same bit for bit.
    """
    packages = {name: version(name) for name in ("torch", "torchrl", "numpy")}
    system = f"{platform.system()}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"Python": platform.python_version(), **packages, "system": system, "threads": str(threads)}
