"""The way of docs/your-pictures.md, run as it is written: from a folder of pictures to a pipeline without dagdiff."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

from dagdiff.cli import main

PAGE = (ROOT / "docs" / "your-pictures.md").read_text(encoding="utf-8")

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dagdiff":
            raise ImportError("dagdiff is not here")
sys.meta_path.insert(0, Absent())
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_s_cures_are_those_of_the_program() -> None:
    """What the table at its end quotes is said somewhere in dagdiff."""
    said = "".join(file.read_text() for room in ("dagdiff", "envs") for file in (ROOT / room).rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", said)
    for line in re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE):
        assert line in said, line


@pytest.mark.slow
def test_the_whole_way_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    draw, load = blocks("python")
    exec(draw, {})
    said = []
    for command in blocks("sh"):
        words = shlex.split(command.replace("\\\n", " "))
        assert words[0] == "dagdiff" and main(words[1:]) == 0, capsys.readouterr().err
        told = capsys.readouterr()
        said.append(told.out + told.err)
    teacher, student, samples, report, exported = said
    for text, told in zip(blocks("text"), (teacher, student, report), strict=True):
        assert all(line in told for line in text.splitlines()), (text, told)
    assert "already trained" not in teacher and "the teacher's training" not in student, "it is found in the cache"
    assert "drawn in samples.png" in samples and "exported" in exported
    assert sorted(each.name for each in Path("runs/shapes/looks").iterdir()) == ["round-0002.png", "round-0004.png"]
    page = Path("runs/compared/report.html").read_text()
    assert "<b>Samples: shapes-matched, PD." in page and 'id="explorer"' in page and '"pixels"' in page
    Path("away").mkdir()
    Path("exported").rename("away/exported")
    Path("away/program.py").write_text(ABSENT + load + "\nassert 'dagdiff' not in sys.modules\n")
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-I", "program.py"], cwd="away", capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    with Image.open("away/first.png") as picture:
        assert picture.size == (16, 16) and picture.mode == "RGB"
