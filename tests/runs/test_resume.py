"""A run that is stopped and resumed is the run that was never stopped, bit for bit; and it is refused otherwise."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pipelines
import pytest
from helpers import same, state

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.jobs.locks import Lock
from dagdiff.jobs.stops import Stopped
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run
from dagdiff.runs.keeping import Keeper

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 8, "depth": 2}, "updates": 6, "rounds": 3, "chains": 4, "batch_size": 8,
    "heldout": 4, "samples": 20, "device": "cpu", "substeps": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the runs: the points that would be drawn are kept in the picture's place."""

    def draw(keeper: Keeper) -> None:
        clouds = [each.tobytes() for each in keeper.experiment.clouds().values()]
        (keeper.out / "samples.png").write_bytes(b"".join(clouds))

    monkeypatch.setattr(Keeper, "draw", draw)
    monkeypatch.setattr("dagdiff.report.figures.save", lambda figure, path: path.touch())
    monkeypatch.setattr("dagdiff.runs.folder.rounds_figure", lambda rounds: None)


def experiment(**changes: Any) -> Experiment:
    return Experiment.build(configure({**SMALL, **changes}))


def stopped(made: Experiment, out: Path, place: int) -> None:
    """Run until the state is asked about for that time, counted from 0: before a round, or after an update."""
    seen = 0

    def watch(keeper: Keeper) -> None:
        nonlocal seen
        seen += 1
        if seen > place:
            keeper.save()
            raise Stopped("here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "watch", watch)
        with pytest.raises(Stopped, match="here"):
            distil(made, out, progress=False)


def kept(out: Path) -> dict[str, Any]:
    """What a finished run has kept, but for times of the clock."""
    rows = list(csv.DictReader((out / "rounds.csv").read_text().splitlines()))
    report = json.loads((out / "metrics.json").read_text())
    files = sorted(str(each.relative_to(out)) for each in out.rglob("*"))
    weights = {each.name: each.read_bytes() for each in out.glob("*.safetensors")}
    scalars = {each.name: each.read_text() for each in out.glob("log/scalars/*.csv") if each.name != "seconds.csv"}
    return {
        "rounds": [{**row, "seconds": None} for row in rows],
        "report": {**report, "seconds": None, "versions": None},  # the commit is among these
        "student": (out / "student.json").read_text(),
        "samples": (out / "samples.png").read_bytes(),
        "files": files,
        **weights,
        **scalars,
    }


CASES: dict[str, dict[str, Any]] = {
    "progressive": {},
    "consistency": {"objective": "consistency"},
    "distribution": {"objective": "distribution"},
    "with a head": {"objective": {"class": "distribution", "gan_weight": 1e-3}, "accumulate": 2},
    "gaussian": {"objective": "gaussian-kl", "lr_ramp": "cosine"},
    "dart": {"driver": "dart", "shares": [0.25, 0.0, 0.75]},
    "gate": {"driver": {"class": "gate", "budget": 0.5}},
    "per chain": {"per_chain": True, "beta": {"class": "constant", "value": 0.5}},
    "coaching": {"curriculum": "coaching"},
    "cost to go": {"curriculum": {"class": "cost-to-go", "chains": 4}},
    "adaptive": {"curriculum": "adaptive"},
    "forward training": {"curriculum": "forward-training", "stepwise": True, "steps": 3, "shares": [0.0, 1.0, 0.0]},
    "stages": {"stages": [4, 2], "updates": 4, "rounds": 2},
    "average": {"ema": 0.9, "rounds_kept": 1},
    "labelled": {"task": "gaussians8-biased-labelled", "guidance": 2.0},
    "nothing held out": {"heldout": 0, "max_age": 2},
    "rollback": {"on_nonfinite": "rollback"},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(case: str, tmp_path: Path) -> None:
    """Stopped within the second round, and again where another one begins."""
    changes = CASES[case]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    distil(experiment(**changes), whole, progress=False)
    for place in (4, 2):
        stopped(experiment(**changes), parted, place)
    made = experiment(**changes)
    distil(made, parted, progress=False)
    first, second = kept(whole), kept(parted)
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert content == second[name], name
    assert same(state(made.student), state(open_run(parted, "cpu").student))


IMAGES: dict[str, Any] = {
    "task": "digits-biased", "policy": "fresh-unet", "expert": {"class": "unet", "updates": 2, "channels": [8, 16]},
    "updates": 2, "rounds": 2, "samples": 20, "steps": 2,
}  # fmt: skip


def same_when_parted(tmp_path: Path, place: int, **changes: Any) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    distil(experiment(**changes), whole, progress=False)
    stopped(experiment(**changes), parted, place)
    distil(experiment(**changes), parted, progress=False)
    first, second = kept(whole), kept(parted)
    assert [name for name in first if first[name] != second[name]] == []


def test_images(tmp_path: Path) -> None:
    same_when_parted(tmp_path, 2, **IMAGES)


def test_memory_mapped(tmp_path: Path) -> None:
    same_when_parted(tmp_path, 4, memmap=str(tmp_path / "mapped"), objective="consistency")


@pytest.mark.parametrize(
    ("policy", "objective"),
    [
        ("lora", "progressive"),
        pytest.param("pipeline", "progressive", marks=pytest.mark.slow),
        pytest.param("lora", "distribution", marks=pytest.mark.slow),
        pytest.param("lora", "consistency", marks=pytest.mark.slow),
    ],
)
def test_pipelines(policy: str, objective: str, tmp_path: Path) -> None:
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    chosen = {"path": str(path), "prompts": str(tmp_path / "prompts.txt"), "own_samples": 10, "own_steps": 2}
    options = {"class": "lora", "rank": 2} if policy == "lora" else policy
    small = {"updates": 2, "rounds": 2, "chains": 2, "batch_size": 2, "heldout": 2, "samples": 10, "steps": 2}
    same_when_parted(tmp_path, 2, task="pipeline", policy=options, objective=objective, pipeline=chosen, **small)


def resumed(out: Path, **changes: Any) -> None:
    distil(experiment(**changes), out, progress=False)


def test_a_run_of_other_settings_is_refused_by_the_first_that_differs(tmp_path: Path) -> None:
    stopped(experiment(), tmp_path / "out", 3)
    with pytest.raises(Refusal, match=r"other settings: lr was 0\.002 and is 0\.5 now\. Resume it with its own"):
        resumed(tmp_path / "out", lr=0.5)
    with pytest.raises(Refusal, match=r"objective\.class was progressive and is consistency now"):
        resumed(tmp_path / "out", objective="consistency")
    resumed(tmp_path / "out", device="auto")


def test_a_finished_run_is_left_as_it_is_unless_it_is_to_start_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = experiment(), experiment()
    report = distil(first, tmp_path / "out", progress=False)
    before = kept(tmp_path / "out")
    assert distil(again, tmp_path / "out", progress=False) == json.loads((tmp_path / "out/metrics.json").read_text())
    assert "is finished; --fresh starts it over" in capsys.readouterr().err
    assert same(state(first.student), state(again.student)) and kept(tmp_path / "out") == before
    with pytest.raises(Refusal, match="seed was 0 and is 1 now"):
        resumed(tmp_path / "out", seed=1)
    other = distil(experiment(seed=1), tmp_path / "out", progress=False, fresh=True)
    assert other["metrics"] != report["metrics"]


def test_what_is_not_a_run_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(Refusal, match="is not empty"):
        distil(experiment(), tmp_path, progress=False, fresh=True)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "out/.lock")
    assert lock.take()
    with pytest.raises(Refusal, match=r"in use by process \d+ on .*Wait for its end"):
        resumed(tmp_path / "out")
    lock.release()
    resumed(tmp_path / "out")
    assert not (tmp_path / "out/.lock").exists()


@pytest.mark.parametrize("what", ["process-0.safetensors", "shared.safetensors", "manifest.json", "shard"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    resumed(whole)
    for place in (3, 4):
        stopped(experiment(), parted, place)
    folder = parted / "checkpoints"
    newest = sorted(folder.glob("round-*"))[-1]
    file = next(folder.glob("shards/*forward-0003*")) if what == "shard" else newest / what
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    resumed(parted)
    told = capsys.readouterr().err
    assert ("is damaged" in told or "is not JSON" in told) and "The checkpoint before it is taken" in told
    assert kept(parted) == kept(whole)


def test_where_all_checkpoints_are_damaged_nothing_is_guessed(tmp_path: Path) -> None:
    stopped(experiment(), tmp_path / "out", 3)
    for file in tmp_path.glob("out/checkpoints/round-*/shared.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Refusal, match=r"no checkpoint in .* is whole. Pass --fresh"):
        resumed(tmp_path / "out")
    distil(experiment(), tmp_path / "out", progress=False, fresh=True)


def test_the_newest_two_stay_and_shards_are_written_once(tmp_path: Path) -> None:
    place, times = tmp_path / "out/checkpoints", []

    def watch(keeper: Keeper) -> None:
        keeper.save()
        assert len(keeper.checkpoints.names) <= 2
        times.append({each.name: each.stat().st_mtime_ns for each in place.glob("shards/*student*")})
        if len(times) > 8:
            raise Stopped("here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "watch", watch)
        with pytest.raises(Stopped):
            resumed(tmp_path / "out")
    assert all(later[name] == at for earlier, later in pairwise(times) for name, at in earlier.items() if name in later)
    assert len(times[-1]) == 3, "one shard a round"


def test_a_signal_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    """The update in hand is finished."""
    made, updates = experiment(), []

    def send(*_: object) -> None:
        updates.append(1)
        if len(updates) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    made.objective.follow = send  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=r"stopped at update 3; the run is saved in .*--resume") as stop:
        distil(made, tmp_path / "out", progress=False)
    assert stop.value.status == 143 and len(updates) == 3
    resumed(tmp_path / "out")
    resumed(tmp_path / "whole")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_a_logger_that_fails_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def log_scalar(self, *_: object, **__: object) -> None:
            raise OSError("no space left")

    monkeypatch.setattr("dagdiff.runs.folder._logger", lambda kind, out: Broken())
    resumed(tmp_path / "out")
    told = capsys.readouterr().err
    assert told.count("the logger failed (OSError: no space left); the run continues without it") == 1
    assert (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("name", ["config.yaml", "student.json", "student.safetensors"])
def test_a_changed_file_of_a_finished_run_is_noticed(name: str, tmp_path: Path) -> None:
    resumed(tmp_path / "out")
    raw = bytearray((tmp_path / "out" / name).read_bytes())
    for place in range(0, len(raw), max(1, len(raw) // 20)):
        raw[place] ^= 4
        (tmp_path / "out" / name).write_bytes(raw)
        with pytest.raises(Refusal, match=rf"{name} is damaged or was changed: .*manifest\.json"):
            open_run(tmp_path / "out", "cpu")
        raw[place] ^= 4
    (tmp_path / "out" / name).write_bytes(raw)
    open_run(tmp_path / "out", "cpu")


def test_a_run_under_way_is_not_opened(tmp_path: Path) -> None:
    stopped(experiment(), tmp_path / "out", 3)
    with pytest.raises(Refusal, match=r"the run is not finished\. Resume it: dagdiff distill --resume"):
        open_run(tmp_path / "out", "cpu")


def test_a_longer_run_starts_from_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--policy FOLDER``: the same network, from its weights; a run of its own."""
    monkeypatch.chdir(tmp_path)
    words = "distill --chains 4 --batch_size 8 --heldout 4 --samples 20 --substeps 2 --updates 4 --rounds 2"
    first = "--policy fresh --policy.width 8 --policy.depth 2 --stepwise --out first"
    assert main([*words.split(), *first.split()]) == 0
    assert (
        main(
            [*words.split(), *["--policy", "first", "--lr_ramp", "constant", "--lr_ramp.value", "0", "--out", "second"]]
        )
        == 0
    )
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1], "at rate 0 it stays where it starts"
    shutil.rmtree(tmp_path / "first")
    open_run(tmp_path / "second", "cpu").sample(3, seed=0)


def test_a_folder_alone_says_how_to_resume_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(experiment(), tmp_path / "out", 3)
    assert main(["distill", "--resume", str(tmp_path / "out"), "--lr", "0.5"]) == 2
    assert "lr was 0.002 and is 0.5 now" in capsys.readouterr().err
    assert main(["distill", "--resume", str(tmp_path / "away")]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["distill", "--resume", str(tmp_path / "out"), "--logger", "csv"]) == 0
    resumed(tmp_path / "whole")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")
