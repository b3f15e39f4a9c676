"""Folders of pictures: what is found in every layout, and how pixels of every kind are read."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from dagdiff.checks import Refusal
from dagdiff.envs.image_files import image_folder
from dagdiff.envs.picture_files import find_pictures, picture_suffixes, read_picture


def picture(path: Path, value: int = 0, mode: str = "L", size: tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, size, value if bands == 1 else (value,) * bands).save(path)
    return path


def fill(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        picture(root / name, number)
    return root


def pixels(picture: Image.Image) -> list[list[int]]:
    """The colours of the pixels, row by row."""
    return np.atleast_3d(np.asarray(picture)).reshape(-1, len(picture.getbands())).tolist()


def reread(picture: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    """Write a picture, and read the file as images of a world are."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return read_picture("it", buffer)


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        picture(tmp_path / "dark" / f"{i}.png", 0)
        picture(tmp_path / "light" / f"{i}.PNG", 255)
    (tmp_path / "notes.txt").write_text("no picture")
    world = image_folder(tmp_path, held_out=0.5)
    assert (world.shape, world.classes, world.name) == ((1, 6, 4), ("dark", "light"), tmp_path.name)
    points, labels = world.sample_labelled(50, Generator().manual_seed(0))
    assert torch.equal(points, (2.0 * labels - 1).reshape(-1, 1, 1, 1).expand_as(points))
    out, told = capsys.readouterr()
    assert out == "" and told == (
        f"{tmp_path}: 12 pictures, 2 classes, 1 skipped (1 .txt); 6 to train on, 6 held out\n"
    )


