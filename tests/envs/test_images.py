"""Worlds of images: their range and splits, the sets a student is shown, the readers, and every refusal."""

import gzip
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dagdiff.checks import Refusal
from dagdiff.envs import images
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
    assert len(scarce(world).points) == 15 and len(scarce(counted(400)).points) == 100, "100, or half of fewer"


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


def test_the_range_of_floats_is_not_guessed_from_their_least_value() -> None:
    """What resizing leaves outside [0, 1] is cut off; what could be either range must be declared."""
    assert to_states(torch.tensor([-0.04, 0.0, 0.5, 0.99, 1.05])).tolist() == pytest.approx([-1, -1, 0, 0.98, 1])
    assert to_states(torch.tensor([-1.05, -0.2, 1.0])).tolist() == pytest.approx([-1, -0.2, 1])
    half = to_states(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float16))
    assert half.dtype == torch.float32 and half.tolist() == [-1.0, -0.5, 1.0]
    dark = torch.tensor([-0.3, 0.3])
    with pytest.raises(
        Refusal, match=r"could be floats in \[0, 1\] or in \[-1, 1\]; got torch.float32 from -0.3 to 0.3"
    ):
        to_states(dark)
    assert to_states(dark, (-1.0, 1.0)).tolist() == pytest.approx([-0.3, 0.3])
    assert to_states(torch.tensor([0.0, 0.1]), (-1.0, 1.0)).tolist() == pytest.approx([0.0, 0.1])
    assert to_states(torch.tensor([0, 51, 255]), (0.0, 255.0)).tolist() == pytest.approx([-1.0, -0.6, 1.0])
    for values, declared in ((dark, (0.0, 1.0)), (dark, (1.0, -1.0)), (torch.tensor([float("nan")]), (0.0, 1.0))):
        with pytest.raises(Refusal, match="images are declared to lie in"):
            to_states(values, declared)


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
