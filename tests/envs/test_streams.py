"""Hashes of files that are made once, and pictures that are read one by one."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dagdiff.checks import Refusal
from dagdiff.envs import streams
from dagdiff.envs.streams import digest, read_state


def test_files_are_hashed_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    hashed: list[str] = []
    real = streams.file_hash

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(streams, "file_hash", counted)
    (tmp_path / "in").mkdir()
    files = [tmp_path / "in" / name for name in ("a", "b", "c")]
    for file in files:
        file.write_text(file.name)
    first = digest(files, tmp_path / "in")
    assert digest(files, tmp_path / "in") == first and hashed == ["a", "b", "c"]
    files[1].write_text("changed")
    second = digest(files, tmp_path / "in")
    assert second != first and hashed[3:] == ["b"]
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    memo.write_text('{"a": [1')
    assert digest(files, tmp_path / "in") == second, "a memo that is not whole is made again"
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / file.name for file in files]
    assert digest(moved, tmp_path / "elsewhere") == second, "what files hold counts, not where they are"
    assert digest(moved[::-1], tmp_path / "elsewhere") != second
    moved[0].unlink()
    with pytest.raises(Refusal, match=r"a can't be read \(No such file"):
        digest(moved, tmp_path / "elsewhere")


def test_pictures_are_cropped_in_their_middle_and_scaled() -> None:
    wide = Image.new("L", (8, 4))
    wide.paste(255, (2, 0, 6, 4))
    state, cropped = read_state("x", wide, (4, 4))
    assert cropped and torch.equal(state, torch.ones(1, 4, 4))
    state, cropped = read_state("x", Image.new("RGB", (4, 4), "red"), (2, 2))
    assert not cropped and state[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    given = torch.zeros(3, 5, 7)
    assert read_state("x", given, (2, 2))[0] is given
