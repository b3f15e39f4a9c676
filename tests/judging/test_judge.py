"""DistillBench: a perfect imitator scores as its expert, all ways of handing in agree, and what can't be is refused."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dagdiff
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.judging import terms
from dagdiff.judging.judge import judge, reference
from dagdiff.judging.judgement import header, read_judgement, row, save_judgement, table
from dagdiff.policy import ExpertPolicy
from dagdiff.runs.folder import open_run
from dagdiff.schedule import FlowSchedule
from dagdiff.transition import Ddim, chain

TASK, N = "imbalanced-biased", 120
TINY = "--policy fresh --policy.width 8 --updates 2 --rounds 1 --chains 8 --batch_size 8 --heldout 0 --samples 50"
STUDENTS = """
import torch
raise_late = 1
def good(x_t, t, condition): return x_t / (1 + t[:, None])
def narrow(x_t, t, condition): return x_t[:, :1]
def nan(x_t, t, condition): return x_t / 0.0 - x_t / 0.0
def late(x_t, t, condition): return torch.where(t[:, None] < 0.5, torch.nan, x_t)
def two(x_t, t): return x_t
def text(x_t, t, condition): return "x0"
class Made:
    def __call__(self, x_t, t, condition): return good(x_t, t, condition)
class Options:
    def __init__(self, width): ...
    def __call__(self, x_t, t, condition): return x_t
