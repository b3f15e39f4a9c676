"""The house's import rules: who may import whom, and what stays unloaded until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dagdiff

ROOT = Path(__file__).resolve().parent.parent

# The rooms of dagdiff/, top down: a room imports only itself and rooms that stand before it.
ROOMS = (
    "shapes",
    "checks",
    "checkpoint",
    "versions",
    "parallel",
    "average",
    "schedule",
    "prediction",
    "threshold",
    "transition",
    "expert",
    "policy",
    "glossary",
    "metrics",
    "mixture",
    "objectives",
    "rollout",
    "drivers",
    "aggregate",
    "heldout",
    "round",
    "fit",
    "dagger",
    "curriculum",
    "halving",
    "teacher",
    "plots",
    "plots_images",
    "plots_shift",
    "plots_study",
    "excess",
    "results",
    "verdict",
    "report",
    "parts",
    "trust",
    "recipes",
    "identity",
    "config",
    "experiment",
    "rehearsal",
    "run",
    "commands",
    "cli",
    "__main__",
)
WINGS = ("envs", "policies", "benchmarks")  # top-level folders, installed as dagdiff.<wing>
OUTSIDE = ("tests", "notebooks")  # nothing imports these
MAY_IMPORT_WINGS = ("config", "experiment", "rehearsal", "run", "commands", "cli")
WINGS_OF = {"envs": ("envs",), "policies": ("policies",), "benchmarks": WINGS}
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
    if room in WINGS:
        return f"{room} imports {path}" if target in WINGS and target not in WINGS_OF[room] else None
    if target in WINGS:
        return None if room in MAY_IMPORT_WINGS else f"{room or 'dagdiff'} imports {path}; only {MAY_IMPORT_WINGS} may"
    if room == "" or target == "__version__":
        return None
    if target not in ROOMS:
        return f"{path}: import a name from the module that holds it (rooms: {', '.join(ROOMS)})"
    return f"{room} imports {path}, which stands below it" if ROOMS.index(target) > ROOMS.index(room) else None


def breaches(room: str, source: str) -> list[str]:
    return [problem for path in imported(source) if (problem := breach(room, path))]


def room_of(file: Path) -> str:
    """Return the room or wing a file stands in: dagdiff/metrics/samples.py -> metrics, envs/toy2d.py -> envs."""
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
    assert room in (*ROOMS, *WINGS, ""), f"{file.name} stands in no room: add it to ROOMS, in its place"
    assert breaches(room, file.read_text(encoding="utf-8")) == []


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
        ("envs", "import dagdiff.benchmarks.tasks"),
        ("policies", "from dagdiff import envs"),
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
        ("config", "from dagdiff.envs.toy2d import Moons"),
        ("cli", "from dagdiff.benchmarks import tasks"),
        ("envs", "from dagdiff.transition import Ddim\nfrom dagdiff.envs.toy2d import Moons"),
        ("benchmarks", "from dagdiff.policies.student import StudentPolicy\nfrom dagdiff.envs.toy2d import Moons"),
        ("", "from dagdiff.dagger import DAgger"),
    ],
)
def test_checker_lets_good_imports_pass(room: str, source: str) -> None:
    assert breaches(room, source) == []


def loaded_by(*arguments: str) -> set[str]:
    """Return the top-level packages a fresh interpreter imports when run with ``arguments``."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    traced, other = [], []
    for line in done.stderr.splitlines():
        (traced if line.startswith("import time:") else other).append(line)
    assert done.returncode == 0, "\n".join(other)
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in traced}


def test_loaded_by_sees_imports() -> None:
    assert {"json", "decimal"} <= loaded_by("-c", "import json.decoder, decimal")


@pytest.mark.parametrize(
    "arguments", [("-c", "import dagdiff"), ("-m", "dagdiff.cli", "--help")], ids=["import", "help"]
)
def test_heavy_packages_stay_unloaded(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "dagdiff" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_public_names() -> None:
    assert set(dagdiff.__all__) == {*dagdiff._PUBLIC, "__version__"}
    assert set(dagdiff.__all__) <= set(dir(dagdiff))
    with pytest.raises(AttributeError, match="nonsense"):
        dagdiff.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(dagdiff._PUBLIC))
def test_public_name_loads(name: str) -> None:
    assert getattr(dagdiff, name).__module__ == dagdiff._PUBLIC[name]
