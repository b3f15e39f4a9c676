"""Folders that are whole or absent: they are filled beside their place, and moved there in one step."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagdiff.checkpoint import refused_writes, sync
from dagdiff.checks import Refusal
from dagdiff.jobs.locks import Lock


@contextmanager
def filled(place: Path) -> Iterator[Path]:
    """Yield an empty folder, beside a place that is new or an empty folder; move it there in the end.

    What a process that was killed has left beside the place is deleted.

    Raises:
        Refusal: if another process fills the place, or it can't be written, whichever library says so.
    """
    place = place.absolute()
    lock, aside = Lock(place.with_name(f".{place.name}.lock")), place.with_name(f".{place.name}.part")
    if not lock.take():
        raise Refusal(f"{place} is being made by {lock.owner}. Wait for its end, or name another folder.")
    try:
        with refused_writes(place):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
            for each in (*aside.rglob("*"), aside):
                sync(each)
            os.replace(aside, place)
            sync(place.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        lock.release()
