"""The script of faults, in a short form: a command that is killed where it writes leaves what it would have left."""

from pathlib import Path

import faults


def test_a_run_that_is_killed_where_it_writes_loses_nothing(tmp_path: Path) -> None:
    trial = faults.Trial("distill", tmp_path / "faults")
    trial.at_writes("killed at a write", lambda number, _: faults.at_write(number, faults.killed), 1, first=20)
    assert trial.tried == {"killed at a write": 1} and not trial.lost, trial.notes


def test_what_differs_is_lost(tmp_path: Path) -> None:
    """The script itself can fail."""
    trial = faults.Trial("teacher", tmp_path / "faults")
    trial.expected = {name: "other" for name in trial.expected}
    with trial.place() as place:
        trial.again("killed at a write", place)
    assert trial.lost == {"killed at a write": 1} and "differs" in trial.notes[0]
