"""The one reader of dagdiff's own text files, JSON and YAML: bounded in size and depth, and strict in types.

A file may have been cut off, changed or made by somebody else. What it holds is data of a known kind, or one line says
what is wrong with it. Kinds are written as Python writes them:

>>> check_kind({"t": [1.0, 0.5], "name": "cosine"}, {"t": [float], "name": str, "eta?": (float, None)}, "student.json")

``float`` takes whole numbers too, ``[kind]`` is a list of them, ``(a, b)`` either, ``{str: kind}`` any names, and a
name with ``?`` may be missing. Names that a kind does not know are left alone: newer versions write more.
"""

import contextlib
import csv
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal, first_line

Kind = Any
"""What a value may be; see above."""

MEGABYTE = 2**20
DEPTH = 32
"""How deep containers may lie within each other."""


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table that :func:`dagdiff.checkpoint.save_csv` wrote, each by its columns' names."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def read_text(path: Path, most: int = 64 * MEGABYTE) -> str:
    """Return the text of an ordinary file in UTF-8, without a byte-order mark.

    Args:
        path: the file.
        most: bytes that it may hold.

    Raises:
        Refusal: if it is missing, no file, larger, or not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 at byte {error.start:,}. Make it again, or save it as UTF-8.") from None


def read_bytes(path: Path, most: int, cure: str = "Make it again, or name another.") -> bytes:
    """Return the content of an ordinary file; a pipe or a device may have no end, and is rejected.

    Args:
        path: the file.
        most: bytes that it may hold.
        cure: what to do where it can't be read.

    Raises:
        Refusal: if it is missing, no file, or larger.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Refusal(f"{path} can't be read (it is no file). {cure}")
        if found.st_size > most:
            raise Refusal(f"{path} can't be read ({found.st_size:,} bytes, and {most:,} is the most). {cure}")
        with path.open("rb") as file:
            return file.read(most)
    except Refusal:
        raise
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        raise Refusal(f"{path} can't be read ({_reason(error)}). {cure}") from None


def read_json(path: Path, kind: Kind = dict, most: int = 64 * MEGABYTE) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        kind: what it must be.
        most: bytes that it may hold.

    Raises:
        Refusal: if it can't be read, is not JSON as JSON is defined, or holds something else.
    """
    content = parse_json(read_text(path, most), str(path))
    check_kind(content, kind, str(path))
    return content


def parse_json(text: str, name: str, strict: bool = True) -> Any:
    """Return what JSON text means: no whole number of many digits, nothing too deep.

    Args:
        text: the JSON.
        name: of the file, or of the place in it.
        strict: reject also what JSON's own rules lack and some programs write: NaN, infinity, a name twice.

    Raises:
        Refusal: names the file, or the place in it, and what is wrong.
    """

    def unknown(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON's")

    rules: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": unknown, "parse_float": _number}
    try:
        content = json.loads(text, parse_int=_whole, **(rules if strict else {}))
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else first_line(error)
        raise Refusal(f"{name} is not JSON ({reason:.200}). Make it again, or name another.") from None
    check_depth(content, name)
    return content


def parse_yaml(text: str, name: str) -> Any:
    """Return what YAML text means; no name twice, and no aliases, a few of which make a text of any size.

    Raises:
        Refusal: names the file and what is wrong.
    """
    import yaml

    try:
        content = yaml.load(text, Loader=_loader())
    except (ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else _yaml_reason(error)
        raise Refusal(f"{name} can't be read: {reason:.200}. Give a YAML file of settings.") from None
    check_depth(content, name)
    return content


def has_aliases(text: str) -> bool:
    """Whether text, read as YAML, has aliases (``*name``)."""
    if "&" not in text or "*" not in text:
        return False
    import yaml

    with contextlib.suppress(yaml.YAMLError):
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
    return False


def to_yaml(content: Any) -> str:
    """Return content as YAML in its own order, without aliases: what stands there twice is written twice."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False))


