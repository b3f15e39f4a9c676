"""Lessons and solutions: each source has its executed notebook beside it, and runs from its first cell to its last."""

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
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
SOURCES = [*LESSONS, *(FOLDER / "solutions" / path.name for path in LESSONS)]
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
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")


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


def test_sources_notebooks_and_solutions_pair_up() -> None:
    assert len(LESSONS) == 7
    assert sorted(path.with_suffix(".ipynb") for path in SOURCES) == sorted(FOLDER.rglob("*.ipynb"))
    assert tool.sources([]) == SOURCES and tool.sources(["02"]) == [SOURCES[1], SOURCES[8]]


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_ends_in_exercises(source: Path) -> None:
    _, found, exercises = source.read_text(encoding="utf-8").rpartition("# ## Exercises\n")
    assert found and f"(solutions/{source.stem}.ipynb)" in exercises
    answers = (FOLDER / "solutions" / source.name).read_text(encoding="utf-8")
    for kind in ("Predict", "Change one thing", "Explain"):
        assert exercises.count(f"**{kind}.**") == answers.count(f"# ## {kind}\n") == 1


def test_every_notebook_begins_alike() -> None:
    """It installs dagdiff where it is missing, from the address that pyproject.toml names, and turns figures on."""
    (first,) = {next(cell.source for cell in tool.read(source).cells if cell.cell_type == "code") for source in SOURCES}
    (home,) = re.findall(r'(?m)^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert f'"git+{home}"' in first and "\n%matplotlib inline\n" in first
    colab = home.replace("https://github.com/", "https://colab.research.google.com/github/")
    for source in SOURCES:
        place = source.with_suffix(".ipynb").relative_to(ROOT).as_posix()
        assert f"[Open in Colab][colab]\n\n[colab]: {colab}/blob/main/{place}" in tool.read(source).cells[0].source


def test_the_first_cell_installs_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda words, check: calls.append(words))
    code = next(cell.source for cell in tool.read(SOURCES[0]).cells if cell.cell_type == "code")
    plain = code.replace("%matplotlib inline\n", "")
    for folder, wanted in ((FOLDER, str(ROOT)), (tmp_path, "git+https://")):
        monkeypatch.chdir(folder)
        exec(plain, {})
        assert calls[-1][1:5] == ["-m", "pip", "install", "--quiet"] and calls[-1][5].startswith(wanted)


@every_source
def test_the_saved_notebook_is_its_source(source: Path) -> None:
    """An edited source must be executed anew: `make notebooks`."""
    told, kept = tool.read(source).cells, saved(source).cells
    assert [(cell.cell_type, cell.source) for cell in kept] == [(cell.cell_type, cell.source) for cell in told]


@every_source
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


def test_progress_is_not_saved_and_warnings_are() -> None:
    told = "dagdiff: training: 400 of 1200 updates (33 %), 1 min 10 s passed, about 2 min left\n"
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in (told * 2, told + "a warning\n")]
    assert [tool.is_progress(output) for output in outputs] == [True, False]
    assert not tool.is_progress(nbformat.v4.new_output("stream", name="stdout", text=told))


@pytest.mark.slow
@every_source
def test_the_lesson_runs(
    source: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a small size, in a folder of its own, where it leaves nothing behind."""
    monkeypatch.setenv("DAGDIFF_FAST", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")  # a setting of servers, under which notebooks must have figures
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    copy = Path(shutil.copy(source, tmp_path))
    notebook = tool.execute(copy, tmp_path)
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert list(tmp_path.iterdir()) == [copy]
