"""Files that came from elsewhere are data: opening a run or verifying results imports nothing that they name."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT

from dagdiff import Refusal
from dagdiff.checkpoint import follow_umask, load_state, save_arrays, save_state, save_text, save_weights
from dagdiff.cli import main
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import distil, open_run
from dagdiff.runs.parts import PARTS
from dagdiff.runs.trust import FUNCTIONS, check_registered

TINY: dict[str, Any] = {"updates": 2, "rounds": 1, "chains": 4, "batch_size": 8, "heldout": 4, "samples": 20}
TINY |= {"policy": {"class": "fresh", "width": 8}, "device": "cpu"}
OPENERS = (["sample", "run", "--num", "5"], ["export", "run", "--out", "new"], ["shift", "run", "--num", "10"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose parts have options that are not the usual ones."""
    out = tmp_path_factory.mktemp("trust") / "run"
    threshold, schedule = {"class": "static", "low": -0.7, "high": 0.9}, {"class": "cosine", "terminal_alpha": 0.01}
    own = {"threshold": threshold, "schedule": schedule, "objective": "consistency", "epsilon_scale": 1.1}
    distil(Experiment.build(configure({**TINY, **own})), out, progress=False)
    return out


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a copy of the run; commands leave no trace on the interpreter's path."""
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    yield tmp_path


def change(file: str, **changes: Any) -> None:
    """Put other values into the run's file, on purpose: the manifest, which would tell that it was changed, goes."""
    Path("run/manifest.json").unlink(missing_ok=True)
    path = Path("run") / file
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(json.dumps(content) if file.endswith("json") else yaml.safe_dump(content))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and len(told) <= 501 and told.startswith("dagdiff: error: ")
    return told


TOUCH = "touch was-here"
ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("config.yaml", {"threshold": {"class": "subprocess.getoutput", "cmd": TOUCH}, "policy": "evil.Net"}),
    ("config.yaml", {"expert": {"class": "subprocess.getoutput", "cmd": TOUCH}}),
    ("config.yaml", {"curriculum": "evil.anything"}),
    ("config.yaml", {"beta": "evil.anything"}),
    ("config.yaml", {"data": {"class": "evil.anything"}}),
    ("config.yaml", {"config": "evil.yaml"}),
    ("config.yaml", {"driver.class": "evil.anything"}),
    ("config.yaml", {"driver=evil.anything": "x"}),
    ("config.yaml", {"objective": {"class": "progressive", "weight": "evil.anything"}}),
    ("config.yaml", {"objective": {"class": "progressive", "weight": {"class_path": "evil.anything"}}}),
    ("config.yaml", {"objective": {"class": "progressive", "weight": '{"class_path": "evil\\u002eanything"}'}}),
    ("config.yaml", {"objective": {"class": ["evil.anything"]}}),
    ("config.yaml", {"pipeline": '{"allow_pickle": true}'}),
    ("config.yaml", {"pipeline": {"path": "x", "allow_pickle": "true"}}),
    ("student.json", {"threshold": {"class": "subprocess.getoutput", "cmd": TOUCH}}),
    ("student.json", {"schedule": {"class": "evil.anything"}}),
    ("student.json", {"sampler": {"class": "evil.anything", "eta": None}}),
]


