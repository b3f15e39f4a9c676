"""Worlds of images: their range and splits, the sets a student is shown, the readers, and every refusal."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from dagdiff.checks import Refusal
from dagdiff.envs import images
from dagdiff.envs.image_files import hugging_face, image_arrays, image_folder
from dagdiff.envs.images import (
    SETS,
    ImageWorld,
    biased,
    digits,
    fashion_mnist,
    hold_out,
    matched,
    read_idx,
    scarce,
    to_states,
)
from dagdiff.envs.sets import Points
from dagdiff.rollout import LabelledData

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def counted(n: int = 40, classes: int = 4, size: int = 2) -> ImageWorld:
    """A world whose i-th image is filled with i / n, of class i % classes."""
    pixels = (torch.arange(n) / n).reshape(n, 1, 1, 1).expand(n, 1, size, size)
    return hold_out("counted", pixels, torch.arange(n) % classes, tuple("abcdefgh"[:classes]), held_out=0.25, seed=0)


def numbers(points: Tensor, n: int = 40) -> list[int]:
    return (points[:, 0, 0, 0] * n).round().long().tolist()


def picture(path: Path, value: int = 0, mode: str = "L", size: tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, size, value if bands == 1 else (value,) * bands).save(path)
    return path


def test_the_splits_are_disjoint_and_together_everything() -> None:
    world = counted()
    assert sorted(numbers(world.train.points) + numbers(world.test.points)) == list(range(40))
    assert len(world.test.points) == 10
    for split in (world.train, world.test):
        assert split.labels is not None
        assert split.labels.tolist() == [i % 4 for i in numbers(split.points)]


def test_the_seed_decides_the_split() -> None:
    pixels = torch.linspace(-1, 1, 40).reshape(40, 1, 1, 1)
    first, again, other = (hold_out("w", pixels, None, (), 0.5, seed).test.points for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_samples_are_training_images_with_their_labels(generator: Generator) -> None:
    world = counted()
    points, labels = world.sample_labelled(500, generator)
    assert labels.tolist() == [i % 4 for i in numbers(points)]
    assert set(numbers(points)) == set(numbers(world.train.points))
    assert torch.equal(world.sample(500, Generator().manual_seed(0)), points)
    assert isinstance(world, LabelledData)
    assert (world.shape, world.labels, world.box, world.mixture) == ((1, 2, 2), 4, 1.0, None)


def test_the_reference_is_held_out_without_repeats(generator: Generator) -> None:
    world = counted()
    all_of_it = numbers(world.reference(10, generator))
    assert sorted(all_of_it) == sorted(numbers(world.test.points))
    assert len(set(numbers(world.reference(5, generator)))) == 5
    with pytest.raises(Refusal, match="'counted' holds out 10 images; asked for 11"):
        world.reference(11)


def test_the_matched_set_is_the_training_split() -> None:
    world = counted()
    assert matched(world) is world.train
    assert set(SETS) == {"matched", "scarce", "biased"}


def test_the_biased_set_lacks_the_named_classes_and_nothing_else() -> None:
    world = counted()
    for missing in (None, [0], [1, 2]):
        gone = [2, 3] if missing is None else missing
        kept = biased(world, missing)
        assert numbers(kept.points) == [i for i in numbers(world.train.points) if i % 4 not in gone]
        assert kept.labels is not None
        assert kept.labels.tolist() == [i % 4 for i in numbers(kept.points)]


def test_the_scarce_set_is_a_fixed_handful() -> None:
    world = counted()
    few = scarce(world, images=7)
    assert len(set(numbers(few.points))) == 7
    assert set(numbers(few.points)) <= set(numbers(world.train.points))
    assert few.labels is not None
    assert few.labels.tolist() == [i % 4 for i in numbers(few.points)]
    assert torch.equal(few.points, scarce(world, images=7).points)
    assert not torch.equal(few.points, scarce(world, images=7, seed=1).points)


def test_unlabelled_worlds_serve_all_sets_but_the_biased() -> None:
    world = hold_out("plain", torch.zeros(10, 3, 2, 2), None, (), 0.5, 0)
    assert world.labels == 0
    assert scarce(world, 2).labels is None
    with pytest.raises(Refusal, match="'plain' has no labels to be biased by"):
        biased(world)


@pytest.mark.parametrize("missing", [[], [4], [-1]])
def test_biased_refuses_unknown_classes(missing: list[int]) -> None:
    with pytest.raises(Refusal, match="missing must number classes from 0 to 3"):
        biased(counted(), missing)


def test_sets_refuse_to_be_empty() -> None:
    with pytest.raises(Refusal, match=r"missing=\[0, 1, 2, 3\] leaves 'counted' no image"):
        biased(counted(), [0, 1, 2, 3])
    for number in (0, 31):
        with pytest.raises(Refusal, match=rf"images must lie in \[1, 30\] for 'counted'; got {number}"):
            scarce(counted(), number)
    for part in (0.0, 1.0):
        with pytest.raises(Refusal, match="leaves a split empty"):
            hold_out("w", torch.zeros(4, 1, 2, 2), None, (), part, 0)


def test_a_world_refuses_what_is_no_image_in_range() -> None:
    good = Points(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(Refusal, match="one image shape"):
        ImageWorld("w", good, Points(torch.zeros(3, 1, 4, 4), torch.zeros(3).long()), ("a", "b"))
    with pytest.raises(Refusal, match=r"must lie in \[-1, 1\]; test reaches from -1 to 2"):
        ImageWorld("w", good, Points(torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)), ("a", "b"))
    with pytest.raises(Refusal, match="train labels and class names come together"):
        ImageWorld("w", good, good)
    with pytest.raises(Refusal, match="labels must number 1 classes from 0; train has 0 to 1"):
        ImageWorld("w", good, good, ("a",))


def test_states_of_bytes_and_floats() -> None:
    torch.testing.assert_close(to_states(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([-1.0, -0.6, 1]))
    unit = torch.tensor([0.0, 0.2, 1.0])
    torch.testing.assert_close(to_states(unit), torch.tensor([-1.0, -0.6, 1.0]))
    assert unit.tolist() == pytest.approx([0.0, 0.2, 1.0]), "the caller's images were changed"
    assert to_states(torch.tensor([-0.5, 0.5], dtype=torch.float64)).tolist() == [-0.5, 0.5]
    for bad in (torch.tensor([0.0, 255.0]), torch.tensor([0, 255]), torch.tensor([float("nan"), 0.0])):
        with pytest.raises(Refusal, match="images must be uint8, or floats"):
            to_states(bad)


def test_digits_are_whole() -> None:
    pytest.importorskip("sklearn")
    world = digits()
    assert (world.shape, world.labels, len(world.train.points), len(world.test.points)) == ((1, 8, 8), 10, 899, 898)
    whole = torch.cat([world.train.points, world.test.points])
    assert (float(whole.min()), float(whole.max())) == (-1.0, 1.0)
    assert torch.equal(whole * 8, (whole * 8).round())
    assert world.train.labels is not None
    assert world.train.labels.bincount(minlength=10).min() > 70, "the split is not shuffled over classes"
    zeros, ones = (whole[: len(world.train.points)][world.train.labels == k].mean(0)[0] for k in (0, 1))
    assert zeros[3:5, 3:5].mean() < -0.5 < ones[3:5, 3:5].mean(), "a nought is empty inside, a one is not"


def test_digits_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(Refusal, match="pip install scikit-learn"):
        digits()


def test_fashion_mnist_names_the_three_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGDIFF_FASHION_MNIST", str(tmp_path / "nowhere"))
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Refusal) as error:
        fashion_mnist()
    told = str(error.value)
    assert f"not in {tmp_path / 'nowhere'}. " in told, "a folder that was named is the only one looked into"
    for cure in ("apt-get install dataset-fashion-mnist", str(tmp_path / "cache" / "fashion-mnist"), "$DAGDIFF_FASH"):
        assert cure in told
    with pytest.raises(Refusal, match="size must be 28, or 14"):
        fashion_mnist(size=10)


def test_fashion_mnist_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def there(name: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train-images-idx3-ubyte.gz").touch()
        return tmp_path / name

    named, told, kept = there("named"), there("told"), there("cache/fashion-mnist")
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DAGDIFF_FASHION_MNIST", str(told))
    assert images._fashion_folder(named) == named
    assert images._fashion_folder(None) == told
    monkeypatch.delenv("DAGDIFF_FASHION_MNIST")
    assert images._fashion_folder(None) == (DEBIAN if DEBIAN.exists() else kept)


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs the Debian package dataset-fashion-mnist")
def test_fashion_mnist_is_whole() -> None:
    world = fashion_mnist(DEBIAN, size=14)
    assert (world.shape, world.labels, world.classes[9]) == ((1, 14, 14), 10, "Ankle boot")
    for split, each in ((world.train, 6000), (world.test, 1000)):
        assert split.labels is not None
        assert split.labels.bincount().tolist() == [each] * 10
        assert float(split.points.min()) == -1.0
    full = to_states(read_idx(DEBIAN / "t10k-images-idx3-ubyte.gz", (10_000, 28, 28)))
    mean = full.reshape(10_000, 14, 2, 14, 2).mean((2, 4))
    torch.testing.assert_close(world.test.points[:, 0], mean)


def idx(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data))
    return path


def test_idx_is_read_by_its_header(tmp_path: Path) -> None:
    good = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    assert read_idx(idx(tmp_path / "a.gz", good), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    for bad in (good[:-1], good + b"\0", b"\0\0\x0d\2" + good[4:], b"", good[:4] + good[8:12] + good[4:8] + good[12:]):
        with pytest.raises(Refusal, match=r"no IDX file of bytes with shape \(2, 3\)"):
            read_idx(idx(tmp_path / "b.gz", bad), (2, 3))
    (tmp_path / "c.gz").write_bytes(b"not gzip")
    for name in ("c.gz", "absent.gz"):
        with pytest.raises(Refusal, match=rf"{name} can't be read"):
            read_idx(tmp_path / name, (2, 3))


def test_a_folder_is_read_with_its_classes(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "dark" / f"{i}.png", 0)
        picture(tmp_path / "light" / f"{i}.PNG", 255)
    (tmp_path / "notes.txt").write_text("no picture")
    world = image_folder(tmp_path, held_out=0.5)
    assert (world.shape, world.classes, world.name) == ((1, 6, 4), ("dark", "light"), tmp_path.name)
    points, labels = world.sample_labelled(50, Generator().manual_seed(0))
    assert torch.equal(points, (2.0 * labels - 1).reshape(-1, 1, 1, 1).expand_as(points))


def test_a_folder_without_sub_folders_has_no_classes(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.jpg", 10 * i)
    world = image_folder(tmp_path, held_out=0.25)
    assert (world.labels, world.train.labels, len(world.test.points)) == (0, None, 1)


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            picture(tmp_path / split / f"class{i}" / "one.png", 100)
    world = image_folder(tmp_path)
    assert world.classes == ("class0", "class1", "class2")
    assert world.train.labels is not None and world.test.labels is not None
    assert (world.train.labels.tolist(), world.test.labels.tolist()) == ([0, 1, 2], [0, 1])


def test_colour_grey_and_transparency(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 255, "RGB")
    picture(tmp_path / "1.png", 255, "L")
    picture(tmp_path / "2.png", 0, "RGBA")  # all transparent: white
    picture(tmp_path / "3.png", 255, "1")
    world = image_folder(tmp_path, held_out=0.5)
    assert world.shape == (3, 6, 4)
    assert bool((torch.cat([world.train.points, world.test.points]) == 1.0).all())


def test_two_sizes_are_refused_by_name_or_resized(tmp_path: Path) -> None:
    one, other = picture(tmp_path / "a.png", 9, size=(4, 6)), picture(tmp_path / "b.png", 9, size=(8, 6))
    with pytest.raises(Refusal) as error:
        image_folder(tmp_path)
    assert f"{one} is 4 x 6, {other} is 8 x 6. Pass e.g. size=32." in str(error.value)
    world = image_folder(tmp_path, size=5, held_out=0.5)
    assert world.shape == (1, 5, 5)
    torch.testing.assert_close(world.train.points, torch.full((1, 1, 5, 5), 9 / 127.5 - 1))
    with pytest.raises(Refusal, match="size must be at least 1"):
        image_folder(tmp_path, size=0)


def test_resizing_keeps_the_middle_square(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 255
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    assert bool((image_folder(tmp_path, size=8, held_out=0.5).train.points == 1.0).all())


def test_a_folder_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=f"no png or jpg file in {tmp_path}"):
        image_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(Refusal, match=r"broken\.png can't be read as a picture"):
        image_folder(tmp_path)
    (tmp_path / "broken.png").unlink()
    picture(tmp_path / "deep.png", 1000, "I;16")
    with pytest.raises(Refusal, match=r"deep.png has pixels of mode I;16, which is not 8 bits deep"):
        image_folder(tmp_path)


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


def test_arrays_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=np.linspace(0, 1, 40).reshape(10, 2, 2))
    world = image_arrays(tmp_path / "mine.npz")
    assert world.labels == 0
    assert float(torch.cat([world.train.points, world.test.points]).min()) == -1.0


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"pictures": np.zeros((4, 2, 2))}, "holds no array 'images'; it holds .*pictures"),
        ({"images": np.full((4, 2, 2), 300.0)}, "images must be uint8, or floats"),
        ({"images": np.zeros((4, 3, 5, 3))}, r"C 1 or 3; got shape \(4, 3, 5, 3\)"),
        ({"images": np.zeros((4, 2))}, r"C 1 or 3; got shape \(4, 2\)"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.zeros(4)}, r"labels must be whole numbers"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.zeros((4, 1), int)}, r"labels must be whole numbers"),
        ({"images": np.zeros((4, 2, 2)), "labels": np.zeros(3, int)}, r"labels must be as many as images; got 3 and 4"),
    ],
)
def test_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(Refusal, match=told):
        image_arrays(tmp_path / "mine.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"PK no zip")
    for name in ("mine.npz", "absent.npz"):
        with pytest.raises(Refusal, match=f"{name} can't be read as .npz"):
            image_arrays(tmp_path / name)


def test_hub_data_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refusal, match="pip install datasets"):
        hugging_face("mnist")


def test_hub_data_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["z", "a"])})

    def rows(n: int) -> object:
        pictures = [Image.new("L", (4, 4), 255 * (i % 2)) for i in range(n)]
        return datasets.Dataset.from_dict({"img": pictures, "kind": [i % 2 for i in range(n)]}, features=kind)

    datasets.DatasetDict({"train": rows(6), "test": rows(4)}).save_to_disk(str(tmp_path / "both"))
    both = hugging_face(str(tmp_path / "both"), image="img", label="kind")
    assert (both.shape, both.classes, both.name) == ((1, 4, 4), ("z", "a"), "both")
    assert (len(both.train.points), len(both.test.points)) == (6, 4)
    points, labels = both.sample_labelled(20, Generator().manual_seed(0))
    assert torch.equal(points, (2.0 * labels - 1).reshape(-1, 1, 1, 1).expand_as(points))
    rows(10).save_to_disk(str(tmp_path / "one"))  # type: ignore[attr-defined]
    one = hugging_face(str(tmp_path / "one"), image="img", label=None, held_out=0.3)
    assert (one.labels, len(one.test.points)) == (0, 3)
    with pytest.raises(Refusal, match=r"column 'image' of '.*' is not of type Image"):
        hugging_face(str(tmp_path / "one"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="can't be loaded"):
        hugging_face(str(tmp_path / "empty"))
