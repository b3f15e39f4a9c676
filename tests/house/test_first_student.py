"""What a newcomer reads first: the commands of "Your first student", and the messages of "When something fails"."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from helpers import ROOT

from dagdiff.cli import main
from dagdiff.metrics.classifier import kept_classifier

DOCS = ROOT / "docs"
SMALL = "--policy fresh --policy.width 16 --updates 20 --rounds 2 --chains 16 --samples 100"
IMAGES = "--expert unet --updates 2 --rounds 1 --chains 4 --batch_size 4 --samples 20 --heldout 0 --substeps 1"
IMAGES += " --expert.channels=[8,16] --expert.updates=2"
BENCH = """--updates 4 --seeds 1 --settings '{"expert": {"class": "learned", "width": 8, "updates": 5}, "samples": 100,
  "policy": {"class": "fresh", "width": 8}, "rounds": 2, "chains": 8, "batch_size": 16}'"""


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def test_the_commands_of_the_first_student_work_as_written(
    own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In reduced size: fresh students, few updates and samples."""
    lines = "".join(blocks("first-student.md", "sh")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dagdiff ")]
    names = ["distill", "shift", "distill", "shift", "bench", "sample", "list", "distill", "export", "judge"]
    assert [words[0] for words in found] == names
    monkeypatch.setattr("dagdiff.tasks.images.kept_classifier", partial(kept_classifier, updates=20))
    said = []
    for words in found:
        small = {"distill": SMALL, "bench": BENCH, "judge": "--seeds 1"}.get(words[0], "")
        small = IMAGES if "digits-biased" in words else small
        assert main([*words, *shlex.split(small)]) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    printed, shown = (re.sub(r"-?\d[.\d]*", "N", text) for text in (said[0], blocks("first-student.md", "text")[0]))
    assert printed.startswith(shown), "the page shows what is printed, but for numbers; a poor student brings a hint"
    written = re.findall(r"(?m)^\| (`.*?`(?:, `.*?`)*) \|", text_of("first-student.md"))
    assert len(written) == 5
    for name in re.findall(r"`(.*?)`", " ".join(written)):
        assert (own_folder / "runs/ring" / name).exists(), name
    assert DiffusionPipeline.from_pretrained("students/digits").unet.config.sample_size == [8, 8]
    for path in (
        "samples.npz",
        "samples.png",
        "runs/ring/shift.csv",
        "runs/moons/report.html",
        "runs/judged/judge.json",
    ):
        assert (own_folder / path).exists(), path


def test_a_teacher_from_diffusers_runs(tmp_path: Path) -> None:
    """On a small pipeline of the same kind, in a folder instead of on the hub."""
    (code,) = blocks("pipeline.md", "python")
    small = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(small, DDPMScheduler()).save_pretrained(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("google/ddpm-cifar10-32", str(tmp_path)), "pipeline.md", "exec"), names)
    x_t, t = torch.randn(2, 3, 8, 8), torch.full((2,), 0.5)
    assert names["expert"](x_t, t).abs().max() <= 1.0  # type: ignore[operator]
    torch.testing.assert_close(names["student"](x_t, t), names["teacher"](x_t, t))  # type: ignore[operator]


def test_what_fails_is_quoted_as_it_is_said() -> None:
    """Each message of the page is in the program, in the Makefile, or the shell's own."""
    files = [file for room in ("dagdiff", "envs") for file in (ROOT / room).rglob("*.py")]
    said = "".join(file.read_text(encoding="utf-8") for file in [*files, ROOT / "Makefile"])
    said = re.sub(r'"\s*\n\s*f?"', "", said)
    quoted = re.findall(r"(?m)^\| `(.*?)`", text_of("failures.md"))
    assert len(quoted) > 15
    for line in quoted:
        assert line in said or line == "dagdiff: command not found", line
