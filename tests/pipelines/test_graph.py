"""The whole sampler as one ONNX graph: onnxruntime makes dagdiff's samples, and what can't be drawn is refused."""

import importlib
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.pipelines.graph import Sampler, calling_program, draw_graph
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policies.unet import image_unet
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import save_student
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.threshold import NoThreshold, StaticThreshold
from dagdiff.transition import Ddim, Renoise, sample

onnx = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def drawn(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


CASES: dict[str, Any] = {
    "plane": lambda: (Student(MLP(), CosineSchedule()), Ddim(CosineSchedule()), NoThreshold(), (2,), 0, 4),
    "ancestral": lambda: (Student(MLP(), FlowSchedule()), Ddim(FlowSchedule(), 1.0), NoThreshold(), (2,), 0, 3),
    "labels": lambda: (Student(MLP(labels=8), CosineSchedule()), Renoise(CosineSchedule()), NoThreshold(), (2,), 8, 2),
    "images": lambda: (
        Student(image_unet((1, 8, 8), 10, channels=(8, 16)), VPSchedule.linear()), Renoise(VPSchedule.linear()),
        StaticThreshold(), (1, 8, 8), 10, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_makes_the_samples_of_dagdiff(name: str) -> None:
    student, law, threshold, shape, labels, steps = drawn(CASES[name])
    graph = draw_graph(student.train(), law, step_grid(steps), threshold, shape, labels)
    assert graph.difference < 1e-5
    assert ("condition" in graph.inputs) == bool(labels)
    stochastic = isinstance(law, Renoise) or law.eta > 0
    assert graph.inputs.get("fresh") == ((steps - 1, "batch", *shape) if stochastic else None)
    assert student.training, "the student itself stays as it was"
    session = onnx.InferenceSession(graph.content)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    given = {"noise": noise.numpy()}
    if stochastic:
        given["fresh"] = torch.zeros(steps - 1, 3, *shape).numpy()
    condition = torch.tensor([1, 0, 3]) if labels else None
    if condition is not None:
        given["condition"] = condition.numpy()
    (found,) = session.run(["x0"], given)
    still = [torch.zeros_like(noise)] * steps
    with torch.no_grad():
        wanted = sample(
            lambda x, t, c: threshold(student.eval()(x, t, c)), law, step_grid(steps), noise, condition, None, still
        )
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=1e-4)


def test_the_program_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, law, threshold, shape, labels, steps = drawn(CASES["labels"])
    graph = draw_graph(student, law, step_grid(steps), threshold, shape, labels)
    graph.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(calling_program(graph), names)
    assert names["x0"].shape == (16, 2)


def test_a_pipeline_of_pixels_is_drawn_and_one_of_prompts_refused(tmp_path: Path) -> None:
    path = pipelines.save(pipelines.seeded(pipelines.ddpm), tmp_path / "ddpm")
    teacher = DiffusersExpert.from_pretrained(path)
    told = (Ddim(teacher.schedule), step_grid(2), teacher.threshold, teacher.shape, 0)
    assert draw_graph(teacher.student(), *told).difference < 1e-4
    text = DiffusersExpert.from_pretrained(
        pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "sd"), ["a cat"]
    )
    with pytest.raises(Refusal, match="is asked with prompts"):
        draw_graph(text.student(), Ddim(text.schedule), step_grid(2), NoThreshold(), text.shape, 1)


def test_what_samples_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    student, law, threshold, shape, labels, steps = drawn(CASES["plane"])
    usual = Sampler.forward
    monkeypatch.setattr(Sampler, "forward", lambda self, noise, **told: 1.01 * usual(self, noise, **told))
    with pytest.raises(Refusal, match=r"does not sample as this student does: its ends differ by 0\.01"):
        draw_graph(student, law, step_grid(steps), threshold, shape, labels)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *rest: Any) -> Any:
        if name == "onnxscript":
            raise ImportError("not here", name=name)
        return importlib.import_module(name)

    monkeypatch.setattr("dagdiff.pipelines.graph.import_module", absent)
    student, law, threshold, shape, labels, steps = drawn(CASES["plane"])
    with pytest.raises(Refusal, match=r"needs the package onnxscript, .* pip install 'dagdiff\[onnx\]'"):
        draw_graph(student, law, step_grid(steps), threshold, shape, labels)


def test_the_command_exports_a_run_of_the_plane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    it = Experiment.build(configure({"task": "gaussians8-matched", "policy": "fresh", "device": "cpu"}))
    save_student(it, tmp_path / "run")
    words = ["export", str(tmp_path / "run"), "--onnx", "--out", str(tmp_path / "graph"), "--pictures", "50"]
    assert main(words) == 0, capsys.readouterr().err
    assert "an ONNX graph in" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "graph").iterdir()}
    assert names == {"sampler.onnx", "README.md", "chain.json", "recipe.yaml", "samples.png"}
    card = (tmp_path / "graph" / "README.md").read_text()
    assert "library_name: onnx" in card and "onnxruntime.InferenceSession" in card and "samples.png" in card
    assert main(words) == 0 and "is finished" in capsys.readouterr().out
