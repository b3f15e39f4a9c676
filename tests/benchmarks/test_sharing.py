"""A suite on many machines: shared folders, shards, executors of others, workers that die, and calls to stop."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from dagdiff.benchmarks.running import executor
from dagdiff.benchmarks.running.cells import Cell, Shard
from dagdiff.benchmarks.running.executor import run_cells
from dagdiff.benchmarks.suites import toy2d
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.jobs import shared
from dagdiff.jobs.workers import Workers
from dagdiff.report.results import Results

SETTINGS: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 8},
    "samples": 50,
    "rounds": 2,
    "chains": 8,
    "batch_size": 16,
}
SUITE = toy2d.Suite(["gaussians8-biased"], ["progressive"], ["forward", "mixture"], seeds=3, updates=4)


def words(out: Path, settings: dict[str, Any] | None = None, **options: object) -> list[str]:
    """A suite of six runs, in small, on the command line."""
    said = {"tasks": "gaussians8-biased", "objectives": "progressive", "variants": "forward,mixture", "seeds": 3}
    said |= {"updates": 4, "out": out, "settings": json.dumps({**SETTINGS, **(settings or {})}), **options}
    return ["bench", "toy2d", *(f"--{name}={value}" for name, value in said.items())]


def begun(out: Path, settings: dict[str, Any] | None = None, **options: object) -> "subprocess.Popen[str]":
    """Start the command in a process of its own, in the working folder."""
    path = os.pathsep.join([str(ROOT), os.getcwd()])
    return subprocess.Popen(
        [sys.executable, "-m", "dagdiff", *words(out, settings, **options)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def content(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def cells(**changes: Any) -> list[Cell]:
    return list(toy2d.cells(toy2d.Suite(**{**vars(SUITE), "settings": SETTINGS, **changes})))


def run(out: Path, asked: list[Cell], **options: Any) -> dict[str, Any]:
    return run_cells("toy2d", asked, {}, out, pool=lambda: ThreadPoolExecutor(1), **options)


@pytest.fixture(autouse=True)
def place(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(shared, "POLL", 0.05)
    yield own_folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each run is made in this process."""
    counted: Counter[str] = Counter()
    run_cell = executor.run_cell

    def counting(cell: Cell, out: Path) -> dict[str, Any]:
        counted[cell.key] += 1
        return run_cell(cell, out)

    monkeypatch.setattr(executor, "run_cell", counting)
    return counted


# Shards


def test_shards_fill_the_suite_and_each_assembles_what_is_there(place: Path, made: Counter[str]) -> None:
    asked = cells()
    for number in (3, 1, 2):
        run(place / "out", asked, shard=Shard(number, 3))
    assert set(made.values()) == {1} and len(made) == 6
    whole = run(place / "whole", asked)
    assert [record["config"] for record in content(place / "out")["records"]] == [cell.key for cell in asked]
    for one, two in zip(content(place / "out")["records"], whole["records"], strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert content(place / "out")["references"] == whole["references"]
    assert len(Results.load(place / "out").rows) == len(Results.load(place / "whole").rows)


def test_a_command_without_a_shard_puts_together_what_the_shards_made(place: Path, made: Counter[str]) -> None:
    run(place / "out", cells(), shard=Shard(1, 2))
    (place / "out/results.json").unlink()  # records are enough
    run(place / "out", cells())
    assert set(made.values()) == {1} and len(content(place / "out")["records"]) == 6


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", ""])
def test_shards_that_cannot_be(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place / "out", shard=text)) == 2
    assert "shard" in capsys.readouterr().err and not (place / "out").exists()


# One folder, several commands


def test_two_commands_with_other_options_keep_what_both_made(place: Path, made: Counter[str]) -> None:
    """The second begins while the first runs; neither loses, repeats or reorders what is finished."""
    first, second = cells(), cells(variants=["mixture", "student"])
    with ThreadPoolExecutor(2) as commands:
        done = [commands.submit(run, place / "out", asked) for asked in (first, second)]
        assert [each.exception() for each in done] == [None, None]
    assert set(made.values()) == {1} and len(made) == 9
    found = content(place / "out")
    assert {record["config"] for record in found["records"]} == {cell.key for cell in (*first, *second)}
    assert len(found["records"]) == 9 and not found["failures"]


