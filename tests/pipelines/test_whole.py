"""Pipelines that can't be loaded: what is missing, cut off or not installed is named."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pipelines
import pytest

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.whole import check_whole

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path_factory.mktemp("whole") / "sd"))


def halved(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])

    return change


def replaced(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def renamed(part: str, library: str, kind: str, config: str = "") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {part: [library, kind]}))
        if config:
            (folder / config).write_text(json.dumps({"_class_name": kind}))

    return change


def in_pieces(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pieces = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": pieces}))


UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: shutil.rmtree(folder / "vae"), "is incomplete: it has no folder vae"),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "its folder scheduler is empty"),
        (lambda folder: (folder / "tokenizer/tokenizer.json").unlink(), "tokenizer holds only tokenizer_config.json"),
        (lambda folder: (folder / UNET).unlink(), "no file named diffusion_pytorch_model.safetensors .*unet"),
        (in_pieces, "unet' is incomplete: diffusion_pytorch_model-00001-of-00002.safetensors of 1 pieces is missing"),
        (halved(UNET), r"unet/diffusion_pytorch_model.safetensors is cut off: it has [\d,]+ bytes of"),
        (halved(TEXT), r"text_encoder/model.safetensors is cut off: it has [\d,]+ bytes of"),
        (replaced(TEXT, ""), "text_encoder/model.safetensors is cut off: its 0 bytes end within the header"),
        (replaced(TEXT, POINTER), "text_encoder/model.safetensors is a Git LFS pointer.* git lfs pull"),
        (halved("unet/config.json"), "unet/config.json"),
        (halved("model_index.json"), "model_index.json"),
        (lambda folder: (folder / "model_index.json").unlink(), "no file named model_index.json"),
        (renamed("scheduler", "diffusers", "NoSuchScheduler"), "NoSuchScheduler"),
    ],
)  # fmt: skip
def test_what_a_folder_lacks_is_named(change: Callable[[Path], None], told: str, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "half"))
    change(folder)
    with pytest.raises(Refusal, match=told) as error:
        DiffusersExpert.from_pretrained(str(folder), ["a cat"])
    assert len(str(error.value).splitlines()) == 1 and "()" not in str(error.value)


@pytest.mark.skipif(find_spec("torchsde") is not None, reason="torchsde is installed")
def test_a_missing_package_is_named(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "sde"))
    renamed("scheduler", "diffusers", "CosineDPMSolverMultistepScheduler", "scheduler/scheduler_config.json")(folder)
    with pytest.raises(Refusal, match=r"needs the package torchsde, which is not installed here \(Cosine.*Install it"):
        DiffusersExpert.from_pretrained(str(folder), ["a cat"])


def test_what_is_not_loaded_need_not_be_whole(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "part"))
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_text(POINTER)
    index = json.loads((folder / "model_index.json").read_text())
    check_whole(folder, index, ())
    with pytest.raises(Refusal, match=r"fp16\.safetensors is a Git LFS pointer"):
        check_whole(folder, index, (), "fp16")
    shutil.rmtree(folder / "text_encoder")
    check_whole(folder, index, ("text_encoder",))
    with pytest.raises(Refusal, match="it has no folder text_encoder"):
        check_whole(folder, index, ())


def test_one_file_of_weights_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(Refusal, match=r"is a file, not a pipeline's folder.*from_single_file.*save_pretrained"):
        DiffusersExpert.from_pretrained(str(tmp_path / "model.safetensors"))


def test_a_reason_is_never_blank() -> None:
    assert first_line(ImportError("\n\n  it needs torchsde\nmore")) == "it needs torchsde"
    assert first_line(KeyError()) == "KeyError" and first_line(ValueError(" \n")) == "ValueError"
