"""Exports on the hub: a stand-in for its client takes the upload; what can't be is refused before anything is made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dagdiff.cli import main
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import save_student


class Hub:
    """A hub on this machine."""

    def __init__(self) -> None:
        self.known, self.fails, self.made, self.files = True, False, list[Any](), dict[str, list[str]]()

    def whoami(self) -> dict[str, str]:
        if not self.known:
            raise OSError("Invalid user token.")
        return {"name": "somebody"}

    def create_repo(self, repo: str, **told: Any) -> str:
        self.made.append((repo, told))
        return f"https://hub.example/{repo}"

    def upload_folder(self, repo_id: str, folder_path: str, **told: Any) -> None:
        if self.fails:
            raise OSError("503 Service Unavailable")
        self.files[repo_id] = sorted(file.name for file in Path(folder_path).iterdir())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hub")
    policy = {"policy": {"class": "fresh-unet", "channels": [8, 16]}, "seed": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        it = Experiment.build(configure({"task": "digits-matched", **policy, "device": "cpu"}), training=False)
        save_student(it, folder / "run")
        yield folder / "run"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_a_student_is_pushed_with_its_card(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run), "--out", str(tmp_path / "out"), "--push_to_hub", "somebody/digits", "--private"]
    assert main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.endswith("pushed to https://hub.example/somebody/digits\n")
    assert hub.made == [("somebody/digits", {"repo_type": "model", "private": True, "exist_ok": True})]
    there = {"README.md", "chain.json", "model_index.json", "recipe.yaml", "samples.png", "scheduler", "unet"}
    assert set(hub.files["somebody/digits"]) == there
    card = (tmp_path / "out" / "README.md").read_text()
    assert "![Samples of the student, not selected](samples.png)" in card
    assert "`dagdiff distill --config recipe.yaml" in card and "DiffusionPipeline.from_pretrained" in card
    assert Image.open(tmp_path / "out" / "samples.png").size == (4 * 9 - 1, 4 * 9 - 1), "16 pictures of 8 x 8"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["seed"] == 3 and "device" not in recipe
    configure(recipe)
    assert main(words) == 0 and len(hub.made) == 2, "a finished export is pushed again"


def test_nothing_is_made_where_nobody_may_write(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run), "--out", str(tmp_path / "out"), "--push_to_hub"]
    hub.known = False
    assert "does not know who is writing (Invalid user token.)" in refused([*words, "somebody/digits"], capsys)
    hub.known = True
    assert "names no owner. Pass OWNER/NAME" in refused([*words, "digits"], capsys)
    assert "is no name of a repository" in refused([*words, "some body/di gits"], capsys)
    assert not (tmp_path / "out").exists() and not hub.made


def test_an_upload_that_fails_leaves_a_whole_export(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = True
    words = ["export", str(run), "--out", str(tmp_path / "out"), "--push_to_hub", "somebody/digits", "--pictures", "0"]
    assert main(words) == 2
    assert "the upload failed (503 Service Unavailable). The export in" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").exists() and not (tmp_path / "out" / "samples.png").exists()
    hub.fails = False
    assert main(words) == 0 and "somebody/digits" in hub.files


def test_the_places_of_this_machine_stay_here(run: Path, hub: Hub, tmp_path: Path) -> None:
    main(["export", str(run), "--out", str(tmp_path / "out"), "--pictures", "1"])
    for file in ("README.md", "recipe.yaml", "chain.json"):
        assert str(run.parent) not in (tmp_path / "out" / file).read_text()
