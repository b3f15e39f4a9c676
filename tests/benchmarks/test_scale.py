"""What machines are measured by: points, slopes, tables and predictions; the commands at a tiny size."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dagdiff.benchmarks.measure import gpu, loops, predict, scale
from dagdiff.checks import Refusal
from dagdiff.cli import main

CPU = torch.device("cpu")
TINY = loops.smaller(loops.Size())


def rows(axis: str, told: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"axis": axis, "value": value, "seconds": seconds, "throughput": rate, "memory": 1e9}
        for value, (seconds, rate) in told.items()
    ]


def test_the_exponent_is_the_power_that_cost_grows_by() -> None:
    assert scale.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert scale.exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0.0)
    assert math.isnan(scale.exponent([2], [1]))


def test_the_table_has_a_line_a_size_and_counts_pixels() -> None:
    found = scale.table([*rows("steps", {2: (1, 1), 4: (2, 1)}), *rows("side", {8: (1, 1), 16: (4, 1)})])
    assert found.splitlines()[2:] == [
        "| steps K | 2, 4 | 1, 2 | 1.00 | 1000, 1000 | 0.00 |",
        "| dimension (side²) | 64, 256 | 1, 4 | 1.00 | 1000, 1000 | 0.00 |",
    ]


def test_speedup_is_over_the_fewest_processes() -> None:
    told = rows("ranks", {1: (1.0, 100.0), 2: (0.6, 175.0)})
    assert scale.speedup(told) == "processes that share a batch, 1: 100 rows a second; 2: 175 rows a second (1.75x)"
    assert scale.speedup(rows("steps", {1: (1.0, 100.0)})) == ""


def test_each_point_moves_one_size() -> None:
    options = scale.Options(rounds=2)
    base = loops.Size(rounds=2)
    for axis, value, ranks, size in scale.points(options):
        moved = {name for name, mine in vars(size).items() if mine != getattr(base, name)}
        assert moved <= ({"batch", "chains"} if axis == "ranks_weak" else {axis})
        assert ranks == (value if axis in scale.RANKS else 1)
        assert axis != "ranks_weak" or size.batch // ranks == base.batch
    assert {axis for axis, *_ in scale.points(options)} == set(scale.AXES)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({"axes": ["colour"]}, "unknown axes 'colour'"),
        ({"processes": []}, "processes must be at least 1; got 0"),
        ({"rounds": 0}, "rounds must be at least 1; got 0"),
        ({"device": "nowhere"}, "device 'nowhere' is not there"),
    ],
)
def test_bad_options_of_scale_are_refused(words: dict[str, Any], wanted: str) -> None:
    with pytest.raises(Refusal, match=wanted):
        scale.Options(**words)


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="1 processes came to nothing"):
        scale.launched(TINY, 1, "nowhere")


@pytest.mark.slow
def test_bench_scale_writes_its_table(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "scale", "--tiny", "--axes", "ranks,steps", "--repeats", "1", "--device", "cpu", "--out", "run"])
        == 0
    )
    told = capsys.readouterr().out
    assert "| processes | 1, 2 |" in told and "Predicted, not measured" in told
    assert Path("run/scale.md").read_text() == told
    assert len(Path("run/scale.csv").read_text().splitlines()) == 1 + 2 + len(scale.AXES["steps"])


@pytest.mark.parametrize("objective", list(loops.OBJECTIVES))
def test_a_loop_is_timed(objective: str) -> None:
    found = loops.timed(loops.Size(**{**vars(TINY), "objective": objective}), CPU)
    assert found.throughput == pytest.approx(TINY.updates * TINY.batch / found.seconds) and found.memory > 1e6


def test_both_sides_of_the_gpu_race_train() -> None:
    ours, bare = gpu.race(loops.Size(**{**vars(TINY), "shares": (1.0, 0.0, 0.0), "reuse": 1.0}), CPU, pairs=2)
    assert len(ours) == len(bare) == 2 and min(*ours, *bare) > 0
    loop = gpu.Bare(TINY, CPU)
    before = [weight.clone() for weight in loop.student.parameters()]
    assert loop.round().shape == (TINY.updates,)
    assert any((weight != old).any() for weight, old in zip(loop.student.parameters(), before, strict=True))


def test_a_gpu_machine_is_measured_up_to_all_its_cards() -> None:
    told = list(gpu.lines(gpu.Options(device="cpu"), 8))
    assert [(what, ranks) for what, _, ranks in told if ranks > 1] == [("2 GPUs", 2), ("4 GPUs", 4), ("8 GPUs", 8)]
    assert {size.objective for _, size, _ in told} == set(loops.OBJECTIVES)
    assert {(size.bf16, bool(size.compiler)) for _, size, _ in told} == {
        (False, False), (True, False), (False, True), (True, True),
    }  # fmt: skip


def test_lines_are_left_out_when_the_time_is_up() -> None:
    said: list[str] = []
    assert gpu.run(gpu.Options(device="cpu", tiny=True, minutes=0.0), 1, said.append) == []
    assert said[0] == "left out, for the time is up: progressive" and len(said) == 9


def test_what_a_device_does_not_allow_is_named_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(size: loops.Size, device: torch.device) -> loops.Timed:
        if size.compiler:
            raise RuntimeError("no graphs here")
        return loops.Timed(1.0, 10.0, 100)

    monkeypatch.setattr(gpu, "timed", refusing)
    said: list[str] = []
    rows = gpu.run(gpu.Options(device="cpu", tiny=True, rounds=1), 1, said.append)
    assert [row["what"] for row in rows[:4]] == ["progressive", "consistency", "distribution", "bfloat16"]
    assert "CUDA graphs: this device or torch does not allow it (no graphs here)" in said
    assert not any("compiled" in row["what"] or "CUDA" in row["what"] for row in rows)


def test_bench_gpu_measures_on_any_device(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--device", "cpu", "--tiny", "--rounds", "1", "--out", "run"]) == 0
    told = capsys.readouterr().out
    for what in ("progressive", "distribution", "bfloat16, compiled", "overhead of a small U-Net"):
        assert f"| {what} |" in told
    assert "no GPU: a trial of the command" in Path("run/gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_gpu_says_that_there_is_none(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--out", "run"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "bench gpu needs a CUDA device, and there is none" in told.err
    assert not Path("run").exists()


def test_operations_are_two_a_multiply_add() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(30, 7, bias=False)

        def forward(self, x: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    with torch.device("meta"):
        assert predict.row_operations(Line(), (5, 30), (1, 1)) == 2 * 5 * 30 * 7


def test_a_prediction_shares_rows_out_and_averages_gradients() -> None:
    told = predict.Prediction(expert=100, student=200, trained=100, updates=10, operations=1e12, weights=0)
    card = predict.Card(operations=1e12, reached=0.5, link=1e9)
    assert told.hours(1, card) == pytest.approx(1200 / 3600)
    assert told.hours(8, card) == pytest.approx(150 / 3600)
    heavy = told._replace(weights=10**9)
    assert heavy.hours(1, card) == told.hours(1, card)
    assert heavy.hours(2, card) == pytest.approx((600 + 10 * 4.0) / 3600)


def test_the_recipe_is_what_is_predicted() -> None:
    found = predict.predict()
    assert found.trained == 4000 * 16 and found.updates == 4000
    assert 0.7e12 < found.operations < 0.9e12, "known for Stable Diffusion 1.5: 0.8 TFLOP a row"
    with torch.device("meta"):
        assert found.weights == predict.adapters(UNet2DConditionModel(**predict.SD15), 64)
    assert found.hours(8) < found.hours(1) < 8.1 * found.hours(8)


def test_a_size_travels_to_its_processes_as_json(tmp_path: Path) -> None:
    scale.main(["--worker", json.dumps(vars(TINY)), "cpu", str(tmp_path / "told.json")])
    assert set(json.loads((tmp_path / "told.json").read_text())) == {"seconds", "throughput", "memory"}
