"""Execute lessons and solutions and save them with their outputs: `python notebooks/execute.py [01 03 ...]`.

A source is NN_name.py (jupytext percent format), of a lesson here and of its solutions in solutions/; this writes
NN_name.ipynb beside it and prints how long it took, by the clock and in time of the processor. `make notebooks` does
all. Nothing that belongs to one machine or one moment is saved: no timings, no progress, no kernel's version, no random
cell ids. The first cell of each source turns figures on, whatever MPLBACKEND says.
"""

import resource
import sys
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, write

HERE = Path(__file__).parent


def sources(prefixes: list[str]) -> list[Path]:
    """Return the lessons and solutions whose names start with one of ``prefixes``, or all of them."""
    found = [*sorted(HERE.glob("[0-9][0-9]_*.py")), *sorted(HERE.glob("solutions/[0-9][0-9]_*.py"))]
    return [path for path in found if path.name.startswith(tuple(prefixes) or "")]


def read(source: Path) -> NotebookNode:
    """Return the notebook without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    return notebook


def execute(source: Path, folder: Path) -> NotebookNode:
    """Return the notebook executed in ``folder``; raise CellExecutionError where a cell fails."""
    notebook = read(source)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, kernel_name="python3", coalesce_streams=True, timeout=600, record_timing=False, resources=place
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def is_progress(output: NotebookNode) -> bool:
    """Whether an output says only how far a work is, which a slow machine shows and a fast one does not."""
    lines = output.get("text", "").splitlines() if output.get("name") == "stderr" else [""]
    return all(line.startswith("dagdiff: ") and " passed" in line for line in lines)


if __name__ == "__main__":
    for source in sources(sys.argv[1:]):
        started, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        write(execute(source, source.parent), source.with_suffix(".ipynb"))
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
        name = source.relative_to(HERE).with_suffix("")
        print(f"{name}: {time.perf_counter() - started:.0f} s, {busy:.0f} s of the processor", flush=True)
