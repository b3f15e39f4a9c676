"""The house's import rules: who may import whom, and what stays unloaded until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

import dagdiff

# The rooms, top down: a room imports only itself and rooms before it. A file of the core is a room of its own.
ROOMS = (
    "shapes",
    "checks",
    "importing",
    "reading",
    "state",
    "checkpoint",
    "sealed",
    "versions",
    "launch",
    "progress",
    "engine",
    "average",
    "schedule",
    "threshold",
    "transition",
    "batches",
    "finite",
    "solvers",
    "ledger",
    "expert",
    "policy",
    "metrics",
    "mixture",
    "round",
    "jobs",
    "learner",
    "objectives",
    "rollout",
    "points",
    "buffers",
    "window",
    "aggregate",
    "records",
    "gathered",
    "blame",
    "gathering",
    "heldout",
    "fit",
    "resuming",
    "hooks",
    "dagger",
    "strategies",
    "envs",
    "labelled",
    "policies",
    "pipelines",
    "tasks",
    "report",
    "runs",
    "judging",
    "commands",
    "crash",
    "cli",
    "__main__",
    "benchmarks",
)
WINGS = ("envs", "policies", "benchmarks")  # top-level folders, installed as dagdiff.<wing>
OUTSIDE = ("tests", "notebooks", "examples")  # nothing imports these
HEAVY = ("torch", "torchrl", "tensordict", "diffusers", "matplotlib")


def imported(source: str) -> Iterator[str]:
    """Yield the dotted path of everything ``source`` imports, wherever it does so; relative imports keep their dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def breach(room: str, path: str) -> str | None:
    """Return what is wrong with ``room`` importing ``path``, or None. For dagdiff/__init__.py the room is ""."""
    first, *rest = path.split(".")
    if not first:
        return f"{path} is relative; import from dagdiff"
    if first in (*WINGS, *OUTSIDE):
        return f"{path} is importable only inside the checkout"
    if first != "dagdiff":
        return None
    target = rest[0] if rest else ""
    if target in OUTSIDE:
        return f"{path}: nothing imports {target}"
    if target == "__version__":
        return None
    if room == "":
        return f"dagdiff/__init__.py imports {path}: it names the core alone" if target in WINGS else None
    if target not in ROOMS:
        return f"{path}: import a name from the module that holds it (rooms: {', '.join(ROOMS)})"
    return f"{room} imports {path}, which stands below it" if ROOMS.index(target) > ROOMS.index(room) else None


def breaches(room: str, source: str) -> list[str]:
    return [problem for path in imported(source) if (problem := breach(room, path))]


def room_of(file: Path) -> str:
    """Return the room a file stands in: dagdiff/metrics/samples.py -> metrics, envs/toy2d.py -> envs."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] in WINGS else parts[1].removeprefix("__init__")


def python_files() -> list[Path]:
    """All sources, each once: the symlinks dagdiff/envs and so on are left out."""
    links = [ROOT / "dagdiff" / wing for wing in WINGS]
    files = [file for folder in ("dagdiff", *WINGS) for file in (ROOT / folder).rglob("*.py")]
    return sorted(file for file in files if not any(link in file.parents for link in links))


FILES = python_files()


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_imports_point_downwards(file: Path) -> None:
    room = room_of(file)
    assert room in (*ROOMS, ""), f"{file.name} stands in no room: add it to ROOMS, in its place"
    assert breaches(room, file.read_text(encoding="utf-8")) == []


def module_of(file: Path) -> str:
    """Return the dotted name under which a file is imported: envs/toy2d.py -> dagdiff.envs.toy2d."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in (("dagdiff", *parts) if parts[0] in WINGS else parts) if part != "__init__")


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next and the last one the first, or an empty list."""
    sorter = TopologicalSorter(imports)
    try:
        sorter.prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_circle_of_files() -> None:
    """Over files, wherever in a file the import stands; the package's own lazy names are not followed."""
    modules = {module_of(file): file.read_text(encoding="utf-8") for file in FILES}
    imports = {
        name: {
            target
            for path in imported(source)
            for target in (path, path.rpartition(".")[0])
            if target in modules and target not in (name, "dagdiff")
        }
        for name, source in modules.items()
    }
    assert circle({**imports, "dagdiff": set()}) == []


def test_circle_finds_a_circle() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
    assert circle({"a": {"b"}, "b": {"c"}}) == []


