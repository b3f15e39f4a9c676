"""Processes meet, are of one mind, and end together; what can't be is refused in one line before any training."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from dagdiff import launch
from dagdiff.checks import Refusal
from dagdiff.cli import main

PLACE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

SMALL = [
    "--task=gaussians8-biased", "--policy=fresh", "--rounds=2", "--chains=16", "--batch_size=32", "--heldout=0",
    "--samples=100", "--device=cpu", "--substeps=2",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes(port: int, *words: list[str]) -> list[subprocess.Popen[str]]:
    """Start the command in as many processes as there are lists of words, as a launcher would."""
    started = []
    for number, mine in enumerate(words):
        place = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(len(words))}
        told = {**os.environ, **PLACE, **place, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dagdiff", "distill", *mine]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=told, stdout=pipe, stderr=pipe, text=True))
    return started


def ended(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, list[str]]:
    """Wait; return the status and the lines of the error, the bar of rounds apart."""
    _, error = process.communicate(timeout=timeout)
    lines = [line.rsplit("\r", 1)[-1] for line in error.splitlines()]
    return process.returncode, [line for line in lines if line.strip() and "round/s" not in line]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"RANK": None, "MASTER_PORT": None}, r"WORLD_SIZE=2 .* no launcher has set RANK, MASTER_PORT. Unset it"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a number of processes, at least 1; got 'many'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number of processes, at least 1; got '0'"),
        ({"WORLD_SIZE": None, "ACCELERATE_USE_CPU": "True"}, "accelerate starts no several processes on CPUs"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "ACCELERATE_MIXED_PRECISION=bf16 .* pass --bf16 true"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "pass --accumulate to dagdiff"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not served; FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "Set fsdp_version: 2"),
    ],
)
def test_half_a_launcher_is_refused(changes: dict[str, str | None], wanted: str) -> None:
    environment = {name: value for name, value in {**PLACE, **changes}.items() if value is not None}
    with pytest.raises(Refusal, match=wanted):
        launch.check_launcher(environment)


@pytest.mark.parametrize(
    "environment", [{}, PLACE, {**PLACE, "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "False"}]
)
def test_no_launcher_and_a_whole_one_are_taken(environment: dict[str, str]) -> None:
    launch.check_launcher(environment)


@pytest.mark.parametrize(
    ("device", "cards", "here", "wanted"),
    [
        ("auto", 2, 4, "4 processes on this machine need a GPU each, and it has 2. Pass --nproc-per-node 2"),
        ("cuda", 0, 2, "2 processes on this machine need a GPU each, and it has 0. Pass --device cpu."),
        ("cuda:1", 2, 2, "device 'cuda:1' is one GPU, and each process takes its own. Leave --device away."),
    ],
)
def test_a_gpu_a_process(device: str, cards: int, here: int, wanted: str) -> None:
    with pytest.raises(Refusal, match=wanted):
        launch.check_devices(device, cards, {**PLACE, "LOCAL_WORLD_SIZE": str(here)})


def test_where_a_run_is() -> None:
    place = {**PLACE, "LOCAL_WORLD_SIZE": "2"}
    assert [launch.check_devices(*told, place) for told in (("cpu", 8), ("auto", 0), ("auto", 2), ("cuda", 2))] == [
        False, False, True, True,
    ]  # fmt: skip


def test_processes_that_disagree_are_named() -> None:
    told: list[dict[str, Any]] = [{"lr": 0.1, "policy": {"class": "mlp"}}, {"lr": 0.1, "policy": {"class": "unet"}}]
    flat = [launch.flat(each) for each in told]
    launch.check_agreement([flat[0], flat[0]])
    with pytest.raises(Refusal, match=r"process 1 of 2 disagrees .*: policy.class is 'unet' instead of 'mlp'. "):
        launch.check_agreement(flat)
    with pytest.raises(Refusal, match=r"processes 1, 2 of 3 disagree .*: lr is not set instead of 0.1"):
        launch.check_agreement([flat[0], {}, flat[1]])


def test_a_missing_launcher_ends_the_command(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["distill", *SMALL, "--updates=2", "--out=run"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "no launcher has set RANK" in told.err and not Path("run").exists()


def test_other_words_end_all_processes(own_folder: Path) -> None:
    words = [*SMALL, "--updates=2", "--out=run"]
    first, second = processes(free_port(), words, [*words, "--lr=0.5"])
    status, lines = ended(first)
    assert status == 2 and len(lines) == 1 and "process 1 of 2 disagrees" in lines[0] and "lr is 0.5" in lines[0]
    assert ended(second) == (2, [])  # of a machine's processes one tells
    assert not Path("run").exists()


def test_what_process_0_refuses_all_refuse(own_folder: Path) -> None:
    """It is told once, and nobody waits."""
    words = [*SMALL, "--updates=2", "--out=run", "--batch_size=33"]
    first, second = processes(free_port(), words, words)
    assert ended(first) == (2, ["dagdiff: error: batch_size must split evenly over 2 processes; got 33."])
    assert ended(second) == (2, [])


def test_a_port_in_use_is_refused(own_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first, second = processes(port, *[[*SMALL, "--updates=2", "--out=run"]] * 2)
        status, lines = ended(first)
        second.kill()  # it looks for process 0 behind that port, for five minutes
        second.communicate()
    told = [line for line in lines if line.startswith("dagdiff")]
    assert status == 2 and len(told) == 1 and f"port {port} of 127.0.0.1 is in use" in told[0]


def test_a_killed_process_ends_the_others(own_folder: Path) -> None:
    words = [*SMALL, "--updates=400000", "--rounds=20000", "--out=run", "--logger=csv"]
    first, second = processes(free_port(), words, words)
    waited = time.monotonic()
    while not list(Path("run").rglob("*.csv")):  # the first round is there
        assert first.poll() is None and second.poll() is None and time.monotonic() - waited < 300
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    status, lines = ended(first, timeout=60)
    assert status == 1 and len(lines) == 1, lines
    assert "another process of this run has ended, so process 0 ends too" in lines[0]
    second.communicate()


@pytest.mark.parametrize("launcher", ["torchrun", "no-python", "accelerate"])
@pytest.mark.slow
def test_each_launcher_starts_a_run(own_folder: Path, launcher: str) -> None:
    tools = Path(sys.executable).parent
    run = [str(tools / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    start = {
        "torchrun": [*run, "-m", "dagdiff"],
        "no-python": [*run, "--no-python", sys.executable, "-m", "dagdiff"],
        "accelerate": [str(tools / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "-m", "dagdiff"],
    }[launcher]
    words = ["distill", *SMALL, "--updates=4", "--out=run"]
    done = subprocess.run(
        [*start, *words], capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the run is saved in run") == 1
