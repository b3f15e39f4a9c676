"""Data sets of the ``datasets`` library, if it is there: which column, which labels, which split."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Generator

from dagdiff.checks import Refusal
from dagdiff.envs.datasets import text_column
from dagdiff.envs.image_files import hugging_face
from dagdiff.tasks.images import image_world


def test_hub_data_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refusal, match="pip install datasets"):
        hugging_face("mnist")


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


def pictures(n: int, size: int = 4) -> list[Image.Image]:
    """Black and white ones by turns."""
    return [Image.new("L", (size, size), 255 * (i % 2)) for i in range(n)]


def rows(datasets: Any, n: int, image: str = "image", **more: tuple[Any, list[Any]]) -> Any:
    """A data set of n rows with a column of images and others, each a type and its values."""
    features = datasets.Features({image: datasets.Image(), **{name: kind for name, (kind, _) in more.items()}})
    columns = {image: pictures(n), **{name: values for name, (_, values) in more.items()}}
    return datasets.Dataset.from_dict(columns, features=features)


def kept(datasets: Any, path: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def test_the_only_columns_of_their_types_are_found(datasets: Any, tmp_path: Path) -> None:
    kinds = datasets.ClassLabel(names=["z", "a"])
    parts = {
        name: rows(
            datasets, n, "img", kind=(kinds, [i % 2 for i in range(n)]), url=(datasets.Value("string"), ["u"] * n)
        )
        for name, n in (("train", 6), ("test", 4))
    }
    both = image_world(kept(datasets, tmp_path / "both", **parts))
    assert (both.shape, both.classes, both.name) == ((1, 4, 4), ("z", "a"), "both")
    assert (len(both.train.points), len(both.test.points)) == (6, 4)
    points, labels = both.sample_labelled(20, Generator().manual_seed(0))
    assert torch.equal(points, (2.0 * labels - 1).reshape(-1, 1, 1, 1).expand_as(points))
    named = hugging_face(str(tmp_path / "both"), image="img", label="kind")
    assert torch.equal(named.train.points, both.train.points) and named.classes == both.classes
    assert hugging_face(str(tmp_path / "both"), label="").classes == ()
    assert image_world(str(tmp_path / "both"), size=2).shape == (1, 2, 2)
    for options, told in (
        ({"image": "kind"}, r"column 'kind' of .* is not of type Image; such are \['img'\]"),
        ({"label": "img"}, r"column 'img' of .* is no ClassLabel, whole number or name; such are \['kind', 'url'\]"),
    ):
        with pytest.raises(Refusal, match=told):
            hugging_face(str(tmp_path / "both"), **options)


def test_one_table_without_labels_holds_out_a_share(datasets: Any, tmp_path: Path) -> None:
    rows(datasets, 10, name=(datasets.Value("string"), ["x"] * 10)).save_to_disk(str(tmp_path / "one"))
    one = image_world(str(tmp_path / "one"))
    assert (one.labels, len(one.train.points), len(one.test.points)) == (0, 8, 2)
    (tmp_path / "parquet").mkdir()
    rows(datasets, 10).to_parquet(str(tmp_path / "parquet" / "train-0.parquet"))
    assert len(image_world(str(tmp_path / "parquet")).train.points) == 8


def test_labels_need_not_be_a_class_label(datasets: Any, tmp_path: Path) -> None:
    names = (datasets.Value("string"), ["cat", "dog"] * 5)
    numbers = (datasets.Value("int64"), [3, 7] * 5)
    for column, values, classes in (("label", names, ("cat", "dog")), ("labels", numbers, ("3", "7"))):
        world = image_world(kept(datasets, tmp_path / column, train=rows(datasets, 10, **{column: values})))
        assert world.classes == classes


def test_the_held_out_split_is_one_that_tells_its_labels(
    datasets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = datasets.ClassLabel(names=["a", "b"])
    parts = {
        name: rows(datasets, n, label=(kinds, [i % 2 for i in range(n)]))
        for name, n in (("train", 10), ("validation", 4), ("test", 6))
    }
    assert len(image_world(kept(datasets, tmp_path / "three", **parts)).test.points) == 6
    assert "14 pictures" not in capsys.readouterr().err
    parts["test"] = rows(datasets, 6, label=(kinds, [-1] * 6))
    assert len(image_world(kept(datasets, tmp_path / "hidden", **parts)).test.points) == 4
    assert "14 pictures, 2 classes, 6 skipped (6 in test); 10 to train on, 4 held out" in capsys.readouterr().err
    parts["train"] = rows(datasets, 10, label=(kinds, [-1] * 10))
    with pytest.raises(Refusal, match="10 rows have no label in column 'label', such as row 0"):
        image_world(kept(datasets, tmp_path / "none", **parts))


def test_broken_rows_are_named_or_skipped(datasets: Any, tmp_path: Path) -> None:
    kept_as = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    good = tmp_path / "good.png"
    Image.new("L", (4, 4)).save(good)
    cells = [{"bytes": good.read_bytes(), "path": None}] * 4 + [{"bytes": b"no picture", "path": None}]
    table = datasets.Dataset.from_dict({"image": cells}, features=kept_as).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(Refusal, match="row 4 can't be read as a picture"):
        image_world(str(tmp_path / "set"))
    world = image_world(str(tmp_path / "set"), skip_broken=True)
    assert len(world.train.points) + len(world.test.points) == 4


def test_sets_without_a_column_of_their_own_are_refused(datasets: Any, tmp_path: Path) -> None:
    kinds = datasets.ClassLabel(names=["a", "b"])
    two = rows(datasets, 4, "front", back=(datasets.Image(), pictures(4)))
    with pytest.raises(Refusal, match=r"has 2 columns of type Image, \['front', 'back'\].*remove_columns"):
        image_world(kept(datasets, tmp_path / "two", train=two))
    fine = rows(datasets, 4, fine=(kinds, [0, 1, 0, 1]), coarse=(kinds, [0, 0, 1, 1]))
    with pytest.raises(
        Refusal, match=r"has 2 columns of labels, \['fine', 'coarse'\]. .*rename_column\('fine', 'label'"
    ):
        image_world(kept(datasets, tmp_path / "fine", train=fine))
    assert len(hugging_face(str(tmp_path / "fine"), label="coarse", held_out=0.5).train.points) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="can't be loaded"):
        hugging_face(str(tmp_path / "empty"))


def test_files_in_a_plain_table_are_images(datasets: Any, tmp_path: Path) -> None:
    """Parquet that another program wrote: bytes and a path, and nothing says that they are pictures."""

    def packed(value: int) -> dict[str, Any]:
        file = io.BytesIO()
        Image.new("L", (4, 4), value).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = {"png": [packed(25 * row) for row in range(10)], "label": [row % 2 for row in range(10)]}
    columns = datasets.Features(
        {"png": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "label": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features=columns).save_to_disk(str(tmp_path))
    world = hugging_face(str(tmp_path))
    assert (world.shape, world.classes) == ((1, 4, 4), ("0", "1"))
    both = torch.cat([world.train.points, world.test.points])[:, 0, 0, 0]
    torch.testing.assert_close(both.sort().values, torch.arange(10) * 25 / 127.5 - 1)


def test_the_column_of_captions(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"n": [1], "caption": ["a"], "title": ["b"]}).save_to_disk(str(tmp_path))
    assert text_column(str(tmp_path), ("prompt", "caption")) == "caption"
    assert text_column(str(tmp_path), ("prompt",)) is None
    assert text_column(str(tmp_path), ("prompt",), "title") == "title"
    with pytest.raises(Refusal, match=r"column 'n' of .* holds no text; such are \['caption', 'title'\]"):
        text_column(str(tmp_path), (), "n")
