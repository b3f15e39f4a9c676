"""What the numbers of a run depend on beside its configuration: the code that defines them, and where they are made."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

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


def commit() -> str:
    """Return the commit of the checkout that dagdiff is imported from, "" where it is installed otherwise."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
