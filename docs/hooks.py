"""MkDocs hook: turn formulas into MathML, which browsers draw themselves, without a script or a font."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z])(?<!\\text\{)[A-Za-z]{2,}(?![A-Za-z])")


def on_page_content(content: str, **_: Any) -> str:
    """Replace what ``pymdownx.arithmatex`` marked: ``$...$`` in a line, ``$$...$$`` on its own."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    tag, formula = found.groups()
    worded = _WORD.sub(
        r"\\text{\g<0>}", html.unescape(formula).strip()
    )  # "mean" is a word, not m times e times a times n
    drawn = convert(worded, display="block" if tag == "div" else "inline")
    return f'<{tag} class="formula">{drawn}</{tag}>'
