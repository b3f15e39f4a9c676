"""A student beside its teacher's own chain: the error against closed forms, false alarms counted, differences seen."""

import math

import pytest
import torch
from torch import Tensor

from dagdiff.metrics.samples import Energy
from dagdiff.metrics.standing import Standing, compare
from dagdiff.metrics.truth import Truth


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Mean(Energy):
    name = "mean"

    def between(self, x: Tensor, y: Tensor) -> float:
        return float(x.mean())


class Off(Energy):
    """The squared distance of the means."""

    name = "off"

    def between(self, x: Tensor, y: Tensor) -> float:
        return float((x.mean() - y.mean()).square())


def test_behind_is_three_standard_errors() -> None:
    assert Standing("energy", 1.0, 0.5, 0.16).behind
    assert not Standing("energy", 1.0, 0.5, 0.17).behind
    assert not Standing("energy", 0.5, 1.0, 0.01).behind


def test_the_error_of_a_mean_is_its_standard_error() -> None:
    student, teacher, reference = (normal(10, 1, seed=seed) for seed in range(3))
    found = compare(Mean(), student, teacher, Truth(reference))
    assert (found.student, found.teacher) == pytest.approx((float(student.mean()), float(teacher.mean())))
    assert found.error == pytest.approx(float((student - teacher).std()) / math.sqrt(10))


def test_the_error_is_scaled_to_the_number_of_rows() -> None:
    """Twenty thousand rows are as sure as twenty thousand rows, though few of them were looked at."""
    student, teacher, reference = (normal(20_000, 1, seed=seed) for seed in range(3))
    found = compare(Mean(), student, teacher, Truth(reference))
    assert found.error == pytest.approx(math.sqrt(2 / 20_000), rel=0.6)


def test_equal_clouds_are_never_behind() -> None:
    cloud = normal(32, 2)
    found = compare(Energy(), cloud, cloud.clone(), Truth(normal(32, 2, seed=1) + 1.0))
    assert found.student == found.teacher and found.error == 0.0 and not found.behind


@pytest.mark.parametrize("n", [5, 16, 100])
def test_students_as_good_as_their_teachers_are_rarely_called_behind(n: int) -> None:
    """Both miss the law alike; whatever puts one of them behind is chance."""
    alarms = 0
    for seed in range(0, 180, 3):
        student, teacher, reference = (normal(n, 4, seed=seed + i) for i in range(3))
        alarms += compare(Energy(), 1.3 * student, 1.3 * teacher, Truth(reference)).behind
    assert alarms <= 3


def test_the_chance_of_the_reference_counts() -> None:
    """A student to the right and a teacher as far to the left: which is nearer a few real points is their chance."""
    alarms = 0
    for seed in range(100):
        student, teacher = 1.0 + 0.01 * normal(100, 1, seed=3 * seed), -1.0 + 0.01 * normal(100, 1, seed=3 * seed + 1)
        alarms += compare(Off(), student, teacher, Truth(normal(20, 1, seed=3 * seed + 2))).behind
    assert alarms <= 5


def test_a_worse_student_is_seen_on_few_rows() -> None:
    noise = normal(16, 64)
    found = compare(Energy(), 3.0 * noise, 1.1 * noise, Truth(normal(16, 64, seed=1)))
    assert found.behind and found.student > found.teacher


def test_a_distance_of_parts_is_their_mean_for_the_standing_too() -> None:
    """The reference holds half as many rows: two parts of the samples, and the order within a part does not matter."""
    student, teacher, reference = normal(20, 2), normal(20, 2, seed=1), normal(10, 2, seed=2)
    halves = [Energy().between(part, reference) for part in student.split(10)]
    found = compare(Energy(by_parts=True), student, teacher, Truth(reference))
    assert found.metric == "energy" and found.student == pytest.approx(sum(halves) / 2)


def test_the_difference_has_an_interval_that_holds_the_truth_about_as_often_as_it_says() -> None:
    """Two clouds of one distribution differ by nothing: 95 % of the intervals hold 0."""
    held = 0
    for trial in range(60):
        student, teacher, reference = (normal(100, 2, seed=1000 * part + trial) for part in range(3))
        found = compare(Energy(), student, teacher, Truth(reference)).difference
        held += found.low <= 0.0 <= found.high
    assert held >= 52
