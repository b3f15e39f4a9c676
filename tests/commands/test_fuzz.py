"""Fuzzed command lines, settings and folders: success, or status 2 with one sentence, and nothing left behind.

Each kind is tried a few times in the fast tests, always the same, and some hundreds of times with new cases in the
slow ones.
"""

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.cli import COMMANDS, main
from dagdiff.reading import parse_yaml
from dagdiff.report.results import Results
from dagdiff.runs.parts import PARTS
from dagdiff.runs.settings import NAMES

TINY = "--policy fresh --policy.width 8 --updates 2 --rounds 1 --chains 4 --batch_size 8 --heldout 4 --samples 20"
SMALL = {name: value for name, value in zip(TINY.split()[4::2], TINY.split()[5::2], strict=True)}


# --- what is tried ----------------------------------------------------------------------------------------------------

ODD = (
    "0", "1", "-1", "2", "3", "0.5", "1e-30", "1e30", "inf", "-inf", "nan", "1e999", str(10**30), str(-(2**63)), "",
    " ", "ü😀", "x" * 5000, "a\nb", "a\rb", "\x1b[2J", "\udcff", "a\0b", "null", "~", "true", "false", "[]",
    "{}", "[[1]]",
    "1,2", "1,2,3", "0.5,0.5,0", "&a [*a]", "{a: &b 1, c: *b}", "--", "-", ".", "..", "/", "/dev/null", "0x10", "1_0",
    "1:30", "!!python/name:os.system", "${HOME}", "%s", "{0}", "cpu", "cuda:99", "gaussians8-biased", "digits",
    "os.system", "dagdiff.cli.main", "class", "mixture",
)  # fmt: skip
VALUES = st.sampled_from(ODD) | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)
OPTIONS = st.sampled_from(
    [
        *NAMES,
        *PARTS,
        "policy.width",
        "policy.depth",
        "expert.substeps",
        "threshold.low",
        "lr_ramp.start",
        "objective.weight",
        "beta.value",
        "schedule.terminal_alpha",
        "data.size",
        "pipeline.path",
        "logger",
        "config",
        "nosuch",
        "policy.class",
        "task.nosuch",
        ".",
        "a.b.c",
        "",
    ]
)
WORDS = st.lists(st.tuples(OPTIONS, VALUES, st.booleans()), min_size=1, max_size=3)
TREES = st.recursive(
    st.sampled_from(ODD) | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, *PARTS, "class", "width"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
SETTINGS = st.dictionaries(OPTIONS, TREES, min_size=1, max_size=4)


@st.composite
def changes(draw: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """A way to spoil the content of a file."""
    kind, place, value = (
        draw(st.sampled_from(("flip", "cut", "swap", "insert", "tree"))),
        draw(st.floats(0, 1)),
        draw(TREES),
    )
    junk, bit = draw(st.binary(max_size=20)), draw(st.integers(0, 7))

    def change(content: bytes) -> bytes:
        at = int(place * max(len(content) - 1, 0))
        if kind == "flip" and content:
            return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
        if kind == "cut":
            return content[:at]
        if kind == "swap":
            return junk
        if kind == "tree":
            return replaced(content, place, value)
        return content[:at] + junk + content[at:]

    return change


def replaced(content: bytes, place: float, value: Any) -> bytes:
    """Put another value somewhere into what a text file holds; a file that is no text becomes that value."""
    try:
        tree = parse_yaml(content.decode(), "a file")
    except (Refusal, UnicodeDecodeError):
        return json.dumps(value).encode()
    holders = list(containers(tree))
    if not holders:
        return json.dumps(value).encode()
    holder = holders[int(place * (len(holders) - 1))]
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    if keys:
        holder[keys[int(place * 1e6) % len(keys)]] = value
    return json.dumps(tree).encode()


def containers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(inner)


# --- how it is tried --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """A folder of its own to work in, with a cache that all share."""
    before, cache = os.getcwd(), os.environ.get("DAGDIFF_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["DAGDIFF_CACHE"] = str(Path(folder) / "cache")
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            os.environ.pop("DAGDIFF_CACHE") if cache is None else os.environ.update(DAGDIFF_CACHE=cache)


def tried(words: list[str]) -> int:
    """Run a command; see that it succeeds, or refuses in one line and leaves all as it was; return the status."""
    before, out, err = held(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as end:
            status = int(end.code or 0)
    told = err.getvalue()
    assert status != 70 and "Traceback" not in told, told
    if status:
        errors = [line for line in told.splitlines() if line.startswith("dagdiff: error: ")]
        assert len(errors) == 1 and told.endswith(f"{errors[0]}\n") and len(errors[0]) <= 500, told
        if "not finite" not in errors[0]:  # that is found out in training
            assert status == 2 and held() == before, told
    return status


def held() -> dict[str, bytes]:
    """The files below the working folder, and folders too."""
    paths = sorted(Path().rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths if path.parts[0] != "cache"}


@functools.cache
def made() -> Path:
    """A finished run."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    assert main(["distill", *TINY.split(), "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder / "run"


def command_line(options: list[tuple[str, str, bool]]) -> None:
    words = [
        each for name, value, joined in options for each in ([f"--{name}={value}"] if joined else [f"--{name}", value])
    ]
    with elsewhere():
        tried(["distill", *TINY.split(), "--device", "cpu", "--out", "run", *words])


def any_command(command: str, words: list[str]) -> None:
    with elsewhere():
        tried([command, *words])


def settings_file(content: dict[str, Any]) -> None:
    with elsewhere():
        Path("c.yaml").write_text(json.dumps(content))
        tried(["distill", "--config", "c.yaml", "--print_config"])
        Path("c.yaml").write_text(
            yaml.safe_dump({**SMALL, "policy": "fresh"} | content, allow_unicode=True), "utf-8", "replace"
        )
        tried(["distill", "--config", "c.yaml", "--print_config"])


def run_folder(file: str, change: Callable[[bytes], bytes], command: str) -> None:
    with elsewhere() as folder:
        shutil.copytree(made(), folder / "run")
        path = folder / "run" / file
        path.write_bytes(change(path.read_bytes()))
        more = {"sample": ["--num", "3"], "export": ["--out", "new"], "shift": ["--num", "10"]}[command]
        tried([command, "run", *more])


def results_folder(change: Callable[[bytes], bytes]) -> None:
    kept = Path(__file__).parents[2] / "benchmarks/results/images-long/results.json"
    with elsewhere() as folder:
        (folder / "results.json").write_bytes(change(kept.read_bytes()))
        try:
            assert Results.load(folder).rows
        except Refusal as error:
            assert "\n" not in str(error) or len(str(error)) < 1000
        tried(["bench", "toy2d", "--out", str(folder), "--verify", "1", "--tasks", "nosuch"])


FILES = st.sampled_from(["config.yaml", "student.json", "student.safetensors", "metrics.json"])
CASES: dict[str, tuple[Callable[..., None], tuple[Any, ...], int]] = {
    "command_lines": (command_line, (WORDS,), 15),
    "any_command": (any_command, (st.sampled_from([*COMMANDS, "", "nosuch"]), st.lists(VALUES, max_size=3)), 10),
    "settings_files": (settings_file, (SETTINGS,), 10),
    "run_folders": (run_folder, (FILES, changes(), st.sampled_from(["sample", "sample", "export"])), 10),
    "results_folders": (results_folder, (changes(),), 5),
}
"""Kind -> what is done with a case, what a case is made of, and how many cases the fast tests try."""

RULES: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
LONG = 20  # times as many cases in the slow tests: 1,000


@pytest.mark.parametrize("kind", CASES)
def test_a_few_cases_of_each_kind(kind: str) -> None:
    body, strategies, count = CASES[kind]
    settings(max_examples=count, derandomize=True, **RULES)(given(*strategies)(body))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_cases_of_each_kind(kind: str) -> None:
    body, strategies, count = CASES[kind]
    settings(max_examples=LONG * count, **RULES)(given(*strategies)(body))()
