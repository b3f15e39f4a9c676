"""Every command as a user types it, and every mistake of theirs: status 2, one line, nothing half-written."""

import csv
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dagdiff import __version__
from dagdiff.cli import COMMANDS, find, main
from dagdiff.runs.folder import open_run
from dagdiff.tasks.names import task_names

FRESH = "--policy fresh --policy.width 16 "
TINY = "--updates 4 --rounds 2 --chains 8 --batch_size 16 --heldout 8 --samples 50 "
WRITTEN = {
    "manifest.json",
    "student.safetensors",
    "best.safetensors",
    "student.json",
    "config.yaml",
    "rounds.csv",
    "metrics.json",
    "samples.png",
    "rounds.png",
}
SHIFTED = {f"{name}.{kind}" for name in ("shift", "intervention", "amplification") for kind in ("csv", "png")}
KINDS = ["tasks", "objectives", "experts", "policies", "thresholds", "schedules"]
PNG = b"\x89PNG"


class Ran(NamedTuple):
    """A finished command: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def dagdiff(line: str) -> Ran:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(shlex.split(line))
        except SystemExit as end:  # --help
            status = int(end.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def refused(line: str, match: str, expected: int = 2) -> None:
    """The command ends with that status and one line of explanation that matches."""
    status, _, err = dagdiff(line)
    assert status == expected
    assert err.count("\n") == 1 and err.startswith("dagdiff: error: ")
    assert re.search(match, err), err


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Teachers of these tests, far from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DAGDIFF_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an import path that is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by the command as the issue has it, in small; tests read it only."""
    out = tmp_path_factory.mktemp("run") / "first"
    words = "--task grid25-biased --objective progressive --shares 0.5,0.5,0 --steps 4 --seed 0 --device auto"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        ran = dagdiff(f"distill {words} --policy.width 16 --policy.updates 20 {TINY} --out {out}")
    assert ran.status == 0, ran.err
    return out


# Help


def test_without_a_command_it_lists_the_commands() -> None:
    status, out, err = dagdiff("")
    assert (status, err) == (0, "")
    assert dagdiff("--help") == dagdiff("-h") == (status, out, err)
    assert all(re.search(rf"^  {command} ", out, re.M) for command in COMMANDS)


def test_version() -> None:
    assert dagdiff("--version") == (0, f"dagdiff {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    status, out, _ = dagdiff(f"{command} --help")
    assert status == 0
    assert out.startswith(f"usage: dagdiff {command}")
    summary = (find(command).__doc__ or "").split("\n")[0]
    assert summary.split(";")[0] in " ".join(out.split())


def test_help_names_the_options_of_the_chosen_parts() -> None:
    plain = dagdiff("distill --help").out
    chosen = dagdiff("distill --objective consistency --expert learned --help").out
    assert "--objective.solver_steps" in chosen and "--expert.width" in chosen
    assert "--objective.solver_steps" not in plain and "--expert.width" not in plain


@pytest.mark.parametrize("kind", KINDS)
def test_list(kind: str) -> None:
    status, out, _ = dagdiff(f"list {kind}")
    assert status == 0
    lines = out.splitlines()
    if kind == "tasks":
        assert lines == task_names()
        assert {"gaussians8-biased-labelled", "pinwheel-scarce", "digits-biased"} <= set(lines)
        return
    found = [line.split()[:2] for line in lines]
    assert all(option.startswith("--") for option, _ in found)
    wanted = {
        "objectives": {"progressive", "consistency", "distribution"},
        "experts": {"exact", "learned"},
        "policies": {"teacher", "fresh"},
        "thresholds": {"none", "static", "dynamic", "quantile", "fold", "box"},
        "schedules": {"cosine", "vp", "flow", "constant", "linear", "exponential", "indicator"},
    }
    assert {name for _, name in found} >= wanted[kind]


# distill


def test_distill_fills_the_folder(folder: Path) -> None:
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert found == WRITTEN
    assert all((folder / name).read_bytes().startswith(PNG) for name in ("samples.png", "rounds.png"))


def test_the_student_comes_with_its_grid_sampler_and_threshold(folder: Path) -> None:
    beside = json.loads((folder / "student.json").read_text())
    assert beside["times"] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert beside["sampler"] == {"class": "Ddim", "eta": 0.0}
    assert beside["threshold"] == {"class": "none"}
    assert beside["schedule"]["class"] == "cosine"
    assert beside["task"] == "grid25-biased"
    weights = load_file(folder / "student.safetensors")
    assert weights and all(values.isfinite().all() for values in weights.values())


def test_the_records_of_a_run(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "rounds.csv").open()))
    assert [row["number"] for row in rows] == ["1", "2"]
    assert [row["updates"] for row in rows] == ["2", "4"]
    assert {"beta", "share_forward", "share_student", "share_expert", "nfe_student", "nfe_expert"} <= set(rows[0])
    assert {"seconds", "train_loss", "loss_own_3", "loss_forward_0", "loss_expert_3", "heldout", "size"} <= set(rows[0])
    kept = json.loads((folder / "metrics.json").read_text())
    assert set(kept["versions"]) == {"dagdiff", "Python", "torch", "torchrl", "numpy", "system", "threads", "commit"}
    assert kept["versions"]["torch"] == torch.__version__ and kept["versions"]["threads"] == "1"
    scores = "energy w2 sliced_w2 mmd precision recall density coverage on_mode mode_kl spread"
    assert set(kept["metrics"]) == {
        *scores.split(),
        "loss_forward",
        "loss_expert",
        "loss_own",
        "data_mismatch",
        "own_errors",
        "loss_gap",
        "end_error",
    }
    assert kept["metrics"]["loss_gap"] == pytest.approx(kept["metrics"]["loss_own"] - kept["metrics"]["loss_forward"])
    assert len(kept["by_step"]["loss_own"]) == 4
    assert kept["nfe_expert"] == int(rows[-1]["nfe_expert"]) > 0
    assert kept["best"]["heldout"] == min(float(row["heldout"]) for row in rows)


