"""Files of prompts: every encoding and line end, tables and their columns, and captions beside pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dagdiff.checks import Refusal
from dagdiff.envs.picture_files import find_pictures
from dagdiff.pipelines.captions import read_captions
from dagdiff.pipelines.conditions import read_prompts
from dagdiff.pipelines.pictures import told_prompts

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file, and return its path."""

    def written(raw: bytes | str, name: str = "prompts.txt") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
        return path

    return written


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a cat\na dog\n", ["a cat", "a dog"]),
        ("\ufeffa cat\r\na dog\r\n", ["a cat", "a dog"]),
        ("a cat\ra dog\r", ["a cat", "a dog"]),
        ("a cat\r\n\n  a dog \t", ["a cat", "a dog"]),
        ("a cat,\u2028sitting\na dog\n", ["a cat,\u2028sitting", "a dog"]),
        ("a cat\x0con a mat\x85!\n", ["a cat\x0con a mat\x85!"]),
        ("a cat\n\u200b\n\ufeff\n\u00a0\n\u3164\n\u2800\n\u00ad\n\u200e\u200f\n", ["a cat"]),
        ("\ufeffa cat\n\ufeffa dog\u200b\n", ["a cat", "a dog"]),  # two files in one
        ("\u732b\n\U0001f469\u200d\U0001f680 naïve\n", ["\u732b", "\U0001f469\u200d\U0001f680 naïve"]),
    ],
)
def test_prompts_stand_on_lines(raw: str, expected: list[str], write: Write) -> None:
    assert read_prompts(write(raw)) == expected


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("a cat\n".encode("utf-16"), "begins with the bytes ff fe 61 00, so it seems to be UTF-16. .*iconv -f UTF-16"),
        ("a cat\n".encode("utf-16-be"), "holds zero bytes, so it seems to be UTF-16"),
        (b"\xfe\xff" + "a cat\n".encode("utf-16-be"), "seems to be UTF-16"),
        ("a cat\n".encode("utf-32"), "seems to be UTF-32"),
        (
            "a naïve cat\n".encode("cp1252"),
            "holds the byte 0xef at 4, so it seems to be Windows-1252.*iconv -f WINDOWS",
        ),
        (b"\x1f\x8b\x08\x00", "seems to be packed by gzip. Unpack it"),
    ],
)
def test_other_encodings_are_named(raw: bytes, told: str, write: Write) -> None:
    with pytest.raises(Refusal, match=rf"prompts.txt is not UTF-8: it .*{told}") as error:
        read_prompts(write(raw))
    assert len(str(error.value).splitlines()) == 1


def test_files_that_hold_no_prompt_are_refused(write: Write, tmp_path: Path) -> None:
    for raw, name in (("\n \n", "empty.txt"), ("prompt\n", "empty.csv"), ("[]", "empty.json"), ("", "empty.txt")):
        with pytest.raises(Refusal, match=r"empty\.\w+ (holds no prompt|has no column)"):
            read_prompts(write(raw, name))
    with pytest.raises(Refusal, match=r"absent.txt can't be read \(.*No such file"):
        read_prompts(tmp_path / "absent.txt")
    with pytest.raises(Refusal, match=r"has no column 'text'\. Name a \.csv, \.tsv or \.jsonl file"):
        read_prompts(write("a cat"), "text")


@pytest.mark.parametrize(
    ("name", "raw", "column"),
    [
        ("p.csv", "id,prompt\n1,a cat\n2,a dog\n", None),
        ("p.csv", '\ufeffid,Caption\r\n1,"a cat"\r\n2,a dog\r\n3,\r\n', None),
        ("p.csv", "id;prompt\n1;a cat\n2;a dog\n", None),
        ("p.csv", "prompt,category\ra cat,x\ra dog,y\r", None),
        ("p.csv", "TEXT,what\nno,a cat\nno,a dog\n", "what"),
        ("p.tsv", "Prompt\tCategory\na cat\tx\na dog\ty\n", None),
        ("p.jsonl", '{"prompt": "a cat", "text": "no"}\n\n{"prompt": "a dog"}\n{"prompt": null}\n', None),
        ("p.jsonl", '{"what": "a cat"}\r\n{"what": "a dog"}\r\n', "what"),
        ("p.jsonl", '"a cat"\n"a dog"\n', None),
        ("p.json", '["a cat", "a dog"]', None),
        ("p.JSON", '[{"text": "a cat"}, {"text": "a dog"}]', None),
    ],
)
def test_prompts_stand_in_tables(name: str, raw: str, column: str | None, write: Write) -> None:
    assert read_prompts(write(raw, name), column) == ["a cat", "a dog"]


