"""What the numbers of a run depend on beside its configuration: the code that defines them, and where they are made."""

import platform
from importlib.metadata import version

import torch

CODE = {"chain": 1, "expert": 1, "loop": 4, "teacher": 2, "score": 1}
"""Raised by whoever changes, for the same settings, the law of the chain, the expert's labels, the loop's draws and
updates, a teacher's training, or the scores. An objective holds its own version, and so may any part's class."""


def versions(threads: int) -> dict[str, str]:
    """Return them by name, where the run had so many torch ``threads``.

    A sum over more threads is rounded in another order, and so it is by another processor's instructions: where all of
    these are equal, and the kind of processor too, a run on the CPU is the same bit for bit.
    """
    packages = {name: version(name) for name in ("torch", "torchrl", "numpy")}
    system = f"{platform.system()}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"Python": platform.python_version(), **packages, "system": system, "threads": str(threads)}
