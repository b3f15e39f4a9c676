"""D outside the loop: saved, loaded, as a TorchRL buffer and a Hugging Face data set, and trained on offline."""

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from dagdiff.aggregate import Aggregate
from dagdiff.checks import Refusal
from dagdiff.mixture import SOURCES, Shares
from dagdiff.objectives.progressive import Progressive
from dagdiff.records import as_buffer, as_dataset, load_records, save_records
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

SMALL = {"updates": 4, "rounds": 2, "chains": 8, "batch_size": 16, "heldout": 0, "policy": "fresh"}


def aggregate(shape: tuple[int, ...] = (2,)) -> Aggregate:
    """Rows that can be told apart, of two rounds."""
    made, draws = Aggregate({}, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    for number, source, rows in ((1, "forward", 5), (1, "student", 4), (2, "student", 6), (2, "expert", 3)):
        columns: dict[str, Tensor] = {name: torch.rand(rows, generator=draws) for name in ("t", "s")}
        columns |= {name: torch.randn((rows, *shape), generator=draws) for name in ("x_t", "target")}
        columns["condition"] = torch.arange(rows)
        made.add(source, TensorDict(columns, [rows]), number)
    return made


def same(one: TensorDict, two: TensorDict) -> None:
    assert set(one.keys()) == set(two.keys())
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=0.0, atol=0.0)
        assert two[name].dtype == values.dtype


def test_all_of_d_is_saved_loaded_and_filled_in_again(tmp_path: Path) -> None:
    made = aggregate()
    save_records(tmp_path / "d.safetensors", made.everything())
    again = Aggregate({}, generator=torch.Generator().manual_seed(0))
    again.fill(load_records(tmp_path / "d.safetensors"))
    assert len(again) == len(made) == 18
    for source in SOURCES:
        same(made.records(source), again.records(source))
    shares = Shares(0.25, 0.5, 0.25)
    same(made.draw(12, shares), again.draw(12, shares))


def test_a_run_s_d_serves_offline_imitation(tmp_path: Path) -> None:
    """A second student learns from the first one's states and labels; the expert is not asked again."""
    run = Experiment.build(configure(SMALL))
    (loop, _), *_ = run.rounds()
    save_records(tmp_path / "d.safetensors", loop.aggregate.everything())

    offline = Aggregate({}, generator=torch.Generator().manual_seed(0))
    offline.fill(load_records(tmp_path / "d.safetensors"))
    student = Experiment.build(configure({**SMALL, "seed": 1})).student
    objective, optimiser = Progressive(), torch.optim.Adam(student.parameters(), 1e-2)
    objective.schedule = run.task.schedule
    losses = []
    for batch in offline.draws([64] * 60, Shares(0.25, 0.5, 0.25)):
        loss = objective.loss(student, batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_torchrl_buffer_holds_each_record() -> None:
    records = aggregate().everything()
    buffer = as_buffer(records, batch_size=7)
    assert len(buffer) == 18 and len(buffer.sample()) == 7
    same(records, buffer[:].exclude("index"))


@pytest.mark.parametrize("shape", [(2,), (1,), (4, 4), (1, 4, 3)], ids=str)
def test_a_hugging_face_data_set_holds_each_record(shape: tuple[int, ...]) -> None:
    pytest.importorskip("datasets")
    records = aggregate(shape).everything()
    dataset = as_dataset(records).with_format("torch")
    assert len(dataset) == 18
    same(records, TensorDict({name: torch.as_tensor(dataset[:][name]) for name in dataset.column_names}, [18]))


def test_refused_files(tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    with pytest.raises(Refusal, match=r"d\.safetensors can't be read .*Name a file that save_records wrote"):
        load_records(file)
    file.write_bytes(b"no tensors")
    with pytest.raises(Refusal, match="can't be read"):
        load_records(file)
    save_records(file, TensorDict({"x_t": torch.zeros(3, 2), "t": torch.zeros(3)}, [3]))
    with pytest.raises(Refusal, match="holds no round, s, source"):
        load_records(file)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(Refusal, match="as_dataset needs the package 'datasets'"):
        as_dataset(aggregate().everything())