@pytest.mark.parametrize(("file", "changes"), ATTACKS, ids=[f"{file} {list(each)}" for file, each in ATTACKS])
def test_opening_a_run_executes_nothing(
    file: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    (here / "evil.py").write_text("open('was-here', 'w').close()\n\n\ndef anything(*_, **__):\n    return None\n")
    (here / "evil.yaml").write_text("threshold: evil.anything\n")
    monkeypatch.syspath_prepend(str(here))  # even where it could be imported
    change(file, **changes)
    for words in OPENERS:
        assert file in refused(words, capsys)
        assert not Path("was-here").exists() and "evil" not in sys.modules


def test_the_refusal_names_path_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    change("config.yaml", threshold={"class": "mine.Box"})
    told = refused(["sample", "run"], capsys)
    assert "run/config.yaml names threshold 'mine.Box'" in told and "--trust_code" in told


def test_an_own_part_opens_with_trust_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Distilling with one needs no option, from words or from a file of the user's own."""
    (here / "mine_box.py").write_text("def box():\n    return lambda x0: x0.clamp(-0.1, 0.1)\n")
    change("config.yaml", threshold="mine_box.box")
    assert main(["distill", "--config", "run/config.yaml", "--out", "new"]) == 0
    assert "'mine_box.box'" in refused(["sample", "new", "--num", "5"], capsys)
    assert main(["sample", "new", "--num", "5", "--trust_code"]) == 0
    assert open_run(Path("new"), "cpu", trust_code=True).threshold(torch.ones(1, 2)).max() == 0.1
    sys.modules.pop("mine_box")


def test_settings_of_results_execute_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "evil.py").write_text("open('was-here', 'w').close()\n")
    kept = ROOT / "benchmarks/results/toy2d-quick/results.json"
    content = json.loads(kept.read_text())
    evil = {"class": "subprocess.getoutput", "cmd": TOUCH}
    plain = content["settings"]
    for settings in (
        {**plain, "settings": {**plain["settings"], "expert": evil}},
        {**plain, "objectives": ["evil.anything"]},
        {**plain, "nonsense": 1},
        {**plain, "seeds": "many"},
        {**plain, "settings": 3},
        {**plain, "objectives": 3},
        {**plain, "settings": {**plain["settings"], "x": {"class_path": "evil.anything"}}},
    ):
        (here / "results.json").write_text(json.dumps({**content, "settings": settings}))
        assert "results.json" in refused(["bench", "toy2d", "--out", ".", "--verify", "1"], capsys)
        assert not Path("was-here").exists()


def test_registered_names_and_functions_pass() -> None:
    for part, names in PARTS.items():
        for name in (*names, *names.values()):
            check_registered({part: {"class": name}}, Path("f"))
            check_registered({part: name}, Path("f"))
    for name in FUNCTIONS:
        check_registered({"objective": {"class": "progressive", "weight": name}}, Path("f"))
    check_registered({"policy": {"class": "lora", "targets": ["attn.to_q", "to_out.0"], "alpha": 0.5}}, Path("f"))


CONTENTS = (
    "\x00",
    "- a",
    "a: !!python/object/apply:os.system [x]",
    "1: 2",
    "a: 2020-01-01",
    "a: &b {c: *b}",
    "[" * 5000,
)


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize("file", ["config.yaml", "student.json", "student.safetensors"])
def test_foreign_content_is_told_in_a_line(file: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("run") / file).write_text(content)
    refused(["sample", "run", "--num", "5"], capsys)


