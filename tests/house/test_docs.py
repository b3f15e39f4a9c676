"""The documentation: nothing is missing, its code runs, its links lead somewhere, and the site fetches nothing."""

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import ROOT
from PIL import Image

import dagdiff
from dagdiff.cli import main
from dagdiff.metrics.shift import StepShift
from dagdiff.report.glossary import METRICS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TINY = "--updates 4 --rounds 2 --chains 8 --batch_size 16 --heldout 8 --samples 50 --device cpu"
WIDEST = 88  # characters of a line of code that a page shows without scrolling
WINGS = ("envs", "policies", "benchmarks")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def modules() -> list[str]:
    """Every public module, as it is imported."""
    folders = {"dagdiff": ROOT / "dagdiff", **{f"dagdiff.{wing}": ROOT / wing for wing in WINGS}}
    links = [ROOT / "dagdiff" / wing for wing in WINGS]
    found = {
        ".".join([package, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
        for package, folder in folders.items()
        for file in folder.rglob("*.py")
        if package != "dagdiff" or not any(link in file.parents for link in links)
    }
    return sorted(name for name in found - {"dagdiff"} if not any(part.startswith("_") for part in name.split(".")))


@pytest.fixture(scope="module")
def make_tables() -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("make_tables")
    finally:
        sys.path.remove(str(DOCS))


def test_every_public_module_is_in_the_reference() -> None:
    told = {
        name for page in (DOCS / "reference").glob("*.md") for name in re.findall(r"(?m)^::: (\S+)", page.read_text())
    }
    assert told == set(modules()), "add or remove `::: MODULE` in a page of docs/reference"


def test_every_public_name_is_on_the_first_page_of_the_reference() -> None:
    told = set(re.findall(r"\[`(\w+)`\]", text_of("reference/index.md")))
    assert set(dagdiff.__all__) - {"__version__"} <= told


def test_every_metric_is_in_the_glossary() -> None:
    told = set(re.findall(r"`(\w+)`", text_of("metrics.md")))
    assert set(METRICS) <= told
    assert {field.name for field in dataclasses.fields(StepShift)} <= told


def test_the_tables_of_commands_are_those_of_the_program(make_tables: ModuleType) -> None:
    text = text_of("commands.md")
    assert make_tables.filled(text, make_tables.commands()) == text, "run: python docs/make_tables.py"


@pytest.mark.parametrize(("page", "tables"), [("settings.md", "recipes"), ("reproduce.md", "reproduced")])
def test_recipes_and_commands_are_those_of_the_program(page: str, tables: str, make_tables: ModuleType) -> None:
    text = text_of(page)
    assert make_tables.filled(text, getattr(make_tables, tables)()) == text, "run: python docs/make_tables.py"


def test_a_command_over_several_lines_is_the_same_command(make_tables: ModuleType) -> None:
    line = 'dagdiff bench images --settings \'{"expert": {"class": "unet"}}\' ' + " ".join(
        f"--option{i} {i}" for i in range(20)
    )
    lines = list(make_tables._wrapped(line))
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == shlex.split(line)
    assert len(lines) > 2 and all(each.startswith("  ") for each in lines[1:])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])
def test_no_code_is_cut_at_the_right(page: Path) -> None:
    for kind, block in re.findall(r"(?ms)^```(.*?)\n(.*?)^```", page.read_text(encoding="utf-8")):
        for line in () if kind == "text" else block.splitlines():  # output wraps
            assert len(line) <= WIDEST or len(line.strip(" \\").split()) <= 2, "only one word may be longer"


def test_every_command_is_told() -> None:
    from dagdiff.cli import COMMANDS

    assert set(re.findall(r"(?m)^## dagdiff (\w+)$", text_of("commands.md"))) == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"\]\[(dagdiff[\w.]*)\]", text):
        assert _there(path), path


