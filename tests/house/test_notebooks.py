"""The lessons: each source has its executed notebook beside it, and runs from its first cell to its last."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

pytest.importorskip("jupytext", reason="needs the dev extra")
pytest.importorskip("nbclient", reason="needs the dev extra")
import nbformat

FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LARGEST = 1_500_000
ABSOLUTE = re.compile(
    r"(?<![\w.:/])/(home|root|Users|tmp|work|usr|opt|var|private)/|[A-Z]:\\\\|site-packages|ipykernel_\d"
)


def load_tool() -> Any:
    """notebooks/execute.py, which is no package."""
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


tool = load_tool()
every_lesson = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def saved(source: Path) -> Any:
    return nbformat.read(str(source.with_suffix(".ipynb")), as_version=4)


def outputs(notebook: Any) -> Iterator[Any]:
    return (output for cell in notebook.cells for output in cell.get("outputs", []))


def texts(output: Any) -> Iterator[str]:
    """All of an output that is text; pictures are left out."""
    if output.output_type == "stream":
        yield output.text
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield re.sub(r"data:image/[^\"]*", "", value)


def test_lessons_and_notebooks_pair_up() -> None:
    assert len(SOURCES) == 6
    assert [path.stem for path in SOURCES] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@every_lesson
def test_the_saved_notebook_is_its_source(source: Path) -> None:
    """An edited source must be executed anew: `make notebooks`."""
    told, kept = tool.read(source).cells, saved(source).cells
    assert [(cell.cell_type, cell.source) for cell in kept] == [(cell.cell_type, cell.source) for cell in told]


@every_lesson
def test_outputs_are_there_clean_and_small(source: Path) -> None:
    notebook = saved(source)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    made = list(outputs(notebook))
    assert not [output for output in made if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in made)
    for text in (text for output in made for text in texts(output)):
        assert not ABSOLUTE.search(text), text
    assert not ABSOLUTE.search(str(notebook.metadata))
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST


@pytest.mark.slow
@every_lesson
def test_the_lesson_runs(
    source: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a small size, in a folder of its own, where it leaves nothing behind."""
    monkeypatch.setenv("DAGDIFF_FAST", "1")
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    copy = Path(shutil.copy(source, tmp_path))
    notebook = tool.execute(copy, tmp_path)
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert list(tmp_path.iterdir()) == [copy]