def test_older_results_without_records_are_continued(place: Path, made: Counter[str]) -> None:
    run(place / "out", cells(seeds=2))
    shutil.rmtree(place / "out/records")
    run(place / "out", cells())
    assert set(made.values()) == {1} and len(content(place / "out")["records"]) == 6


def test_committed_results_are_read(place: Path) -> None:
    for folder in (ROOT / "benchmarks/results").iterdir():
        if (folder / "results.json").exists() and "suite" in content(folder):
            assert Results.load(folder).records


@pytest.mark.slow
def test_two_processes_at_one_folder(place: Path) -> None:
    commands = [begun(place / "out", workers=2) for _ in range(2)]
    ended = [(each.communicate(timeout=300), each.returncode) for each in commands]
    assert [status for _, status in ended] == [0, 0], ended
    made = [int(re.findall(r"runs: .*?(\d+)/6", told[1])[-1]) if "runs:" in told[1] else 0 for told, _ in ended]
    assert all(count in (0, 6) for count in made)
    assert (
        len(content(place / "out")["records"]) == 6 == len(list((place / "out/samples").glob("????????????????.npz")))
    )


# Workers that die, and calls to stop

KILLER = """
import os, signal, torch
from dagdiff.tasks.plane import fresh_student

def policy(task):
    if torch.initial_seed() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return fresh_student(task, width=8)
"""


def test_a_worker_that_is_killed_is_a_failure_and_the_others_go_on(place: Path) -> None:
    """As the system does where memory runs out."""
    (place / "killer.py").write_text(KILLER)
    settings = {**SETTINGS, "policy": {"class": "killer.policy"}}
    asked = cells(settings=settings, variants=["forward"])
    found = run_cells("toy2d", asked, {}, place / "out", workers=2, pool=lambda: Workers(2))
    (reason,) = found["failures"].values()
    assert reason == f"{asked[1]}: its worker died (killed by SIGKILL)"
    assert [record["seed"] for record in found["records"]] == [0, 2]
    assert content(place / "out")["failures"] == found["failures"]


SLOW = """
import time
from pathlib import Path
from dagdiff.objectives import Progressive

class Slow(Progressive):
    def loss(self, student, batch):
        time.sleep(float(Path("pace").read_text()))
        return super().loss(student, batch)
"""


@pytest.fixture
def pace(place: Path) -> Path:
    """The file that says how many seconds a loss of the objective slow.Slow takes."""
    (place / "slow.py").write_text(SLOW)
    (place / "pace").write_text("0.2")
    return place / "pace"


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_suite_that_is_stopped_leaves_no_worker_and_is_resumed(
    number: signal.Signals, status: int, place: Path, pace: Path
) -> None:
    """Runs that would take hours are not waited for."""
    out = place / "out"
    command = begun(out, objectives="slow.Slow", workers=2)
    end = time.monotonic() + 300
    while not list(out.glob("records/[0-9a-f]*.json")):
        assert command.poll() is None and time.monotonic() < end, command.communicate()
        time.sleep(0.05)
    pace.write_text("9000")
    workers = children(command.pid)
    assert len(workers) >= 2
    command.send_signal(number)
    _, complained = command.communicate(timeout=60)
    assert command.returncode == status, complained
    if number != signal.SIGKILL:
        told = complained.replace("\r", "\n").splitlines()
        lines = [line for line in told if "dagdiff:" in line and " passed" not in line]  # but for progress
        assert "Traceback" not in complained and len(lines) == 1
        assert re.search(r"stopped with [0-5] of 6 runs kept in .*Run the same command again to resume", lines[0])
    end = time.monotonic() + 60
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "a worker outlived its suite"
        time.sleep(0.05)
    before = {file: file.stat().st_mtime_ns for file in out.glob("records/*.json")}
    pace.write_text("0")
    assert main(words(out, objectives="slow.Slow")) == 0
    assert len(content(out)["records"]) == 6
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())