def test_a_run_that_ends_behind_its_teacher_says_so_and_a_good_one_does_not(place: Path) -> None:
    """The same run with a learning rate that suits it, and with one a hundred times higher."""
    words = "--task gaussians8-matched --policy fresh --policy.width 32 --heldout 8 --samples 200 --device cpu"
    words += " --updates 150 --rounds 3 --chains 64 --batch_size 128"
    ran = dagdiff(f"distill {words} --lr 1e-2 --out good")
    assert ran.status == 0 and "Behind" not in ran.out
    assert not json.loads((place / "good/metrics.json").read_text())["teacher"]["behind"]
    ran = dagdiff(f"distill {words} --lr 1 --out bad")
    kept = json.loads((place / "bad/metrics.json").read_text())
    (line,) = [line for line in ran.out.splitlines() if line.startswith("Behind the expert")]
    assert "in 4 steps" in line
    difference, low, high = kept["teacher"]["difference"]
    assert difference == pytest.approx(kept["teacher"]["student"] - kept["teacher"]["teacher"]) and low > 0.0
    told = f"energy distance {kept['teacher']['teacher']:.4g}; difference {difference:.2g} [{low:.2g}, {high:.2g}]"
    assert f"the expert in its place: {told}" in ran.out.splitlines()
    assert "Try --lr" in line and "more --updates, or other --shares" in line and "updates 150" in line


