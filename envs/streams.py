"""Pictures that are read one by one: where each lies, what it shows, and a hash of them all.

A set of pictures may be larger than the memory. A :class:`Stream` knows of each picture only where it is; it is read
when it is asked for. Its key is a hash of what the files hold, so what was made of the same pictures is found again,
wherever they lie. Files are hashed once: their digests are kept in the cache, by size and time of change.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dagdiff.checkpoint import cache_folder, content_hash, file_hash, save_json
from dagdiff.checks import Refusal
from dagdiff.envs.images import to_states
from dagdiff.envs.picture_files import fitted, read_picture
from dagdiff.progress import Progress
from dagdiff.reading import read_json


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Pictures in a fixed order, those of the training split first.

    A picture is given as its name and what holds it: a path, an open file, a picture of Pillow's, or a state ``(C, H,
    W)`` in [-1, 1].

    Args:
        source: where they are, in words.
        hashed: gives a hash of what they are; asked when it is first needed.
        count: how many; None where only the end tells it.
        told: what each shows, in words; empty where nothing is known.
        names: the different words as prompts, where they are spelt otherwise or have an order of their own.
        kind: what the words are: class or caption.
        first: how many are the training split; None where the source has no splits.
        skipped: what is left out, by the reason.
        note: how they are read, in words.
        open: gives the picture of a number.
        flow: gives all from a number on, in order, of a source that can't be opened in the middle.
    """

    source: str
    hashed: Callable[[], str]
    count: int | None
    told: Sequence[str] = ()
    names: Sequence[str] = ()
    kind: str = "class"
    first: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    note: str = ""
    open: Callable[[int], tuple[str, Any]] | None = None
    flow: Callable[[int], Iterator[tuple[str, Any]]] | None = None

    @cached_property
    def key(self) -> str:
        """The hash of what they are."""
        return self.hashed()


def read_state(name: str, source: Any, size: tuple[int, int]) -> tuple[Tensor, bool]:
    """Read a picture of a stream, ``(C, H, W)`` in [-1, 1]; tell whether it lost a part because of its shape.

    Args:
        name: of the picture.
        source: what holds it; a state is taken as it is.
        size: height and width to which pictures are cropped in their middle.

    Raises:
        Refusal: if it can't be read.
    """
    if isinstance(source, Tensor):
        return source, False
    picture = read_picture(name, source)
    cropped = picture.width * size[0] != picture.height * size[1]
    return to_states(torch.from_numpy(fitted(picture, size)[None].copy()))[0], cropped


def digest(files: Sequence[Path], place: Path) -> str:
    """Return a hash of what files hold, in their order; each is read only once, until its size or time changes.

    Args:
        files: of one source.
        place: the source; its name says where the digests are kept.
    """
    memo = cache_folder() / "digests" / f"{content_hash(str(place.resolve()))[:16]}.json"
    known = _known(memo)
    found: dict[str, list[Any]] = {}
    with Progress("hashing", len(files), "file") as bar:
        for file in files:
            try:
                told = file.stat()
                name, stamp = str(file), [told.st_size, told.st_mtime_ns]
                before = known.get(name)
                found[name] = before if before and before[:2] == stamp else [*stamp, file_hash(file)]
            except OSError as error:
                raise Refusal(f"{file} can't be read ({error.strerror}). Repair it, or take it away.") from None
            bar.advance()
    if found != known:
        save_json(memo, found)
    return content_hash(*(each[2] for each in found.values()))


def _known(memo: Path) -> dict[str, list[Any]]:
    """The digests that are kept; none where the file is not whole."""
    try:
        found: dict[str, list[Any]] = read_json(memo, {str: [(int, str)]}, _MOST) if memo.exists() else {}
    except Refusal:
        return {}
    return {name: told for name, told in found.items() if len(told) == 3}


_MOST = 1 << 30  # bytes of a file of digests
