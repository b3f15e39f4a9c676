"""Locks in a folder that die with their owner: ``flock`` on a small file that names the owner.

The system lets go of a lock when its process ends, however that happens, so no lock is ever stale. Where a file system
has no locks, or the system no ``flock``, every lock is granted: work may then be done twice, but nothing is lost, for
results are written whole and are the same.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagdiff.checks import Refusal

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lock:
    """A lock by the name of a file, whose folder is made if it is missing; the file goes when the lock is released.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self, wait: bool = False) -> bool:
        """Return whether the lock is now this process's; with ``wait`` it is in the end.

        Raises:
            Refusal: if the file can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while self._file is None:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
                if not _locked(file, wait):
                    os.close(file)
                    return False
                if _same(file, self.path):  # else its owner has removed it meanwhile
                    self._file = file
                else:
                    os.close(file)
            os.truncate(self._file, 0)
            os.pwrite(self._file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        except OSError as error:
            self.release()
            raise Refusal(f"{self.path} can't be written ({error.strerror or error}). Name another folder.") from None
        return True

    def release(self) -> None:
        """Let go of the lock and remove its file."""
        if self._file is not None:
            if _same(self._file, self.path):
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    @property
    def owner(self) -> str:
        """Who holds the lock, in words."""
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {told['process']} on {told['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of that name for a short while, after whoever holds it now."""
    lock = Lock(path)
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()


def _locked(file: int, wait: bool) -> bool:
    """Lock an open file; return whether that went."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _same(file: int, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
