"""DMD2's GAN head on pipelines: features of the critic's own network, real pictures, and nothing else moved."""

import io
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from PIL import Image

from dagdiff.benchmarks.small import newer
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.pipelines.pretrained import DiffusersExpert, PretrainedNetwork
from dagdiff.policies.unet import UNet
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run

pytestmark = pytest.mark.usefixtures("offline")
FEW = "--updates 2 --rounds 1 --chains 4 --batch_size 4 --heldout 2 --samples 10 --steps 2 --substeps 1 --device cpu"
MAKES = {
    "ddpm": pipelines.ddpm,
    "dit": pipelines.dit,
    "sd": pipelines.stable_diffusion,
    "sdxl": pipelines.sdxl,
    "sd3": pipelines.sd3,
    "flux": pipelines.flux,
    "qwen": newer.qwen_image,
    "sana": newer.sana,
    "auraflow": newer.auraflow,
    "hunyuan": newer.hunyuan,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Small pipelines, prompts, and pictures with captions."""
    folder = tmp_path_factory.mktemp("gan")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\n")
    for name in ("sd", "sd3"):
        pipelines.save(pipelines.seeded(MAKES[name]), folder / name)
    (folder / "pictures").mkdir()
    for number in range(16):
        Image.new("RGB", (16, 16), (12 * number, 90, 200)).save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text(["a cat", "two dogs"][number % 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        yield folder


def run(words: str, folder: Path) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = main(shlex.split(words.format(folder=folder, few=FEW)))
    return status, out.getvalue()


def built(folder: Path, name: str, **changes: Any) -> Experiment:
    size = {"sample_size": 8} if name == "sd3" else {}
    chosen = {"path": str(folder / name), "images": str(folder / "pictures")} | size
    few = {"chains": 4, "batch_size": 4, "heldout": 0, "samples": 10, "substeps": 1, "updates": 2, "rounds": 1}
    objective = {"class": "distribution", "gan_weight": 0.1, "critic_updates": 1, "critic_lr": 1e-3}
    told = {"task": "pipeline", "pipeline": chosen, "objective": objective, "device": "cpu", "steps": 2, "lr": 1e-3}
    return Experiment.build(configure(told | few | changes))


def states(teacher: DiffusersExpert, rows: int = 3) -> tuple[Any, ...]:
    x_t = torch.randn((rows, *teacher.shape), generator=torch.Generator().manual_seed(0))
    condition: Any = teacher.network.conditions
    return x_t, torch.full((rows,), 0.6), condition.draw(rows, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MAKES)
def test_features_are_of_the_state_alone(name: str, tmp_path: Path) -> None:
    """As many tokens or places as the state has, averaged; other states have others, and they carry gradient."""
    base = pipelines.save(pipelines.seeded(MAKES[name]), tmp_path / name)
    size = None if name in ("ddpm", "dit", "sd", "sdxl") else 8
    teacher = DiffusersExpert.from_pretrained(base, () if name in ("ddpm", "dit") else ["a cat"], sample_size=size)
    network, (x_t, t, condition) = teacher.network, states(teacher)
    sizes: list[int] = []

    def watch(module: Any, given: Any, answer: Any) -> None:
        hidden = answer[-1] if isinstance(answer, tuple) else answer
        sizes.append(hidden.shape[1] if hidden.ndim == 3 else hidden.shape[2] * hidden.shape[3])

    with network.family.middle(network.body).register_forward_hook(watch):
        found = network.features(x_t.requires_grad_(), t, condition)
    assert found.shape == (3, network.feature_size)
    places = x_t.shape[2] * x_t.shape[3]
    patch = 4 if name in ("ddpm", "sd", "sdxl") else network.body.config.get("patch_size", 1) ** 2
    patch = 4 if name in ("flux", "qwen") else patch
    assert sizes == [places // patch], "tokens of the state, and none of the text"
    (gradient,) = torch.autograd.grad(found.square().sum(), x_t)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())
    assert not torch.allclose(found, network.features(x_t + 1.0, t, condition))
    assert not network.family.middle(network.body)._forward_hooks


def test_the_u_net_s_features_are_those_of_images(tmp_path: Path) -> None:
    """The same network read as one of ours, which takes the way down by hand."""
    teacher = DiffusersExpert.from_pretrained(pipelines.save(pipelines.seeded(pipelines.ddpm), tmp_path / "ddpm"))
    x_t, t, _ = states(teacher)
    torch.testing.assert_close(teacher.network.features(x_t, t), UNet(teacher.network.body).features(x_t, t))


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_a_network_whose_tokens_are_mixed_is_refused_by_name(name: str, tmp_path: Path) -> None:
    base = pipelines.save(pipelines.seeded(getattr(newer, name)), tmp_path / name)
    network = DiffusersExpert.from_pretrained(base, ["a cat"], sample_size=8).network
    with pytest.raises(Refusal, match=rf"a {type(network.body).__name__} has no layer .*Leave gan_weight at 0"):
        _ = network.feature_size


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_head_learns_and_moves_the_student(name: str, folder: Path) -> None:
    it = built(folder, name)
    before = {key: values.clone() for key, values in it.task.teacher.network.body.state_dict().items()}
    losses = [made.losses for _, made in it.rounds()]
    assert all(value == value for name in ("gan", "head") for value in [losses[-1][name]])
    after = it.task.teacher.network.body.state_dict()
    assert all(torch.equal(after[key], values) for key, values in before.items())


def test_the_gan_s_gradient_reaches_the_student_and_no_critic(folder: Path) -> None:
    it = built(folder, "sd")
    loop = it.loop(it.expert, 2)
    for _ in loop:
        break
    objective = loop.objective
    t, s = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0])
    from tensordict import TensorDict

    batch = TensorDict({"x_t": torch.randn(2, 4, 8, 8), "t": t, "s": s, "condition": torch.tensor([0, 1])}, [2])
    objective.critic.zero_grad(set_to_none=True)
    found = objective.loss(it.student, batch)
    found.loss.backward()
    assert float(found.parts["gan"]) > 0.0
    assert all(weight.grad is None for weight in objective.critic.parameters())
    assert all(weight.requires_grad for weight in objective.critic.parameters())


def test_frozen_weights_under_adapters_stay_frozen(folder: Path) -> None:
    """The critic shares them with the student and the teacher: an update of it moves its adapters and its head."""
    it = built(folder, "sd", policy={"class": "lora", "rank": 2})
    before = {key: values.clone() for key, values in it.task.teacher.network.body.state_dict().items()}
    loop = it.loop(it.expert, 2)
    for _ in loop:
        pass
    asked = {key for key, weight in loop.objective.critic.named_parameters() if weight.requires_grad}
    assert all(key.startswith("head.") or "lora_" in key for key in asked) and len(asked) > 4
    after = it.task.teacher.network.body.state_dict()
    assert all(torch.equal(after[key], values) for key, values in before.items())
    moved = [weight for key, weight in loop.objective.critic.named_parameters() if "lora_B" in key]
    assert any(float(weight.abs().max()) > 0.0 for weight in moved)


def test_gradients_are_the_same_with_fewer_activations_kept(folder: Path) -> None:
    """Checkpointed layers are run twice; what the head sees is of the first."""
    found = []
    for kept in (True, False):
        network: PretrainedNetwork = DiffusersExpert.from_pretrained(str(folder / "sd3"), ["a cat"], 8).network
        network.train().requires_grad_(True)
        if kept:
            network.body.enable_gradient_checkpointing()
        x_t = torch.randn((2, *(16, 8, 8)[-3:]), generator=torch.Generator().manual_seed(0))
        x_t = x_t[:, : network.body.config.in_channels].requires_grad_()
        features = network.features(x_t, torch.full((2,), 0.5), torch.tensor([0, 0]))
        found.append(torch.autograd.grad(features.square().sum(), x_t)[0])
    torch.testing.assert_close(*found)
    assert float(found[0].abs().max()) > 0.0


def test_without_pictures_it_is_refused(folder: Path) -> None:
    words = "distill --task pipeline --pipeline.path {folder}/sd --pipeline.prompts {folder}/prompts.txt {few}"
    words += " --objective distribution --objective.critic_updates 1 --out {folder}/run"
    status, told = run(f"{words} --objective.gan_weight 0.1", folder)
    line = told.strip().splitlines()[-1]
    assert status == 2 and "Pass --pipeline.images FOLDER, or --objective.gan_weight 0" in line
    assert not (folder / "run").exists()
    status, told = run(f"{words} --objective.gan_weight 0.1 --pipeline.images {{folder}}/pictures", folder)
    assert status == 0, told
    assert open_run(folder / "run", "cpu").config["objective"]["gan_weight"] == 0.1
    assert "gan" in (folder / "run" / "rounds.csv").read_text().splitlines()[0]
