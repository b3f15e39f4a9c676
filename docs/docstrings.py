"""Griffe extension: the little reST that dagdiff's docstrings use, as Markdown.

Cross references (``:class:`X```), formulas (``:math:`` and ``.. math::``), simple tables, doctest lines, and arguments
that share a line (``width, depth: of the hidden layers``).
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import griffe

_ROLE = re.compile(r":(class|func|meth|mod|data|attr|exc|obj):`~?([\w.]+)`")
_URL = re.compile(r"(?<![<\w(`\"])https?://[\w./%-]*[\w/]")
_SHARED = re.compile(r"^(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*)$")


class RestDocstrings(griffe.Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Visit every object of the package."""
        for each in _objects(pkg):
            if each.docstring:
                each.docstring.value = rewrite(each.docstring.value, each) + _fields(each)


def rewrite(text: str, owner: griffe.Object) -> str:
    """Return the docstring as Markdown."""
    lines = _tables(_examples(_shared(text.split("\n"))))
    text = re.sub(r"\.\. math:: (.+)", r"$$\1$$", "\n".join(lines))
    text = re.sub(r":math:`(.+?)`", r"$\1$", text)
    text = _URL.sub(r"<\g<0>>", text)
    return _ROLE.sub(lambda found: _reference(found[2], owner), text)


def _fields(owner: griffe.Object) -> str:
    """A line with the fields of a named tuple, which have no signature and no docstrings of their own."""
    if not isinstance(owner, griffe.Class) or "NamedTuple" not in [str(base) for base in owner.bases]:
        return ""
    fields = [each for each in owner.attributes.values() if each.annotation and "property" not in each.labels]
    shown = [f"`{each.name}: {each.annotation}{f' = {each.value}' if each.value else ''}`" for each in fields]
    return "\n\nFields: " + ", ".join(shown) + "."


def _objects(owner: griffe.Object) -> Iterator[griffe.Object]:
    yield owner
    for member in owner.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _reference(name: str, owner: griffe.Object) -> str:
    """A link to ``name`` as ``owner`` sees it; plain code where the reference does not hold it."""
    first, _, rest = name.partition(".")
    try:
        path = name if first == "dagdiff" else ".".join(filter(None, [owner.resolve(first), rest]))
    except griffe.NameResolutionError:
        return f"`{name}`"
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'


def _shared(lines: Sequence[str]) -> Iterator[str]:
    """Give each of several arguments on one line its own line."""
    section, rest = False, iter(lines)
    for line in rest:
        section = line.strip() in ("Args:", "Attributes:") or (section and (not line or line.startswith(" ")))
        found = _SHARED.match(line) if section else None
        if found:
            yield from (f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))
        else:
            yield line


def _examples(lines: Iterator[str]) -> Iterator[str]:
    """Fence lines of a Python session."""
    inside = False
    for line in lines:
        session = line.lstrip().startswith((">>> ", "... ")) and (inside or line.lstrip().startswith(">>>"))
        if session != inside:
            yield "```python" if session else "```"
        inside = session
        yield line.strip()[4:].replace("  # doctest: +SKIP", "") if session else line
    if inside:
        yield "```"


def _tables(lines: Iterator[str]) -> Iterator[str]:
    """Turn simple tables, columns under ``====``, into Markdown's."""
    rows: list[str] = []
    borders: list[int] = []
    for line in lines:
        if re.fullmatch(r"=+(  +=+)+", line.strip()):
            borders.append(len(rows))
            rows.append(line)
        elif borders and line.strip():
            rows.append(line)
        else:
            yield from _table(rows, borders)
            rows, borders = [], []
            yield line
    yield from _table(rows, borders)


def _table(rows: list[str], borders: list[int]) -> Iterator[str]:
    if len(borders) < 2:
        yield from rows
        return
    starts = [found.start() for found in re.finditer("=+", rows[0])]
    gaps = [start - 1 for start in starts[1:]]
    if any(row[gap : gap + 1].strip() for row in rows for gap in gaps if not row.startswith("=")):
        yield from ["```text", *rows, "```"]  # no table any more: columns have run into each other
        return
    columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    parts = [_cells(rows[first + 1 : last], columns) for first, last in pairwise(borders)]
    header = parts.pop(0) if len(parts) > 1 else []
    yield "| " + " | ".join(header[0] if header else [" "] * len(columns)) + " |"
    yield "|" + "---|" * len(columns)
    for cells in parts[0]:
        yield "| " + " | ".join(cells) + " |"


def _cells(lines: list[str], columns: list[slice]) -> list[list[str]]:
    """Rows of cells; a line whose first cell is empty, or the only one, goes on with the row before."""
    table: list[list[str]] = []
    for line in lines:
        cells = [line[column].strip().replace("|", r"\|") for column in columns]
        if table and (not cells[0] or not any(cells[1:])):
            table[-1] = [" ".join(filter(None, pair)) for pair in zip(table[-1], cells, strict=True)]
        else:
            table.append(cells)
    return table
