"""The reader of own formats: what it takes, what it refuses, and that a small file never becomes a large one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.reading import DEPTH, check_kind, has_aliases, parse_json, parse_yaml, read_json, read_text, to_yaml

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refused(text: str, parse: Any = parse_json) -> str:
    with pytest.raises(Refusal) as found:
        parse(text, "some.file")
    told = str(found.value)
    assert "some.file" in told and "\n" not in told and len(told) <= 500
    return told


@given(PLAIN)
def test_what_is_written_is_read_back(content: Any) -> None:
    assert parse_json(json.dumps(content), "x") == content
    assert parse_yaml(to_yaml(content), "x") == content


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ('{"a": NaN}', "NaN is no number of JSON's"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands there twice"),
        ("[1e999]", "the number 1e999 is beyond reach"),
        ("[" + "1" * 10_000_000 + "]", "a number has 10,000,000 digits"),
        ("[" * 100_000, "too deep"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), f"more than {DEPTH} containers"),
        ('{"a": "\x00"}', "control character"),
        ("\ufeff{", "BOM"),
    ],
)
def test_json_that_is_none_or_has_no_end(text: str, reason: str) -> None:
    assert reason in refused(text)


def test_what_other_programs_write_is_read_where_asked() -> None:
    assert parse_json('{"a": 1, "a": Infinity}', "x", strict=False) == {"a": float("inf")}
    with pytest.raises(Refusal, match="too deep"):
        parse_json("[" * 100_000, "x", strict=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "aliases"),
        ("a: &a {b: 1}\nc: {<<: *a}", "aliases"),
        ("a: 1\nb: 2\na: 3", "'a' stands there twice"),
        ("a: {b: 1, b: 2}", "'b' stands there twice"),
        ("[" * 100_000, "too deep"),
        ("a: " + "1" * 100_000, "can't be read"),
        ("a: [", "line 1, column 5"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("? [a]\n: 1", "unhashable key"),
    ],
)
def test_yaml_that_is_none_or_grows(text: str, reason: str) -> None:
    assert reason in refused(text, parse_yaml)


def test_a_bomb_in_an_option_is_seen_and_a_prompt_is_none() -> None:
    assert len(BOMB) < 500 and has_aliases("{" + BOMB.replace("\n", ", ") + "}")
    assert not has_aliases("rock & roll, *live*") and not has_aliases("[a, b]")


def test_text_is_written_without_aliases() -> None:
    shared = [1, 2]
    assert yaml.safe_load(to_yaml({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}
    assert "&" not in to_yaml({"a": shared, "b": shared})


KIND = {"times": [float], "law": {"class": str, "eta?": (float, None)}, "scores": {str: (float, None)}, "made?": bool}
GOOD = {"times": [1, 0.5], "law": {"class": "Ddim"}, "scores": {"w2": None, "mmd": 0.1}, "own": object}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"times": "1,0"}, "holds '1,0' at times, where list belongs"),
        ({"times": [1.0, True]}, "holds True at times[1], where number belongs"),
        ({"times": [[1.0]]}, "holds a list at times[0], where number belongs"),
        ({"law": {}}, "lacks law.class"),
        ({"law": {"class": "Ddim", "eta": "0"}}, "holds '0' at law.eta, where number or null belongs"),
        ({"scores": {"w2": {}}}, "holds an object at scores.w2, where number or null belongs"),
        ({"made": 1}, "holds 1 at made, where true or false belongs"),
        ({"made": "x" * 1000}, "xxx... at made"),
    ],
)
def test_types_are_strict_to_the_bottom_and_the_place_is_named(change: dict, reason: str) -> None:
    check_kind(GOOD, KIND, "a.json")
    with pytest.raises(Refusal) as found:
        check_kind({**GOOD, **change}, KIND, "a.json")
    assert str(found.value).startswith("a.json ") and reason in str(found.value) and len(str(found.value)) <= 500


@pytest.mark.parametrize("missing", ["times", "law", "scores"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(Refusal, match=f"a.json lacks {missing}"):
        check_kind({name: value for name, value in GOOD.items() if name != missing}, KIND, "a.json")


def test_files_are_bounded_and_ordinary(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(file) == {}
    with pytest.raises(Refusal, match=r"5 bytes, and 4 is the most"):
        read_text(file, 4)
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(Refusal, match=r"a.json is not UTF-8 at byte 7"):
        read_json(file)
    for path in (tmp_path, Path(os.devnull), tmp_path / "a\0b", tmp_path / ("x" * 300), tmp_path / "none"):
        with pytest.raises(Refusal, match="can't be read"):
            read_text(path)
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(Refusal, match="can't be read"):
        read_text(tmp_path / "loop")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refusal, match="it is no file"):
        read_json(tmp_path / "pipe")
