"""The arithmetic of memory, against what a run really holds."""

from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn

from dagdiff.benchmarks.measure.memory import adapters, held, record_bytes, table
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

DOCS = ROOT / "docs" / "memory.md"


def bytes_of(tensors: Any) -> int:
    return sum(values.numel() * values.element_size() for values in tensors if isinstance(values, Tensor))


def moments(optimiser: torch.optim.Optimizer) -> int:
    return bytes_of(values for state in optimiser.state.values() for name, values in state.items() if name != "step")


@pytest.mark.parametrize(
    ("objective", "label"),
    [("progressive", {}), ("consistency", {"label_end": "step"}), ("distribution", {"label_weight": 0.0})],
)
def test_a_run_under_published_labels_holds_what_is_counted(objective: str, label: dict[str, Any]) -> None:
    it = Experiment.build(
        configure({
            "objective": {"class": objective, **label}, "policy": {"class": "fresh", "width": 16},
            "updates": 6, "rounds": 3, "chains": 4,
            "batch_size": 8, "heldout": 4, "ema": 0.5, "steps": 2, "shares": [0.0, 0.5, 0.5], "device": "cpu",
            "task": "gaussians8-matched-labelled",
        })
    )  # fmt: skip
    *_, (loop, _) = it.rounds()
    weights = sum(weight.numel() for weight in it.student.parameters())
    found = held(weights, weights, expert=4, objective=objective, ema=True)
    assert loop.best is not None and loop.learner.averaged is not None
    assert bytes_of(it.student.parameters()) == found["student"]
    assert moments(loop.learner.optimiser) == found["Adam"]
    copies = (loop.learner.last_good, loop.best[2], loop.learner.averaged.module.state_dict())
    assert sum(bytes_of(state.values()) for state in copies) == found["copies"]
    if objective == "consistency":
        assert bytes_of(loop.objective.target.parameters()) == found["target"] > 0  # type: ignore[attr-defined]
    (records,) = loop.aggregate.records("student")[:2].split(2)
    assert bytes_of(records.values()) == 2 * record_bytes((2,), objective)


def test_the_fake_score_is_counted_with_its_gradients_and_moments() -> None:
    assert held(10, 10, objective="distribution")["critic"] == 160
    assert held(10, 3, objective="distribution")["critic"] == 48
    assert held(10, 3)["student"] == 12, "the frozen ones are the expert's"


def test_adapters_are_counted_by_rank_on_the_attention_alone() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_out, self.ff = nn.Linear(8, 4), nn.ModuleList([nn.Linear(4, 8)]), nn.Linear(8, 8)

    assert adapters(Block(), rank=2) == 2 * (8 + 4) + 2 * (4 + 8)


def test_the_page_holds_the_table_that_the_program_makes() -> None:
    text = DOCS.read_text(encoding="utf-8")
    shown = text.partition("<!-- memory -->\n")[2].partition("\n<!-- end of memory -->")[0]
    assert shown == table(859_520_964, 64, 12_754_944)
    assert f"{record_bytes((4, 64, 64)):,}".replace(",", " ") in text
