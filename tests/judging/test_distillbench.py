"""DistillBench's page and entries: the ten lines get their row, the tables are those of the committed results."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from dagdiff.benchmarks.measure import distillbench, entries
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.judging import terms
from dagdiff.judging.judge import judge
from dagdiff.judging.judgement import read_judgement, save_judgement
from dagdiff.schedule import VPSchedule
from dagdiff.transition import Ddim, sample

TASK, N = "imbalanced-biased", 120
PAGE = (ROOT / "docs/distillbench.md").read_text(encoding="utf-8")


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "POINTS", N)


def good(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    return x_t / (1 + t[:, None])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.usefixtures("few_points")
def test_the_ten_lines_of_the_page_get_their_row(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks('python title="mine.py"')
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (own_folder / "mine.py").write_text(code)
    (command,) = (line for block in blocks("sh") for line in block.splitlines() if line.startswith("dagdiff judge"))
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| mine:student | 4 | ddim |")]
    assert len(rows) == 2 and rows[1] == Path("judged/row.md").read_text().splitlines()[-1]


def test_the_tables_of_the_page_are_those_of_the_committed_results() -> None:
    again = "run: python -m dagdiff.benchmarks.measure.distillbench"
    assert distillbench.filled(PAGE, ROOT / distillbench.KEPT) == PAGE, again
    names = ["cards", *distillbench.kept(ROOT / distillbench.KEPT)]
    assert PAGE.count("<!-- table: ") == len(names)
    assert sum(file.stat().st_size for file in (ROOT / distillbench.KEPT).rglob("*.json")) < 1e6


def test_the_entries_are_those_that_are_told() -> None:
    told = {each.entry for found in distillbench.kept(ROOT / distillbench.KEPT).values() for each in found}
    assert told >= {"PD mixture", "PD forward", "pairs from noise", "ModelOpt DMD2 student"}
    assert told <= set(entries.ENTRIES)


@pytest.mark.usefixtures("few_points")
def test_a_scheduler_on_the_exact_expert_is_our_chain() -> None:
    """Diffusers' DDIM, trailing, in 4 steps: the same points as our own law on its table, but for its last entry."""
    from diffusers import DDIMScheduler

    found, asked = entries.samples(TASK, "DDIMScheduler", 4, 9001)
    schedule = VPSchedule(DDIMScheduler(**entries.TABLE).alphas_cumprod)
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(9001))
    times = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    own = sample(entries.exact(TASK, schedule), Ddim(schedule), times, noise)
    assert asked == 4 and torch.allclose(found, own, atol=1e-3)


@pytest.mark.usefixtures("few_points")
def test_every_sampler_asks_as_often_as_its_row_says() -> None:
    for name, (kind, numbers) in entries.SAMPLERS.items():
        for steps in numbers:
            points, asked = entries.samples(TASK, kind, steps, 9001)
            assert bool(points.isfinite().all()) and asked == (2 * steps - 1 if name == "Heun" else steps)
            assert asked <= 16


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own entries with students of no teacher."""
    whole = entries.configure
    small = {"policy": {"class": "fresh", "width": 8}, "rounds": 1, "chains": 8, "batch_size": 8}
    monkeypatch.setattr(entries, "configure", lambda chosen: whole({**chosen, **small}))


@pytest.mark.usefixtures("cheap", "own_folder", "few_points")
def test_the_bench_makes_each_entry_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"bench distillbench --tasks {TASK} --entries PD,pairs,Heun --seeds 2 --updates 2 --out made"
    assert main(words.split()) == 0, capsys.readouterr().err
    found = {file.stem: file.stat().st_mtime_ns for file in Path(f"made/{TASK}").iterdir()}
    samplers = {f"heun-x-{steps}-on-the-expert" for steps in (1, 2, 4, 8)}
    assert set(found) == {"pd-mixture", "pd-forward", "pairs-from-noise", *samplers}
    pairs = read_judgement(Path(f"made/{TASK}/pairs-from-noise.json"))
    assert (pairs.steps, pairs.entry, len(pairs.scores["energy"])) == (1, "pairs from noise", 2)
    assert main(words.split()) == 0
    assert {file.stem: file.stat().st_mtime_ns for file in Path(f"made/{TASK}").iterdir()} == found
    assert json.loads(Path(f"made/{TASK}/pd-mixture.json").read_text())["bench"] == terms.VERSION
    assert main([*words.split()[:4], "--entries", "PDD", "--out", "made"]) == 2
    assert "unknown entry 'PDD'" in capsys.readouterr().err


@pytest.mark.usefixtures("few_points")
def test_a_row_of_other_terms_is_not_put_among_the_others(tmp_path: Path) -> None:
    found = judge(good, TASK, seeds=1, device="cpu")
    save_judgement(found, tmp_path / "gaussians8-biased" / "mine.json")
    with pytest.raises(Refusal, match=f"keep it under {TASK}"):
        distillbench.kept(tmp_path)


@pytest.mark.parametrize("task", ["gaussians8-matched", "moons-scarce", "imbalanced-biased-labelled"])
def test_cards_say_what_is_shown_and_where_the_truth_comes_from(task: str) -> None:
    told = terms.card(task)
    assert told.task == task and all(told)
    assert ("closed form" in told.truth) == ("moons" not in task)
    assert (told.hidden == "nothing") == ("matched" in task)


@pytest.mark.parametrize("task", ["digits-biased", "digits-matched", "digits-scarce-labelled"])
def test_cards_of_pictures_count_them_and_name_the_hidden_classes(task: str) -> None:
    told = terms.card(task)
    assert told.task == task and told.world == "pictures of 10 classes"
    assert told.size == "1 x 8 x 8 numbers; 899, 898 held out"
    assert told.hidden.startswith({"biased": "5 classes: 5, 6, 7", "matched": "nothing"}.get(task[7:], "all but"))
    assert "the machine that judges" in told.truth
