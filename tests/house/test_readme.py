"""What README claims runs as written; the tables and figures of all pages are those of the committed results."""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from helpers import ROOT
from PIL import Image
from pipelines import save, seeded, stable_diffusion
from reports import content, folder

from dagdiff.benchmarks import readme
from dagdiff.benchmarks.pages import END, TABLES, command, filled, load, origin, with_table
from dagdiff.benchmarks.running.cells import Cell
from dagdiff.benchmarks.suites import images, labels, study, toy2d
from dagdiff.benchmarks.tables import by_world, contrasts, findings, glance
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.report.records import Record
from dagdiff.report.results import IDENTITY, Results
from dagdiff.report.rows import Row
from dagdiff.report.summary import write_summary
from dagdiff.report.verdict import change, counts, outcome

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted({made.page for made in TABLES.values()})


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dagdiff ")]


@cache
def kept(name: str) -> Results:
    return Results.load(ROOT / readme.KEPT / name)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_tables_are_those_of_the_committed_results(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert filled(text, page, ROOT / readme.KEPT) == text, "run: python -m dagdiff.benchmarks.readme NAME=FOLDER"
    assert text.count("<!-- table: ") == sum(made.page == page for made in TABLES.values())


@pytest.mark.parametrize("name", sorted({name for made in TABLES.values() for name in made.results}))
def test_the_committed_results_are_small_and_summed_up(name: str, tmp_path: Path) -> None:
    place = ROOT / readme.KEPT / name
    assert sum(file.stat().st_size for file in place.iterdir()) < 3e6
    write_summary(Results.load(place), tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_text() == (place / "summary.csv").read_text()


@pytest.mark.parametrize("name", list(readme.STUDY_FIGURES), ids=str)
def test_the_study_s_figures_are_made_from_the_committed_results(name: Path) -> None:
    with Image.open(ROOT / name) as image:
        assert image.info["Source"] == readme.source(ROOT / readme.KEPT / "study")


def test_dmd2_s_mixture_is_compared_seed_by_seed() -> None:
    energy, coverage = (
        {
            variant: {r.seed: r.metrics[name] for r in kept("study").records if wanted(r, variant)}
            for variant in ("published", "mixture")
        }
        for name in ("energy", "coverage")
    )
    (line,) = (line for line in by_world(kept("study").rows).splitlines() if line.startswith("| moons |"))
    for values in (energy, coverage):
        assert len(values["published"]) == len(values["mixture"]) == kept("study").settings["seeds"]
        changes = [values["mixture"][seed] - published for seed, published in values["published"].items()]
        change = sum(changes) / len(changes)
        assert (f"| {1000 * change:.1f} [" if values is energy else f"| {change:+.3f} [") in line
    wins = [a < b for a in energy["mixture"].values() for b in energy["published"].values()]
    (row,) = (row for row in kept("study").rows if all(wanted(record, "mixture") for record in row.records))
    assert line.endswith(f"| {sum(wins) / len(wins):.2f} | {outcome(row, 'published')} |")


def wanted(record: Record, variant: str) -> bool:
    told = record.task, record.objective, record.variant, record.steps, record.about
    return told == ("moons-biased", "distribution", variant, 4, "")


def small_study(folder: Path) -> Path:
    """The committed results of another suite, as if they were a study's."""
    content = json.loads((ROOT / readme.KEPT / "toy2d-quick" / "results.json").read_text())
    (folder / "runs").mkdir()
    content.pop("digest", None)  # it is another suite's
    (folder / "runs" / "results.json").write_text(json.dumps({**content, "suite": "study"}))
    return folder / "runs"


def test_a_study_is_kept_shown_and_drawn(own_folder: Path) -> None:
    start = "<!-- table: study -->"
    (own_folder / "docs").mkdir()
    (own_folder / "README.md").write_text(TEXT)
    for page in ("study.md", "dmd2.md"):
        (own_folder / "docs" / page).write_text((ROOT / "docs" / page).read_text(encoding="utf-8"))
    findings_too = f"<!-- table: findings -->\n{END}\n"
    cause = "<!-- table: cause -->\n"
    (own_folder / "docs/results.md").write_text(f"before\n{start}\n{END}\nafter\n{findings_too}{cause}{END}\n")
    readme.main([f"study={small_study(own_folder)}"])
    text = (own_folder / "docs/results.md").read_text()
    found = load(own_folder / readme.KEPT / "study")
    made = f"{contrasts(found.rows)}\n\n{origin({'study': found})}"
    whole, _, causes = text.partition(cause)
    assert whole == f"before\n{start}\n{made}\n{END}\nafter\n{findings_too}"
    assert "| gaussians8 | PD | " in causes
    for objective, name, same in (("progressive", "PD", True), ("consistency", "LCM", False)):
        forward, published, mixture = (
            next(row.metrics["energy"].mean for row in found.rows if wanted == (row.task, row.objective, row.variant))
            for wanted in (("gaussians8-biased", objective, variant) for variant in ("forward", "published", "mixture"))
        )
        told = "= forward" if same else f"{1000 * published:.1f}"
        assert f"| gaussians8, biased | {name} | {1000 * forward:.1f} | {told} | {1000 * mixture:.1f} |" in text
    for name in readme.STUDY_FIGURES:
        with Image.open(own_folder / name) as image:
            assert image.info["Source"] == readme.source(own_folder / readme.KEPT / "study")


def test_the_pictures_fill_two_rows_of_four(tmp_path: Path) -> None:
    found = content({"forward": [0.2], "mixture": [0.1]}, task=readme.IMAGE_TASK)
    for objective in ("progressive", "distribution"):
        more = content({"forward": [0.2], "mixture": [0.1]}, task=readme.IMAGE_TASK, objective=objective)
        found["records"] += more["records"]
    (reference,) = found["references"].values()
    found["references"] = {readme.IMAGE_TASK: {**reference, "samples": "samples/digits.npz"}}
    place = folder(tmp_path, found)
    images = np.zeros((32, 1, 8, 8), dtype=np.float32)
    np.savez(place / "samples/digits.npz", data=images, truth=images, x=images)
    np.savez(place / "samples/run.npz", x=images)
    results = Results.load(place)
    titles = [axes.get_title() for axes in readme.pictures(results, readme.IMAGE_TASK).axes]
    assert titles[0] == "training data" and titles[4] == "teacher, 16 steps" and len(titles) == 8
    assert titles[1:4] == [f"{name}: forward" for name in ("PD", "LCM", "DMD2")]
    assert titles[5:] == [f"{name}: mixture" for name in ("PD", "LCM", "DMD2")]
    results.records[:] = [record for record in results.records if record.objective != "progressive"]
    fewer = [axes.get_title() for axes in readme.pictures(results, readme.IMAGE_TASK).axes]
    assert fewer == [title for title in titles if not title.startswith("PD")], "two rows of three"


def test_a_table_names_what_made_its_results() -> None:
    found = load(ROOT / readme.KEPT / "toy2d-quick")
    present, old = (dataclasses.replace(found, identity=identity) for identity in (IDENTITY, IDENTITY - 1))
    made = "dagdiff 0.1.0 on Linux, x86_64, AVX512 (torch 2.13.0), 3 seeds."
    assert origin({"demo": present}) == f"Made with {made}"
    assert origin({"demo": old}) == (
        f"Made with {made} Results of an older version: keys and defaults have changed since; they are made again "
        "with `dagdiff bench toy2d --quick --out runs/demo`."
    )
    both = origin({"a": present, "b": old})
    assert both.startswith(f"`a`: made with {made} `b`: made with {made} Results of an older version")


def test_the_command_of_results_gives_their_settings() -> None:
    settings = {"tasks": ["moons-biased", "moons-matched"], "seeds": 2, "settings": {"samples": 10}}
    found = dataclasses.replace(kept("toy2d-quick"), settings={**dataclasses.asdict(toy2d.Suite()), **settings})
    words = shlex.split(command(found, "mine"))
    assert words == ["dagdiff", "bench", "toy2d", "--tasks", "moons-biased,moons-matched", "--seeds", "2", "--settings",
                     '{"samples": 10}', "--out", "runs/mine"]  # fmt: skip


def test_readme_s_table_holds_one_number_a_cell_and_its_words_follow() -> None:
    """At most six columns and rows; what is said of DMD2 is the result of the comparison that stands beside it."""
    study_rows, image_rows = kept("study").rows, kept("images").rows
    text = glance(study_rows, image_rows)
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len(head) <= 6 and len(rows) <= 6
    cells = [cell for row in rows for cell in row[1:]]
    assert all(re.fullmatch(r"= forward|-?[\d,]+\.\d+", cell) for cell in cells) and "-0.0" not in cells
    for task, where, rows_of in (("gaussians8-biased", "ring", study_rows), ("digits-biased", "digits", image_rows)):
        (row,) = (row for row in rows_of if _names(row) == (task, "distribution", "mixture", 4, ""))
        difference = row.minus("published")
        assert difference is not None
        told = f"difference {change(difference.interval, row.judged_by)}: {outcome(row, 'published')}."
        (line,) = (line for line in text.splitlines() if "DMD2 on the" in line)
        assert told.rstrip(".") in line[line.index(f"DMD2 on the {where}") :]


def _names(row: Row) -> tuple[str, str, str, int, str]:
    return row.task, row.objective, row.variant, row.steps, row.records[0].about


def test_findings_count_every_comparison() -> None:
    rows = kept("study").rows
    text = findings(rows, kept("images").rows)
    for name, objective in (("PD", "progressive"), ("LCM", "consistency"), ("DMD2", "distribution")):
        mine = [row for row in rows if row.task.endswith("-biased") and row.records[0].about == ""]
        mine = [row for row in mine if (row.objective, row.variant, row.steps) == (objective, "mixture", 4)]
        (line,) = (
            line
            for line in text.splitlines()
            if line.startswith(f"- **{name}, half of the data, 2-D**, mixture against f")
        )
        for way in ("better", "worse", "no gap", "inconclusive"):
            number = sum(outcome(row, "forward") == way for row in mine)
            assert (f"{way} in {number}" in line) == (number > 0)


def test_what_is_kept_is_rounded() -> None:
    kept = readme.rounded({"a": [0.123456789, 12345678.9, 3, None, "x"], "b": {"c": 1e-9 / 3}})
    assert kept == {"a": [0.123457, 12345700.0, 3, None, "x"], "b": {"c": 3.33333e-10}}


def test_a_readme_without_a_place_is_refused() -> None:
    with pytest.raises(Refusal, match="no place for the table 'other'"):
        with_table(TEXT, "other", "")


def options_on(page: str, name: str) -> dict[str, str]:
    """The options of the suite's command on a page that fills that folder."""
    before, _, _ = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ").partition(f"--out runs/{name}\n")
    words = shlex.split(before[before.rindex("dagdiff bench") :])
    return {option[2:]: value for option, value in zip(words[3::2], words[4::2], strict=True)}


PLACE = ("task", "objective", "variant", "steps", "seed")


def of_this_version(cells: Iterable[Cell], name: str) -> bool:
    """Whether the results hold just those runs; of an older version, which pages mark, no comparisons but those."""
    asked, results = list(cells), kept(name)
    made = {cell.entry for cell in asked}
    if results.identity < IDENTITY:
        places = {tuple(cell.labels[name] for name in PLACE) for cell in asked}
        return {tuple(getattr(record, name) for name in PLACE) for record in results.records} <= places
    return made == {(record.config, record.variant, record.setup) for record in results.records}


@pytest.mark.parametrize(
    ("page", "name"),
    [("docs/results.md", "study"), *(("docs/study.md", name) for name in ("study", "equal-nfe", "schedules"))],
)
def test_the_studies_commands_are_those_of_their_results(page: str, name: str) -> None:
    told = options_on(page, name)
    numbers = {option: int(told[option]) for option in ("seeds", "few_seeds") if option in told}
    asked = study.Suite(told["blocks"].split(","), **numbers)
    assert dataclasses.asdict(asked) == kept(name).settings
    assert of_this_version(study.cells(asked), name)


@pytest.mark.parametrize(
    ("page", "name"),
    [("docs/images.md", name) for name in ("images", "images-long", "fashion", "avatars", "avatars-pd")],
)
def test_the_image_suites_commands_are_those_of_their_results(page: str, name: str) -> None:
    told = options_on(page, name)
    lists = {option: told[option].split(",") for option in ("tasks", "objectives", "variants") if option in told}
    numbers = {option: int(told[option]) for option in ("seeds", "updates") if option in told}
    steps = {"steps": [int(count) for count in told["steps"].split(",")]} if "steps" in told else {}
    asked = images.Suite(**lists, **numbers, **steps, settings=json.loads(told.get("settings", "{}")))
    wanted = kept(name).settings
    if kept(name).identity < IDENTITY:  # then a student had its teacher's options once more
        wanted = {**wanted, "settings": {part: own for part, own in wanted["settings"].items() if part != "policy"}}
    assert dataclasses.asdict(asked) == wanted
    assert of_this_version(images.cells(asked), name)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        *(("docs/labels.md", name) for name in ("labels", "labels-long", "labels-digits")),
        ("docs/images.md", "labels-long-digits"),
    ],
)
def test_the_label_suites_commands_are_those_of_their_results(page: str, name: str) -> None:
    told = options_on(page, name)
    lists = {option: told[option].split(",") for option in ("blocks", "tasks", "objectives") if option in told}
    asked = labels.Suite(**lists, **({"seeds": int(told["seeds"])} if "seeds" in told else {}))
    assert dataclasses.asdict(asked) == kept(name).settings
    assert of_this_version(labels.cells(asked), name)