"""


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "POINTS", N)


@pytest.fixture
def mine(own_folder: Path) -> Path:
    (own_folder / "mine.py").write_text(STUDENTS)
    return own_folder


def good(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    return x_t / (1 + t[:, None])


def chains_of(policy: Any, law: str = "ddim", steps: int = 4, seeds: int = 1) -> np.ndarray[Any, Any]:
    """A policy's chains from the bench's own noise, ``(n, K + 1, 2)``."""
    it, found = reference(TASK, steps, law, None, "cpu"), []
    for seed in terms.SEEDS[:seeds]:
        noise, condition, draws = it.start(N, seed)
        walked = list(chain(policy, it.transition, it.times, noise, condition, draws))
        found.append(torch.stack([noise, *(step.x_s for step in walked)], dim=1))
    return torch.cat(found).detach().numpy()


@pytest.mark.parametrize("law", ["ddim", "renoise"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_perfect_imitator_scores_as_its_expert(law: str, steps: int) -> None:
    it = reference(TASK, steps, law, None, "cpu")
    found = judge(ExpertPolicy(it.expert, it.transition, it.times), TASK, steps, 2, law=law, device="cpu")
    assert found.seeds == [9001, 9002] and (found.steps, found.law, found.kind) == (steps, law, "callable")
    for name, values in found.scores.items():
        assert values == pytest.approx(found.expert[name], rel=1e-3, abs=1e-3, nan_ok=True), name
    assert found.ends is not None and found.ends["high"] < 1e-4
    assert max(each["loss_own"] for each in found.shift) < 1e-8
    assert abs(found.shift[0]["surprise"]) < 0.5  # the first step is noise


def test_the_expert_beats_a_student_and_the_floor_is_near_it() -> None:
    found = judge(good, TASK, seeds=2, device="cpu")
    (student, floor, expert) = (each["w2"][0] for each in (found.scores, found.floor, found.expert))
    assert expert < student and abs(floor - expert) < student - expert
    assert found.ends is not None and 0 < found.ends["low"] <= found.ends["high"]
    assert found.shift[-1]["surprise"] > 1.0


def test_all_ways_of_handing_in_agree(mine: Path) -> None:
    np.savez("chains.npz", chains=chains_of(good, seeds=2))
    np.savez("samples.npz", x=chains_of(good, seeds=2)[:, -1])
    called = judge("mine:good", TASK, seeds=2, device="cpu")
    for name in ("mine.good", "mine:Made"):
        assert judge(name, TASK, seeds=2, device="cpu").row.split("|")[2:] == called.row.split("|")[2:]
    for name, kind in {"chains.npz": "chains", "samples.npz": "samples"}.items():
        found = judge(name, TASK, seeds=2, device="cpu")
        assert (found.kind, found.steps) == (kind, 4)
        for metric, values in called.scores.items():
            assert found.scores[metric] == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True), (name, metric)
        assert found.expert == called.expert and found.floor == called.floor
    of_chains = judge("chains.npz", TASK, seeds=1, device="cpu")
    assert [set(step) for step in of_chains.shift] == [{"step", "t", "surprise"}] * 4
    assert of_chains.shift[-1]["surprise"] > 1.0
    assert of_chains.ends is not None and of_chains.ends["high"] > of_chains.ends["low"] > 0
    assert judge("samples.npz", TASK, seeds=1, device="cpu").ends is None


def test_labels_beside_chains_say_which_chain_of_the_expert_is_theirs(own_folder: Path) -> None:
    labelled = f"{TASK}-labelled"
    it = reference(labelled, 4, "ddim", None, "cpu")
    noise, labels, draws = it.start(N, terms.SEEDS[0])
    assert labels is not None
    expert = ExpertPolicy(it.expert, it.transition, it.times)
    walked = list(chain(expert, it.transition, it.times, noise, labels, draws))
    chains = torch.stack([noise, *(step.x_s for step in walked)], dim=1).detach().numpy()
    ends = {}
    for name, told in {"right": {"labels": labels}, "wrong": {"labels": (labels + 1) % 5}, "none": {}}.items():
        np.savez(f"{name}.npz", chains=chains, **{key: value.numpy() for key, value in told.items()})
        ends[name] = judge(f"{name}.npz", labelled, seeds=1, device="cpu").ends
    assert ends["none"] is None and ends["right"] is not None and ends["wrong"] is not None
    assert ends["right"]["high"] < 1e-4 and ends["wrong"]["low"] > 0.1


def test_a_run_is_judged_as_its_student(own_folder: Path) -> None:
    words = f"distill --task {TASK} --objective consistency --steps 2 --device cpu --out runs/one {TINY}"
    assert main(words.split()) == 0
    found, it = judge("runs/one", TASK, seeds=1, device="cpu"), open_run(Path("runs/one"), "cpu")
    assert (found.kind, found.steps, found.law) == ("run", 2, "renoise")
    called = judge(it.policy, TASK, 2, 1, law="renoise", device="cpu")
    for metric, values in called.scores.items():
        assert found.scores[metric] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True)
    for options, told in (
        ({"steps": 3}, "makes 2 steps; got --steps 3"),
        ({"law": "ddim"}, "brings its law and its schedule along"),
        ({"task": "gaussians8-biased"}, "is a run of the task 'imbalanced-biased'"),
    ):
        with pytest.raises(Refusal, match=told):
            judge("runs/one", **{"task": TASK, "device": "cpu", **options})


def test_a_student_on_rectified_flow_meets_its_expert_there() -> None:
    it = reference(TASK, 3, "renoise", "flow", "cpu")
    assert isinstance(it.task.schedule, FlowSchedule)
    found = judge(
        ExpertPolicy(it.expert, it.transition, it.times), TASK, 3, 1, law="renoise", schedule="flow", device="cpu"
    )
    assert found.ends is not None and found.ends["high"] < 1e-4


def test_several_students_are_judged_one_a_seed() -> None:
    bad = judge([good, lambda x_t, t, condition: torch.zeros_like(x_t)], TASK, device="cpu").scores["energy"]
    alone = [judge(each, TASK, seeds=2, device="cpu").scores["energy"] for each in (good, lambda x, t, c: 0 * x)]
    assert bad == pytest.approx([alone[0][0], alone[1][1]], rel=1e-4)


def test_a_labelled_task_asks_with_conditions() -> None:
    asked = []

    def student(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        asked.append(condition is not None and condition.shape == t.shape)
        return x_t

    found = judge(student, f"{TASK}-labelled", 2, 1, device="cpu")
    assert asked and all(asked) and np.isnan(found.shift[0]["surprise"])


@pytest.fixture
def small_teacher(monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    """A U-Net teacher of two updates."""
    whole = terms.settings
    small = {"class": "unet", "channels": [8, 16], "updates": 2}
    monkeypatch.setattr(terms, "settings", lambda *told: {**whole(*told), "expert": small})


@pytest.mark.slow
@pytest.mark.usefixtures("small_teacher")
def test_a_diffusers_folder_is_judged_by_its_own_scheduler() -> None:
    import pipelines
    from diffusers import DDIMScheduler

    from dagdiff.pipelines.schedulers import few_step_scheduler
    from dagdiff.policies.prediction import V
    from dagdiff.schedule import CosineSchedule, step_grid
    from dagdiff.threshold import NoThreshold

    cosine = CosineSchedule()
    same = few_step_scheduler(Ddim(cosine), step_grid(4), cosine, V, NoThreshold())
    other = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    for name, scheduler in {"same": same, "other": other}.items():
        pipelines.save(pipelines.ddpm(scheduler), Path(name))
        found = judge(name, "digits-biased", None, 1, device="cpu")
        assert (found.kind, found.steps) == ("pipeline", 4) and "fd" in found.scores
        assert (found.ends is None) == (name == "other")  # other noise: the expert can't be asked about its states
        assert row(found).count("|") == header(found.scores)[0].count("|")
    with pytest.raises(Refusal, match="the states of same are"):
        judge("same", TASK, 4, 1, device="cpu")


def test_a_judgement_is_kept_whole(tmp_path: Path) -> None:
    found = judge(good, TASK, seeds=1, entry="mine", device="cpu")
    save_judgement(found, tmp_path / "judge.json")
    assert read_judgement(tmp_path / "judge.json").shift[1]["loss_own"] == found.shift[1]["loss_own"]
    assert read_judgement(tmp_path / "judge.json").row == found.row
    content = json.loads((tmp_path / "judge.json").read_text())
    content["scores"]["energy"] = [0.0]
    (tmp_path / "judge.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match="is damaged or was changed"):
        read_judgement(tmp_path / "judge.json")


def test_a_table_stands_in_the_order_of_steps_and_distance() -> None:
    found = [judge(good, TASK, steps, 1, entry=f"mine {steps}", device="cpu") for steps in (3, 1)]
    lines = table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [
        "entry",
        "---",
        "real points (the floor)",
        "mine 1",
        "mine 3",
    ]
    assert len({line.count("|") for line in lines}) == 1


# The command.


def run(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(shlex.split(words))
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_command_prints_and_keeps_the_row(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(f"judge mine:good --task {TASK} --seeds 1 --out judged --entry me --device cpu", capsys)
    assert status == 0, err
    found = read_judgement(Path("judged/judge.json"))
    assert found.row in out and found.row.startswith("| me | 4 | ddim | ")
    assert {file.name for file in Path("judged").iterdir()} == {"judge.json", "row.md", "shift.csv"}
    assert Path("judged/row.md").read_text().splitlines()[-1] == found.row
    assert "imitation loss on" in out and "surprise" in out and "| real points (the floor) |" in out
    assert dagdiff.judge("mine:good", TASK, seeds=1, entry="me", device="cpu").row == found.row
    status, _, err = run(f"judge mine:good --task {TASK} --seeds 1 --out judged --device cpu", capsys)
    assert status == 2 and "--out judged is not empty" in err


def held(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if not {"__pycache__", "cache"} & set(file.parts)}


def files() -> None:
    """What is wrong with a file, a file each."""
    whole = np.zeros((N, 2), np.float32)
    np.savez("other.npz", images=whole)
    np.savez("short.npz", x=whole[:5])
    np.savez("wide.npz", x=np.zeros((N, 3)))
    np.savez("nan.npz", x=np.where(whole == 0, np.nan, whole))
    np.savez("text.npz", x=np.array(["a"] * N))
    np.savez("chains.npz", chains=np.zeros((N, 4, 2)))
    np.savez("times.npz", chains=np.zeros((N, 4, 2)), times=np.array([1.0, 0.2, 0.5, 0.0]))
    np.savez("some.npz", x=whole, labels=np.zeros(5, int))
    np.savez("real.npz", x=whole, labels=np.zeros(N))
    np.savez("asked.npz", x=whole, labels=np.zeros(N, int))
    np.savez("beyond.npz", x=whole, labels=np.full(N, 5))
    np.savez("few.npz", chains=np.zeros((N, 4, 2)), times=np.array([1.0, 0.5, 0.0]))
    Path("broken.npz").write_bytes(b"PK\x03\x04 no more")
    Path("broken.py").write_text("def student(:\n")
    Path("falls.py").write_text("raise RuntimeError('no licence')\n")
    Path("lacks.py").write_text("import a_package_that_nobody_has\n")
    Path("pkg").mkdir()
    for name in ("__init__", "student"):
        Path(f"pkg/{name}.py").write_text("")
    Path("empty").mkdir()


WRONG = {
    "mine:narrow": "student 'mine:narrow' must answer with the shape of the states, (120, 2); got (120, 1)",
    "mine:text": "must answer with the shape of the states, (120, 2); got a str",
    "mine:nan": "student 'mine:nan' answers with NaN or infinity at t = 1",
    "mine:late": "student 'mine:late' answers with NaN or infinity at t = 0.25",
    "mine:two": "student 'mine:two' can't be called with three arguments",
    "mine:Options": "is a class that can't be made without arguments",
    "mine:godo": "unknown student in mine 'godo'. Did you mean 'good'?",
    "mine:raise_late": "is not a class or a function",
    "nowhere:student": "no module named 'nowhere'. Run from its folder, or install it.",
    "broken:student": "can't be imported (SyntaxError",
    "falls:student": "can't be imported (RuntimeError: no licence)",
    "lacks:student": "needs the package 'a_package_that_nobody_has', which is not installed",
    "pkg.student": "student 'pkg.student' is a module. Name a function or a class in it: pkg.student:NAME",
    "mine": "is no folder, no .npz file and no import path. Write e.g. mypkg.mine:student",
    "no/such/folder": "is no folder, no .npz file and no import path",
    "x" * 5000: "is no folder, no .npz file and no import path",
    "os.system": "student 'os.system' can't be called with three arguments",
    "empty": "holds neither a run (config.yaml) nor a diffusers pipeline (model_index.json)",
    "none.npz": "none.npz can't be read",
    "broken.npz": "broken.npz can't be read",
    "other.npz": "other.npz holds no array 'x' (n, *D) of samples and no array 'chains'",
    "short.npz": "short.npz holds 5 points, and each of 1 seeds takes 120. Save 120.",
    "wide.npz": "wide.npz holds an array (120, 3); points of imbalanced-biased are (n, 2)",
    "nan.npz": "'x' in nan.npz holds 240 values that are NaN or infinite",
    "text.npz": "'x' in text.npz must be numbers",
    "chains.npz --steps 4": "chains.npz makes 3 steps; got --steps 4",
    "times.npz": "times.npz: times must fall from 1 to 0",
    "few.npz": "few.npz holds 3 times for 3 steps. Save K + 1 of them.",
    "some.npz": "'labels' in some.npz must be whole numbers, one for each of 120 points; got int64 of shape (5,)",
    "real.npz": "'labels' in real.npz must be whole numbers, one for each of 120 points; got float64",
    "asked.npz": "students of imbalanced-biased are not asked for classes. Judge it on imbalanced-biased-labelled",
    f"beyond.npz --task {TASK}-labelled": "'labels' in beyond.npz reach from 5 to 5; imbalanced-biased-labelled has",
    "mine:good --task imbalanced-biasd": "unknown task 'imbalanced-biasd'. Did you mean 'imbalanced-biased'?",
    "mine:good --task pipeline": "--task pipeline has no truth to judge by",
    "mine:good --law heun": "unknown law 'heun'",
    "mine:good --schedule flw": "unknown schedule 'flw'. Did you mean 'flow'?",
    "mine:good --seeds 0": "seeds must be at least 1",
    "mine:good --seeds 11": "seeds must be at most 10",
    "mine:good --steps 0": "steps must be at least 1",
    "mine:good --out mine.py": "--out mine.py is not empty",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_ends_with_one_line_and_nothing_written(
    words: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files()
    before = held(mine)
    student, *beside = words.split()
    options = {"--task": TASK, "--seeds": "1", "--out": "judged", "--device": "cpu"}
    options |= dict(zip(beside[::2], beside[1::2], strict=True))
    told = " ".join(f"{name} {value}" for name, value in options.items())
    status, out, err = run(f"judge {student} {told}", capsys)
    assert status == 2 and len(err.splitlines()) == 1 and out == ""
    assert WRONG[words] in err
    assert held(mine) == before
