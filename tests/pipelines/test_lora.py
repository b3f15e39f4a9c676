"""Adapters: the student starts as the teacher, trains adapters alone, and leaves in a file that diffusers reads."""

import copy
from pathlib import Path

import pipelines
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dagdiff.checks import Refusal
from dagdiff.pipelines.lora import has_adapters, lora_student, merged, save_adapters
from dagdiff.pipelines.pretrained import DiffusersExpert

PROMPT = torch.zeros(2, dtype=torch.int64)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "teacher")


@pytest.fixture
def teacher(base: str) -> DiffusersExpert:
    return DiffusersExpert.from_pretrained(base, prompts=["a cat"])


def states(teacher: DiffusersExpert) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.3])


def trained(student: torch.nn.Module) -> torch.nn.Module:
    """Adapters that say something."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in student.parameters():
            if weight.requires_grad:
                weight.normal_()
    return student


def test_it_starts_as_the_teacher_and_shares_its_weights(teacher: DiffusersExpert) -> None:
    student = lora_student(teacher, rank=2)
    torch.testing.assert_close(student(*states(teacher), PROMPT), teacher(*states(teacher), PROMPT))
    own = {weight.data_ptr() for weight in student.parameters() if not weight.requires_grad}
    assert own <= {weight.data_ptr() for weight in teacher.network.parameters()}
    names = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert not has_adapters(teacher.network.body), "the teacher itself stays as it is"


def test_training_moves_the_student_and_never_the_teacher(teacher: DiffusersExpert) -> None:
    student, (x, t) = lora_student(teacher, rank=2), states(teacher)
    before = teacher(x, t, PROMPT)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        student(x, t, PROMPT).square().mean().backward()
        optimiser.step()
    assert not torch.allclose(student(x, t, PROMPT), before, atol=1e-4)
    assert torch.equal(teacher(x, t, PROMPT), before)


def test_copies_and_states_hold_adapters_alone(teacher: DiffusersExpert) -> None:
    student = trained(lora_student(teacher, rank=2))
    twin = copy.deepcopy(student)
    frozen = {weight.data_ptr() for weight in student.parameters() if not weight.requires_grad}
    assert {weight.data_ptr() for weight in twin.parameters() if not weight.requires_grad} == frozen
    assert all("lora_" in name for name in student.state_dict() if "bank" not in name)
    trained(twin)
    fresh = lora_student(teacher, rank=2)
    fresh.load_state_dict(student.state_dict())
    torch.testing.assert_close(fresh(*states(teacher), PROMPT), student(*states(teacher), PROMPT))


def test_merged_weights_answer_as_the_adapters_do(teacher: DiffusersExpert) -> None:
    student = trained(lora_student(teacher, rank=2))
    wanted = student(*states(teacher), PROMPT)
    whole = copy.deepcopy(student.network)
    whole.body = merged(student.network.body)
    found = student.prediction.guess(
        states(teacher)[0], whole(*states(teacher), PROMPT), states(teacher)[1], student.schedule
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert has_adapters(student.network.body) and not has_adapters(whole.body)
    assert merged(teacher.network.body) is teacher.network.body


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_diffusers_loads_the_adapters(base: str, teacher: DiffusersExpert, alpha: float | None, tmp_path: Path) -> None:
    student = trained(lora_student(teacher, rank=2, alpha=alpha))
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    save_adapters(pipeline, student.network.body, tmp_path / "adapters")
    assert [file.name for file in (tmp_path / "adapters").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline.load_lora_weights(str(tmp_path / "adapters"))
    (x, t), bank = states(teacher), teacher.network.conditions(PROMPT, states(teacher)[0])
    with torch.no_grad():
        found = pipeline.unet(x, teacher.network.law.timestep(t), encoder_hidden_states=bank.hidden).sample
        torch.testing.assert_close(found, student.network(x, t, PROMPT), atol=1e-4, rtol=1e-3)


def test_a_pixel_network_can_be_adapted_too(tmp_path: Path) -> None:
    folder = pipelines.save(pipelines.seeded(pipelines.ddpm), tmp_path / "ddpm")
    teacher = DiffusersExpert.from_pretrained(folder)
    student, (x, t) = trained(lora_student(teacher, rank=2)), states(teacher)
    assert not torch.allclose(student(x, t), teacher(x, t), atol=1e-3)
    with pytest.raises(Refusal, match=r"DDPMPipeline reads no adapters\. Export it whole"):
        save_adapters(pipelines.ddpm(), student.network.body, tmp_path / "out")


def test_what_cannot_be_is_refused(teacher: DiffusersExpert, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="rank must be at least 1"):
        lora_student(teacher, rank=0)
    with pytest.raises(Refusal, match=r"targets \('to_z',\) name no layer of UNet2DConditionModel"):
        lora_student(teacher, targets=["to_z"])
    with pytest.raises(Refusal, match="this student has no adapters"):
        save_adapters(pipelines.stable_diffusion(), teacher.network.body, tmp_path)
