"""What a pipeline's runs read is made once: by ``dagdiff cache`` or the first run; sampling a run makes none of it."""

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from dagdiff.cli import main
from dagdiff.tasks.pipeline import _loaded

SMALL = "--device cpu --steps 2 --updates 2 --rounds 1 --chains 2 --batch_size 4 --heldout 2 --samples 10 --substeps 1"
CAPTIONS = 40


class Asked:
    """What the encoders of pictures and of prompts were asked: how many rows of each."""

    def __init__(self) -> None:
        self.pictures = self.prompts = 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found, encode, forward = Asked(), AutoencoderKL.encode, CLIPTextModel.forward

    def pictures(self: AutoencoderKL, x: torch.Tensor, *told: object, **named: object) -> object:
        found.pictures += len(x)
        return encode(self, x, *told, **named)

    def prompts(self: CLIPTextModel, input_ids: torch.Tensor, *told: object, **named: object) -> object:
        found.prompts += len(input_ids)
        return forward(self, input_ids, *told, **named)

    monkeypatch.setattr(AutoencoderKL, "encode", pictures)
    monkeypatch.setattr(CLIPTextModel, "forward", prompts)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pipeline, forty pictures each with a caption of its own, and a cache."""
    folder = tmp_path_factory.mktemp("cached")
    pipelines.save(pipelines.seeded(pipelines.stable_diffusion), folder / "sd")
    (folder / "photos").mkdir()
    chance = np.random.default_rng(0)
    for row in range(CAPTIONS):
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"photos/{row}.png")
        (folder / f"photos/{row}.txt").write_text(f"picture {row}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        yield folder


def dagdiff(line: str) -> tuple[int, str, str]:
    """Run a command line in this process as if in a new one: no pipeline is loaded yet."""
    _loaded.cache_clear()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(shlex.split(line))
    return status, out.getvalue(), err.getvalue()


def test_cache_says_what_it_made_where_and_that_it_is_there(folder: Path, asked: Asked) -> None:
    line = f"cache --pipeline.path {folder / 'sd'} --pipeline.images {folder / 'photos'} --device cpu"
    status, told, err = dagdiff(line)
    assert status == 0, err
    assert asked.pictures == CAPTIONS and asked.prompts >= CAPTIONS
    prompts, states = told.splitlines()
    found = [re.fullmatch(r".*: (\S+\.safetensors) \([\d.,]+ MB\)", each) for each in (prompts, states)]
    assert all(each is not None for each in found)
    assert prompts.startswith(f"prompts: {CAPTIONS}, made: ")
    assert states.startswith(f"states: 32 to train on, 8 held out, of {folder / 'photos'}, made: ")
    bank, latents = (load_file(each[1]) for each in found if each is not None)
    assert len(bank["hidden"]) == CAPTIONS + 1 and latents["shown"].shape == (32, 4, 8, 8)
    before = asked.pictures, asked.prompts
    status, again, _ = dagdiff(line)
    assert status == 0 and again == told.replace(" made: ", " already there: ")
    assert (asked.pictures, asked.prompts) == before


def test_cache_draws_the_teachers_own_samples_without_pictures(folder: Path) -> None:
    (folder / "few.txt").write_text("a cat\na dog")
    words = f"--pipeline.path {folder / 'sd'} --pipeline.prompts {folder / 'few.txt'} --device cpu"
    line = f"cache {words} --pipeline.own_samples 10 --pipeline.own_steps 1"
    status, told, err = dagdiff(line)
    assert status == 0, err
    assert "prompts: 2, few, so each run embeds them" in told
    assert "states: 8 to train on, 2 held out, of the teacher's own samples, made: " in told
    assert "of the teacher's own samples, already there: " in dagdiff(line)[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--task digits-matched", "dagdiff cache is for --task pipeline; got 'digits-matched'"),
        ("", "no pipeline is named. Pass --pipeline.path"),
        ("--pipeline.path {0}/sd --pipeline.images {0}/none", "no images at {0}/none. Name a folder"),
        ("--pipeline.path {0}/sd --pipeline.images {0}/x/{{0..1}}.tar", "no shard at {0}/x/0.tar (2 of 2 are missing)"),
        ("--pipeline.path {0}/sd --pipeline.images {0}/empty", "no picture in {0}/empty"),
        ("--pipeline.path {0}/sd --pipeline.imges x", "Did you mean --pipeline.images?"),
    ],
)
def test_what_cannot_be_cached(words: str, told: str, folder: Path) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    status, out, err = dagdiff(f"cache {words.format(folder)} --device cpu")
    assert status == 2 and out == "" and told.format(folder) in err.splitlines()[-1] and "Traceback" not in err


def test_a_damaged_cache_is_named(folder: Path) -> None:
    line = f"cache --pipeline.path {folder / 'sd'} --pipeline.images {folder / 'photos'} --device cpu"
    assert dagdiff(line)[0] == 0
    for file in (folder / "cache" / "latents").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    status, _, err = dagdiff(line)
    assert status == 2 and "can't be read" in err.splitlines()[-1] and "Delete it to make it afresh" in err
    for file in (folder / "cache" / "latents").glob("*.safetensors"):
        file.unlink()
    assert dagdiff(line)[0] == 0


@pytest.mark.slow
def test_sample_shift_and_export_embed_few_prompts_and_encode_no_picture(
    folder: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "run"
    words = f"--task pipeline --pipeline.path {folder / 'sd'} --pipeline.images {folder / 'photos'} {SMALL}"
    status, _, err = dagdiff(f"distill {words} --out {run}")
    assert status == 0, err
    asked.pictures = asked.prompts = 0
    assert dagdiff(f"sample {run} --num 3 --out {folder / 'x.npz'} --device cpu")[0] == 0
    assert dagdiff(f"shift {run} --num 10 --device cpu")[0] == 0
    assert (asked.pictures, asked.prompts) == (0, 0), "all of it is in the cache"
    monkeypatch.setenv("DAGDIFF_CACHE", str(folder / "none"))  # as on another machine
    status, _, err = dagdiff(f"sample {run} --num 3 --out {folder / 'y.npz'} --device cpu")
    assert status == 0, err
    assert asked.pictures == 0 and 0 < asked.prompts <= 8, "the prompts shown, and what none is"
    with np.load(folder / "x.npz") as one, np.load(folder / "y.npz") as two:
        assert one["prompt"].tolist() == two["prompt"].tolist()
        np.testing.assert_allclose(one["latents"], two["latents"], atol=1e-4)
    asked.prompts = 0
    status, _, err = dagdiff(f"export {run} --out {folder / 'student'}")
    assert status == 0, err
    assert asked.pictures == 0 and asked.prompts < CAPTIONS / 2, "the prompts of the card's pictures"
