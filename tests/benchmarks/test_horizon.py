"""The horizon suite: the exponent of growth, its cells, and the tables made from its records."""

import dataclasses

import pytest

from dagdiff.benchmarks import compounding
from dagdiff.benchmarks.suites.horizon import QUICK, Suite, cells, growth
from dagdiff.report.records import Record, Scores
from dagdiff.report.rows import Row

STEPS = (1, 2, 4, 8, 16)


def record(variant: str, steps: int, seed: int, own: float, end: float, nfe: int = 10) -> Record:
    scores = Scores(loss_own=own, loss_expert=0.01, end_error=end, energy=1.0)
    return Record(
        task="gaussians8-matched", objective="progressive", variant=variant, steps=steps, seed=seed,
        shares=[0, 1, 0], updates=1, nfe_student=1, nfe_expert=nfe, seconds=1.0, setup="",
        config=f"{variant}{steps}{seed}", samples="", metrics=scores, by_step={},
        about="width 128", case="gaussians8-matched, width 128",
    )  # fmt: skip


def records(variant: str, exponent: float, end: float = 1.0, nfe: int = 10) -> list[Record]:
    """Runs whose summed loss on own states over the loss on the expert's is K to that power, but for the seed."""
    return [
        record(variant, k, seed, 0.01 * k ** (exponent - 1.0) * (1.0 + 0.01 * seed), end * (1.0 + 0.1 * seed), nfe)
        for k in STEPS
        for seed in range(3)
    ]


def row(found: list[Record]) -> Row:
    return Row(
        found[0].task, "progressive", found[0].variant, 0, tuple(found), "energy", {}, {}, Scores(), {}, {}
    )  # fmt: skip


@pytest.mark.parametrize("exponent", [1.0, 1.3, 2.0])
def test_the_exponent_is_found_again(exponent: float) -> None:
    found = growth(records("bc", exponent))
    assert found.exponent.mean == pytest.approx(exponent, abs=1e-6)
    assert found.exponent.low <= exponent <= found.exponent.high
    assert found.ratios[16].mean == pytest.approx(1.01 * 16 ** (exponent - 1.0), rel=1e-3)


def test_tables_say_what_the_records_hold() -> None:
    rows = [row(records("bc", 1.5, 2.0, 20)), row(records("dagger", 1.0, 1.0, 10))]
    lines = compounding.by_growth(rows).splitlines()
    assert "expert states (BC) | 1.50" in lines[2] and "student states (DAgger) | 1.00" in lines[3]
    assert lines[0].endswith("| K = 1 | K = 2 | K = 4 | K = 8 | K = 16 |")
    assert compounding.by_horizon(rows).splitlines()[2] == (
        "| gaussians8-matched, width 128 | 3 |" + " -50 [-50, -50] |" * len(STEPS)
    )
    told = compounding.claim(rows)
    assert "-50 [-50, -50] % at 8, -50 [-50, -50] % at 16 steps" in told and "with 0.5 times" in told


def test_the_claim_has_more_seeds_and_every_run_stands_once() -> None:
    found = list(cells(Suite(steps=[8, 32], tasks=["gaussians8-matched"])))
    assert len({cell.entry for cell in found}) == len(found) == 96
    claimed = [cell for cell in found if cell.case == "gaussians8-matched, width 32" and cell.config["steps"] == 8]
    seeds = {name: sum(cell.variant == name for cell in claimed) for name in ("forward", "bc", "dagger", "mixture")}
    assert seeds == {"forward": 4, "bc": 8, "dagger": 8, "mixture": 4}
    assert all(cell.config["steps"] * cell.config["substeps"] == 32 for cell in found), "the expert's walk is the same"
    assert len(list(cells(QUICK))) == 12


def test_nothing_but_the_states_differs_between_variants() -> None:
    first, *others = (
        {key: value for key, value in cell.config.items() if key not in ("shares", "beta")}
        for cell in cells(dataclasses.replace(QUICK, steps=[4]))
        if "noise" not in cell.about
    )
    assert len(others) == 3 and all(other == first for other in others)