def test_quotes_in_tables(write: Write) -> None:
    assert read_prompts(write('prompt\n"a ""cat"", sitting\non a mat"\n', "p.csv")) == ['a "cat", sitting\non a mat']
    tabs = 'prompt\tid\na 5" disc\t1\n"open\t2\n"well" said\t3\n'
    assert read_prompts(write(tabs, "p.tsv")) == ['a 5" disc', '"open', '"well" said']
    with pytest.raises(Refusal, match=r"p.csv can't be read as a table \(unexpected end of data\)"):
        read_prompts(write('prompt\n"open\n', "p.csv"))


@pytest.mark.parametrize(
    ("name", "raw", "column", "told"),
    [
        ("p.csv", "id,what\n1,a cat\n", None, r"no column called prompt, .*; it has \['id', 'what'\]. Name one"),
        ("p.csv", "id,prompt\n1,a cat\n", "promt", r"no column 'promt'; it has \['id', 'prompt'\]. .*prompt_column"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', None, r"line 2 of .*p\.jsonl is not JSON"),
        ("p.jsonl", '{"prompt": ["a", "b"]}\n', None, "holds a list for a prompt in row 1"),
        ("p.jsonl", "3\n", None, "holds neither a prompt nor a record in row 1"),
        ("p.json", '{"prompt": "a"}', None, "holds a dict, not a list of prompts"),
        ("p.json", "[", None, "is not JSON"),
    ],
)
def test_tables_are_refused(name: str, raw: str, column: str | None, told: str, write: Write) -> None:
    with pytest.raises(Refusal, match=told) as error:
        read_prompts(write(raw, name), column)
    assert len(str(error.value).splitlines()) == 1


# -- captions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("train/1.png", "train/2.png", "test/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


def captions(folder: Path, column: str | None = None) -> dict[str, str] | None:
    found = find_pictures(folder)
    read = read_captions(folder, found, column)
    if read is None:
        return None
    names = [file.relative_to(folder).as_posix() for file in found.files]
    return dict(zip(names, read.texts, strict=True))


def test_captions_beside_pictures(pictures: Path) -> None:
    assert captions(pictures) is None and told_prompts(str(pictures)) == []
    told = {"train/1.png": "a cat", "train/2.png": "a dog", "test/1.jpg": "a cat"}
    for name, text in told.items():
        (pictures / name).with_suffix(".txt").write_bytes(f"\ufeff{text}\r\n".encode())
    assert captions(pictures) == told
    assert told_prompts(str(pictures)) == ["a cat", "a dog"]
    (pictures / "train" / "2.txt").rename(pictures / "train" / "2.caption")
    assert captions(pictures) == told
    (pictures / "train" / "2.caption").write_text(" \n")
    with pytest.raises(Refusal, match=r"1 of 3 pictures in .* have no caption, such as .*2\.png\. Write 2\.txt"):
        captions(pictures)


@pytest.mark.parametrize("split", [True, False])
def test_captions_in_metadata(split: bool, pictures: Path) -> None:
    told = {"train/1.png": "a cat", "train/2.png": "a dog", "test/1.jpg": "a hen"}
    for part in ("train", "test"):
        rows = [{"file_name": name, "text": text} for name, text in told.items() if name.startswith(part)]
        if split:
            rows = [{**row, "file_name": row["file_name"].split("/")[1]} for row in rows]
        with ((pictures / part if split else pictures) / "metadata.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    assert captions(pictures) == told
    with pytest.raises(Refusal, match="no column 'what'"):
        captions(pictures, "what")


def test_metadata_of_other_things_are_no_captions(pictures: Path) -> None:
    (pictures / "metadata.csv").write_text("file_name,age\ntrain/1.png,3\n")
    assert captions(pictures) is None
    (pictures / "metadata.csv").write_text(
        "file_name,what\n" + "".join(f"{n},a\n" for n in ("train/1.png", "train/2.png", "test/1.jpg"))
    )
    assert captions(pictures) is None
    assert set((captions(pictures, "what") or {}).values()) == {"a"}