def test_the_figure_is_there() -> None:
    for name in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / name).stat().st_size > 10_000


def test_there_is_one_address_of_the_repository() -> None:
    (home,) = re.findall(r'(?m)^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for text in (TEXT, (ROOT / "docs/install.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"https://github\.com/[\w-]+/dagdiff", text)) == {home}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_first_code_runs(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In reduced size: a small teacher, few updates and samples."""
    (code,) = blocks("python")
    small = '"policy": {"class": "fresh", "width": 8}, "updates": 20, "samples": 100, "chains": 16, "batch_size": 16, '
    assert 'settings = {"task"' in code and "sample(2000" in code
    names = run(code.replace('settings = {"task"', f'settings = {{{small}"task"').replace("sample(2000", "sample(200"))
    *rounds, energy = capsys.readouterr().out.splitlines()
    assert len(rounds) == names["run"].settings.rounds and float(energy) == names["metrics"]["energy"]
    assert names["samples"].shape == (200, 2)


def test_the_demo_tells_how_to_go_on() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ndemo:")[2].partition("\n\n")[0]
    assert "bench toy2d --quick" in recipe and recipe.rstrip().endswith('@echo "source $(BIN)/activate"')
    for text in (TEXT, (ROOT / "docs/index.md").read_text(encoding="utf-8")):
        assert re.search(r"(?m)^make demo .*\nsource \.venv/bin/activate  #", text)
    assert "BIN := $(VENV)/bin" in makefile and "VENV ?= .venv" in makefile


def test_the_demo_s_last_lines_are_those_of_its_results() -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs/install.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    echoed = re.findall(r'(?m)^\t@echo "(.*)"$', (ROOT / "Makefile").read_text(encoding="utf-8"))[:2]
    told = [*counts(kept("toy2d-quick").rows), "", "report: runs/demo/report.html", *echoed]
    assert shown.splitlines() == [line.replace("$(BIN)", ".venv/bin") for line in told]


def test_extras_that_readme_installs_are_there() -> None:
    known = set(re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    extras = set(re.findall(r"'\.?(?:dagdiff)?\[(\w+)\]'", TEXT))
    assert extras and extras <= known


def test_the_first_screen_is_short() -> None:
    """Figure, commands, ten lines of Python, one table, limits; no line of code is cut at the right."""
    first = TEXT.partition("\n## ")[0]
    assert re.findall(r"!\[|```sh|```python|<!-- table", first) == ["![", "```sh", "```python", "<!-- table"]
    code = [block.splitlines() for language in ("sh", "python") for block in blocks(language)]
    assert max(len(line) for lines in code for line in lines) <= 88
    assert len(list(filter(None, blocks("python")[0].splitlines()))) <= 10


def test_the_commands_work_as_written(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a small pipeline of the same family, in a folder."""
    save(seeded(stable_diffusion), own_folder / "ID")
    (own_folder / "prompts.txt").write_text("a cat\na dog\n")
    found = commands()
    assert [words[0] for words in found] == ["distill", "export"]
    small = "--updates 2 --rounds 1 --chains 2 --batch_size 2 --samples 10 --heldout 0 --substeps 1 --device cpu"
    small += " --pipeline.own_samples 10 --pipeline.own_steps 2"
    for words in found:
        assert main([*words, *(shlex.split(small) if words[0] == "distill" else [])]) == 0, capsys.readouterr().err
    assert DiffusionPipeline.from_pretrained("students/mine").unet.config.sample_size == 8
