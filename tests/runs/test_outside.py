"""A run of a pipeline needs nothing outside its folder but its base pipeline, and that one must be the same."""

import shutil
from pathlib import Path

import pipelines
import pytest

from dagdiff.cli import main
from dagdiff.tasks import pipeline

TINY = (
    "distill --task pipeline --pipeline.path sd --pipeline.prompts p.txt --updates 2 --rounds 1 --batch_size 4 "
    "--chains 4 --heldout 4 --samples 10 --pipeline.own_samples 10 --pipeline.own_steps 2 --policy lora "
    "--policy.rank 2 --device cpu --out run"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, prompts, and a run that names both by paths relative to it."""
    here = tmp_path_factory.mktemp("outside")
    pipelines.save(pipelines.seeded(pipelines.stable_diffusion), here / "sd")
    (here / "p.txt").write_text("a cat\na dog\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(here / "cache"))
        patch.chdir(here)
        assert main(TINY.split()) == 0
    return here


@pytest.fixture(autouse=True)
def elsewhere(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another working folder with a copy of the run; the pipeline is read anew."""
    shutil.copytree(made / "run", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    pipeline._loaded.cache_clear()


def drawn() -> bytes:
    assert main(["sample", "copy", "--num", "4", "--device", "cpu", "--out", "s.npz"]) == 0
    return Path("s.npz").read_bytes()


def test_a_copied_run_is_sampled_from_another_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its prompts are gone or others by now, which a line tells."""
    first = drawn()
    assert "prompts" not in capsys.readouterr().err
    (made / "p.txt").write_text("something else\n")
    assert drawn() == first
    told = capsys.readouterr().err
    assert "p.txt has changed since the run in copy was trained; its own prompts are used" in told
    (made / "p.txt").unlink()
    assert drawn() == first
    assert main(["export", "copy", "--format", "lora", "--out", "adapters"]) == 0
    (made / "p.txt").write_text("a cat\na dog\n")


def test_prompts_that_were_changed_inside_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("copy/prompts.json").write_text('["a cat", "a bird"]\n')
    assert main(["sample", "copy", "--num", "4", "--device", "cpu", "--out", "s.npz"]) == 2
    assert "prompts.json is damaged or was changed" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["network", "autoencoder"])
def test_another_base_pipeline_is_refused(part: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = pipelines.seeded(pipelines.stable_diffusion)
    weights = next((other.unet if part == "network" else other.vae).parameters())
    weights.data += 1.0
    (made / "sd").rename(made / "kept")
    try:
        pipelines.save(other, made / "sd")
        for words in ("sample copy --num 4 --device cpu --out s.npz", "export copy --out e"):
            assert main(words.split()) == 2
            assert f"the {part} of" in (told := capsys.readouterr().err) and "is not the one" in told
    finally:
        shutil.rmtree(made / "sd")
        (made / "kept").rename(made / "sd")
    assert not Path("s.npz").exists() and not Path("e").exists()
