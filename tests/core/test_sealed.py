"""A sealed file is noticed where it was changed, and read where it was not."""

import json
import math
from pathlib import Path

import pytest

from dagdiff.checks import Refusal
from dagdiff.sealed import read_sealed, save_sealed

CONTENT = {"numbers": [1.5, 1e-7, -3], "by": {"16": 0.25, "2": None}, "text": "Größe", "flag": True}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """With what JSON lacks as null, and names as text."""
    save_sealed(tmp_path / "a.json", {**CONTENT, "nan": math.nan, "counts": {16: 1, 2: 3}})
    assert read_sealed(tmp_path / "a.json") == {**CONTENT, "nan": None, "counts": {"16": 1, "2": 3}}


def test_every_bit_that_changes_the_content_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    save_sealed(file, CONTENT)
    raw = file.read_bytes()
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            try:
                assert read_sealed(file) == CONTENT, changed  # 1e-07 may be spelled 1E-07
            except Refusal as error:
                assert str(file) in str(error)


def test_a_file_without_a_digest_is_read_only_where_it_may_lack_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CONTENT))
    assert read_sealed(tmp_path / "a.json", required=False) == CONTENT
    with pytest.raises(Refusal, match=r"a\.json is damaged or was changed"):
        read_sealed(tmp_path / "a.json")
