"""Files of arrays: every layout, number type and range, the labels beside them, and what is refused unread."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dagdiff.checkpoint import save_arrays
from dagdiff.checks import Refusal
from dagdiff.envs import array_files
from dagdiff.envs.array_files import read_arrays
from dagdiff.envs.image_files import image_arrays

BYTES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
BYTES[0, 0, 0] = 0, 128, 255
STATES = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1


def save(path: Path, *nameless: np.ndarray, **named: Any) -> Path:
    np.savez(path, *nameless, **named)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 5, 4), (1, 5, 4)),
        ((10, 5, 4, 3), (3, 5, 4)),
        ((10, 3, 5, 4), (3, 5, 4)),
        ((10, 5, 4, 1), (1, 5, 4)),
        ((10, 1, 5, 4), (1, 5, 4)),
    ],
)
def test_arrays_of_every_layout(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels, labels=np.arange(10) % 3)
    world = image_arrays(tmp_path / "mine.npz")
    assert (world.shape, world.classes, world.name) == (expected, ("0", "1", "2"), "mine")
    lines = {tuple(row.ravel().tolist()) for row in (np.moveaxis(pixels, -1, 1) if shape[-1] in (1, 3) else pixels)}
    back = ((world.train.points + 1) * 127.5).round().long()
    assert all(tuple(row.flatten().tolist()) in lines for row in back), "the channels are not where they belong"


def test_arrays_without_labels_are_told_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = image_arrays(save(file, images=np.linspace(0, 1, 40).reshape(10, 2, 2)))
    assert world.labels == 0
    assert float(torch.cat([world.train.points, world.test.points]).min()) == -1.0
    assert capsys.readouterr().err == (
        f"{file}: 10 pictures, 0 classes, 0 skipped; 8 to train on, 2 held out; float64 from 0 to 1, read with black 0 "
        "and white 1\n"
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (BYTES, "uint8 from 0 to 255, read with black 0 and white 255"),
        (BYTES.astype(np.int64) // 8, "int64 from 0 to 31, read with black 0 and white 255"),
        (BYTES.astype(np.uint16) * 257, "uint16 from 0 to 65535, read with black 0 and white 65535"),
        (BYTES > 99, "bool from 0 to 1, read with black 0 and white 1"),
        (BYTES / 127.5 - 1, "float64 from -1 to 1, read with black -1 and white 1"),
        (BYTES / 255 * 1.02 - 0.01, "float64 from -0.01 to 1.01, read with black 0 and white 1"),
    ],
)
def test_it_is_told_what_was_taken_for_black_and_white(values: np.ndarray, told: str, file: Path, capsys: Any) -> None:
    image_arrays(save(file, images=values))
    assert capsys.readouterr().err.endswith(f"held out; {told}\n")


def test_the_names_that_the_field_uses(tmp_path: Path, file: Path) -> None:
    labels = np.arange(20) % 3
    np.save(tmp_path / "mine.npy", BYTES)
    for path in (
        tmp_path / "mine.npy",
        save(tmp_path / "0.npz", BYTES),
        save(tmp_path / "1.npz", samples=BYTES, noise=np.zeros(3)),
        save(tmp_path / "2.npz", pictures=BYTES, ages=np.zeros(20)),
        save(tmp_path / "3.npz", BYTES, BYTES[:, 0]),
    ):
        read = read_arrays(path)
        assert torch.equal(read.images, STATES) and read.labels is None and read.first is None, path
    for path in (
        save(tmp_path / "4.npz", BYTES, labels),
        save(tmp_path / "5.npz", x=BYTES, y=labels),
        save(tmp_path / "6.npz", Images=BYTES, Labels=labels[:, None]),
    ):
        read = read_arrays(path)
        assert torch.equal(read.images, STATES) and read.labels is not None, path
        assert read.labels.tolist() == labels.tolist() and read.classes == ("0", "1", "2"), path


@pytest.mark.parametrize("form", ["x_{} y_{}", "{}_images {}_labels"])
@pytest.mark.parametrize("held", ["test", "val"])
def test_splits_in_one_file(form: str, held: str, file: Path) -> None:
    names = [name for part in ("train", held) for name in form.replace("{}", part).split()]
    arrays = (BYTES[:15], np.arange(15) % 3, BYTES[15:], np.arange(5) % 2)
    world = image_arrays(save(file, **dict(zip(names, arrays, strict=True))))
    assert torch.equal(world.train.points, STATES[:15]) and torch.equal(world.test.points, STATES[15:])
    assert world.test.labels is not None and world.test.labels.tolist() == [0, 1, 0, 1, 0]
    save(file, x_train=BYTES, x_test=BYTES[:, :4])
    with pytest.raises(Refusal, match=r"both splits of .* must have one image shape"):
        image_arrays(file)


def test_what_sample_writes_is_read(file: Path) -> None:
    """Drawn samples pass the ends of the range a little; their noise is not taken for them."""
    save_arrays(file, x=STATES * 1.3, noise=torch.randn(20, 3, 8, 8), condition=torch.arange(20) % 2)
    read = read_arrays(file)
    torch.testing.assert_close(read.images, (STATES * 1.3).clamp(-1, 1))
    assert read.labels is not None and read.labels.tolist() == [0, 1] * 10
    save_arrays(file, x=torch.randn(20, 2), noise=torch.randn(20, 2))
    with pytest.raises(Refusal, match=r"images must be \(N, H, W\).* got shape \(20, 2\)"):
        read_arrays(file)


@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "<i4", ">i4", "i8", "u2", ">u2", "u4", ">u8"])
def test_bytes_in_any_whole_number_type(kind: str, file: Path) -> None:
    assert torch.equal(read_arrays(save(file, images=BYTES.astype(kind))).images, STATES)


@pytest.mark.parametrize("kind", ["f2", ">f2", "<f4", ">f4", "f8", ">f8", np.longdouble])
def test_floats_of_any_type(kind: Any, file: Path) -> None:
    loose = 1e-3 if "2" in str(kind) else 1e-6
    for scaled in (BYTES / 255, BYTES / 127.5 - 1):
        read = read_arrays(save(file, images=scaled.astype(kind))).images
        assert read.dtype == torch.float32 and (read - STATES).abs().max() < loose


def test_other_ranges(file: Path) -> None:
    deep = read_arrays(save(file, images=BYTES.astype(np.uint16) * 257)).images
    torch.testing.assert_close(deep, STATES)
    assert torch.equal(read_arrays(save(file, images=BYTES[..., 0] > 99)).images.unique(), torch.tensor([-1.0, 1.0]))
    opaque = np.full((20, 8, 8, 4), 255, np.uint8)
    opaque[..., :3] = BYTES
    assert torch.equal(read_arrays(save(file, images=opaque)).images, STATES)
    opaque[..., 3] = 0
    assert bool((read_arrays(save(file, images=opaque)).images == 1.0).all()), "what is transparent shows white"
    floats = BYTES.astype(np.float32)
    with pytest.raises(Refusal, match=r"float32 from 0 to 255. .*range=\[black, white\]"):
        read_arrays(save(file, images=floats))
    torch.testing.assert_close(read_arrays(save(file, images=floats, range=[0, 255])).images, STATES)
    torch.testing.assert_close(read_arrays(save(file, images=floats), (0.0, 255.0)).images, STATES)
    assert image_arrays(file, value_range=(0.0, 255.0)).shape == (3, 8, 8)
    masks = np.arange(20 * 64).reshape(20, 8, 8) % 2
    for values in (masks, masks.astype(np.uint8), masks.astype(bool)):
        assert torch.equal(
            read_arrays(save(file, images=values, range=[0, 1])).images[:, 0], torch.tensor(2 * masks - 1.0).float()
        )
    with pytest.raises(Refusal, match=r"range in .* must be two numbers"):
        read_arrays(save(file, images=floats, range=255))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(20).astype(">i4") % 3, ("0", "1", "2")),
        (np.arange(20).astype("u2") % 3, ("0", "1", "2")),
        (np.arange(20).astype("u8") % 3, ("0", "1", "2")),
        (np.arange(20) % 3 + 1, ("1", "2", "3")),
        (np.arange(20) % 2 * 10, ("0", "10")),
        (np.arange(20) % 2 == 0, ("False", "True")),
        (np.array(["dog", "cat"] * 10), ("cat", "dog")),
        (np.array(["dog", "cät"] * 10).astype(">U3"), ("cät", "dog")),
        (np.char.encode(["dog", "cät"] * 10, "utf-8"), ("cät", "dog")),
    ],
)
def test_labels_of_any_type(labels: np.ndarray, classes: tuple[str, ...], file: Path) -> None:
    read = read_arrays(save(file, images=BYTES, labels=labels))
    assert read.classes == classes and read.labels is not None and read.labels.dtype == torch.int64
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in labels.tolist()]
    assert [classes[number] for number in read.labels.tolist()] == texts


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"ages": np.zeros(4)}, r"holds no array 'images'; it holds .*ages.*\(4,\)"),
        ({"images": np.full((4, 2, 2), 300.0)}, "images must be uint8, or floats"),
        ({"images": np.full((4, 2, 2), 300)}, "images must be uint8, or floats .*int64 from 300 to 300"),
        ({"images": np.eye(4, dtype=np.uint8)[None]}, r"whole numbers from 0 to 1, uint8: .* declare .*range=\[0, 1\]"),
        ({"images": np.eye(4, dtype=np.int64)[None]}, r"whole numbers from 0 to 1, int64"),
        ({"images": np.full((4, 2, 2), -1, np.int8)}, "images must be uint8, or floats .*int8 from -1"),
        ({"images": np.full((4, 2, 2), np.nan)}, "images must be uint8, or floats"),
        ({"images": np.zeros((4, 3, 5, 3))}, r"C 1 or 3; got shape \(4, 3, 5, 3\)"),
        ({"images": np.zeros((4, 2))}, r"C 1 or 3; got shape \(4, 2\)"),
        ({"images": np.zeros((8, 8, 3))}, r"C 1 or 3; got shape \(8, 8, 3\)"),
        ({"images": np.zeros((0, 8, 8), np.float32)}, r"holds no image: its shape is \(0, 8, 8\)"),
        ({"images": np.zeros((4, 2, 2), complex)}, "must be numbers; got complex128"),
        ({"images": np.full((4, 2, 2), None)}, r"'images' in .* is pickled Python objects"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.array(list("abcd"), object)}, r"'labels' .* names.astype\(str\)"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.zeros(4)}, r"labels must be whole numbers or names"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.zeros((4, 2), int)}, r"labels must be whole numbers.*argmax"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.zeros(3, int)}, r"labels must be as many as images; got 3 and 4"),
    ],
)
def test_arrays_are_refused(file: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(Refusal, match=told):
        image_arrays(save(file, **arrays))


def test_files_that_hold_no_arrays_are_refused(tmp_path: Path, file: Path) -> None:
    file.write_bytes(b"PK no zip")
    with zipfile.ZipFile(tmp_path / "pictures.npz", "w") as archive:
        archive.writestr("a/1.png", b"")
    for path in (file, tmp_path / "absent.npz", tmp_path):
        with pytest.raises(Refusal, match=r"can't be read as \.npz or \.npy \(.+\)\. Write it"):
            image_arrays(path)
    with pytest.raises(Refusal, match=r"pictures\.npz holds no arrays, but \['a/1\.png'\]\. Unpack it"):
        image_arrays(tmp_path / "pictures.npz")


def test_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may promise anything: it is compared with the file, and with the memory."""

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the array was read")

    np.save(tmp_path / "mine.npy", BYTES)
    save(tmp_path / "mine.npz", images=BYTES)
    monkeypatch.setattr(np, "load", never)
    whole = (tmp_path / "mine.npy").read_bytes()
    (tmp_path / "half.npy").write_bytes(whole[: len(whole) // 2])
    wide = whole.replace(b"(20, 8, 8, 3), }", b"(999999999999,8)").replace(b"(999999999999,8)  ", b"(999999999999,8)} ")
    with zipfile.ZipFile(tmp_path / "wide.npz", "w") as archive:
        archive.writestr("images.npy", wide)
    for name in ("half.npy", "wide.npz"):
        with pytest.raises(Refusal, match=rf"'images' in .*{name} is cut off: shape .* bytes, of .*Get it again"):
            read_arrays(tmp_path / name)
    monkeypatch.setattr(array_files, "_memory", lambda: 10_000.0)
    for name in ("mine.npy", "mine.npz"):
        with pytest.raises(Refusal, match=r"has shape \(20, 8, 8, 3\), 3,840 bytes: more than this machine's memory"):
            read_arrays(tmp_path / name)


def test_the_memory_is_known_where_the_machine_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert array_files._memory() > 2**24
    monkeypatch.delattr(os, "sysconf")
    assert array_files._memory() == float("inf")


def packed(path: Path, content: bytes, name: str = "images.npy") -> Path:
    """A zip archive with one member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def header(shape: str, dtype: str = "|u1") -> bytes:
    """The beginning of an array."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header("(1000000, 1000, 1000)"), "is cut off"),
        (header("(-1, 4, 4)"), "has the shape"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), "header is to have 4,294,967,295 bytes"),
        (b"something else", "does not begin as one"),
        (b"", "does not begin as one"),
    ],
)
def test_headers_that_promise_too_much_are_refused_unread(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as refused:
        read_arrays(packed(tmp_path / "a.npz", content))
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 500


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it may unpack to 1 MiB; what is packed as closely and smaller, and what is as large and loose, is read."""
    monkeypatch.setattr("dagdiff.envs.array_files._BOMB", 2**20)
    bomb = packed(tmp_path / "bomb.npz", header("(1024, 64, 64)") + bytes(2**22))
    with pytest.raises(Refusal, match=r"images.npy' in .*bomb.npz would unpack [0-9,]+ bytes to 4,19"):
        read_arrays(bomb)
    small = packed(tmp_path / "small.npz", header("(64, 64, 64)") + bytes(2**18))
    assert read_arrays(small).images.shape == (64, 1, 64, 64)
    noise = np.random.default_rng(0).integers(0, 256, (1024, 64, 64), dtype=np.uint8)
    np.savez_compressed(tmp_path / "large.npz", images=noise)
    assert len(read_arrays(tmp_path / "large.npz").images) == 1024


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(Refusal, match="it is no file"):
        read_arrays(tmp_path / "pipe.npz")