def test_tests_import_no_bare_folder() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        bare = [
            path for path in imported(file.read_text(encoding="utf-8")) if path.split(".")[0] in ("", *WINGS, *OUTSIDE)
        ]
        assert bare == [], f"{file.relative_to(ROOT)} imports {bare}"


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("schedule", "from dagdiff.dagger import DAgger"),
        ("schedule", "import dagdiff.dagger"),
        ("schedule", "from dagdiff import dagger"),
        ("schedule", "def late():\n    from dagdiff.dagger import DAgger"),
        ("schedule", "from dagdiff import DAgger"),
        ("schedule", "import dagdiff"),
        ("schedule", "from .shapes import States"),
        ("dagger", "from dagdiff.envs.toy2d import Moons"),
        ("dagger", "from dagdiff import envs"),
        ("", "from dagdiff.envs.toy2d import Moons"),
        ("cli", "from envs.toy2d import Moons"),
        ("cli", "import policies"),
        ("cli", "import tests.conftest"),
        ("envs", "from dagdiff.policies.student import StudentPolicy"),
        ("envs", "import dagdiff.tasks.plane"),
        ("envs", "from dagdiff import policies"),
        ("policies", "import dagdiff.pipelines.lora"),
        ("runs", "from dagdiff.benchmarks.pages import TABLES"),
        ("policies", "from . import networks"),
        ("benchmarks", "import notebooks"),
    ],
)
def test_checker_finds_a_breach(room: str, source: str) -> None:
    assert len(breaches(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("dagger", "import torch\nfrom dagdiff.metrics.shift import shift\nfrom dagdiff.expert import Expert"),
        ("metrics", "from dagdiff.metrics.statistics import bootstrap"),
        ("checkpoint", "from dagdiff import __version__"),
        ("runs", "from dagdiff.envs.toy2d import Moons"),
        ("cli", "from dagdiff.tasks import names"),
        ("envs", "from dagdiff.transition import Ddim\nfrom dagdiff.envs.toy2d import Moons"),
        ("benchmarks", "from dagdiff.policies.student import StudentPolicy\nfrom dagdiff.envs.toy2d import Moons"),
        ("", "from dagdiff.dagger import DAgger"),
    ],
)
def test_checker_lets_good_imports_pass(room: str, source: str) -> None:
    assert breaches(room, source) == []


def loaded_by(*arguments: str, status: int | None = 0) -> set[str]:
    """Return the top-level packages that a fresh interpreter imports; with the status None it may also refuse."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    traced, other = [], []
    for line in done.stderr.splitlines():
        (traced if line.startswith("import time:") else other).append(line)
    assert done.returncode in ((0, 2) if status is None else (status,)), "\n".join(other)
    assert "Traceback" not in done.stderr
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in traced}


def test_loaded_by_sees_imports() -> None:
    assert {"json", "decimal"} <= loaded_by("-c", "import json.decoder, decimal")


QUESTIONS = (
    "--help",
    "--version",
    "list tasks",
    "list objectives",
    "list experts",
    "list policies",
    "list thresholds",
    "list drivers",
    "list curricula",
    "list schedules",
    "list --help",
    "judge --help",
    "judge mine:student --task gaussians8-biasd",
    "judge mine:student --task pipeline",
    "cache --help",
    "cache --task gaussians8-biased",
    "distill --help",
    "distill --task digits-biased --objective distribution --help",
    "distill --task pipeline --pipeline.path nowhere --policy lora --help",
    "distil",
    "distill --task gaussians8-biasd",
    "distill --shares",
)
"""What is answered before the packages that do the work are loaded, mistakes among it."""


@pytest.mark.parametrize("words", QUESTIONS)
def test_questions_are_answered_before_heavy_packages_are_loaded(words: str) -> None:
    loaded = loaded_by("-m", "dagdiff.cli", *words.split(), status=None)
    assert "dagdiff" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_dagdiff_loads_nothing_heavy() -> None:
    loaded = loaded_by("-c", "import dagdiff")
    assert "dagdiff" in loaded and loaded.isdisjoint(HEAVY)


def test_public_names() -> None:
    assert set(dagdiff.__all__) == {*dagdiff._PUBLIC, "__version__"}
    assert set(dagdiff.__all__) <= set(dir(dagdiff))
    with pytest.raises(AttributeError, match="nonsense"):
        dagdiff.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(dagdiff._PUBLIC))
def test_public_name_loads(name: str) -> None:
    assert getattr(dagdiff, name).__module__ == dagdiff._PUBLIC[name]