# Executors of others


def test_an_executor_of_ones_own(place: Path) -> None:
    code = "from concurrent.futures import ThreadPoolExecutor\n\ndef threads(workers: int, name: str = 'mine'):\n"
    code += "    return ThreadPoolExecutor(workers, thread_name_prefix=name)\n\ndef nothing():\n    return 3\n"
    (place / "mine.py").write_text(code)
    line = words(place / "out", executor="mine.threads", seeds=1)
    assert main([*line, "--executor.name=other"]) == 0
    assert len(content(place / "out")["records"]) == 2


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("--executor dusk", "unknown executor 'dusk'. Did you mean 'dask'"),
        ("--executor dask", "needs one of --executor.address and --executor.scheduler_file"),
        ("--executor dask --executor.address tcp://127.0.0.1:9 --executor.timeout 1", "can't reach the scheduler at"),
        ("--executor dask --executor.address nonsense://x --executor.timeout 1", "can't reach the scheduler"),
        ("--executor dask --executor.adress x", "Did you mean --executor.address"),
        ("--executor submitit --executor.cluster slurm", "submitit can't be had .*srun"),
        ("""--executor submitit --executor.parameters '{"nosuch": 1}'""", "submitit can't be had .*nosuch"),
        ("--executor builtins.dict", "does not say what it takes"),
        ("--executor platform.node", "must be a concurrent.futures.Executor; got a str"),
        ("--executor nosuch.thing", "no module named 'nosuch'"),
    ],
)
def test_executors_that_cannot_be(said: str, match: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(place / "out"), *shlex.split(said)]) == 2
    told = capsys.readouterr().err.strip()
    assert re.search(match, told) and len(told.splitlines()) == 1, told
    assert not (place / "out/results.json").exists()


def test_suites_that_measure_time_run_alone(place: Path) -> None:
    from dagdiff.benchmarks.suites import peers

    with pytest.raises(Refusal, match="Leave --executor and --shard away"):
        executor.run_suite(peers, peers.QUICK, place / "out", shard=Shard(1, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("pace")
def test_dask_with_a_worker_that_is_killed(place: Path) -> None:
    """A real scheduler and two workers: one is killed under way, and the suite ends with all runs."""
    pytest.importorskip("distributed")
    told, started = place / "scheduler.json", []

    def start(*line: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(place)])}
        with (place / f"log{len(started)}").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "distributed.cli." + line[0], *line[1:]],
                    env=environment, cwd=place, stdout=log, stderr=log,
                )
            )  # fmt: skip
        return started[-1]

    try:
        host = ("--host", "127.0.0.1", "--no-dashboard")
        start("dask_scheduler", *host, "--port", "0", "--scheduler-file", str(told))
        workers = [
            start("dask_worker", "--scheduler-file", str(told), "--nthreads", "1", "--no-nanny", *host)
            for _ in range(2)
        ]
        while not told.exists():
            time.sleep(0.1)
        options = {"objectives": "slow.Slow", "workers": 2, "executor": "dask", "executor.scheduler_file": told}
        command = begun(place / "out", **options)
        while not list((place / "out").glob("records/[0-9a-f]*.json")):
            assert command.poll() is None, command.communicate()
            time.sleep(0.05)
        workers[0].kill()
        _, complained = command.communicate(timeout=300)
        assert command.returncode == 0, complained
    finally:
        for each in started:
            each.kill()
    found = content(place / "out")
    assert len(found["records"]) == 6 and not found["failures"]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submitit(cluster: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its local executor is its SLURM executor without SLURM: a process a job, told by files."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(place)]))
    (place / "killer.py").write_text(KILLER)
    settings = {"policy": {"class": "killer.policy"}} if cluster == "local" else {}
    line = words(place / "out", settings, executor="submitit", workers=2, variants="forward")
    status = main([*line, f"--executor.cluster={cluster}"])
    found = content(place / "out")
    assert (status, len(found["records"])) == ((2, 2) if cluster == "local" else (0, 3))
    assert all("its worker died" in reason for reason in found["failures"].values())
    assert list((place / "out/submitit").iterdir())