def _there(path: str) -> bool:
    """Whether a dotted path names a module, or something in one."""
    names = path.split(".")
    for cut in range(len(names), 0, -1):
        try:
            found: object = importlib.import_module(".".join(names[:cut]))
        except ModuleNotFoundError:
            continue
        for name in names[cut:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks of extending.md: what follows the language, and the code."""
    return re.findall(rf"```{language}(.*?)\n(.*?)```", text_of("extending.md"), flags=re.DOTALL)


def commands() -> list[str]:
    lines = (line for _, block in blocks("sh") for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("dagdiff ")]


@pytest.fixture
def mine(own_folder: Path) -> None:
    """The page's own module, in a folder to work in."""
    (own_folder / "mine.py").write_text("\n".join(code for told, code in blocks("python") if "mine.py" in told))


def test_extending_has_commands_and_code() -> None:
    assert len(commands()) == 8
    assert len(blocks("python")) == 11


@pytest.mark.parametrize("line", commands(), ids=lambda line: line.split("--out runs/")[-1])
@pytest.mark.usefixtures("mine")
def test_the_commands_of_extending_run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(f"{line} {TINY}")[1:]
    assert main(words) == 0, capsys.readouterr().err
    assert (Path(words[words.index("--out") + 1]) / "student.safetensors").exists()


def test_the_environment_of_extending_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (code for told, code in blocks("python") if not told)
    names: dict[str, object] = {}
    exec(compile(code.replace("rounds=20", "rounds=2"), "extending.md", "exec"), names)
    assert names["points"].shape == (500, 2)  # type: ignore[attr-defined]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_program_of_does_it_drift_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text_of("does-it-drift.md"), flags=re.DOTALL)
    exec(compile(code, "does-it-drift.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert "the student errs at every step" in "\n".join(lines) and len(lines[-1].split()) == 5


def test_the_loop_and_the_chain_of_extending_run(capsys: pytest.CaptureFixture[str]) -> None:
    loop, chain = (code for told, code in blocks("python") if "loop.py" in told or "chain.py" in told)
    names: dict[str, Any] = {}
    exec(compile(loop.replace("rounds=20", "rounds=2"), "extending.md", "exec"), names)
    assert names["points"].shape == (2000, 2) and len(capsys.readouterr().out.splitlines()) == 2
    exec(compile(chain, "extending.md", "exec"), names)
    assert set(names["observation"]) == {"x_t", "t", "s", "step"}


def test_the_reward_of_extending_prefers_the_label(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's figures: the label returns 0 and ends at the target, the expert's plain prediction neither."""
    (code,) = (code for told, code in blocks("python") if "returns.py" in told)
    torch.manual_seed(0)
    exec(compile(code, "extending.md", "exec"), {})
    label, plain = (
        [float(word) for word in line.strip("()").split(",")] for line in capsys.readouterr().out.split("\n")[:2]
    )
    assert label[0] == 0.0 and abs(label[1]) < 0.003
    assert -0.16 < plain[0] < -0.12 and 0.009 < plain[1] < 0.018


def test_the_program_of_inside_the_loop_runs(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text_of("inside-the-loop.md"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code.replace("rounds=20", "rounds=2").replace("* 100", "* 3"), "inside-the-loop.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 2 + 6 + 3
    assert (own_folder / "states.safetensors").exists()


@pytest.mark.slow
def test_the_floors_are_those_that_the_program_measures(make_tables: ModuleType) -> None:
    text = text_of("metrics.md")
    with torch.random.fork_rng(devices=[]):
        assert make_tables.filled(text, make_tables.floors()) == text, "run: python docs/make_tables.py"


@pytest.mark.slow
def test_the_slides_are_drawn_by_one_command(tmp_path: Path) -> None:
    (line,) = (line for line in text_of("teaching.md").splitlines() if line.startswith("python docs/make_slides.py"))
    words = [sys.executable, *line.split()[1:-1], str(tmp_path / "slides")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    drawn = [Path(name) for name in done.stdout.splitlines()]
    slides = text_of("teaching.md").partition("## Slides")[2]
    assert len(drawn) == len(re.findall(r"(?m)^\| \d ", slides)) and all(path.stat().st_size > 10_000 for path in drawn)
    with Image.open(drawn[0]) as first:
        assert first.size == (1920, 1080)


class Requests(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href", ""))
        self.found += [given[name] for name in ("src", "srcset", "poster", "data") if name in given]


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the `docs` extra: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    built = sorted((tmp_path / "site").rglob("*.html"))
    lessons = list((ROOT / "notebooks").rglob("*.ipynb"))
    assert len(built) == len(PAGES) + len(lessons) + 1  # and 404.html
    for notebook in lessons:
        shown = (tmp_path / "site/lessons" / notebook.relative_to(ROOT / "notebooks").with_suffix(".html")).read_text()
        assert "<img" in shown and "Open in Colab" in shown
    for page in built:
        text = page.read_text(encoding="utf-8")
        reader = Requests()
        reader.feed(text)
        assert [url for url in reader.found if re.match(r"(\w+:)?//", url)] == [], page.name
        assert "arithmatex" not in text, f"{page.name} holds a formula that was not drawn"
        assert re.findall(r":(?:class|func|meth|mod|data|math):", text) == [], f"{page.name} shows reST"
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert re.findall(r"""(?:@import|url\()\s*["']?(?:\w+:)?//""", sheet.read_text(encoding="utf-8")) == []
