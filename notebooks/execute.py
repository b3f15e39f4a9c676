"""Execute the lessons and save them with their outputs: `python notebooks/execute.py [01 03 ...]`, or `make notebooks`.

A lesson's source is NN_name.py (jupytext percent format); this writes NN_name.ipynb beside it. Nothing that belongs to
one machine or one moment is kept: no timings, no kernel's version, no random cell ids.
"""

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, write

HERE = Path(__file__).parent


def sources(prefixes: list[str]) -> list[Path]:
    """Return the lessons whose names start with one of ``prefixes``, or all of them."""
    return [path for path in sorted(HERE.glob("[0-9][0-9]_*.py")) if path.name.startswith(tuple(prefixes) or "")]


def read(source: Path) -> NotebookNode:
    """Return the lesson without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    return notebook


def execute(source: Path, folder: Path) -> NotebookNode:
    """Return the lesson executed in ``folder``; raise CellExecutionError where a cell fails."""
    notebook = read(source)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, kernel_name="python3", coalesce_streams=True, timeout=600, record_timing=False, resources=place
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for source in sources(sys.argv[1:]):
        print(source.stem, flush=True)
        write(execute(source, HERE), source.with_suffix(".ipynb"))