def test_the_configuration_is_complete(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["task"] == "grid25-biased"
    assert config["shares"] == [0.5, 0.5, 0.0]
    assert config["objective"]["class"] == "progressive"
    assert config["policy"] == {"class": "teacher", "width": 16, "depth": 3, "updates": 20, "teacher_seed": 0}
    assert (config["updates"], config["rounds"], config["samples"], config["seed"]) == (4, 2, 50, 0)


def test_the_seed_fixes_a_run_bit_for_bit(folder: Path, place: Path) -> None:
    """The kept configuration runs again to the same weights; another seed leads elsewhere."""
    assert dagdiff(f"distill --config {folder / 'config.yaml'} --out again").status == 0
    assert dagdiff(f"distill --config {folder / 'config.yaml'} --seed 1 --out other").status == 0
    first = (folder / "student.safetensors").read_bytes()
    assert (place / "again/student.safetensors").read_bytes() == first
    assert (place / "again/config.yaml").read_text() == (folder / "config.yaml").read_text()
    assert (
        json.loads((place / "again/metrics.json").read_text())["metrics"]
        == (json.loads((folder / "metrics.json").read_text())["metrics"])
    )
    assert (place / "other/student.safetensors").read_bytes() != first
    assert yaml.safe_load((place / "other/config.yaml").read_text())["seed"] == 1


def test_print_config_prints_what_a_run_would_keep(folder: Path, place: Path) -> None:
    words = "--task grid25-biased --shares 0.5,0.5,0 --policy.width 16 --policy.updates 20 " + TINY
    status, out, err = dagdiff(f"distill {words} --print_config")
    assert (status, err) == (0, "")
    assert yaml.safe_load(out) == yaml.safe_load((folder / "config.yaml").read_text())
    (place / "that.yaml").write_text(out)
    assert dagdiff("distill --config that.yaml --print_config").out == out
    assert [path.name for path in place.iterdir()] == ["that.yaml"]


@pytest.mark.parametrize("logger", ["nosuch", "csvv"])
def test_unknown_logger(logger: str, place: Path) -> None:
    refused(f"distill {FRESH}{TINY} --logger {logger} --out out", "logger")
    assert not (place / "out").exists()


# sample


def test_sample(folder: Path, place: Path) -> None:
    status, out, _ = dagdiff(f"sample {folder} --num 20 --seed 0 --out here/samples.npz")
    assert status == 0
    assert "20 points in here/samples.npz" in out
    kept = np.load(place / "here/samples.npz")
    assert kept["x"].shape == kept["noise"].shape == (20, 2)
    assert (place / "here/samples.png").read_bytes().startswith(PNG)
    assert np.array_equal(kept["x"], open_run(folder, "cpu").sample(20, seed=0).numpy())


def test_samples_do_not_depend_on_the_batch(folder: Path, place: Path) -> None:
    for name, words in (("a", ""), ("b", "--batch_size 7"), ("c", "--batch_size 1000")):
        assert dagdiff(f"sample {folder} --num 20 {words} --out {name}.npz").status == 0
    a, b, c = (np.load(place / f"{name}.npz") for name in "abc")
    assert np.array_equal(a["x"], c["x"]) and np.array_equal(a["noise"], b["noise"])
    np.testing.assert_allclose(b["x"], a["x"], atol=1e-5)
    refused(f"sample {folder} --grid", "--grid is for images, and")


def test_samples_follow_the_seed(folder: Path, place: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert dagdiff(f"sample {folder} --num 20 --seed {seed} --out {name}.npz").status == 0
    a, b, c = (np.load(place / f"{name}.npz") for name in "abc")
    assert np.array_equal(a["x"], b["x"])
    assert not np.isclose(a["x"], c["x"]).any()


def test_sample_of_the_best_round(folder: Path, place: Path) -> None:
    assert dagdiff(f"sample {folder} --num 5 --weights best --out best.npz").status == 0
    assert np.array_equal(np.load("best.npz")["x"], open_run(folder, "cpu", "best").sample(5, seed=0).numpy())


def test_a_sample_file_is_not_overwritten_by_its_own_picture(folder: Path, place: Path) -> None:
    """--out points.png: refused, or the points and the picture in two files."""
    ran = dagdiff(f"sample {folder} --num 5 --out points.png")
    if ran.status == 2:
        assert ran.err.count("\n") == 1 and not list(place.iterdir())
    else:
        assert any(path.read_bytes().startswith(b"PK") for path in place.iterdir())


# shift


def test_shift(folder: Path, tmp_path: Path) -> None:
    status, out, _ = dagdiff(f"shift {folder} --num 40")
    assert status == 0
    rows = list(csv.DictReader((folder / "shift.csv").open()))
    assert dagdiff(f"shift {folder} --num 40 --batch_size 9").status == 0
    again = list(csv.DictReader((folder / "shift.csv").open()))
    for one, two in zip(rows, again, strict=True):
        assert {name: float(value) for name, value in two.items()} == pytest.approx(
            {name: float(value) for name, value in one.items()}, rel=1e-2, abs=1e-4, nan_ok=True
        )
    assert len(rows) == 4
    assert [float(row["t"]) for row in rows] == [1.0, 0.75, 0.5, 0.25]
    assert (folder / "shift.png").read_bytes().startswith(PNG)
    assert len(re.findall(r"\d\.\d\dx \[", out)) == 8 and "shift.csv" in out
    assert re.findall(r"^(?:data mismatch|own errors|no shift to repair)", out, re.M)
    assert (
        max(
            len(line)
            for line in out.splitlines()
            if not line.startswith(("saved in", "data mismatch", "own errors", "no shift", "the student", "its states"))
        )
        <= 102
    )
    runs = list(csv.DictReader((folder / "intervention.csv").open()))
    assert [float(row["p"]) for row in runs] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [row["step"] for row in runs] == ["", "", "", "", "", "0", "1", "2", "3"]
    assert "never (p = 0)" in out and "only at step 3 (t = 0.25)" in out
    assert (folder / "intervention.png").read_bytes().startswith(PNG)
    costs = list(csv.DictReader((folder / "amplification.csv").open()))
    assert [row["step"] for row in costs] == ["0", "1", "2", "3"]
    assert float(costs[-1]["amplification"]) == pytest.approx(1.0, rel=1e-4), "at the last step the guess is the end"
    assert all(float(row["error"]) > 0.0 for row in costs)
    assert "cost / error" in out and out.rstrip().endswith("amplification.csv, amplification.png")
    assert (folder / "amplification.png").read_bytes().startswith(PNG)
    for name in SHIFTED:
        (folder / name).unlink()


# teacher


def test_teacher_trains_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--width 8 --depth 2 --updates 20 --seed 3"
    status, out, _ = dagdiff(f"teacher --task moons-matched {words}")
    assert status == 0 and "trained for 20 updates" in out
    path = Path(out.split()[-1])
    assert path.parent == cache / "teachers"
    before = path.stat().st_mtime_ns
    again = dagdiff(f"teacher --task moons-biased {words}")  # the set does not matter: it learns the world
    assert again.status == 0 and again.out == f"already trained: {path}\n"
    assert path.stat().st_mtime_ns == before
    assert dagdiff(f"teacher --task moons-matched {words} --prediction flow").out.split()[-1] != str(path)


# The mistakes

SHARES = "must be three numbers >= 0|must sum to 1"
MISTAKES = [
    ("--task grid25-biasd", "unknown task 'grid25-biasd'. Did you mean 'grid25-biased'"),
    ("--objective progresive", "unknown objective 'progresive'. Did you mean 'progressive'"),
    ("--objective dagdiff.objectives.Progresive", "Did you mean 'Progressive'"),
    ("--expert exct", "Did you mean 'exact'"),
    ("--expert nosuch.mine.MyExpert", "no module named 'nosuch'"),
    ("--expert math.pi", "'math.pi' is not a class or a function"),
    ("--policy fresch", "Did you mean 'fresh'"),
    ("--threshold boxx", "Did you mean 'box'"),
    ("--schedule cosin", "Did you mean 'cosine'"),
    ("--beta linar", "Did you mean 'linear'"),
    ("--shares 0.5,0.6,0", "shares must sum to 1; got .* 1.1"),
    ("--shares 1.5,-0.5,0", "shares must be three numbers >= 0"),
    ("--shares -0.5,1.5,0", "shares must be three numbers >= 0"),
    ("--shares 0.5,0.5", "shares"),
    ("--shares a,b,c", "shares"),
    ("--steps 0", "steps must be at least 1; got 0"),
    ("--steps -3", "steps must be at least 1; got -3"),
    ("--steps x", "steps"),
    ("--stages 8,3", r"stages must fall, each dividing the one before; got \[8, 3\]"),
    ("--stages 4,8", "stages must fall"),
    ("--device cuda:77", "device 'cuda:77' is not there"),
    ("--device gpu", "device 'gpu' is not there"),
    ("--device meta", "device 'meta'"),
    ("--updates 1", "updates must be at least 2"),
    ("--rounds 0", "rounds must be at least 1; got 0"),
    ("--batch_size 0", "batch_size must be at least 1; got 0"),
    ("--chains 0", "chains must be at least 1; got 0"),
    ("--substeps 0", "substeps must be at least 1; got 0"),
    ("--heldout -1", "heldout must be at least 0; got -1"),
    ("--samples 5", "samples must be at least 10; got 5"),
    ("--ema 1.5", "ema must lie in"),
    ("--lr -1", "lr"),
    ("--lr 0", "lr"),
    ("--clip -1", "clip"),
    ("--rounds_kept 0", "rounds_kept must be at least 1"),
    ("--max_age -1", "max_age"),
    ("--beta.value 2", r"must lie in \[0, 1\]; got 2"),
    ("--beta linear --beta.until 0", "length must be above 0"),
    ("--threshold static --threshold.low 2", "low must lie below high"),
    ("--objective consistency --objective.solver_steps 0", "solver_steps must be at least 1"),
    ("--objective distribution --objective.gan_weight x", "gan_weight"),
    ("--objective.nosuch 3", "unrecognized arguments: --objective.nosuch. .*The objective progressive takes weight"),
    ("--expert.strenght 3", "unrecognized arguments: --expert.strenght. The expert exact takes no options"),
    ("--nosuch 3", "unrecognized arguments: --nosuch"),
    ("--policy.prediction z", "unknown prediction 'z'"),
    ("--expert", "expert"),
    ("--task moons-biased --expert exact", "Use --expert learned"),
    ("--config nosuch.yaml", "nosuch.yaml can't be read"),
]


@pytest.mark.parametrize(("words", "match"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes_in_distill(words: str, match: str, place: Path) -> None:
    refused(f"distill {FRESH}{TINY} --out out {words}", match)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("distil", "unknown command 'distil'. Did you mean 'distill'"),
        ("--nosuch", "unknown command '--nosuch'"),
        ("bench toy3d --out out", "toy3d.*toy2d"),
        ("bench toy2d", "--out is missing"),
        ("bench toy2d --out out --tasks grid25-biasd", "Did you mean 'grid25-biased'"),
        ("bench toy2d --out out --objectives progresive", "Did you mean 'progressive'"),
        ("bench toy2d --out out --objectives nosuch.X", "no module named 'nosuch'"),
        ("bench toy2d --out out --variants publishd", "Did you mean 'published'"),
        ("bench toy2d --out out --seeds 0", "seeds must be at least 1"),
        ("bench toy2d --out out --tasks gaussians8-biased --seeds 1 --workers 0", "workers must be at least 1"),
        ("bench toy2d --out out --workers -1", "workers must be at least 1; got -1"),
        ("bench toy2d --out out --metric=junk", "unknown metric 'junk'"),
        ("bench toy2d --out out --tasks=", "tasks"),
        ("bench toy2d --out out --tasks gaussians8-biased --settings nonsense", "settings"),
        ("""bench toy2d --out out --tasks gaussians8-biased --settings '{"nosuch": 1}'""", "nosuch"),
        ("""bench toy2d --out out --tasks gaussians8-biased --settings '{"seed": 1}'""", "seed"),
        ("""bench toy2d --out out --tasks gaussians8-biased --seeds 1 --settings '{"shares": [1, 0, 0]}'""", "shares"),
        ("sample nowhere", "nowhere holds no run"),
        ("shift nowhere", "nowhere holds no run"),
        ("sample", "folder"),
        ("sample nowhere --nun 3", "unrecognized arguments: --nun. Did you mean --num"),
        ("export nowhere --dtpe=float32", "unrecognized arguments: --dtpe. Did you mean --dtype"),
        ("list tasksx", "Did you mean 'tasks'"),
        ("list", "kind"),
        ("teacher", "task"),
        ("teacher --task moon-matched", "Did you mean 'moons-matched'"),
        ("teacher --task moons-matched --updates 0", "updates must be at least 1"),
        ("teacher --task moons-matched --width 0", "width must be at least 1"),
        ("teacher --task moons-matched --prediction z", "unknown prediction 'z'"),
    ],
)
def test_mistakes_elsewhere(line: str, match: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_run(*_: object, **__: object) -> None:
        raise AssertionError("it was not refused before the first run")

    monkeypatch.setattr("dagdiff.benchmarks.running.executor.Workers", no_run)
    refused(line, match)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--num 0", "num must be at least 1"),
        ("--num x", "num"),
        ("--weights nosuch", "unknown weights"),
        ("--device cuda:77", "device 'cuda:77' is not there"),
        ("--out folder", "folder"),
    ],
)
def test_mistakes_in_sample(words: str, match: str, folder: Path, place: Path) -> None:
    (place / "folder").mkdir()
    refused(f"sample {folder} --out out.npz {words}", match)
    assert [path.name for path in place.iterdir()] == ["folder"]


@pytest.mark.parametrize(("words", "match"), [("--num 0", "num must be"), ("--device cuda:77", "is not there")])
def test_mistakes_in_shift(words: str, match: str, folder: Path) -> None:
    refused(f"shift {folder} {words}", match)
    assert not any((folder / name).exists() for name in SHIFTED)


SPOILT = json.dumps(
    {
        "times": [1.0, 0.2, 0.6, 0.0],
        "sampler": {"class": "Ddim", "eta": 0.0},
        "threshold": {"class": "none"},
        "schedule": {"class": "cosine"},
    }
)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("student.json", SPOILT, r"times must fall from 1 to 0; got times\[2\]=0.6"),
        ("student.json", "{", "student.json"),
        ("student.json", None, "student.json"),
        ("config.yaml", "a: [", "config.yaml"),
        ("config.yaml", "text", "config.yaml"),
        ("config.yaml", None, "holds no run"),
        ("student.safetensors", "{", "does not hold the weights"),
        ("student.safetensors", None, "no weights at"),
    ],
)
def test_a_spoilt_run_is_refused(name: str, content: str | None, match: str, folder: Path, place: Path) -> None:
    (place / "copy").mkdir()
    for file in ("student.json", "config.yaml", "student.safetensors"):
        (place / "copy" / file).write_bytes((folder / file).read_bytes())
    (place / "copy" / name).write_text(content) if content else (place / "copy" / name).unlink()
    refused("sample copy --num 5 --out out.npz", match)
    assert not (place / "out.npz").exists()


