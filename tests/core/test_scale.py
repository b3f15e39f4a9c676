"""What lets large networks train: half precision that never goes stale, parts of batches, an aggregate on disk."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.aggregate import Aggregate
from dagdiff.checks import Refusal
from dagdiff.mixture import Shares
from dagdiff.policies.autocast import in_bfloat16
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import X0
from dagdiff.policies.student import Student
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.schedule import CosineSchedule

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 16}, "updates": 6, "rounds": 2, "chains": 8, "batch_size": 16, "heldout": 8,
    "samples": 50, "steps": 2, "device": "cpu", "substeps": 2, "shares": [0.5, 0.25, 0.25],
}  # fmt: skip


def trained(**more: Any) -> tuple[Experiment, Any]:
    """A small trained run, and its last round."""
    it = Experiment.build(configure({**SMALL, **more}))
    *_, (loop, last) = it.rounds()
    return it, (loop, last)


def weights(it: Experiment) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in it.student.parameters()])


# -- bfloat16 -------------------------------------------------------------------------------------------------------


def network(prediction: Any = X0) -> Student:
    torch.manual_seed(0)
    return Student(MLP(width=16), CosineSchedule(), prediction)


def test_layers_compute_in_bfloat16_and_states_stay_in_float32() -> None:
    student, seen = network(), []
    student.network.get_submodule(list(dict(student.network.named_modules()))[-1]).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    x, t = torch.randn(8, 2), torch.rand(8)
    exact = student(x, t)
    rough = in_bfloat16(student)(x, t)
    assert seen == [torch.float32, torch.bfloat16] and rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.03, rtol=0.03)
    assert not torch.is_autocast_enabled("cpu")


def test_an_update_is_seen_at_once() -> None:
    """A context that stays open would answer with the copies of the weights it made before."""
    student = in_bfloat16(network())
    x, t = torch.randn(8, 2), torch.rand(8)
    before = student(x, t)
    before.square().mean().backward()
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(2.0)
    assert not torch.equal(student(x, t), before)


def test_copies_have_a_switch_of_their_own_and_a_failed_call_leaves_it_off() -> None:
    student = in_bfloat16(network())
    twin = copy.deepcopy(student)
    x, t = torch.randn(8, 2), torch.rand(8)
    assert torch.equal(student(x, t), twin(x, t))
    with pytest.raises(RuntimeError):
        twin(torch.randn(8, 3), t)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(student(x, t), twin(x, t))


def test_a_run_in_bfloat16_is_close_to_the_plain_one_and_its_exact_expert_stays_exact() -> None:
    (plain, (_, last)), (half, (_, rough)) = trained(), trained(bf16=True)
    assert last.losses["loss"] != rough.losses["loss"]
    assert rough.losses["loss"] == pytest.approx(last.losses["loss"], rel=0.2)
    assert {weight.dtype for weight in half.student.parameters()} == {torch.float32}
    noise, condition, _ = plain.start(8, seed=0)
    t = torch.full((8,), 0.5)
    assert torch.equal(plain.expert(noise, t, condition), half.expert(noise, t, condition))


# -- an aggregate on disk -------------------------------------------------------------------------------------------


def records(n: int) -> TensorDict:
    return TensorDict({"x_t": torch.arange(2.0 * n).reshape(n, 2), "t": torch.rand(n)}, [n])


def test_batches_from_disk_are_those_from_memory_and_the_folder_is_left_empty(tmp_path: Path) -> None:
    drawn = []
    for folder in (None, tmp_path / "big"):
        it = Aggregate({"student": 20, "expert": 20}, None, torch.Generator().manual_seed(0), folder)
        torch.manual_seed(0)
        for number in (1, 2, 3):
            it.add("student", records(12), number)
            it.add("expert", records(8), number)
            it.add("forward", records(4), number)
        drawn.append([it.draw(16, Shares(0.5, 0.25, 0.25)) for _ in range(3)])
        files = list((tmp_path / "big").rglob("*.memmap"))
        assert bool(files) == (folder is not None)
        assert len(it) == 36 + 24 + 4, "room is made where it is needed"
        del it
    for memory, disk in zip(*drawn, strict=True):
        assert set(memory.keys()) == set(disk.keys())
        assert all(torch.equal(memory[key], disk[key]) for key in memory.keys())  # noqa: SIM118
    assert list((tmp_path / "big").iterdir()) == []


def test_a_run_from_disk_is_the_run_from_memory(tmp_path: Path) -> None:
    (one, _), (two, _) = trained(), trained(memmap=str(tmp_path))
    assert torch.equal(weights(one), weights(two))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"memmap .*file can't be written .*Name another folder"):
        Aggregate({"student": 20}, folder=tmp_path / "file")


# -- parts of a batch -----------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """A network that notes how many rows it is shown while gradients are recorded."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, []  # type: ignore[var-annotated]

    def forward(self, *arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(len(arguments[0]))
        answer: Tensor = self.inner(*arguments)
        return answer


@pytest.mark.parametrize("objective", ["progressive", "consistency"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(objective: str) -> None:
    (whole, (_, one)), (parts, (_, other)) = (trained(objective=objective, accumulate=n) for n in (1, 3))
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-4, rtol=1e-3)
    assert other.losses == pytest.approx(one.losses, rel=1e-3)
    assert not torch.equal(weights(whole), weights(parts)), "it was summed in another order"


def test_no_part_is_larger_than_its_share_of_the_batch() -> None:
    it = Experiment.build(configure({**SMALL, "accumulate": 3}))
    it.student = Rows(it.student)
    list(it.rounds())
    assert it.student.seen == [6, 6, 4] * 6


def test_a_critic_learns_on_parts_of_the_size_of_the_students() -> None:
    it = Experiment.build(configure({**SMALL, "accumulate": 4, "objective": "distribution"}))
    it.student = Rows(it.student)
    it.objective.tell_origin = False  # type: ignore[attr-defined]  # the fake score is a copy that notes its rows too
    *_, (loop, _) = it.rounds()
    assert it.student.seen == [4] * 4 * 6
    assert loop.objective.fake.seen == [4] * loop.objective.critic_updates * 6  # type: ignore[attr-defined]


def test_more_parts_than_rows_are_refused() -> None:
    with pytest.raises(Refusal, match=r"accumulate must be at most batch_size, 16; got 17"):
        configure({**SMALL, "accumulate": 17})
