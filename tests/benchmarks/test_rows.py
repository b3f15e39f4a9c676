"""A table that grows by a run a row: what is asked for, what is there, and what is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dagdiff.benchmarks.measure.rows import asked, completed, read_rows
from dagdiff.checks import Refusal

RUNS = [{"task": task, "seed": seed} for seed in range(2) for task in ("a", "b")]


def test_words_say_options_and_a_place(tmp_path: Path) -> None:
    usual = {"seeds": "3", "tasks": "a,b"}
    assert asked(["seeds=1", "there"], usual, tmp_path) == ({"seeds": "1", "tasks": "a,b"}, Path("there"))
    assert asked([], usual, tmp_path) == (usual, tmp_path)
    with pytest.raises(Refusal, match=r"unknown option 'seed'\. Known: seeds, tasks\."):
        asked(["seed=1"], usual, tmp_path)


def test_a_stopped_table_goes_on_where_it_stands(tmp_path: Path) -> None:
    made, file = list[dict[str, Any]](), tmp_path / "new" / "rows.csv"

    def measure(run: Mapping[str, Any]) -> dict[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(dict(run))
        return {**run, "score": len(made)}

    assert read_rows(file) == []
    with pytest.raises(KeyboardInterrupt):
        completed(file, ("task", "seed"), RUNS, measure)
    assert [row["score"] for row in read_rows(file)] == ["1", "2", "3"]
    rows = completed(file, ("task", "seed"), RUNS, lambda run: {**run, "score": "last"})
    assert [row["score"] for row in rows] == ["1", "2", "3", "last"] and rows == read_rows(file)[:3] + rows[3:]
    assert [(row["task"], int(row["seed"])) for row in rows] == [(run["task"], run["seed"]) for run in RUNS]
