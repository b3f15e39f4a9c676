"""Files that several processes need and one makes: the others wait for it, and say so."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagdiff.jobs.locks import Lock


@contextmanager
def awaited(path: Path) -> Iterator[None]:
    """Hold the right to make a file, after whoever makes it now; look then whether it is there."""
    lock = Lock(path.with_name(f".{path.name}.lock"))
    if not lock.take():
        print(f"dagdiff: {path} is being made by {lock.owner}; waiting for it", file=sys.stderr)
        lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()
