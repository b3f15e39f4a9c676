"""The measurement of overhead: both sides do the same, and the page shows what was measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor

from dagdiff.benchmarks.measure import overhead
from dagdiff.benchmarks.measure.bare import BARE
from dagdiff.benchmarks.measure.overhead import Case, Options, Parts
from dagdiff.checks import Refusal
from dagdiff.cli import main


def counted(it: Parts) -> tuple[Parts, dict[str, int]]:
    """The parts, and how many rows student and teacher are shown from now on."""
    rows = {"student": 0, "teacher": 0}

    def teacher(x: Tensor, t: Tensor, condition: Tensor | None = None) -> Any:
        rows["teacher"] += len(x)
        return it.teacher(x, t, condition)

    def seen(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows["student"] += len(output)

    it.network.register_forward_hook(seen)
    return it._replace(teacher=teacher), rows


@pytest.mark.parametrize("states", ["forward", "mixture"])
@pytest.mark.parametrize("objective", BARE)
def test_both_sides_ask_their_networks_equally_often(objective: str, states: str) -> None:
    chosen, reuse = overhead.setting(Case("mlp", objective, 64, states), 3)
    chosen = replace(chosen, chains=16, updates=6)
    (mine, ours), (plain, theirs) = (counted(overhead.parts("mlp")) for _ in range(2))
    loop, bare = overhead.ours(mine, objective, chosen, reuse), overhead.bare(plain, objective, chosen)
    ours["teacher"] = ours["student"] = 0  # what was asked to see whether the parts fit
    made, before, other = iter(loop), dict(ours), dict(theirs)
    for number, wanted in zip(range(3), overhead.plan(objective, chosen, reuse), strict=False):
        done, loss = next(made), bare.round(*wanted)
        kept = [len(columns["x"]) if columns else 0 for columns in (bare.forward, bare.own, bare.led)]
        assert done.size == sum(kept), number
        assert torch.isfinite(torch.tensor(loss))
        if number:  # the first round also asks the driver about a batch of chains
            assert {name: ours[name] - before[name] for name in ours} == {
                name: theirs[name] - other[name] for name in theirs
            }
        before, other = dict(ours), dict(theirs)


def test_the_two_losses_agree_on_the_whole() -> None:
    """Other draws of the same law: after some rounds PD's losses are of one size."""
    chosen, reuse = overhead.setting(Case("mlp", "progressive", 256, "mixture"), 12)
    loop = overhead.ours(overhead.parts("mlp"), "progressive", chosen, reuse)
    bare, wanted = (
        overhead.bare(overhead.parts("mlp"), "progressive", chosen),
        overhead.plan("progressive", chosen, reuse),
    )
    pairs = [(done.losses["loss"], bare.round(*next(wanted))) for done in loop]
    assert pairs[0][0] == pytest.approx(pairs[0][1], rel=0.3) and pairs[-1][0] == pytest.approx(pairs[-1][1], rel=0.3)


def test_the_command_writes_the_file_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = "bench overhead --networks mlp --objectives progressive --batch_sizes 16 --rounds 3"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    rows = overhead.read(tmp_path)
    assert [(row["states"], row["pairs"]) for row in rows] == [("forward", "3"), ("mixture", "3")]
    assert all(0.0 < float(row["low"]) <= float(row["ratio"]) <= float(row["high"]) for row in rows)
    assert overhead.table(rows) in capsys.readouterr().out and (tmp_path / "machine.json").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--networks mpl --out out", "unknown networks 'mpl'. Did you mean 'mlp'"),
        ("--rounds 0 --out out", "rounds must be at least 1; got 0"),
        ("--batch_sizes 0 --out out", "batch_sizes must be at least 1; got 0"),
        ("", "--out is missing"),
        ("--out out --seeds 3", "unrecognized arguments: --seeds"),
    ],
)
def test_refusals(words: str, match: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "overhead", *words.split()]) == 2
    told = capsys.readouterr().err
    assert match in told and told.count("\n") == 1


def test_an_option_that_cannot_be_is_refused() -> None:
    with pytest.raises(Refusal, match="unknown objectives 'pd'"):
        Options(objectives=["pd"])


def test_the_page_holds_the_table_of_what_is_kept() -> None:
    page = (ROOT / overhead.PAGE).read_text(encoding="utf-8")
    assert overhead.table(overhead.read(ROOT / overhead.KEPT)) in page, (
        "run: python -m dagdiff.benchmarks.measure.overhead"
    )
