"""The U-Net: shapes, sizes, time, labels, the middle of the U, diffusers' own formats, and the meta device."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from tensordict import TensorDict
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.policies.student import Student
from dagdiff.policies.unet import UNet, image_unet
from dagdiff.schedule import CosineSchedule, VPSchedule


def small(labels: int = 0) -> UNet:
    torch.manual_seed(0)
    return image_unet((1, 8, 8), labels, channels=(8, 16))


def batch(n: int = 4, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *(shape or (1, 8, 8)), generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize(
    ("shape", "width", "millions"),
    [
        ((1, 8, 8), 32, 0.18),
        ((1, 14, 14), 64, 0.7),
        ((1, 28, 28), 64, 0.7),
        ((3, 32, 32), 64, 1.09),
        ((3, 36, 36), 64, 0.7),
        ((1, 8, 16), 64, 0.7),
    ],
    ids=str,
)
def test_usual_networks_have_the_right_shapes_and_sizes(shape: tuple[int, ...], width: int, millions: float) -> None:
    with torch.device("meta"):
        network = image_unet(shape, labels=10)
    x, t, labels = (part.to("meta") for part in (*batch(3, *shape), torch.tensor([0, 9, -1])))
    assert network(x, t, labels).shape == x.shape
    assert network.features(x, t, labels).shape == (3, network.feature_size) == (3, width)
    assert sum(part.numel() for part in network.parameters()) == pytest.approx(1e6 * millions, rel=0.05)


def test_rows_are_independent_and_time_matters() -> None:
    network, (x, t) = small(), batch()
    together = network(x, t)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network(x, t * 0.5), together, atol=1e-4)


def test_time_is_diffusers_timestep() -> None:
    network, (x, _) = small(), batch()
    for step in (0, 499, 999):
        t = torch.full((4,), (step + 1) / 1000)  # VPSchedule's time of table entry `step`
        torch.testing.assert_close(network(x, t), network.unet(x, step).sample, atol=1e-5, rtol=1e-4)


def test_labels_matter_and_no_label_is_minus_one() -> None:
    network, (x, t) = small(labels=3), batch()
    free = network(x, t)
    assert torch.equal(network(x, t, torch.full((4,), -1)), free)
    answers = [network(x, t, torch.full((4,), label)) for label in range(3)]
    for i, one in enumerate([*answers, free]):
        assert not any(torch.allclose(one, other) for other in [*answers, free][i + 1 :])


def test_an_unlabelled_network_ignores_labels() -> None:
    network, (x, t) = small(), batch()
    assert torch.equal(network(x, t, torch.tensor([0, 1, 2, -1])), network(x, t))


@pytest.mark.parametrize("labels", [0, 3])
def test_features_are_the_middle_of_the_u(labels: int) -> None:
    network, (x, t) = small(labels), batch()
    seen: list[Tensor] = []
    network.unet.mid_block.register_forward_hook(lambda module, given, answer: seen.append(answer))
    condition = torch.tensor([0, 1, 2, -1]) if labels else None
    network(x, t, condition)
    found = network.features(x, t, condition)
    torch.testing.assert_close(found, seen[0].mean((2, 3)))
    assert seen[0].shape[2:] == (4, 4)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert network.unet.conv_in.weight.grad is not None


def test_it_leaves_as_a_diffusers_model_and_comes_back(tmp_path: Path) -> None:
    network, (x, t), labels = small(labels=3), batch(), torch.tensor([0, 1, 2, -1])
    network.save(tmp_path)
    back = UNet.load(tmp_path)
    assert (back.labels, back.feature_size, back.training) == (3, 16, True)
    assert torch.equal(back(x, t, labels), network(x, t, labels))
    theirs = UNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(theirs(x, 1000 * t - 1, torch.tensor([0, 1, 2, 3])).sample, network(x, t, labels))


def test_load_refuses_half_a_folder(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no U-Net at .*: config.json is missing"):
        UNet.load(tmp_path)
    small().save(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Refusal, match=r"diffusion_pytorch_model.safetensors is missing"):
        UNet.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"shape": (2,)}, r"needs images of shape \(C, H, W\); got \(2,\)"),
        ({"shape": (1, 15, 15)}, "15 x 15 can't be halved 1 times"),
        ({"shape": (1, 30, 30)}, "30 x 30 can't be halved 2 times"),
        ({"shape": (1, 8, 8), "channels": (8, 12)}, r"channels must be multiples of 8; got \(8, 12\)"),
        ({"shape": (1, 8, 8), "layers": 0}, "layers must be at least 1"),
        ({"shape": (1, 8, 8), "labels": -1}, "labels must be at least 0"),
    ],
)
def test_refusals(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(Refusal, match=told):
        image_unet(**arguments)  # type: ignore[arg-type]


def test_a_student_of_it_runs_on_meta() -> None:
    student = Student(small(labels=2), VPSchedule.linear()).to("meta")
    x, t = (part.to("meta") for part in batch())
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    for answer in (student(x, t), student(x, t, labels)):
        assert answer.is_meta and answer.shape == x.shape
    assert student.features(x, t, labels).shape == (4, student.feature_size)


def test_it_learns_to_denoise() -> None:
    student, (x0, _) = Student(small(), CosineSchedule()), batch()
    x0 = x0[:1].expand(8, 1, 8, 8)  # one image: the answer is known
    optimiser = torch.optim.Adam(student.parameters(), lr=5e-3)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(30):
        t = torch.rand(8, generator=generator)
        alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in CosineSchedule()(t))
        loss = (student(alpha * x0 + sigma * torch.randn(x0.shape, generator=generator), t) - x0).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


@pytest.mark.parametrize("labels", [0, 3])
def test_it_answers_as_diffusers_own_way_through_it(labels: int) -> None:
    torch.manual_seed(0)
    network, (x, t) = image_unet((2, 8, 16), labels, channels=(8, 16, 24), layers=2), batch(4, 2, 8, 16)
    rows = torch.tensor([0, 1, 2, 3]) if labels else None
    theirs = network.unet(x, 1000 * t - 1, rows).sample
    assert torch.equal(network(x, t, torch.tensor([0, 1, 2, -1])), theirs)


def test_a_told_network_starts_as_the_untold_and_then_hears() -> None:
    network, (x, t), labels = small(labels=3), batch(), torch.tensor([0, 1, 2, -1])
    twin, origin = network.with_origin(), torch.rand(4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(twin(x, t, labels, origin), network(x, t, labels))
    assert torch.equal(twin.features(x, t, labels, origin), network.features(x, t, labels))
    assert network.origin is None and twin.origin is not None
    torch.nn.init.ones_(twin.origin.weight)
    for answer in (twin.forward, twin.features):
        assert not torch.allclose(answer(x, t, labels, origin), answer(x, t, labels, 0.5 * origin), atol=1e-4)


def test_the_gan_head_of_dmd2_judges_by_its_middle() -> None:
    student, (x, t) = Student(small(), CosineSchedule()), batch()
    objective = DistributionMatching(gan_weight=0.1)
    teacher = Student(small(), CosineSchedule()).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    objective.begin(student, Expert(teacher, CosineSchedule()), lambda n: (torch.zeros(n, 1, 8, 8), None), generator)
    states = TensorDict({"x_t": x, "t": t}, [4])
    assert set(objective.improve_critic(student, states)) == {"fake", "head"}
    found = objective.loss(student, states).parts
    assert set(found) == {"matching", "gan"}
    assert all(bool(part.isfinite()) for part in found.values())
