"""Shards of webdataset: pictures and what they show by their key, in order; what is broken is named in one line."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dagdiff.checks import Refusal
from dagdiff.envs.streams import Stream, read_state
from dagdiff.envs.tar_files import expanded, find_shards, read_shards

Write = Callable[..., Path]
USUAL = ("prompt", "caption", "text")


def picture(value: int) -> bytes:
    raw = io.BytesIO()
    Image.new("L", (4, 4), value).save(raw, "png")
    return raw.getvalue()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a shard of named members; numbers are grey pictures."""
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()

    def write(name: str, /, members: dict[str, int | str]) -> Path:
        with tarfile.open(tmp_path / "shards" / name, "w") as archive:
            for member, content in members.items():
                raw = content.encode() if isinstance(content, str) else picture(content)
                told = tarfile.TarInfo(member)
                told.size = len(raw)
                archive.addfile(told, io.BytesIO(raw))
        return tmp_path / "shards" / name

    return write


def read(source: Path | str, column: str | None = None, text: bool = True) -> Stream:
    return read_shards(str(source), find_shards(str(source)), USUAL, column, text)


def greys(stream: Stream) -> list[int]:
    """The value of each picture."""
    assert stream.open is not None and stream.count is not None
    states = [read_state(*stream.open(row), (4, 4))[0] for row in range(stream.count)]
    return [round(float(state.mean() + 1) * 127.5) for state in states]


def test_pictures_and_captions_by_key_in_the_order_of_shards(write: Write) -> None:
    write("001.tar", {"b.txt": "a dog\n", "b.png": 30, "c.png": 40, "c.txt": "a  red\nhouse"})
    write("000.tar", {"in/a.png": 10, "in/a.txt": "a cat", "in/a.npy": "no picture", "d.json": "{}"})
    stream = read(write("002.tar", {"e.PNG": 50, "e.json": json.dumps({"id": 3, "caption": "an old ship"})}).parent)
    assert stream.told == ["a cat", "a dog", "a red house", "an old ship"] and stream.kind == "caption"
    assert greys(stream) == [10, 30, 40, 50]
    assert dict(stream.skipped) == {".npy": 1, "texts without a picture": 1}
    again = read(stream.source.replace("shards", "shards/{000..002}.tar"))
    assert (again.key, again.told) == (stream.key, stream.told), "a pattern names the same"


def test_classes_and_columns(write: Write) -> None:
    members = {
        "a.png": 1,
        "a.cls": "3",
        "a.json": '{"what": "a cat"}',
        "b.png": 2,
        "b.cls": "7",
        "b.json": '{"what": "b"}',
    }
    shard = write("x.tar", members)
    assert read(shard).told == ["3", "7"] and read(shard).kind == "class"
    assert read(shard, "what").told == ["a cat", "b"]
    assert read(shard, "what", text=False).told == ["3", "7"]


def test_what_a_shard_holds_is_read_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write("x.tar", {"a.png": 1, "b.png": 2})
    first = read(shard)

    def never(*arguments: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("dagdiff.envs.tar_files._members", never)
    monkeypatch.setattr("dagdiff.envs.streams.file_hash", never)
    assert read(shard).key == first.key and greys(read(shard)) == [1, 2]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.txt": "a cat"}, r"no picture in .*x\.tar \(1 texts without a picture\)\. Name shards that hold png"),
        (
            {"a.png": 1, "a.txt": "a cat", "b.png": 2},
            r"1 of 2 pictures in .* have no caption, such as b\.png in .*x\.tar\. Put b\.txt beside it, or take all",
        ),
        ({"a.png": 1, "a.txt": " ", "b.png": 2, "b.txt": "b"}, r"1 of 2 pictures .* no caption, such as a\.png"),
        ({"a.png": 1, "a.jpg": 2}, r"x\.tar holds two pictures of one key, a\.jpg\. Give each a key of its own"),
        ({"a.png": 1, "a.json": "{"}, r"a\.json in .*x\.tar is not JSON"),
    ],
    ids=["no picture", "no caption", "an empty caption", "two of a key", "no JSON"],
)
def test_what_a_shard_cannot_hold(members: dict[str, int | str], told: str, write: Write) -> None:
    with pytest.raises(Refusal, match=told) as error:
        read(write("x.tar", members))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("how", ["cut in a picture", "cut after a picture", "another header", "no tar", "empty"])
def test_a_broken_shard_is_named_with_its_last_good_member(how: str, write: Write) -> None:
    shard = write("x.tar", {"a.png": 1, "b.png": 2})
    raw = shard.read_bytes()
    second = raw.index(b"b.png")
    changed = {
        "cut in a picture": raw[: second + 530],
        "cut after a picture": raw[: second + 1024],
        "another header": raw[:second] + b"\7" * 512 + raw[second + 512 :],
        "no tar": b"no tar" * 200,
        "empty": b"",
    }[how]
    shard.write_bytes(changed)
    name = "its first member" if how in ("no tar", "empty") else "a.png" if how == "another header" else "b.png"
    with pytest.raises(Refusal, match=rf"x\.tar is broken after {name} \(.*\)\. Fetch or write it again"):
        read(shard)


def test_patterns(tmp_path: Path, write: Write) -> None:
    assert expanded("a/{08..11}-{x,y}.tar")[:3] == ["a/08-x.tar", "a/08-y.tar", "a/09-x.tar"]
    write("000.tar", {"a.png": 1})
    with pytest.raises(Refusal, match=r"no shard at .*001\.tar \(1 of 2 are missing\)\. Name a \.tar file"):
        find_shards(str(tmp_path / "shards" / "{000..001}.tar"))
    with pytest.raises(Refusal, match=r"the range \{5\.\.3\} in .* must rise"):
        find_shards("{5..3}.tar")
    for name in ("x.tar.gz", "x.tgz"):
        with pytest.raises(Refusal, match=r"is packed, .*Unpack it to a \.tar file"):
            find_shards(str(tmp_path / name))
    assert find_shards(str(tmp_path)) == [], "a folder of folders"
    (tmp_path / "shards" / "a.png").write_bytes(picture(0))
    assert find_shards(str(tmp_path / "shards")) == [], "a folder of pictures, with a tar file in it"
