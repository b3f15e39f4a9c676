"""The table of mutants: each applies and names tests that are there; and the script tells caught from missed."""

import re
from pathlib import Path

import mutants
import pytest

MUTANTS = mutants.read_table(mutants.TABLE.read_text(encoding="utf-8"))
HEAD = "| file | before | after | law | tests |\n|---|---|---|---|---|\n"


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_applies_once_and_names_its_tests(mutant: mutants.Mutant) -> None:
    text = (mutants.ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.applied(text) != text
    if mutant.file.endswith(".py"):
        compile(mutant.applied(text), mutant.file, "exec")
    for test in mutant.tests:
        file, _, function = test.partition("::")
        told = (mutants.ROOT / file).read_text(encoding="utf-8")
        assert not function or re.search(rf"(?m)^def {function}\(", told), f"{test} is not there"


def test_the_core_is_covered() -> None:
    """Some 25 mutants, in every file that defines what a student learns."""
    assert len(set(MUTANTS)) == len(MUTANTS) >= 25
    core = "schedule transition threshold expert mixture aggregate rollout dagger heldout strategies/halving checkpoint"
    assert {f"dagdiff/{name}.py" for name in core.split()} | {"policies/prediction.py"} <= {
        mutant.file for mutant in MUTANTS
    }
    objectives = {mutant.file for mutant in MUTANTS if mutant.file.startswith("dagdiff/objectives/")}
    assert len(objectives) == 5


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("| `a.py` | `x` | `y` | law |", "a row needs file, before, after, law and tests"),
        ("| `a.py` | `x | y` | `y` | law | `t.py` |", "no other bars"),
        ("| `a.py` | `x` | `x` | law | `t.py` |", "a mutant changes something"),
        ("| `a.py` | `x` | `y` | law | t.py |", "names its tests"),
    ],
)
def test_a_row_that_is_no_mutant(row: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mutants.read_table(f"{HEAD}{row}\n")


def project(place: Path, *rows: str) -> tuple[Path, Path]:
    """A module of two functions, a test of one of them, and a table; return the table and the tree."""
    tree = place / "tree"
    tree.mkdir()
    (tree / "one.py").write_text("def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n")
    (tree / "test_one.py").write_text("from one import double\n\n\ndef test_double():\n    assert double(3) == 6\n")
    (tree / "linked.py").symlink_to("one.py")
    (place / "table.md").write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return place / "table.md", tree


CAUGHT = "| `one.py` | `2 * x` | `3 * x` | double doubles | `test_one.py` |"
SURVIVES = "| `one.py` | `x / 2` | `x / 3` | half halves | `test_one.py` |"
STALE = "| `one.py` | `x * 7` | `x * 8` | nothing of the kind | `test_one.py` |"
ABSENT = "| `one.py` | `2 * x` | `4 * x` | double doubles again | `test_one.py::test_gone` |"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            (CAUGHT, SURVIVES, STALE),
            ["caught .*double doubles", "SURVIVED .*half", "BROKEN .*nothing of the kind", "1 of 3 mutants are caught"],
        ),
        ((ABSENT,), ["the tests do not pass without a mutant"]),
    ],
)
def test_the_script_tells_caught_from_missed(
    rows: tuple[str, ...], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, tree = project(tmp_path, *rows)
    before = {file: file.read_text() for file in tree.iterdir()}
    assert mutants.main([], table, tree) == 1
    said = "".join(capsys.readouterr())
    assert all(re.search(line, said) for line in told), said
    assert {file: file.read_text() for file in tree.iterdir()} == before, "the tree itself is never touched"


def test_words_choose_mutants_and_all_caught_is_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, tree = project(tmp_path, CAUGHT, SURVIVES)
    assert mutants.main(["--workers", "2", "doubles"], table, tree) == 0
    assert "1 of 1 mutants are caught" in capsys.readouterr().out
    assert mutants.main(["no such word"], table, tree) == 1


def test_a_copy_keeps_symlinks_and_rooms_and_leaves_out_what_is_made(tmp_path: Path) -> None:
    _, tree = project(tmp_path)
    for folder in ("runs", "package/runs", "package/__pycache__"):
        (tree / folder).mkdir(parents=True)
    copy = mutants.copy_tree(tree, tmp_path / "copy")
    assert (copy / "linked.py").is_symlink() and (copy / "package/runs").exists()
    assert not (copy / "runs").exists() and not (copy / "package/__pycache__").exists()
