"""The learned teacher: it learns, it is fixed by its generator, and its labels can be left out."""

import pytest
import torch

from dagdiff.envs.sets import Matched, Points
from dagdiff.envs.toy2d import world
from dagdiff.objectives.base import denoising_loss
from dagdiff.schedule import CosineSchedule
from dagdiff.tasks.names import make_task
from dagdiff.tasks.plane import Teacher
from dagdiff.tasks.teachers import train_teacher

SCHEDULE = CosineSchedule()


def small(task: str = "gaussians8-matched") -> torch.nn.Module:
    return Teacher(make_task(task), width=32, depth=2).network()


def loss(network: torch.nn.Module, points: Points) -> float:
    """The denoising loss on states of its own."""
    generator = torch.Generator().manual_seed(5)
    x0 = points.sample(500, generator)
    noise, t = torch.randn(x0.shape, generator=generator), torch.rand(500, generator=generator).clamp(min=0.02)
    with torch.no_grad():
        return float(denoising_loss(network, x0, noise, t, SCHEDULE))


def test_it_learns() -> None:
    """A world of one point can be denoised perfectly."""
    network, point = small(), Points(torch.tensor([[1.0, -0.5]]))
    before = loss(network, point)
    generator = torch.Generator().manual_seed(0)
    losses = list(train_teacher(network, point, SCHEDULE, 250, 64, ema=0.9, generator=generator))
    assert len(losses) == 3  # at 100, 200 and the end
    assert loss(network, point) < 0.5 * before


def test_the_generator_fixes_the_weights() -> None:
    def trained(seed: int) -> torch.Tensor:
        network, generator = small(), torch.Generator().manual_seed(seed)
        list(train_teacher(network, Matched(world("moons")), SCHEDULE, 5, 16, generator=generator))
        return torch.cat([value.flatten() for value in network.state_dict().values()])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_it_ends_with_the_averaged_weights() -> None:
    """The decay of the average changes the weights one ends with, and nothing that happens on the way."""

    def trained(ema: float) -> tuple[list[float], torch.Tensor]:
        network, generator = small(), torch.Generator().manual_seed(0)
        losses = list(train_teacher(network, Matched(world("moons")), SCHEDULE, 5, 16, ema=ema, generator=generator))
        return losses, torch.cat([value.flatten() for value in network.parameters()]).detach()

    (plain_losses, plain), (losses, averaged) = trained(0.0), trained(0.99)
    assert losses == plain_losses
    assert not torch.equal(plain, averaged)


def test_labels_are_left_out_in_the_given_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(denoiser, x0, noise, t, schedule, condition=None):  # type: ignore[no-untyped-def]
        seen.append(condition)
        return denoising_loss(denoiser, x0, noise, t, schedule, condition)

    monkeypatch.setattr("dagdiff.tasks.teachers.denoising_loss", spy)
    options = {"updates": 20, "batch_size": 200, "unlabelled": 0.25, "conditional": True}
    data = Matched(world("gaussians8"))
    generator = torch.Generator().manual_seed(0)
    list(train_teacher(small("gaussians8-matched-labelled"), data, SCHEDULE, generator=generator, **options))  # type: ignore[arg-type]
    labels = torch.stack(seen)
    assert float((labels == -1).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert set(labels.unique().tolist()) == {-1, *range(8)}
