"""The MLP and its reading as a denoiser: shapes, what they depend on, labels, and the meta device."""

import pytest
import torch
from torch import nn

from dagdiff.checks import Refusal
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import EPSILON, PREDICTIONS
from dagdiff.policies.student import Stepwise, Student
from dagdiff.policy import StudentPolicy
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, perturb, step_grid
from dagdiff.shapes import column
from dagdiff.threshold import StaticThreshold


class Dropping(nn.Module):
    """A student with dropout, and a part that its owner keeps in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout, self.frozen = nn.Linear(2, 2), nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return self.frozen(self.dropout(self.layer(x_t)))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("depth", [1, 3])
def test_shapes(size: int, labels: int, depth: int) -> None:
    network = MLP(size, width=8, depth=depth, labels=labels)
    x, t = torch.randn(4, size), torch.rand(4)
    assert network(x, t).shape == (4, size)
    assert network.features(x, t).shape == (4, network.feature_size) == (4, 8)
    assert sum(isinstance(part, nn.Linear) for part in network.modules()) == depth + 1


def test_rows_are_independent_and_time_matters() -> None:
    network, x, t = MLP(width=8), torch.randn(4, 2), torch.rand(4)
    together = network(x, t)
    torch.testing.assert_close(torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(4)]), together)
    assert not torch.allclose(network(x, t * 0.5), together)


def test_time_zero_and_one_are_told_apart() -> None:
    network, x = MLP(width=8), torch.randn(4, 2)
    assert not torch.allclose(network(x, torch.zeros(4)), network(x, torch.ones(4)), atol=1e-3)


def test_labels_matter_and_no_label_is_minus_one() -> None:
    network, x, t = MLP(width=8, labels=3), torch.randn(4, 2), torch.rand(4)
    free = network(x, t)
    assert torch.equal(network(x, t, torch.full((4,), -1)), free)
    answers = [network(x, t, torch.full((4,), label)) for label in range(3)]
    for i, one in enumerate([*answers, free]):
        assert not any(torch.allclose(one, other) for other in [*answers, free][i + 1 :])


def test_an_unlabelled_network_ignores_labels() -> None:
    network, x, t = MLP(width=8), torch.randn(4, 2), torch.rand(4)
    assert torch.equal(network(x, t, torch.tensor([0, 1, 2, -1])), network(x, t))


@pytest.mark.parametrize("name", ["size", "width", "depth"])
def test_refusals(name: str) -> None:
    with pytest.raises(Refusal, match=f"{name} must be at least 1; got 0"):
        MLP(**{name: 0})


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize(
    "schedule", [CosineSchedule(), FlowSchedule(), VPSchedule.linear()], ids=["cosine", "flow", "vp"]
)
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
def test_the_student_answers_x0_whatever_its_network_predicts(prediction, schedule, shape) -> None:
    x0, eps = torch.randn(2, 5, *shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.2, 0.8, 5)
    x_t, (alpha, sigma) = perturb(x0, eps, t, schedule), (column(part, x0) for part in schedule(t))

    class Perfect(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
            return prediction.from_x0(x, x0, alpha, sigma)

    torch.testing.assert_close(Student(Perfect(), schedule, prediction)(x_t, t), x0, atol=1e-4, rtol=1e-4)


def test_the_students_features_are_its_networks() -> None:
    student = Student(MLP(width=8, labels=2), CosineSchedule(), EPSILON)
    x, t, labels = torch.randn(4, 2), torch.rand(4), torch.tensor([0, 1, -1, 0])
    assert student.feature_size == 8
    assert torch.equal(student.features(x, t, labels), student.network.features(x, t, labels))


def test_all_runs_on_meta() -> None:
    student = Student(MLP(width=8, labels=2), VPSchedule.linear()).to("meta")
    x, t = torch.empty(4, 2, device="meta"), torch.empty(4, device="meta")
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    for answer in (student(x, t), student(x, t, labels), StudentPolicy(student, StaticThreshold())(x, t, labels)):
        assert answer.is_meta
        assert answer.shape == (4, 2)


def test_the_policy_is_deterministic_thresholded_and_carries_no_gradient() -> None:
    student, x, t = Dropping().train(), 5 * torch.randn(40, 2), torch.rand(40)
    policy = StudentPolicy(student, StaticThreshold(-0.5, 0.5))
    first = policy(x, t)
    assert torch.equal(first, student.layer(x).clamp(-0.5, 0.5))
    assert not first.requires_grad
    assert student.training
    assert student.dropout.training, "the network is left as it was: training"
    student.eval()
    policy(x, t)
    assert not student.training


def test_the_policy_leaves_every_parts_mode_as_it_was() -> None:
    student = Dropping().train()
    student.frozen.eval()
    StudentPolicy(student)(torch.randn(4, 2), torch.rand(4))
    assert student.dropout.training
    assert not student.frozen.training, "a part kept in eval mode by its owner was switched to training"


def test_the_policy_refuses_an_answer_of_another_shape() -> None:
    class Flat(nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
            return x_t.sum(1)

    with pytest.raises(Refusal, match=r"the student must answer with the shape of the states, \(4, 2\); got \(4,\)"):
        StudentPolicy(Flat())(torch.randn(4, 2), torch.rand(4))


def test_a_told_network_answers_as_before_until_it_learns() -> None:
    network = MLP(width=16, labels=3)
    told, x_t, t = network.with_origin(), torch.randn(8, 2), torch.rand(8)
    label, origin = torch.arange(8) % 3, torch.full((8,), 0.75)
    assert torch.equal(told(x_t, t, label, origin), network(x_t, t, label))
    assert torch.equal(told(x_t, t, label), network(x_t, t, label))
    assert not {id(weight) for weight in told.parameters()} & {id(weight) for weight in network.parameters()}
    assert told.origin is not None and network.origin is None
    torch.nn.init.ones_(told.origin.weight)
    assert not torch.allclose(told(x_t, t, label, origin), told(x_t, t, label, 1.0 - origin))


def test_a_stepwise_student_has_one_judge_for_all_steps() -> None:
    network = Student(MLP(width=16), CosineSchedule())
    judge, x_t, t = Stepwise(network, step_grid(3)).with_origin(), torch.randn(8, 2), torch.rand(8)
    assert torch.equal(judge(x_t, t, None, t), network(x_t, t))