def test_an_occupied_folder_is_left_alone(folder: Path, place: Path) -> None:
    before = files(folder)
    refused(f"distill {FRESH}{TINY} --seed 7 --out {folder}", "other settings: .* and is .* now")
    refused(f"bench toy2d --tasks gaussians8-biased --seeds 1 --out {folder}", "holds something else than results")
    assert files(folder) == before
    (place / "file").write_text("mine")
    refused(f"distill {FRESH}{TINY} --out file", "is a file")
    assert (place / "file").read_text() == "mine"


def test_a_refused_run_leaves_the_folder_free_for_the_next(place: Path) -> None:
    (place / "mistaken_expert.py").write_text("def wrong():\n    return lambda x_t, t, condition=None: x_t[:, :1]\n")
    refused(f"distill {FRESH}{TINY} --expert mistaken_expert.wrong --out out", r"\(64, 2\)|\(\d+, 2\)")
    assert not (place / "out").exists() or not list((place / "out").iterdir())


@pytest.mark.parametrize("out", ["", "--out taken"])
def test_the_folder_is_checked_before_a_teacher_is_trained(out: str, cache: Path, place: Path) -> None:
    (place / "taken").mkdir()
    (place / "taken/config.yaml").write_text("mine")
    before = files(cache)
    refused(f"distill {TINY} --policy.width 16 --policy.updates {21 + len(out)} {out}", "--out")
    assert files(cache) == before


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_student(rounds: int, place: Path) -> None:
    words = f"distill {FRESH}{TINY} --updates 40 --rounds {rounds} --lr 1e30 --out out"
    refused(words, r"the loss.* is not finite at update \d+; the student is back at update 0\. ", expected=3)
    weights = load_file(place / "out/student.safetensors")
    assert all(values.isfinite().all() for values in weights.values())
    assert {"config.yaml", "student.json", "rounds.csv"} <= {path.name for path in (place / "out").iterdir()}
    assert dagdiff("sample out --num 5 --out out.npz").status == 0
    assert np.isfinite(np.load("out.npz")["x"]).all()


