"""Pictures as states of a pipeline: a few in memory at a time, made once, resumed, found again by what they are."""

import copy
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image

from dagdiff.checks import Refusal
from dagdiff.envs.streams import Stream
from dagdiff.jobs import pieces
from dagdiff.pipelines.pictures import is_there
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.runs.standing import with_absolute_paths
from dagdiff.tasks import pipeline_images
from dagdiff.tasks.pipeline_images import encoded_images

CAPTIONS = ("a cat", "two dogs", "a red house")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> DiffusersExpert:
    """A text-to-image pipeline of states (4, 8, 8)."""
    folder = tmp_path_factory.mktemp("teacher")
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), folder / "sd")
    return DiffusersExpert.from_pretrained(path, CAPTIONS)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fifty pictures with captions, and a cache of their own."""
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for row in range(50):
        Image.fromarray(chance.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / f"{row:02d}.png")
        (folder / f"{row:02d}.txt").write_text(CAPTIONS[row % 3])
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were encoded together, call by call."""
    calls: list[int] = []
    real = pipeline_images._encoded

    def counted(teacher: DiffusersExpert, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(len(images))
        return real(teacher, images, generator)

    monkeypatch.setattr(pipeline_images, "_encoded", counted)
    return calls


def both(splits: Any) -> torch.Tensor:
    return torch.cat([part.points for part in splits])


def flowing(folder: Path, broken: tuple[int, ...] = ()) -> Stream:
    """The pictures of a folder as a source that is read in its order alone."""
    files = sorted(folder.glob("*.png"))

    def flow(start: int) -> Iterator[tuple[str, Any]]:
        for row in range(start, len(files)):
            yield f"row {row}", io.BytesIO(b"no picture") if row in broken else files[row]

    return Stream(
        source="flow", hashed=lambda: "flow", count=None, told=[CAPTIONS[row % 3] for row in range(len(files))],
        kind="caption", flow=flow,
    )  # fmt: skip


def test_a_few_are_in_memory_and_each_is_encoded_once(
    teacher: DiffusersExpert, photos: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded_images(teacher, str(photos))
    assert sum(encoded) == 50 and max(encoded) == 8
    assert [len(part.points) for part in first] == [40, 10]
    opened: list[str] = []
    monkeypatch.setattr("dagdiff.envs.streams.read_picture", lambda name, source: opened.append(name))
    shutil.move(photos, photos.with_name("elsewhere"))
    again = encoded_images(teacher, str(photos.with_name("elsewhere")))
    assert sum(encoded) == 50 and opened == [], "the same pictures elsewhere: neither decoded nor encoded"
    assert torch.equal(both(again), both(first))


def test_states_are_the_autoencoders_and_each_stands_with_its_caption(teacher: DiffusersExpert, photos: Path) -> None:
    shown, held = encoded_images(teacher, str(photos))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
    for part, rows in ((shown, order[:40]), (held, order[40:])):
        pictures = [np.asarray(Image.open(photos / f"{row:02d}.png"))[:, 2:18] for row in rows]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
        want = teacher.autoencoder.encode(images, torch.Generator().manual_seed(0))
        torch.testing.assert_close(part.points, want)
        assert part.labels is not None and part.labels.tolist() == [row % 3 for row in rows]


def test_another_autoencoder_or_another_scale_makes_other_states(teacher: DiffusersExpert, photos: Path) -> None:
    first = both(encoded_images(teacher, str(photos)))
    other = copy.copy(teacher)
    other.autoencoder = copy.deepcopy(teacher.autoencoder)
    other.autoencoder.scale *= 2  # type: ignore[union-attr]
    torch.testing.assert_close(both(encoded_images(other, str(photos))), 2 * first)


@pytest.mark.parametrize("kind", ["folder", "flow"])
def test_what_was_stopped_resumes_with_the_same_states(
    kind: str, teacher: DiffusersExpert, photos: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1)
    if kind == "flow":
        monkeypatch.setattr(pipeline_images, "open_pictures", lambda *told: flowing(photos))
    whole = both(encoded_images(teacher, str(photos)))
    calls = len(encoded)
    monkeypatch.setenv("DAGDIFF_CACHE", str(photos.parent / "other"))
    counted = pipeline_images._encoded

    def stopped(*told: Any) -> torch.Tensor:
        if len(encoded) == calls + 3:
            raise KeyboardInterrupt
        return counted(*told)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline_images, "_encoded", stopped)
        encoded_images(teacher, str(photos))
    assert list((photos.parent / "other" / "latents").glob("*.safetensors")) == []
    before = len(encoded)
    assert torch.equal(both(encoded_images(teacher, str(photos))), whole)
    assert len(encoded) - before < calls, "what was made was not made again"


def test_of_a_source_in_order_one_of_each_five_is_held_out(
    teacher: DiffusersExpert, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline_images, "open_pictures", lambda *told: flowing(photos, broken=(3, 20)))
    with pytest.raises(Refusal, match=r"row 3 can't be read as a picture .*--skip_broken true"):
        encoded_images(teacher, "flow")
    shown, held = encoded_images(teacher, "flow", skip_broken=True)
    assert (len(shown.points), len(held.points)) == (39, 9), "of 48 that can be read"
    assert "48 pictures, 3 captions" in capsys.readouterr().err
    rows = pipeline_images._parted([pipeline_images._Item(row, torch.zeros(1), False) for row in range(48)], 0)
    assert [item.row // 5 for item in rows["held"]] == list(range(9))
    assert len({item.row % 5 for item in rows["held"]}) > 1, "not always the same place"


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_in_order_are_refused(
    count: int, teacher: DiffusersExpert, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in sorted(photos.glob("*.png"))[count:]:
        file.unlink()
    monkeypatch.setattr(pipeline_images, "open_pictures", lambda *told: flowing(photos))
    with pytest.raises(Refusal, match=rf"flow has {count} pictures that can be read, and a fifth is held out"):
        encoded_images(teacher, "flow")


def test_shards_give_the_states_of_the_same_pictures_in_a_folder(teacher: DiffusersExpert, photos: Path) -> None:
    files = sorted(photos.iterdir())
    for number, part in enumerate((files[:60], files[60:])):
        with tarfile.open(photos.parent / f"{number:03d}.tar", "w") as archive:
            for file in part:
                archive.add(file, file.name)
    pattern = str(photos.parent / "{000..001}.tar")
    one, two = encoded_images(teacher, str(photos)), encoded_images(teacher, pattern)
    assert torch.equal(both(one), both(two))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(one, two, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_a_streamed_data_set(form: str, teacher: DiffusersExpert, photos: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(photos.glob("*.png"))
    if form == "parquet":
        source = photos.parent / "rows"
        source.mkdir()
        kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = {"image": list(map(str, files)), "text": [CAPTIONS[row % 3] for row in range(50)]}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(source / "train.parquet"))
    else:
        source = photos
        told = [f'{{"file_name": "{file.name}", "text": "{CAPTIONS[row % 3]}"}}' for row, file in enumerate(files)]
        (photos / "metadata.jsonl").write_text("\n".join(told))
        for file in photos.glob("*.txt"):
            file.unlink()
    shown, held = encoded_images(teacher, f"hf:{source}")
    assert (len(shown.points), len(held.points)) == (40, 10)
    assert shown.labels is not None and held.labels is not None
    assert torch.cat([shown.labels, held.labels]).bincount().tolist() == [17, 17, 16]
    with pytest.raises(Refusal, match=r"column 'what' of .* holds no text"):
        encoded_images(teacher, f"hf:{source}", "what")
    (photos.parent / "empty").mkdir()
    with pytest.raises(Refusal, match=r"empty' can't be streamed \(.*\)\. Name a folder of parquet files or pictures"):
        encoded_images(teacher, f"hf:{photos.parent / 'empty'}")


def test_sources_mean_the_same_from_every_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)

    def absolute(images: str) -> str:
        told: str = with_absolute_paths({"task": "pipeline", "pipeline": {"images": images}})["pipeline"]["images"]
        return told

    here = photos.parent
    assert absolute("photos") == str(photos) and absolute("hf:photos") == f"hf:{photos}"
    assert absolute("x/{0..1}.tar") == f"{here}/x/{{0..1}}.tar" and absolute("hf:somebody/set") == "hf:somebody/set"
    assert is_there("photos") and is_there("hf:somebody/set") and is_there("photos/{00..02}.png")
    assert not is_there("none") and not is_there("photos/{49..50}.png")
