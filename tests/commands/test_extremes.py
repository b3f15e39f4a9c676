"""Extreme values: each is taken, or refused in one line with status 2 and nothing left behind."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from dagdiff.checks import Refusal, check_path
from dagdiff.cli import main
from dagdiff.runs.config import configure
from dagdiff.runs.settings import LARGEST, NAMES

TINY = "--policy fresh --policy.width 8 --updates 2 --rounds 1 --chains 4 --batch_size 8 --heldout 4 --samples 20"
FLOATS = ("clip", "epsilon_scale", "guidance", "input_perturbation", "lr", "reuse")
HUGE = [str(10**30), str(2**63), "-" + str(10**30)]
NO_VALUE = ["", "\udcff", "x" * 5000, "a\nb", "a\0b", "{a: &b [1], c: *b}", "[[1]]", "nosuch", "1e999", "nan"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("dagdiff: error: ")]
    assert len(errors) == 1 and told.endswith(f"{errors[0]}\n") and len(errors[0]) <= 500, told
    assert sorted(Path().rglob("*")) == before
    return errors[0]


@pytest.mark.parametrize("value", [*HUGE, *NO_VALUE])
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"task", "metric", "memmap", "gathered", "start", "device"}))
def test_no_setting_takes_what_is_no_number_of_its_kind(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "stages" and value == "[[1]]":
        pytest.skip("brackets around a list are read away")
    if (name in FLOATS and value in HUGE) or (name == "clip" and value == "1e999"):  # infinity clips nothing
        pytest.skip("a number of its kind")
    told = refused(["distill", f"--{name}={value}", "--print_config"], capsys)
    assert name in told


@pytest.mark.parametrize("name", LARGEST)
def test_numbers_beyond_use_are_refused_before_anything_is_made_of_them(name: str) -> None:
    """A grid of 2^31 steps, or a list of 2^31 rounds, fills the memory before it is of use to anybody."""
    value = LARGEST[name] + 1
    more: dict[str, Any] = {"updates": 10**9} if name == "rounds" else {}
    more |= {"batch_size": 10**8} if name == "accumulate" else {}
    with pytest.raises(Refusal, match=f"{name} must be at most"):
        configure({name: [value] if name == "stages" else value, **more})


@pytest.mark.parametrize("option", ["policy.width", "policy.depth", "policy.seed", "beta.value"])
@pytest.mark.parametrize("value", [*HUGE, "nan", "", "x"])
def test_options_of_parts_are_refused_as_settings_are(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"distill {TINY} --threshold static --threshold.high 1 --out run".split()
    refused([*words, f"--{option}={value}"], capsys)


def odd_paths() -> dict[str, str]:
    """Paths that no folder can be made at, by what is wrong with them."""
    odd = {
        "a name that is too long": "x" * 300,
        "one further down": "a/" + "y" * 300,
        "too deep": "/".join(["d"] * 2000),
        "a zero byte": "a\0b",
        "not of any encoding": "a\ud800b",
        "through a file": "file/x",
        "a file": "file",
    }
    if sys.platform != "win32":
        odd |= {
            "a link in a circle": "loop",
            "through one": "loop/x",
            "a link to nothing": "dangling",
            "a pipe": "pipe",
        }
        odd |= {"a device": "/dev/null", "through a device": "/dev/null/x"}
    return odd


def make_odd() -> None:
    Path("file").write_text("mine")
    if sys.platform != "win32":
        os.symlink("loop", "loop")
        os.symlink("nowhere/x", "dangling")
        os.mkfifo("pipe")


@pytest.mark.parametrize("wrong", odd_paths())
@pytest.mark.parametrize(
    "words",
    [f"distill {TINY} --out", "export run --out", "sample", "shift", "bench toy2d --out", "distill --out run --memmap"],
)
def test_paths_that_can_not_be(words: str, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_odd()
    refused([*shlex.split(words), odd_paths()[wrong]], capsys)
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["trail  ", " lead", "new\nline", "ü😀", "a\\b", "con:aux", "$HOME", "*", "x" * 200])
def test_names_that_are_odd_and_allowed(name: str, here: Path) -> None:
    check_path("--out", Path(name))
    check_path("--out", here / name / "new")


def test_a_name_in_another_encoding_is_allowed(here: Path) -> None:
    """Bytes that are no UTF-8: Python holds them as surrogates, and Linux takes them."""
    check_path("--out", Path(os.fsdecode(b"\xff\xfe")))