def check_depth(content: Any, name: str, most: int = DEPTH) -> None:
    """Reject containers that lie too deep within each other."""
    left = [(content, 0)]
    while left:
        value, depth = left.pop()
        if depth > most:
            raise Refusal(f"{name} is too deep: more than {most} containers within each other. Make it again.")
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        left += [(each, depth + 1) for each in inner]


def check_kind(content: Any, kind: Kind, name: str, where: str = "") -> None:
    """Reject content that is not of a kind, and say where it differs first.

    Raises:
        Refusal: names the file, the place, what is there and what should be.
    """
    if isinstance(kind, tuple):
        if not any(_fits(content, each) for each in kind):
            plain = next((each for each in kind if isinstance(content, _outer(each))), None)
            if plain is None or not isinstance(plain, list | dict):
                raise _wrong(content, " or ".join(map(_word, kind)), name, where)
            check_kind(content, plain, name, where)
        return
    if not _fits_outside(content, kind):
        raise _wrong(content, _word(kind), name, where)
    if isinstance(kind, list):
        for number, value in enumerate(content):
            check_kind(value, kind[0], name, f"{where}[{number}]")
    elif isinstance(kind, dict):
        for key, wanted in kind.items():
            if key is str:
                for own, value in content.items():
                    check_kind(value, wanted, name, f"{where}.{own}")
                continue
            plain = key.removesuffix("?")
            if plain in content:
                check_kind(content[plain], wanted, name, f"{where}.{plain}")
            elif plain == key:
                raise Refusal(f"{name} lacks {_place(f'{where}.{key}')}. Make it again, or copy it whole.")


def _fits(content: Any, kind: Kind) -> bool:
    try:
        check_kind(content, kind, "")
    except Refusal:
        return False
    return True


def _outer(kind: Kind) -> type:
    """The Python type of a kind's outside."""
    return type(kind) if isinstance(kind, list | dict) else type(None) if kind is None else kind


def _fits_outside(content: Any, kind: Kind) -> bool:
    if kind is Any:
        return True
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(content, numbers) and not isinstance(content, bool)
    return isinstance(content, _outer(kind))


def _wrong(content: Any, wanted: str, name: str, where: str) -> Refusal:
    plain = isinstance(content, str | int | float | None)
    got = repr(content) if plain else f"{'an' if _word(type(content))[0] in 'aeiou' else 'a'} {_word(type(content))}"
    got = got if len(got) <= 60 else f"{got[:57]}..."
    place = f" at {_place(where)}" if where else ""
    return Refusal(f"{name} holds {got}{place}, where {wanted} belongs. Make it again, or copy it whole.")


def _place(where: str) -> str:
    place = where.removeprefix(".")
    return place if len(place) <= 80 else f"{place[:77]}..."


def _word(kind: Kind) -> str:
    """A kind in JSON's words."""
    outer = _outer(kind) if kind is not Any else object
    return _WORDS.get(outer, getattr(outer, "__name__", str(outer)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.60} stands there twice")
    return found


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is beyond reach")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _yaml_reason(error: Exception) -> str:
    """What is wrong with YAML and where, in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    told = problem or first_line(error)
    return told if mark is None else f"{told} (line {mark.line + 1}, column {mark.column + 1})"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _loader() -> Any:
    """PyYAML's safe loader, without aliases, and strict about names."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep)
            if isinstance(node, yaml.MappingNode) and len(found) < len(node.value):
                keys = [str(key.value) for key, _ in node.value]
                twice = next((key for key in keys if keys.count(key) > 1), keys[0])
                told = f"{twice!r:.60} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
            return found

    return Loader


_DIGITS = 400  # of a whole number: more than a double's largest has
_WORDS = {
    dict: "object", list: "list", str: "text", int: "whole number", float: "number", bool: "true or false",
    type(None): "null", object: "anything",
}  # fmt: skip
