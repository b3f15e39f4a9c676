"""The program of a model card, run as it stands: every family and precision, and what lies beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL.Image import Image

from dagdiff.cli import main
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import save_student
from dagdiff.tasks.pipeline import _loaded

pytestmark = pytest.mark.usefixtures("offline")

MAKES = {
    "ddpm": pipelines.ddpm,
    "ddpm50": lambda: pipelines.ddpm(DDPMScheduler(50, clip_sample=False)),
    "sd": pipelines.stable_diffusion,
    "sdxl": pipelines.sdxl,
    "dit": pipelines.dit,
    "sd3": pipelines.sd3,
    "flux": pipelines.flux,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    _loaded.cache_clear()  # every teacher here is a folder of that name
    return tmp_path


def finished(name: str, dtype: str = "float32", **settings: Any) -> Experiment:
    """The run of a small pipeline in the folder ``run``, with a student as it starts."""
    Path("prompts.txt").write_text("a cat\n")
    pipelines.seeded(MAKES[name]).save_pretrained("teacher")
    told: dict[str, Any] = {"path": "teacher", "own_samples": 10, "own_steps": 1, "dtype": dtype}
    told |= {"prompts": "prompts.txt"} if name in ("sd", "sdxl", "sd3", "flux") else {}
    told |= {"sample_size": 8} if name == "flux" else {}
    told |= settings.pop("pipeline", {})
    small = {"updates": 2, "rounds": 1, "steps": 3, "device": "cpu", "heldout": 0, "samples": 10}
    it = Experiment.build(configure({"task": "pipeline", **small, **settings, "pipeline": told}), training=False)
    Path("run").mkdir()
    save_student(it, Path("run"))
    return it


def program(folder: str = "out") -> str:
    """The program of the card in a folder."""
    text = (Path(folder) / "README.md").read_text().split("```python\n")[1].split("```")[0]
    return text.replace("path/to/this/folder", folder).replace("path/to/teacher", "teacher")


def run(text: str) -> dict[str, Any]:
    """What a program makes, by its names."""
    made: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(text, made)
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAKES)
def test_the_card_s_program_runs_as_it_stands(name: str, dtype: str, here: Path) -> None:
    """Students of progressive distillation in three steps, which divide no clock."""
    it = finished(name, dtype)
    assert main(["export", "run", "--out", "out"]) == 0
    made = run(program())
    assert isinstance(made["image"], Image)
    kinds = {part.dtype for part in made["pipeline"].components.values() if isinstance(part, torch.nn.Module)}
    assert kinds == {torch.float32 if name.startswith("ddpm") else getattr(torch, dtype)}
    chain = json.loads(Path("out/chain.json").read_text())
    assert chain["steps"] == 3 and chain["law"] == "Ddim" and chain["difference_from_dagdiff"] < 0.1
    np.testing.assert_allclose(chain["times"], it.times.tolist(), atol=1e-6)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_a_student_that_renoises_follows_the_program_s_generator(name: str, here: Path) -> None:
    finished(name, objective="consistency")
    assert main(["export", "run", "--out", "out"]) == 0
    text = program()
    assert ("manual_seed(0)" in text) == (name != "sd"), "Stable Diffusion's call hands its generator on"
    if name == "sd":
        text = text.replace("guidance_scale=1.0", "guidance_scale=1.0, generator=torch.Generator().manual_seed(0)")
        text = f"import torch\n{text}"
    one, two = (np.asarray(run(text)["image"]) for _ in range(2))
    other = np.asarray(run(text.replace("manual_seed(0)", "manual_seed(1)"))["image"])
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_timesteps_that_were_named_stand_in_the_card(here: Path) -> None:
    finished("sd", steps=2, pipeline={"timesteps": [800, 300]}, objective="consistency")
    assert main(["export", "run", "--out", "out"]) == 0
    assert "timesteps=[800, 300]" in program() and isinstance(run(program())["image"], Image)
    assert json.loads(Path("out/chain.json").read_text())["timesteps"] == [800.0, 300.0]


def test_adapters_leave_with_their_precision(here: Path) -> None:
    finished("sd", "bfloat16", policy={"class": "lora", "rank": 2}, objective="consistency")
    assert main(["export", "run", "--out", "out", "--format", "lora"]) == 0
    assert "dtype=torch.bfloat16" in program() and isinstance(run(program())["image"], Image)


def test_the_card_of_a_teacher_saved_in_half_runs(here: Path) -> None:
    """Stable Diffusion's variant fp16, whose weights are float16 in their files."""
    Path("prompts.txt").write_text("a cat\n")
    pipelines.seeded(pipelines.stable_diffusion).to(torch.float16).save_pretrained("teacher", variant="fp16")
    told = {"path": "teacher", "prompts": "prompts.txt", "variant": "fp16", "dtype": "float16"}
    chosen = {"task": "pipeline", "steps": 2, "device": "cpu", "pipeline": told}
    it = Experiment.build(configure(chosen), training=False)
    Path("run").mkdir()
    save_student(it, Path("run"))
    assert main(["export", "run", "--out", "out", "--pictures", "0"]) == 0
    made = run(program())
    assert isinstance(made["image"], Image) and made["pipeline"].unet.dtype == torch.float16


def test_a_merged_lora_keeps_its_change_in_half_precision(here: Path) -> None:
    """Each exported weight is the nearest bfloat16 to W + B A in float32; in bfloat16 much would be lost."""
    it = finished("sd", "bfloat16", policy={"class": "lora", "rank": 2}, objective="consistency")
    trained = [weight for weight in it.student.parameters() if weight.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in trained:
            weight.data.normal_(0.0, 0.02)  # a change of some units of the last place
    save_student(it, Path("run"))
    assert main(["export", "run", "--out", "out", "--pictures", "0"]) == 0
    exported = UNet2DConditionModel.from_pretrained("out", subfolder="unet", dtype=torch.bfloat16).state_dict()
    network, checked = it.student.network.body, 0
    for name, layer in network.named_modules():
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        change = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
        wanted = (layer.base_layer.weight.float() + change).to(torch.bfloat16)
        assert torch.equal(exported[f"{name}.weight"], wanted), name
        checked += 1
    assert checked > 4


def test_a_type_that_is_none_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished("ddpm")
    assert main(["export", "run", "--out", "out", "--dtype", "int8"]) == 2
    assert "dtype" in capsys.readouterr().err and not Path("out").exists()