@pytest.mark.parametrize(
    "changes",
    [
        {"times": "abc"},
        {"times": [[1.0], [0.0, 1.0]]},
        {"times": None},
        {"sampler": None},
        {"sampler": {"class": "Euler"}},
        {"sampler": {"class": "Ddim", "eta": 2.0}},
        {"sampler": {"class": "Ddim", "eta": "x"}},
        {"sampler": {"class": "Renoise", "eta": 0.5}},
        {"threshold": {"class": "x" * 10_000}},
        {"threshold": "none"},
        {"schedule": {"class": "cosine", "terminal_alpha": "x"}},
        {"epsilon_scale": "x" * 10_000},
    ],
    ids=str,
)
def test_a_foreign_student_json_is_told_in_a_line(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    change("student.json", **changes)
    refused(["sample", "run", "--num", "5"], capsys)


def test_a_student_keeps_its_sampler_threshold_and_schedule() -> None:
    """Its configuration may lose them or get others: it is sampled as it was trained."""
    before = open_run(Path("run"), "cpu").sample(20, seed=1)
    Path("run/manifest.json").unlink(missing_ok=True)  # which would tell that files were changed
    file = Path("run/config.yaml")
    config = yaml.safe_load(file.read_text())
    for other in (
        {name: value for name, value in config.items() if name not in ("threshold", "schedule", "epsilon_scale")},
        {**config, "threshold": {"class": "none"}, "schedule": {"class": "cosine", "terminal_alpha": 0.3}},
        {**config, "objective": {"class": "progressive"}, "epsilon_scale": 1.0},  # another law
    ):
        file.write_text(yaml.safe_dump(other))
        assert torch.equal(open_run(Path("run"), "cpu").sample(20, seed=1), before)
    change("student.json", sampler={"class": "Ddim", "eta": 0.0})
    assert not torch.equal(open_run(Path("run"), "cpu").sample(20, seed=1), before)


@pytest.mark.parametrize("part", ["data", "threshold", "schedule", "beta", "shares_ramp", "lr_ramp", "driver"])
def test_what_a_constructor_returns_is_checked(part: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "strange_parts.py").write_text("def number(*_):\n    return 3\n")
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    told = refused(["distill", "--config", "tiny.yaml", f"--{part}", "strange_parts.number", "--out", "new"], capsys)
    assert f"the {part} must be " in told and "got a int" in told and not Path("new").exists()
    sys.modules.pop("strange_parts")


# No pickles


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    weight.grad = torch.randn(3, 2)
    adam = torch.optim.Adam([weight], lr=0.1 + 0.2)
    adam.step()
    mine = {"adam": adam.state_dict(), "list": [1, 2.5, True, None, "a"], "tuple": (torch.arange(3), ()), "whole": 3}
    save_state(tmp_path / "a.part", mine)
    fresh = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3, 2))])
    found = load_state(tmp_path / "a.part", {"adam": fresh})
    assert str(found) == str(mine)
    kept, again = (each.state_dict()["state"][0] for each in (adam, fresh))
    assert all(torch.equal(kept[name], again[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    with pytest.raises(TypeError, match=r"not a .*Path"):
        save_state(tmp_path / "b.part", {"a": tmp_path})


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (TOUCH,)


def test_a_pickled_state_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Refusal, match="not a state to resume from"):
        load_state(tmp_path / "a.part", {})
    torch.save(Bomb(), tmp_path / "b.part")
    with pytest.raises(Refusal, match="not a state to resume from"):
        load_state(tmp_path / "b.part", {})
    assert not Path("was-here").exists()


# The command line's surroundings


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "a.safetensors", torch.nn.Linear(2, 2))
        save_state(tmp_path / "a.part", {"x": torch.ones(1)})
        save_arrays(tmp_path / "a.npz", x=torch.ones(1))
        save_text(tmp_path / "a.txt", "x")
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/foreign").touch(0o600)
        follow_umask(tmp_path / "deep")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.glob("a.*")] + [tmp_path / "deep/foreign"]
    assert len(files) == 5 and {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}


def dagdiff(*words: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs the package."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_the_package_is_a_program() -> None:
    assert dagdiff("-m", "dagdiff", "--version").stdout.startswith("dagdiff ")
    assert dagdiff("-m", "dagdiff", "nonsense").returncode == 2


STARTS = [("-m", "dagdiff"), ("-c", "import sys; del sys.path[0]; from dagdiff.cli import main; sys.exit(main())")]


@pytest.mark.parametrize("start", STARTS, ids=["module", "script"])
def test_a_module_in_the_working_folder_hides_none(start: tuple[str, ...], here: Path) -> None:
    """``profile`` and ``random`` are the standard library's; ``dagdiff list`` loads both, by way of torch."""
    for name in ("profile", "random", "yaml"):
        (here / f"{name}.py").write_text("raise RuntimeError('mine')\n")
    done = dagdiff(*start, "list", "thresholds")
    assert done.returncode == 0 and "--threshold box" in done.stdout, done.stderr
