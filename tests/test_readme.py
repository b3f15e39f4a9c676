"""What README claims: its code runs, its commands work as written, its table is that of the committed results."""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from PIL import Image

from dagdiff.benchmarks import image_tasks, images, readme, study
from dagdiff.benchmarks.suite import Cell
from dagdiff.benchmarks.tables import END, TABLES, by_world, filled, headline, with_table
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.metrics.classifier import kept_classifier
from dagdiff.results import IDENTITY, Record, Results, write_summary

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted({made.page for made in TABLES.values()})
SMALL = "--policy fresh --policy.width 16 --updates 20 --rounds 2 --chains 16 --samples 100"
IMAGES = "--expert unet --updates 2 --rounds 1 --chains 4 --batch_size 4 --samples 20 --heldout 0 --substeps 1"
IMAGES += " --expert.channels=[8,16] --expert.updates=2"
BENCH = """--updates 4 --seeds 1 --settings '{"expert": {"class": "learned", "width": 8, "updates": 5}, "samples": 100,
  "policy": {"class": "fresh", "width": 8}, "rounds": 2, "chains": 8, "batch_size": 16}'"""
MINE = """
import torch
from dagdiff.objectives import Loss, Objective

class MyExpert:
    def __init__(self, task, strength: float = 1.0):
        self.strength = strength

    def __call__(self, x_t, t, condition=None):
        return x_t / (1 + self.strength)

class MyObjective(Objective):
    def annotate(self, expert, states):
        return states.set("target", expert(states["x_t"], states["t"]))

    def loss(self, student, batch):
        loss = (student(batch["x_t"], batch["t"]) - batch["target"]).square().mean()
        return Loss(loss, {})
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dagdiff ")]


def kept(name: str) -> Results:
    return Results.load(ROOT / readme.KEPT / name)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_tables_are_those_of_the_committed_results(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert filled(text, page, ROOT / readme.KEPT) == text, "run: python -m dagdiff.benchmarks.readme NAME=FOLDER"
    assert text.count("<!-- table: ") == sum(made.page == page for made in TABLES.values())


@pytest.mark.parametrize("name", sorted({made.results for made in TABLES.values()}))
def test_the_committed_results_are_small_and_summed_up(name: str, tmp_path: Path) -> None:
    place = ROOT / readme.KEPT / name
    assert sum(file.stat().st_size for file in place.iterdir()) < 3e6
    write_summary(Results.load(place), tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_text() == (place / "summary.csv").read_text()


def test_the_study_s_figure_is_made_from_the_committed_results() -> None:
    with Image.open(ROOT / readme.STUDY_FIGURE) as image:
        assert image.info["Source"] == readme.source(ROOT / readme.KEPT / "study")


def test_dmd2_s_mixture_is_compared_seed_by_seed() -> None:
    energy, coverage = (
        {
            variant: {r.seed: r.metrics[name] for r in kept("study").records if wanted(r, variant)}
            for variant in ("base", "ddil")
        }
        for name in ("energy", "coverage")
    )
    (line,) = (line for line in by_world(kept("study").rows).splitlines() if line.startswith("| moons |"))
    for values in (energy, coverage):
        assert len(values["base"]) == len(values["ddil"]) == kept("study").settings["seeds"]
        change = sum(values["ddil"][seed] - values["base"][seed] for seed in values["base"]) / len(values["base"])
        assert f"{change:+.4f} [" in line
    wins = [a < b for a in energy["ddil"].values() for b in energy["base"].values()]
    assert line.endswith(f"| {sum(wins) / len(wins):.2f} |")


def wanted(record: Record, variant: str) -> bool:
    told = record.task, record.objective, record.variant, record.steps, record.about
    return told == ("moons-biased", "distribution", variant, 4, "")


def small_study(folder: Path) -> Path:
    """The committed results of another suite, as if they were a study's."""
    content = json.loads((ROOT / readme.KEPT / "toy2d-quick" / "results.json").read_text())
    (folder / "runs").mkdir()
    (folder / "runs" / "results.json").write_text(json.dumps({**content, "suite": "study"}))
    return folder / "runs"


def test_a_study_is_kept_shown_and_drawn(own_folder: Path) -> None:
    start = "<!-- table: study -->"
    (own_folder / "README.md").write_text(f"before\n{start}\n{END}\nafter\n")
    (own_folder / "docs").mkdir()
    (own_folder / "docs/study.md").write_text((ROOT / "docs/study.md").read_text(encoding="utf-8"))
    readme.main([f"study={small_study(own_folder)}"])
    text = (own_folder / "README.md").read_text()
    rows = Results.load(own_folder / readme.KEPT / "study").rows
    assert text == f"before\n{start}\n{headline(rows)}\n{END}\nafter\n"
    forward, ddil = (
        next(f"{row.metrics['energy'].mean:.4f}" for row in rows if wanted == (row.task, row.objective, row.variant))
        for wanted in (("gaussians8-biased", "consistency", variant) for variant in ("forward", "ddil"))
    )
    assert f"{forward} → {ddil}; at the expert's level" in text
    with Image.open(own_folder / readme.STUDY_FIGURE) as image:
        assert image.info["Source"] == readme.source(own_folder / readme.KEPT / "study")


