"""What is black and white in an array, and which class is shown: said on the command line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dagdiff.cli import main
from dagdiff.runs.config import configure
from dagdiff.runs.folder import open_run
from dagdiff.runs.identity import digest
from dagdiff.tasks.images import image_world

TINY = "--expert unet --expert.channels=[8] --expert.updates 2 --updates 2 --rounds 1 --chains 2 --batch_size 4"
TINY += " --heldout 0 --samples 10 --device cpu"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def bicubic(tmp_path: Path) -> Path:
    """Floats between -0.3 and 1, which could be of [0, 1] or of [-1, 1]: nothing is guessed."""
    values = np.random.default_rng(0).uniform(-0.3, 1.0, size=(60, 8, 8)).astype(np.float32)
    np.save(tmp_path / "bicubic.npy", values)
    return tmp_path / "bicubic.npy"


def distilled(task: Path | str, out: Path, *words: str) -> int:
    return main(["distill", "--task", str(task), *TINY.split(), "--out", str(out), *words])


def test_a_range_is_told_where_the_numbers_leave_it_open(
    bicubic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert distilled(f"{bicubic}-matched", out) == 2
    told = capsys.readouterr().err.strip()
    assert "could be floats in [0, 1] or in [-1, 1]" in told and "--value_range" in told and "\n" not in told
    assert distilled(f"{bicubic}-matched", out, "--value_range", "-1,1") == 0
    assert "read with black -1 and white 1" in capsys.readouterr().err
    shown = open_run(out, "cpu").task.world.sample(50, torch.Generator().manual_seed(0))
    assert float(shown.min()) == pytest.approx(-0.3, abs=0.02), "states are the values: nothing was stretched"


def test_another_range_is_another_run_and_none_is_the_run_it_was() -> None:
    plain = configure({})
    assert plain["value_range"] is None
    before = digest({name: value for name, value in plain.items() if name != "value_range"})
    assert digest(plain) == before
    assert digest(configure({"value_range": [0, 1]})) not in (before, digest(configure({"value_range": [-1, 1]})))


def test_a_declared_range_takes_the_place_of_the_type(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, size=(60, 8, 8))
    np.savez(tmp_path / "bits.npz", images=bits)
    world = image_world(str(tmp_path / "bits.npz"), value_range=(0.0, 1.0))
    assert sorted(world.train.points.unique().tolist()) == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--value_range 1,0", "black and white, the lesser first; got 1.0, 0.0"),
        ("--value_range 0,.inf", "black and white, the lesser first; got 0.0, inf"),
        ("--value_range 0,0.5", "images are declared to lie in [0, 0.5]"),
        ("--value_range 0", "value_range"),
        ("--value_range black", "value_range"),
    ],
)
def test_ranges_that_cannot_be(
    words: str, told: str, bicubic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distilled(f"{bicubic}-matched", tmp_path / "run", *words.split()) == 2
    found = capsys.readouterr().err.strip()
    assert told in found and "\n" not in found and not (tmp_path / "run").exists()


def test_a_range_is_for_files_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distilled("digits-matched", tmp_path / "run", "--value_range", "0,1") == 2
    assert "value_range is for a .npy or .npz file" in capsys.readouterr().err


def test_a_teacher_is_told_the_range_too(bicubic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["teacher", "--task", f"{bicubic}-matched", "--channels", "[8]", "--updates", "2", "--device", "cpu"]
    assert main([*words, "--value_range", "-1,1"]) == 0
    assert "read with black -1 and white 1" in capsys.readouterr().err
    for told in ("1", "black,white", "0,1,2"):
        assert main([*words, "--value_range", told]) == 2
        assert "must be two numbers, black and white; got" in capsys.readouterr().err


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three named classes, whose student is asked for one."""
    place = tmp_path_factory.mktemp("classes")
    images = np.random.default_rng(0).integers(0, 256, size=(90, 8, 8), dtype=np.uint8)
    np.savez(place / "pets.npz", images=images, labels=np.array(["cat", "dog", "1"])[np.arange(90) % 3])
    assert distilled(f"{place / 'pets.npz'}-matched-labelled", place / "run") == 0
    return place / "run"


@pytest.mark.parametrize(("label", "number"), [("cat", 1), ("dog", 2), ("1", 0), ("2", 2)])
def test_one_class_is_shown_by_its_name_or_number(label: str, number: int, classes: Path, tmp_path: Path) -> None:
    """A name comes before a number: here a class is called "1", and is number 0."""
    out = tmp_path / "samples.npz"
    assert main(["sample", str(classes), "--label", label, "--num", "9", "--out", str(out), "--device", "cpu"]) == 0
    with np.load(out) as found:
        assert found["condition"].tolist() == [number] * 9
        run = open_run(classes, "cpu")
        run.label = number
        assert np.allclose(found["x"], run.sample(9, seed=0).numpy(), atol=1e-5)
        run.label = None
        assert np.array_equal(found["noise"], run.start(9, seed=0)[0].numpy()), "noise is that of the seed"


def test_classes_that_there_are_not(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(classes), "--label", "horse", "--out", str(tmp_path / "x.npz")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--label 'horse' is no class of" in told and "Pass one of: 1, cat, dog." in told
    assert main(["sample", str(classes), "--label", "3", "--out", str(tmp_path / "x.npz")]) == 2


def test_a_student_without_classes_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "distill --policy fresh --updates 2 --rounds 1 --samples 10 --heldout 0 --device cpu"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    assert main(["sample", str(tmp_path / "run"), "--label", "0", "--out", str(tmp_path / "x.npz")]) == 2
    assert "is asked for no class" in capsys.readouterr().err
