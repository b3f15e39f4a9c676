"""What words, files and mappings say, as one mapping of names to values."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagdiff.checks import Refusal
from dagdiff.runs.config import complete, configure
from dagdiff.runs.words import nested, spell, split, spread


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--steps 4 --lr=1e-3", {"steps": "4", "lr": "1e-3"}),
        ("--steps 4 --steps 8", {"steps": "8"}),
        ("--heldout -1", {"heldout": "-1"}),
        ("--memmap=a=b", {"memmap": "a=b"}),
        ("--shares 1,0,0 --stages (8,4)", {"shares": "[1,0,0]", "stages": "[8,4]"}),
        ("--betas=[0.5,0.9]", {"betas": "[0.5,0.9]"}),
        ("--policy.channels 8,16 --policy.names a,b", {"policy.channels": "[8,16]", "policy.names": "a,b"}),
        ("--expert exact --expert.width 3", {"expert.class": "exact", "expert.width": "3"}),
        ("--expert.class dagdiff.tasks.plane.exact_expert", {"expert.class": "exact"}),
        ("--expert exact --expert null --steps 2 --steps null", {}),
        ("--policy.alpha null", {"policy.alpha": "null"}),
        ("--print_config --help -h", {"print_config": True, "help": True}),
        ("--skip_broken --bf16 true --per_chain", {"skip_broken": "true", "bf16": "true", "per_chain": "true"}),
        ("--skip_broken=false --stepwise false", {"skip_broken": "false", "stepwise": "false"}),
        ("stray", {"": "stray"}),
    ],
)  # fmt: skip
def test_words(line: str, wanted: dict[str, Any]) -> None:
    assert spell(line.split(), flags=("print_config",)) == wanted


def test_a_mapping_is_taken_as_it_is() -> None:
    given = {"shares": (0.5, 0.5, 0.0), "lr": 1e-3, "expert": {"class": "learned", "width": 16}, "policy.width": 8}
    wanted = {"shares": [0.5, 0.5, 0.0], "lr": 1e-3, "expert.class": "learned", "expert.width": 16, "policy.width": 8}
    assert spread({**given, "seed": None, "data": None}) == wanted
    assert nested(wanted)["expert"] == given["expert"]


@pytest.mark.parametrize("given", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}])
def test_a_name_is_told_once(given: dict[str, int]) -> None:
    with pytest.raises(Refusal, match="--a"):
        nested(given)


def test_a_file_says_the_same_as_words(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("shares: 0.5,0.5,0\nstages: [8, 4]\nexpert: {class: learned, width: 16}\nlr: 1e-3\nseed:\n")
    words = "--shares 0.5,0.5,0 --stages 8,4 --expert learned --expert.width 16 --lr 1e-3"
    assert complete(spell(["--config", str(file)])) == complete(spell(words.split()))


def test_a_file_that_names_a_file_is_refused(tmp_path: Path) -> None:
    """It could name itself; and a run's file must not lead to others."""
    file = tmp_path / "c.yaml"
    file.write_text(f"config: {file}\n")
    with pytest.raises(Refusal, match="config"):
        complete(spell(["--config", str(file)]))


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("--steps", "--steps needs a value"),
        ("--expert", "--expert needs a value: exact, learned"),
        ("--expert=", "--expert needs a name"),
        ("--config=nosuch.yaml", "nosuch.yaml can't be read"),
    ],
)
def test_what_words_lack(word: str, match: str) -> None:
    for words in ([word], [word, "--lr", "1"]):
        with pytest.raises(Refusal, match=match):
            spell(words)


@pytest.mark.parametrize("value", [3, ["a"], True])
def test_a_part_s_name_is_text(value: object) -> None:
    with pytest.raises(Refusal, match="--expert needs a name; got"):
        configure({"expert": value})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("step", "--steps"),
        ("objective.wieght", "--objective.weight"),
        ("policy.widht", "--policy.width"),
        ("expert.substep", "--substeps"),
        ("driver.per_chian", "--per_chain"),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_miss(name: str, near: str) -> None:
    with pytest.raises(Refusal, match=f"unrecognized arguments: --{name}. Did you mean {near}?"):
        configure({name: 1})


@pytest.mark.parametrize("say", [lambda words: dict(split(words)), spell], ids=["split", "spell"])
def test_reading_is_linear_in_the_words(say: Callable[[list[str]], dict[str, Any]]) -> None:
    """Twice the words, twice the steps that the interpreter makes."""

    def calls(n: int) -> int:
        words = [f"--policy.option{i}={i}" for i in range(n)]
        seen = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal seen
            seen += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            say(words)
        finally:
            sys.setprofile(before)
        return seen

    assert calls(1000) < 2.2 * calls(500)
