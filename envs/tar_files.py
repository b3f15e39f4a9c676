"""Pictures in tar files, as webdataset writes them: members with one key are one example.

``000.jpg`` and ``000.txt`` in a shard are a picture and its caption; ``000.json`` may hold the caption in a column,
``000.cls`` a class. The key is a member's name up to the first dot of its last part. Shards are read in the order of
their names: a file ``x.tar``, a folder of such, or a pattern, ``shards/{000..003}.tar``. They are not unpacked: a
picture is read from its place in the shard.
"""

import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

from dagdiff.checkpoint import cache_folder, content_hash, save_json
from dagdiff.checks import Refusal, first_line
from dagdiff.envs.picture_files import picture_suffixes, reasons
from dagdiff.envs.streams import Stream, digest
from dagdiff.reading import MEGABYTE, parse_json, read_json


def find_shards(source: str) -> list[Path]:
    """Return the shards that a file, a folder or a pattern names, in the order of their names; none of other sources.

    A folder is one of shards if it holds .tar files and neither pictures nor folders.

    Raises:
        Refusal: for a pattern of which a shard is missing, and for packed shards.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        shards = [file for file in files if file.suffix.lower() == ".tar"]
        packed = [file for file in files if _is_packed(file.name)]
        others = any(file.is_dir() or file.suffix.lower() in picture_suffixes() for file in files)
        if packed and not others:
            raise _packed(packed[0])
        return [] if others else shards
    if _is_packed(source):
        raise _packed(path)
    if not source.lower().endswith(".tar"):
        return []
    shards = [Path(name) for name in expanded(source)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise Refusal(
            f"no shard at {missing[0]} ({len(missing)} of {len(shards)} are missing). Name a .tar file, a folder of "
            "such, or a pattern such as shards/{000..003}.tar."
        )
    return shards


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern with ranges, ``{000..003}``, and lists, ``{a,b}``, stands for."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if place % 2 == 0 else _choices(part, pattern) for place, part in enumerate(parts)]
    return ["".join(each) for each in itertools.product(*choices)]


def read_shards(
    source: str, shards: Sequence[Path], usual: Sequence[str], column: str | None = None, text: bool = True
) -> Stream:
    """Return the pictures of shards.

    Args:
        source: as the user names them.
        shards: the files.
        usual: names that a column of captions may have in ``.json`` members.
        column: of captions; None takes the first of the usual names.
        text: take the captions, where there are any; else the classes.

    Raises:
        Refusal: for a shard that is broken, no picture in any, or a picture without a caption beside others that have
            one.
    """
    key = digest(shards, shards[0].parent)
    path = cache_folder() / "shards" / f"{content_hash(f'{key} {column} {list(usual)}')[:16]}.json"
    if not path.exists():
        found = [_members(number, shard, usual, column) for number, shard in enumerate(shards)]
        save_json(path, [list(member) for members in found for member in members])
    kept = [_Member(*each) for each in read_json(path, [[(int, str)]], 1024 * MEGABYTE)]
    skipped = Counter(member.skipped for member in kept if member.skipped)
    members = [member for member in kept if not member.skipped]
    if not members:
        raise Refusal(f"no picture in {source}{reasons(skipped)}. Name shards that hold png, jpg or other pictures.")
    words = _words(source, shards, members, "caption") if text else []
    kind = "caption" if words else "class"
    words = words or _words(source, shards, members, "label")
    return Stream(
        source=source, hashed=lambda: key, count=len(members), told=words, kind=kind, skipped=skipped,
        open=partial(_open, shards, members), note=f"; {len(shards)} shards",
    )  # fmt: skip


class _Member(NamedTuple):
    """A picture in a shard, or what is no picture."""

    shard: int
    name: str
    offset: int
    size: int
    caption: str
    label: str
    skipped: str
    """Why it is left out; "" of a picture."""


def _members(number: int, shard: Path, usual: Sequence[str], column: str | None) -> list[_Member]:
    """The pictures of a shard with their captions, and the members that are none."""
    name = "its first member"
    pictures: dict[str, tarfile.TarInfo] = {}
    told: dict[str, dict[str, str]] = {}
    skipped: list[str] = []
    try:
        with shard.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                name = member.name
                folder, _, last = name.rpartition("/")
                stem, _, end = last.partition(".")
                key, end = f"{folder}/{stem}", end.lower()
                if not member.isfile() or last.startswith("."):
                    skipped += ["hidden"] if member.isfile() else []
                elif f".{end}" in picture_suffixes():
                    if key in pictures:
                        raise Refusal(f"{shard} holds two pictures of one key, {name}. Give each a key of its own.")
                    pictures[key] = member
                elif end in _TEXTS:
                    told.setdefault(key, {}).update(_told(shard, archive, member, end, usual, column))
                else:
                    skipped.append(f".{end}" if end else "without a suffix")
            raw.seek(archive.offset)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no mark of an end follows")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{shard} is broken after {name} ({first_line(error)}). Fetch or write it again.") from None
    skipped += ["texts without a picture" for key in told if key not in pictures]
    found = [
        _Member(number, each.name, each.offset_data, each.size, words.get("caption", ""), words.get("label", ""), "")
        for key, each in pictures.items()
        for words in [told.get(key, {})]
    ]
    return [*found, *(_Member(number, "", 0, 0, "", "", why) for why in skipped)]


def _told(
    shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, end: str, usual: Sequence[str], column: str | None
) -> dict[str, str]:
    """What a member says of the picture of its key."""
    place = f"{member.name} in {shard}"
    if member.size > MEGABYTE:
        raise Refusal(f"{place} has {member.size:,} bytes, too many for a caption. Take it away.")
    file = archive.extractfile(member)
    raw = b"" if file is None else file.read()
    if len(raw) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{place} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from None
    if end != "json":
        return {"label" if end == "cls" else "caption": " ".join(text.split())}
    content = parse_json(text, place, strict=False)
    names = (column,) if column else usual
    value = next((content[name] for name in names if name in content), None) if isinstance(content, dict) else None
    return {"caption": " ".join(value.split())} if isinstance(value, str) and value.strip() else {}


def _words(source: str, shards: Sequence[Path], members: Sequence[_Member], what: str) -> list[str]:
    """The caption or label of each picture; none where no picture has one."""
    words = [str(getattr(member, what)) for member in members]
    without = [member for member, word in zip(members, words, strict=True) if not word]
    if without and len(without) < len(words):
        end = "txt" if what == "caption" else "cls"
        stem = without[0].name.rpartition(".")[0]
        raise Refusal(
            f"{len(without)} of {len(words)} pictures in {source} have no {what}, such as {without[0].name} in "
            f"{shards[without[0].shard]}. Put {stem}.{end} beside it, or take all {what}s away."
        )
    return [] if without else words


def _open(shards: Sequence[Path], members: Sequence[_Member], row: int) -> tuple[str, IO[bytes]]:
    """The name of a picture, and a file of its bytes."""
    member = members[row]
    with shards[member.shard].open("rb") as file:
        file.seek(member.offset)
        return f"{member.name} in {shards[member.shard]}", BytesIO(file.read(member.size))


def _choices(text: str, pattern: str) -> list[str]:
    """What stands between two braces: a range of numbers, or words with commas."""
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if ends is None:
        return text.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not first <= last < first + _MOST:
        raise Refusal(f"the range {{{text}}} in {pattern} must rise, to {_MOST:,} shards at most. Write {{000..003}}.")
    return [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]


def _is_packed(name: str) -> bool:
    return name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))


def _packed(path: Path) -> Refusal:
    return Refusal(f"{path} is packed, and pictures are read from their places in a shard. Unpack it to a .tar file.")


_TEXTS = ("txt", "caption", "json", "cls")
_MOST = 100_000  # shards of a pattern