def test_what_is_kept_is_rounded() -> None:
    kept = readme.rounded({"a": [0.123456789, 12345678.9, 3, None, "x"], "b": {"c": 1e-9 / 3}})
    assert kept == {"a": [0.123457, 12345700.0, 3, None, "x"], "b": {"c": 3.33333e-10}}


def test_a_readme_without_a_place_is_refused() -> None:
    with pytest.raises(Refusal, match="no place for the table 'other'"):
        with_table(TEXT, "other", "")


def options_on(page: str, name: str) -> dict[str, str]:
    """The options of the suite's command on a page that fills that folder."""
    lines = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    words = shlex.split(next(line for line in lines if line.endswith(f"--out runs/{name}")))
    return {option[2:]: value for option, value in zip(words[3::2], words[4::2], strict=True)}


def of_this_version(cells: Iterable[Cell], name: str) -> bool:
    """Whether the results hold just those runs; results of an older version, which pages mark, as many of them."""
    made, results = {cell.entry for cell in cells}, json.loads((ROOT / readme.KEPT / name / "results.json").read_text())
    if results.get("identity", 1) < IDENTITY:
        return len(made) == len(kept(name).records)
    return made == {(record.config, record.variant, record.setup) for record in kept(name).records}


@pytest.mark.parametrize(
    ("page", "name"),
    [("README.md", "study"), *(("docs/study.md", name) for name in ("study", "equal-nfe", "schedules"))],
)
def test_the_studies_commands_are_those_of_their_results(page: str, name: str) -> None:
    told = options_on(page, name)
    numbers = {option: int(told[option]) for option in ("seeds", "few_seeds") if option in told}
    asked = study.Suite(told["blocks"].split(","), **numbers)
    assert dataclasses.asdict(asked) == kept(name).settings
    assert of_this_version(study.cells(asked), name)


@pytest.mark.parametrize(
    ("page", "name"),
    [("README.md", "images"), *(("docs/images.md", name) for name in ("fashion", "lcm-long", "pd-long"))],
)
def test_the_image_suites_commands_are_those_of_their_results(page: str, name: str) -> None:
    told = options_on(page, name)
    lists = {option: told[option].split(",") for option in ("tasks", "objectives", "variants") if option in told}
    numbers = {option: int(told[option]) for option in ("seeds", "updates") if option in told}
    steps = {"steps": [int(count) for count in told["steps"].split(",")]} if "steps" in told else {}
    asked = images.Suite(**lists, **numbers, **steps, settings=json.loads(told.get("settings", "{}")))
    assert {**dataclasses.asdict(asked), "settings": 0} == {**kept(name).settings, "settings": 0}
    assert of_this_version(images.cells(asked), name)


def test_the_figure_is_there() -> None:
    for name in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / name).stat().st_size > 10_000


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_loop_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks("python") if "DAgger(" in block)
    assert run(code.replace("rounds=20", "rounds=2"))["points"].shape == (2000, 2)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_environment_runs() -> None:
    (code,) = (block for block in blocks("python") if "gymnasium" in block)
    assert set(run(code)["observation"]) == {"x_t", "t", "s", "step"}


def test_a_teacher_from_diffusers_runs(tmp_path: Path) -> None:
    """On a small pipeline of the same kind, in a folder instead of on the hub."""
    (code,) = (block for block in blocks("python") if "DiffusersExpert" in block)
    small = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(small, DDPMScheduler()).save_pretrained(tmp_path)
    names = run(code.replace("google/ddpm-cifar10-32", str(tmp_path)))
    x_t, t = torch.randn(2, 3, 8, 8), torch.full((2,), 0.5)
    assert names["expert"](x_t, t).abs().max() <= 1.0
    torch.testing.assert_close(names["student"](x_t, t), names["teacher"](x_t, t))


def test_the_commands_work_as_written(
    own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "mine.py").write_text(MINE)
    found = commands()
    slow = [found.pop(0), found.pop(0)]  # they take too long for a test; that their results are kept is told elsewhere
    assert [words[:2] for words in slow] == [["bench", "study"], ["bench", "images"]]
    of_images, *others = [words[0] for words in found]
    assert [of_images, *others] == ["distill", "export", "distill", "sample", "shift", "bench", "list", "distill"]
    monkeypatch.setattr(image_tasks, "kept_classifier", partial(kept_classifier, updates=20))
    for place, words in enumerate(found):
        small = IMAGES if place == 0 else {"distill": SMALL, "bench": BENCH}.get(words[0], "")
        assert main([*words, *shlex.split(small)]) == 0, capsys.readouterr().err
    assert DiffusionPipeline.from_pretrained("students/digits").unet.config.sample_size == [8, 8]
    assert (own_folder / "samples.npz").exists() and (own_folder / "samples.png").exists()
    assert (own_folder / "runs/grid/shift.csv").exists() and (own_folder / "runs/moons/report.html").exists()
    assert (own_folder / "runs/mine/student.safetensors").exists()