def test_a_folder_without_sub_folders_has_no_classes(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.jpg", 10 * i)
    world = image_folder(tmp_path, held_out=0.25)
    assert (world.labels, world.train.labels, len(world.test.points)) == (0, None, 1)


def test_every_format_that_pillow_reads_is_found(tmp_path: Path) -> None:
    ends = ["png", "jpg", "jpeg", "jfif", "webp", "bmp", "tif", "tiff", "gif", "ppm", "tga", "PNG", "Jpg"]
    for end in ends:
        Image.new("RGB", (4, 6), (200, 200, 200)).save(tmp_path / f"{end}.{end}")
    world = image_folder(tmp_path, held_out=0.5)
    assert len(world.train.points) + len(world.test.points) == len(ends) and world.shape == (3, 6, 4)
    assert (world.train.points - (200 / 127.5 - 1)).abs().max() < 0.05
    assert not {".txt", ".h5", ".mpg", ".eps", ".npz", ".json"} & picture_suffixes()


@pytest.mark.parametrize(
    ("files", "classes", "splits"),
    [
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], ["a", "b", "a"], 2),
        (["train/a/1.png", "val/a/1.png"], ["a", "a"], 1),
        (["Train/a/1.png", "Valid/a/1.png"], ["a", "a"], 1),
        (["training/a/1.png", "validation/a/1.png"], ["a", "a"], 1),
        (["train/1.png", "test/1.png", "test/2.png"], ["", "", ""], 1),
        (["train/a/1.png", "val/a/1.png", "test/a/1.png", "test/a/2.png"], ["a", "a", "a"], 1),  # test is held out
        (["train/a/1.png", "val/a/1.png", "test/1.png"], ["a", "a"], 1),  # of test the classes are withheld
        (["train/a/1.png", "test/unknown/1.png"], ["a"], None),
        (["train/1.png", "test/a/1.png"], ["", ""], 1),
        (["train/a/1.png", "train/b/1.png"], ["a", "b"], None),  # one split is none
        (["images/train/a/1.png", "images/val/a/1.png"], ["a", "a"], 1),
        (["a/train/1.png", "b/train/1.png", "a/test/1.png"], ["a", "b", "a"], 2),
        (["train/a/1.png", "test/a/1.png", "preview.png", "more/a/1.png"], ["a", "a"], 1),
        (["car/1.png", "plane/1.png", "train/1.png"], ["car", "plane", "train"], None),  # a class of that name
        (["x/a/1.png", "x/b/1.png"], ["x/a", "x/b"], None),
        (["1.png", "2.png"], ["", ""], None),
    ],
)
def test_classes_and_splits_of_every_layout(
    files: list[str], classes: list[str], splits: int | None, tmp_path: Path
) -> None:
    found = find_pictures(fill(tmp_path, *files))
    assert (found.classes, found.first) == (classes, splits)
    assert len(found.files) + sum(found.skipped.values()) == len(files)


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/class{i}/1.png" for i in range(3)), *(f"val/class{i}/1.png" for i in range(2)))
    world = image_folder(tmp_path)
    assert world.classes == ("class0", "class1", "class2")
    assert world.train.labels is not None and world.test.labels is not None
    assert (world.train.labels.tolist(), world.test.labels.tolist()) == ([0, 1, 2], [0, 1])


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    away = fill(tmp_path / "away", "1.png", "2.png")
    root = fill(tmp_path / "set", "dog/1.png")
    for name in ("cat", "lion"):  # two names for one folder are two classes
        (root / name).symlink_to(away)
    (root / "dog" / "linked.png").symlink_to(away / "1.png")
    (root / "dog" / "up").symlink_to(root)
    found = find_pictures(root)
    assert found.classes == ["cat", "cat", "dog", "dog", "lion", "lion"]
    assert found.skipped == {"links in a circle": 1}
    (root / "dog" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(Refusal, match=r"nowhere\.png can't be read as a picture"):
        image_folder(root)


def test_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    fill(
        tmp_path / ".cache" / "set", "a/1.png", "a/._1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/a/1.png"
    )
    (tmp_path / ".cache" / "set" / "a" / "readme").write_text("")
    found = find_pictures(tmp_path / ".cache" / "set")  # that the set itself is hidden does not matter
    assert [file.name for file in found.files] == ["1.png"]
    assert found.skipped == {"hidden": 3, "without a suffix": 1}


def test_a_dataset_json_names_the_classes(tmp_path: Path) -> None:
    fill(tmp_path, "00000/img0.png", "00000/img1.png", "00001/img2.png")
    told = tmp_path / "dataset.json"
    told.write_text(json.dumps({"labels": [["00000/img0.png", 6], ["00000/img1.png", 2], ["00001/img2.png", 6]]}))
    assert find_pictures(tmp_path).classes == ["6", "2", "6"]
    told.write_text(json.dumps({"labels": None}))
    assert find_pictures(tmp_path).classes == ["", "", ""]
    told.write_text(json.dumps({"labels": [["00000/img0.png", 6]]}))
    with pytest.raises(Refusal, match=r"names no label for 00000/img1.png \(2 such\)"):
        find_pictures(tmp_path)
    told.write_text("{")
    with pytest.raises(Refusal, match=r"dataset.json can't be read"):
        find_pictures(tmp_path)


def test_a_folder_without_pictures_or_with_loose_ones_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.heic").write_bytes(b"")
    with pytest.raises(Refusal, match=rf"no picture in {tmp_path} \(1 \.heic\)\. Name a folder"):
        image_folder(tmp_path)
    with pytest.raises(Refusal, match=r"absent can't be read \(No such file"):
        image_folder(tmp_path / "absent")
    fill(tmp_path, "1.png", "a/1.png")
    with pytest.raises(Refusal, match=r"1 pictures lie beside the folders of classes, such as .*1\.png"):
        image_folder(tmp_path)


# -- what a picture shows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_one_transparent_colour_shows_white(mode: str) -> None:
    it = Image.new(mode, (2, 1))
    it.putpixel((1, 0), {"1": 1, "L": 90, "P": 1, "RGB": (90, 90, 90), "I;16": 90 * 257}[mode])
    if mode == "P":
        it.putpalette([0, 0, 0, 90, 90, 90])
    read = reread(it, transparency=(0, 0, 0) if mode == "RGB" else 0)
    seen = 255 if mode == "1" else 90
    assert pixels(read) == ([[255] * 3, [90] * 3] if mode == "RGB" else [[255], [seen]])


def png(depth: int, colour: int, row: bytes, width: int, transparent: bytes, height: int = 1) -> io.BytesIO:
    """A PNG file of one row, in depths that Pillow does not write; its header may promise more."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_a_transparent_colour_is_told_in_the_depth_of_the_file() -> None:
    two_bits = png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 1))
    assert pixels(read_picture("it", two_bits)) == [[0], [255], [170], [255]]
    four_bits = png(4, 0, bytes([0x05, 0x7F]), 4, struct.pack(">H", 5))
    assert pixels(read_picture("it", four_bits)) == [[0], [255], [7 * 17], [255]]
    colours = struct.pack(">6H", 0x0102, 0x0304, 0x0506, 0x1000, 0x2000, 0x3000)
    assert pixels(read_picture("it", png(16, 2, colours, 2, colours[:6]))) == [[255] * 3, [16, 32, 48]]


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("LA", (0, 0), "PNG", [255]),
        ("LA", (100, 255), "PNG", [100]),
        ("LA", (0, 51), "PNG", [204]),
        ("RGBA", (0, 0, 0, 0), "PNG", [255, 255, 255]),
        ("RGBA", (255, 0, 0, 51), "PNG", [255, 204, 204]),
        ("RGBA", (0, 0, 0, 0), "WEBP", [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), "TIFF", [10, 20, 30]),
        ("CMYK", (0, 255, 255, 0), "TIFF", [255, 0, 0]),
        ("CMYK", (0, 0, 0, 0), "JPEG", [255, 255, 255]),
        ("I;16", 65535, "PNG", [255]),
        ("I;16", 32896, "TIFF", [128]),
        ("I", 32896, "PPM", [128]),
        ("F", 0.2, "TIFF", [51]),
        ("F", 1.02, "TIFF", [255]),
        ("1", 1, "PNG", [255]),
        ("LAB", (128, 128, 128), "TIFF", [119, 119, 119]),
    ],
)
def test_every_mode_is_read_in_8_bits_on_white(mode: str, colour: Any, kind: str, expected: list[int]) -> None:
    assert pixels(reread(Image.new(mode, (1, 1), colour), kind)) == [expected]


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "HSV", "YCbCr", "PA", "I;16B"])
def test_pictures_of_pillows_own_are_read_in_its_rarer_modes(mode: str) -> None:
    """White in each: transparent where the mode has opacity."""
    white = {"HSV": (0, 0, 255), "YCbCr": (255, 128, 128), "RGBX": (255,) * 4, "I;16B": 65535}
    it = Image.new(mode, (1, 1), white.get(mode, 0))
    assert set(pixels(read_picture("it", it))[0]) == {255}


def test_a_palette_of_greys_stays_grey() -> None:
    it = Image.new("P", (2, 1))
    it.putpalette([7, 7, 7, 9, 9, 9])
    it.putpixel((1, 0), 1)
    assert pixels(reread(it, "GIF")) == [[7], [9]]


@pytest.mark.parametrize("depth", ["L", "I;16"])
def test_the_camera_says_which_way_is_up(depth: str) -> None:
    it = Image.new(depth, (2, 1))
    it.putpixel((1, 0), 255 if depth == "L" else 65535)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    read = reread(it, exif=turned)
    assert read.size == (1, 2) and pixels(read) == [[0], [255]]


def test_colour_grey_and_transparency(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 255, "RGB")
    picture(tmp_path / "1.png", 255, "L")
    picture(tmp_path / "2.png", 0, "RGBA")  # all transparent: white
    picture(tmp_path / "3.png", 255, "1")
    world = image_folder(tmp_path, held_out=0.5)
    assert world.shape == (3, 6, 4)
    assert bool((torch.cat([world.train.points, world.test.points]) == 1.0).all())


def test_depths_that_do_not_say_what_is_white_are_refused(tmp_path: Path) -> None:
    for mode, value in (("I", 70_000), ("F", 17.5)):
        Image.new(mode, (2, 2), value).save(tmp_path / "deep.tif")
        with pytest.raises(
            Refusal, match=rf"deep\.tif has values from .* {mode!r}, 32 bits.* Save it with 8 or 16 bits"
        ):
            image_folder(tmp_path)


# -- sizes, and what is broken ----------------------------------------------------------------------------------------


def test_two_sizes_are_refused_by_name_or_resized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = picture(tmp_path / "a.png", 9, size=(4, 6)), picture(tmp_path / "b.png", 9, size=(8, 8))
    with pytest.raises(Refusal) as error:
        image_folder(tmp_path)
    assert f"{one} is 4 x 6, {other} is 8 x 8. Pass --size 32" in str(error.value)
    world = image_folder(tmp_path, size=5, held_out=0.5)
    assert world.shape == (1, 5, 5)
    torch.testing.assert_close(world.train.points, torch.full((1, 1, 5, 5), 9 / 127.5 - 1))
    assert "; scaled to 5 x 5, 1 of another shape cropped in the middle\n" in capsys.readouterr().err
    with pytest.raises(Refusal, match="size must be at least 1"):
        image_folder(tmp_path, size=0)


def test_resizing_keeps_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 255
    for i in range(2):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    assert bool((image_folder(tmp_path, size=8, held_out=0.5).train.points == 1.0).all())
    oblong = image_folder(tmp_path, size=(8, 4), held_out=0.5)
    assert oblong.shape == (1, 8, 4) and bool((oblong.train.points == 1.0).all())


def broken_files() -> dict[str, bytes]:
    """Files that Pillow fails on, each in its own way."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files, whole = {"empty": b"", "text": b"no picture"}, {}
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        whole[kind] = buffer.getvalue()
        files[f"half a {kind}"] = whole[kind][: len(whole[kind]) // 2]
    head = whole["PNG"]
    files["a PNG with a broken check sum"] = head[:40] + bytes([head[40] ^ 255]) + head[41:]
    files["a bomb"] = png(1, 0, b"", 100_000, b"\0\0", height=100_000).getvalue()
    return files


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_picture_is_named_or_skipped(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        fill(tmp_path / label, *(f"{i}.png" for i in range(5)))
    bad = tmp_path / "a" / "2 bad.png"
    bad.write_bytes(broken_files()[name])
    with pytest.raises(Refusal) as error:
        image_folder(tmp_path)
    assert str(error.value).startswith(f"{bad} can't be read as a picture (") and "()" not in str(error.value)
    assert "--skip_broken true" in str(error.value)
    world = image_folder(tmp_path, skip_broken=True, held_out=0.5)
    assert f"{tmp_path}: 10 pictures, 2 classes, 1 skipped (1 broken); " in capsys.readouterr().err
    assert world.train.labels is not None and world.test.labels is not None
    assert torch.cat([world.train.labels, world.test.labels]).bincount().tolist() == [5, 5]


def test_broken_pictures_leave_the_splits_where_they_are(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.png", "train/2.png", "train/3.png", "test/1.png", "test/2.png")
    (tmp_path / "train" / "2.png").write_bytes(b"")
    (tmp_path / "test" / "1.png").write_bytes(b"")
    world = image_folder(tmp_path, skip_broken=True)
    shown, held = (((part.points[:, 0, 0, 0] + 1) * 127.5).round().tolist() for part in (world.train, world.test))
    assert (shown, held) == ([0, 2], [4])
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(Refusal, match=r"none of the pictures can be read; .*1\.png can't be read"):
        image_folder(tmp_path, skip_broken=True)


def test_a_picture_of_more_pixels_than_pillow_trusts_is_refused_and_named(tmp_path: Path) -> None:
    """A PNG of one colour packs a thousandfold: its header says how much it would become."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    words = r"bomb\.png can't be read as a picture \(Image size \(90000000 pixels\) exceeds"
    with pytest.raises(Refusal, match=words) as told:
        read_picture(str(tmp_path / "bomb.png"), tmp_path / "bomb.png")
    assert "\n" not in str(told.value) and len(str(told.value)) <= 500
