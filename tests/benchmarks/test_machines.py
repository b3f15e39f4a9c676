"""How far another CPU may be off: the settings reach the processes, and the numbers are those of the runs."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from dagdiff.benchmarks.measure import machines
from dagdiff.benchmarks.measure.machines import (
    SETTINGS,
    Line,
    Pair,
    by_cell,
    by_metric,
    environment,
    keep,
    lines,
    pairs,
    portions,
)
from dagdiff.benchmarks.suites import toy2d
from dagdiff.metrics.statistics import paired_difference
from dagdiff.report.records import Record
from dagdiff.report.results import Results


def record(variant: str, seed: int, energy: float, **changes: str) -> Record:
    plain = {"task": "t-biased", "objective": "distribution", "variant": variant, "steps": 4, "seed": seed}
    plain |= {"shares": [0.0, 1.0, 0.0], "updates": 4, "nfe_student": 1, "nfe_expert": 1, "seconds": 1.0, "setup": ""}
    told = {"config": f"{variant} {seed}", "samples": "", "metrics": {"energy": energy}, "by_step": {}}
    return Record(**{**plain, **told, **changes})


def results(*records: Record) -> Results:
    return Results(Path(), "toy2d", "0", {}, list(records), {}, {}, {})


def test_a_setting_reaches_the_processes_that_are_started_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")  # as it is means without it
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    ask = "import os, torch; print(os.environ.get('MKL_CBWR'), torch.backends.cpu.get_cpu_capability())"

    def told(setting: str) -> str:
        with environment(SETTINGS[setting]):
            return subprocess.run(
                [sys.executable, "-c", ask], capture_output=True, text=True, check=True
            ).stdout.strip()

    assert told("native").startswith("None ")
    assert told("plain") == "COMPATIBLE DEFAULT"
    assert os.environ["MKL_CBWR"] == "AVX2" and "ATEN_CPU_CAPABILITY" not in os.environ


def test_every_setting_runs_the_same_cells_with_teachers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = toy2d.Suite(["gaussians8-biased"], ["progressive"], ["forward"], seeds=2)
    monkeypatch.setitem(machines.SUITES, "small", (toy2d, suite))
    seen = []

    def run_cells(name: str, cells: list[toy2d.Cell], settings: object, out: Path) -> None:
        seen.append((name, [cell.key for cell in cells], out.name, Path(os.environ["DAGDIFF_CACHE"])))

    monkeypatch.setattr(machines, "run_cells", run_cells)
    machines.measure("small", tmp_path)
    keys = [cell.key for cell in toy2d.cells(suite)]
    assert seen == [("toy2d", keys, setting, tmp_path / "cache" / setting) for setting in SETTINGS]


def test_a_portion_is_whole_seeds_and_worlds() -> None:
    suite = toy2d.Suite(["gaussians8-biased", "grid25-biased"], ["progressive"], ["forward", "mixture"], seeds=3)
    cells = list(toy2d.cells(suite))
    assert [len(portion) for portion in portions(cells, least=1)] == [2] * 6
    found = list(portions(cells, least=3))
    assert [len(portion) for portion in found] == [4, 4, 4]
    assert [{cell.config["seed"] for cell in portion} for portion in found] == [{0}, {1}, {2}]
    assert sorted(cell.key for portion in found for cell in portion) == sorted(cell.key for cell in cells)


def test_a_line_by_hand() -> None:
    native = results(
        record("mixture", 0, 1.0), record("mixture", 1, 3.0), record("published", 0, 9.0, config="mixture 0")
    )
    other = results(
        record("mixture", 0, 2.0), record("mixture", 1, 3.0), record("mixture", 2, 50.0)
    )  # seed 2 has no native run
    (line,) = lines({"native": native, "other": other}, [native])
    assert line[:7] == ("t-biased", "distribution", "mixture", 4, "energy", 2, 2.0)
    assert line.moved == 0.5
    assert line.repeat == pytest.approx((0.5 / 2) ** 0.5)  # variances 1/2 and 0
    assert (line.seeds, line.seed) == (2, pytest.approx(2**0.5))
    (again,) = lines({"native": native, "other": other}, [other])
    assert (again.seeds, again.seed) == (3, pytest.approx(statistics.stdev([2.0, 3.0, 50.0])))
    (both,) = lines({"native": native, "other": other}, [native, other])
    assert (both.seeds, both.seed) == (2, pytest.approx(((2 + again.seed**2) / 2) ** 0.5))


def test_runs_that_are_one_make_one_line() -> None:
    native = results(record("forward", 0, 1.0, config="x"), record("published", 0, 1.0, config="x"))
    spread = results(*(record(variant, seed, seed) for variant in ("forward", "published") for seed in range(2)))
    assert [line.variant for line in lines({"native": native, "other": native}, [spread])] == ["forward"]


def test_pairs_by_hand(tmp_path: Path) -> None:
    published, mixture = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 2.5, 4.0, 4.0, 7.0]
    found = results(
        *(record("published", seed, energy) for seed, energy in enumerate(published)),
        *(record("mixture", seed, energy) for seed, energy in enumerate(mixture)),
    )
    (pair,) = pairs({"native": found})
    wanted = paired_difference(mixture, published)
    assert pair == ("t-biased", "distribution", "native", 5, 3.0, pytest.approx(3.9), *wanted)
    assert not list(pairs({"native": results(*found.records[:4], *found.records[5:9])}))  # four seeds are too few
    keep(tmp_path / "pairs.csv", [pair])
    (again,) = machines.read(tmp_path / "pairs.csv", Pair)
    assert again[:4] == pair[:4] and again[4:] == pytest.approx(pair[4:], rel=1e-4)


def test_lines_come_back_and_make_the_tables(tmp_path: Path) -> None:
    found = [
        Line("moons-biased", "progressive", "forward", 4, "energy", 3, 0.5, 0.01, 0.02, 3, 0.1),
        Line("moons-biased", "progressive", "mixture", 4, "energy", 3, 0.25, 0.0, 0.04, 3, 0.1),
        Line("moons-biased", "progressive", "mixture", 4, "w2", 3, 0.25, 0.0, 0.0, 3, 0.0),
    ]
    keep(tmp_path / "lines.csv", found)
    assert machines.read(tmp_path / "lines.csv", Line) == found
    assert (
        by_cell(found).splitlines()[2] == "| moons, biased | forward 0.5000 ± 0.0100, mixture 0.2500 ± 0.0000 | – | – |"
    )
    assert by_metric(found).splitlines()[2:] == ["| energy | 0.30, 0.40 | – | – |", "| w2 | – | – | – |"]


def test_the_page_s_tables_are_those_of_what_is_kept() -> None:
    text = (ROOT / machines.PAGE).read_text(encoding="utf-8")
    assert machines.filled(text, ROOT / machines.KEPT) == text, "run dagdiff.benchmarks.measure.machines"
