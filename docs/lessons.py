"""MkDocs hook: the executed notebooks as pages under lessons/, with their pictures as files beside them.

Links to notebooks in other pages, which serve readers of the repository, lead to these pages on the site.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
_LINK = re.compile(r"\]\((?:\.\./)+notebooks/(\S+?)\.ipynb\)")
_FENCE = "`" * 3


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and a file for each of its pictures."""
    for path in sorted(NOTEBOOKS.rglob("[0-9][0-9]_*.ipynb")):
        name = path.relative_to(NOTEBOOKS).with_suffix("")
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(lesson(path, pictures))
        files.append(File.generated(config, f"lessons/{name.as_posix()}.md", content=text))
        for each, content in pictures.items():
            files.append(File.generated(config, f"lessons/{(name.parent / each).as_posix()}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to notebooks to the pages made from them."""
    up = "../" * page.file.src_uri.count("/")
    return _LINK.sub(rf"]({up}lessons/\1.md)", markdown)


def lesson(path: Path, pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield the parts of a notebook as Markdown, and collect its pictures by file name."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield _links(source)
            continue
        yield f"{_FENCE}python\n{source}\n{_FENCE}"
        for output in cell["outputs"]:
            yield _output(output, pictures, path.stem)


def _links(text: str) -> str:
    """Links of a notebook, which lead to files of the repository, as links of the site."""
    text = re.sub(r"\]\(((?:\.\./)*)(?!http)(\S+?)\.ipynb\)", r"](\1\2.md)", text)
    return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", text)


def _output(output: dict[str, Any], pictures: dict[str, bytes], stem: str) -> str:
    data = output.get("data", {})
    if "text/html" in data and "data:image/gif" in (html := "".join(data["text/html"])):
        return html
    if "image/png" in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        return f"![figure {len(pictures)} of this lesson]({name})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"{_FENCE}text\n{text.rstrip()}\n{_FENCE}"