def test_later_good_rounds_are_kept_when_the_loss_blows_up(place: Path) -> None:
    """The learning rate ramps up from nothing: the first round is good, and it is what remains."""
    ramp = "--lr_ramp indicator --lr_ramp.first 0 --lr_ramp.then 1 --lr 1e30"
    words = f"distill {FRESH}{TINY} --updates 40 --rounds 40 {ramp} --out out"
    refused(
        words, r"(the loss|the states of the student).* not finite .*; the student is back at update [1-9]", expected=3
    )
    rows = list(csv.DictReader((place / "out/rounds.csv").open()))
    kept = max(int(row["updates"]) for row in rows)
    assert kept >= 1
    assert all(values.isfinite().all() for values in load_file(place / "out/student.safetensors").values())


def test_a_keyboard_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dagdiff.commands.names.list_names", interrupted)
    assert dagdiff("list tasks") == (130, "", "dagdiff: stopped\n")


def test_the_installed_script(place: Path) -> None:
    """One real process, as a user starts it: output to read, no log lines of others, quiet progress bars."""
    script = Path(sys.executable).with_name("dagdiff")
    words = [str(script), "distill", *FRESH.split(), *TINY.split(), "--out", "out"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (place / "out").iterdir() if path.is_file()} == WRITTEN
    assert "Traceback" not in done.stderr and "round" not in done.stderr
    behind = json.loads((place / "out/metrics.json").read_text())["teacher"]["behind"]
    told = ["energy", "the", "imitation", "the", *["Behind"] * behind]
    assert [line.split()[0] for line in done.stdout.splitlines()] == told


def test_distill_leaves_the_global_generator_alone(place: Path) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    assert dagdiff(f"distill {FRESH}{TINY} --out out").status == 0
    assert torch.equal(torch.rand(3), wanted)
