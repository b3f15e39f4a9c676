"""The CLIP score: of pictures and their prompts, beside the teacher's; what is missing is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.metrics.clip import ClipScore
from dagdiff.metrics.truth import Truth
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

pytestmark = pytest.mark.usefixtures("offline")

PROMPTS = ["a cat", "two dogs", "a red house"]
SMALL: dict[str, Any] = {
    "task": "pipeline", "steps": 2, "updates": 1, "rounds": 1, "chains": 2, "batch_size": 4, "heldout": 2,
    "samples": 10, "substeps": 1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a small CLIP with random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    encoder, tokenizer = pipelines.clip()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 16, "patch_size": 4}
    config = CLIPConfig(text_config=encoder.config.to_dict(), vision_config=vision, projection_dim=8)
    pipelines.seeded(CLIPModel, config).save_pretrained(folder)
    eye = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=eye, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small run of a text-to-image pipeline."""
    folder = tmp_path_factory.mktemp("sd")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), folder / "sd")
    told = {"path": path, "prompts": str(folder / "prompts.txt"), "own_samples": 20, "own_steps": 2}
    return {**SMALL, "pipeline": told}


def test_scores_are_clips_own_of_the_decoded_pictures(
    clip: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPModel, CLIPProcessor

    monkeypatch.setattr(ClipScore, "weights", clip)
    task = Experiment.build(configure(settings)).task
    states, asked = torch.randn(20, *task.shape), torch.arange(20) % 3
    found = ClipScore(task).scores(states, asked)
    processor, model = CLIPProcessor.from_pretrained(clip), CLIPModel.from_pretrained(clip)
    for row in (0, 7, 19):  # one at a time, by CLIP's own scaled logits
        picture = ((task.pictures(states[row : row + 1])[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        words = PROMPTS[row % 3]
        with torch.no_grad():
            out = model(**processor(images=[picture], text=[words], return_tensors="pt", padding=True))
        logit = float(out.logits_per_image / model.logit_scale.exp())
        assert float(found[row]) == pytest.approx(max(100 * logit, 0.0), abs=1e-3)


def test_the_gap_is_zero_of_the_teachers_own_samples_and_has_a_margin(
    clip: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipScore, "weights", clip)
    task = Experiment.build(configure(settings)).task
    metric = ClipScore(task)
    states, other = torch.randn(2, 8, *task.shape).unbind()
    asked = torch.arange(8) % 3
    mine, theirs = metric.scores(states, asked), metric.scores(other, asked)
    same = metric(states, Truth(states, asked=asked, paired=states[:4]))
    assert same == {"clip": pytest.approx(float(mine.mean())), "clip_gap": 0.0, "clip_gap_margin": 0.0}
    found = metric(states, Truth(states, asked=asked, paired=other))
    change = mine - theirs
    assert found["clip_gap"] == pytest.approx(float(change.mean()))
    assert found["clip_gap_margin"] == pytest.approx(1.96 * float(change.std()) / 8**0.5)
    assert metric(states, Truth(states)) == {}


def test_a_run_is_scored_by_a_clip_of_ones_own(clip: str, settings: dict[str, Any], own_folder: Path) -> None:
    (own_folder / "mine.py").write_text(
        f"from dagdiff.metrics.clip import ClipScore\n\n\nclass Tiny(ClipScore):\n    weights = {clip!r}\n"
    )
    told = [f"--pipeline.{name}={value}" for name, value in settings["pipeline"].items()]
    options = [f"--{name}={value}" for name, value in settings.items() if name != "pipeline"]
    assert main(["distill", *options, *told, "--metric", "mine.Tiny", "--trust_code", "--out", "run"]) == 0
    metrics = json.loads((own_folder / "run" / "metrics.json").read_text())["metrics"]
    assert 0.0 <= metrics["clip"] <= 100.0
    assert metrics["clip_gap_margin"] >= 0.0


def test_missing_weights_and_prompts_are_refused_by_name(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipScore, "weights", str(tmp_path / "nowhere"))
    with pytest.raises(Refusal, match=r"--metric clip can't load .*nowhere.*pip install 'dagdiff\[hub\]'"):
        Experiment.build(configure({**settings, "metric": ["clip"]})).check(2)
    plane = configure({"task": "gaussians8-matched", "metric": ["clip"], "device": "cpu"})
    with pytest.raises(Refusal, match="'gaussians8-matched' has none"):
        _ = Experiment.build(plane).metrics
