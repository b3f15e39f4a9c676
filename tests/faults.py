"""Does a run survive what happens to programs? Commands are killed, starved of disk and given damaged files.

Run: make faults, or python tests/faults.py [--kills N] [--quick] [COMMAND ...] of distill, teacher, bench, export.

A command has survived a fault if the same command then ends well and leaves, to the byte, what a command leaves that
nothing has happened to; a fault that is an error must also have been told in one line. Damaged files have survived if
the command that reads them notices, or is not misled. Prints tried / survived / lost for each kind, and exits with 1
if anything was lost. The faults are injected from outside: the program has no hooks for them.
"""

import argparse
import contextlib
import errno
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Sabotage = Callable[[], None]
"""What a process does to itself before it runs a command."""

FRESH = "--policy fresh --policy.width 8 --policy.depth 2 --device cpu"
SMALL = "--chains 4 --batch_size 8 --heldout 4 --samples 20 --substeps 2"


class Command(NamedTuple):
    """A command, the folder that it fills, and which of its files say what it has made."""

    words: str
    made: tuple[str, ...]
    first: str = ""


COMMANDS = {
    "distill": Command(
        f"distill {FRESH} {SMALL} --updates 6 --rounds 3 --save_every 0 --out out",
        ("student.safetensors", "best.safetensors", "student.json", "rounds.csv", "metrics.json", "config.yaml"),
    ),
    "teacher": Command(
        "teacher --task moons-biased --width 8 --depth 2 --updates 300 --device cpu", ("*.safetensors",)
    ),
    "export": Command(
        "export run --out out",
        ("unet/*.safetensors", "scheduler/*.json", "model_index.json", "README.md"),
        f"distill --task digits-biased --policy fresh-unet --expert.updates 2 --device cpu {SMALL} "
        "--updates 2 --rounds 1 --out run",
    ),
    "bench": Command(
        "bench toy2d --tasks gaussians8-biased --objectives progressive --variants forward,mixture --seeds 1 "
        '--updates 40 --workers 2 --settings {"samples":200,"policy":"fresh"} --out out',
        ("results.json", "records/*.json", "samples/*.npz"),
    ),
}
CLOCK = ("seconds", "commit", "digest")
"""What may differ between two runs that are the same: the last is of a file that holds the others."""


def child(words: str, folder: Path, sabotage: Sabotage | None = None) -> int:
    """Start a command in a process of its own, in a folder; return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number:
        return number
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this script runs in the background
        os.chdir(folder)
        os.environ["DAGDIFF_CACHE"] = str(folder / "cache")
        told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(told, number)
            setattr(sys, name, os.fdopen(number, "w", 1, closefd=False))  # not those of pytest
        from dagdiff.cli import main

        if sabotage:
            sabotage()
        status = main(words.split())
        if sabotage is None:
            (folder / "modules").write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # a traceback is what must not be
        with contextlib.suppress(BaseException):
            os.write(2, f"Traceback {type(error).__name__}: {error}".encode()[:400])
    finally:
        os._exit(status)


def ended(number: int) -> int:
    """Wait for a process; return its status, 128 and the signal's number if one has ended it."""
    _, raw = os.waitpid(number, 0)
    return 128 + os.WTERMSIG(raw) if os.WIFSIGNALED(raw) else os.WEXITSTATUS(raw)


def run(words: str, folder: Path, sabotage: Sabotage | None = None) -> int:
    """Run a command to its end."""
    return ended(child(words, folder, sabotage))


# What a process does to itself


def at_write(number: int, fault: Callable[[], None]) -> Sabotage:
    """Let a fault happen at the write of that number: where a file is opened, moved to its place, or a folder deleted.

    What Python itself does is seen by an audit hook; temporary files, whose names begin with a dot, are not counted.
    """

    def sabotage() -> None:
        here, seen = os.getcwd(), 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in ("open", "os.rename", "shutil.rmtree"):
                return
            place = arguments[1] if event == "os.rename" else arguments[0]
            if isinstance(place, int | bytes) or not os.path.abspath(place).startswith(here):
                return
            if event == "open" and not (arguments[2] & _WRITES and _counts(place)):
                return
            seen += 1
            if seen == number + 1:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.join(here, REACHED))
                fault()

        sys.addaudithook(hook)

    return sabotage


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REACHED = "reached"
"""The folder that says that a fault has happened."""


def _counts(place: str) -> bool:
    return not os.path.basename(place).startswith(".") and not os.path.isdir(place)


def in_workers(number: int, folder: Path) -> Sabotage:
    """Let each process that a command starts be killed at its write of that number."""
    here = Path(__file__).resolve().parent
    code = f"import sys\nsys.path.append({str(here)!r})\nimport faults\nfaults.at_write({number}, faults.killed)()\n"

    def sabotage() -> None:
        (folder / "sitecustomize.py").write_text(code)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", ""), str(here.parent)])

    return sabotage


def killed() -> None:
    """End as by KILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def refused(code: int) -> Callable[[], None]:
    """Fail as the system does: no space, read-only."""

    def fault() -> None:
        raise OSError(code, os.strerror(code))

    return fault


def small_files(size: int) -> Sabotage:
    """No file may grow beyond so many bytes, as where the disk is full."""

    def sabotage() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return sabotage


# What is left


def well_told(status: int, told: str) -> bool:
    """Whether a command has ended well, was killed, or has told its error in one line."""
    lines = [line for line in told.splitlines() if line.startswith("dagdiff: error:")]
    return "Traceback" not in told and (status in (0, 137) or (status in (2, 3) and len(lines) == 1))


def _preload(names: Sequence[str]) -> None:
    """Import what a command has imported: the processes that are started then have it."""
    for name in names:
        if name.partition(".")[0] in _HEAVY and name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


_HEAVY = ("dagdiff", "torch", "torchrl", "tensordict", "scipy", "sklearn", "matplotlib", "diffusers", "transformers")


def left(command: Command, folder: Path) -> dict[str, str]:
    """Hashes of what a command has made."""
    places = {"teacher": folder / "cache/teachers"}
    base = next((place for name, place in places.items() if command.words.startswith(name)), folder / "out")
    files = sorted({each for pattern in command.made for each in base.glob(pattern)})
    return {str(each.relative_to(base)): hashlib.sha256(_timeless(each)).hexdigest() for each in files}


def _timeless(file: Path) -> bytes:
    """A file's content without times of the clock."""
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        return json.dumps(_without_clock(content), sort_keys=True).encode()
    if file.name == "rounds.csv":
        head, *rows = (line.split(",") for line in file.read_text().splitlines())
        kept = [number for number, name in enumerate(head) if name not in CLOCK]
        return "\n".join(",".join(row[number] for number in kept) for row in [head, *rows]).encode()
    return file.read_bytes()


def _without_clock(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_clock(value) for key, value in content.items() if key not in CLOCK}
    return [_without_clock(value) for value in content] if isinstance(content, list) else content


class Trial:
    """The trials of one command, and how they ended."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.command, self.folder = name, COMMANDS[name], folder
        self.tried, self.lost, self.notes = Counter[str](), Counter[str](), list[str]()
        self.clean = folder / "clean"
        self.clean.mkdir(parents=True)
        if self.command.first:
            assert run(self.command.first, self.clean) == 0, (self.clean / "told").read_text()
        self.start = folder / "start"
        shutil.copytree(self.clean, self.start)
        with self.place() as place:
            assert run(self.command.words, place) == 0, (place / "told").read_text()
            _preload((place / "modules").read_text().split())
        began = time.monotonic()
        assert run(self.command.words, self.clean) == 0, (self.clean / "told").read_text()
        self.seconds = time.monotonic() - began
        self.expected = left(self.command, self.clean)
        assert self.expected, f"{name} has left nothing"

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """A folder in which nothing has happened yet."""
        place = self.folder / "trial"
        shutil.copytree(self.start, place)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def note(self, kind: str, well: bool, why: str) -> None:
        """Count a trial."""
        self.tried[kind] += 1
        if not well:
            self.lost[kind] += 1
            self.notes.append(f"{self.name}, {kind}: {why}")
            print(f"  {self.notes[-1]}", flush=True)

    def again(self, kind: str, place: Path, before: str = "") -> None:
        """Run the command again, and look whether all is there."""
        status = run(self.command.words, place)
        told = (place / "told").read_text()
        found = left(self.command, place)
        same = found == self.expected
        wrong = [name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name)]
        self.note(kind, status == 0 and same, f"{before} status {status}, differs: {wrong}; {told[-300:]!r}")

    def signalled(self, number: int, seed: str) -> None:
        """Send a signal at a random moment, and run the command again."""
        kind = signal.Signals(number).name
        with self.place() as place:
            process = child(self.command.words, place)
            time.sleep(random.Random(f"{self.name} {seed} {kind}").random() * self.seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
            status = ended(process)
            told = (place / "told").read_text()
            if "Traceback" in told or status not in (0, 128 + number):
                self.note(kind, False, f"status {status}: {told[-300:]!r}")
            else:
                self.again(kind, place, f"after {seed}")

    def at_writes(
        self, kind: str, sabotage: Callable[[int, Path], Sabotage], most: int, step: int = 1, first: int = 0
    ) -> None:
        """Let a fault happen at each ``step``-th place where a file is written, ``most`` of them at most."""
        for number in range(first, first + most * step, step):
            with self.place() as place:
                status = run(self.command.words, place, sabotage(number, place))
                if not (place / REACHED).exists():
                    return  # there is no such write
                (place / REACHED).rmdir()
                told = (place / "told").read_text()
                if not well_told(status, told):
                    self.note(kind, False, f"write {number}: status {status}: {told[-300:]!r}")
                else:
                    self.again(kind, place, f"write {number}")

    def starved(self, sizes: Sequence[int]) -> None:
        """Let files grow to a size alone, as on a full disk."""
        for size in sizes:
            with self.place() as place:
                status = run(self.command.words, place, small_files(size))
                told = (place / "told").read_text() if (place / "told").exists() else ""
                if not well_told(status, told):
                    self.note("full disk", False, f"{size} bytes: status {status}, {told[-300:]!r}")
                else:
                    self.again("full disk", place, f"{size} bytes")


FOREIGN = {
    "nothing": b"",
    "text": b"hello\n",
    "zeros": bytes(64),
    "no weights": b"\x02\0\0\0\0\0\0\0{}",
    "a list": b"[1, 2]\n",
    "deep": b"[" * 100_000,
}
"""What stands in the place of a file of a run."""


def damaged(raw: bytes, number: int, chance: random.Random) -> bytes:
    """A file with a bit flipped, or, every fifth time, cut off."""
    if number % 5 == 4:
        return raw[: chance.randrange(len(raw))]
    changed = bytearray(raw)
    changed[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flips(trial: Trial, count: int) -> None:
    """Flip bits and cut files of a finished run, and put others in their place: its reader must notice each."""
    words, out, chance = "sample out --num 10 --device cpu --out s.npz", trial.clean / "out", random.Random(0)
    assert run(words, trial.clean) == 0, (trial.clean / "told").read_text()
    for name in ("student.safetensors", "config.yaml", "student.json"):
        raw = (out / name).read_bytes()
        cases = {f"damaged {name}": [damaged(raw, number, chance) for number in range(count)]}
        for kind, content in {**cases, "foreign file": list(FOREIGN.values())}.items():
            for each in content:
                (out / name).write_bytes(each)
                status = run(words, trial.clean)
                told = (trial.clean / "told").read_text()
                trial.note(kind, status == 2 and well_told(status, told), f"status {status}, {told[-200:]!r}")
        (out / name).write_bytes(raw)


def results_flips(trial: Trial, count: int) -> None:
    """The same with the results and the records of a suite, in this process; 1e-07 may be spelled 1E-07."""
    from dagdiff.checks import Refusal
    from dagdiff.report.results import read_results
    from dagdiff.sealed import read_sealed

    out, chance = trial.clean / "out", random.Random(0)
    for file in (out / "results.json", min(out.glob("records/*.json"))):
        results = file.name == "results.json"
        whole, raw = read_sealed(file), file.read_bytes()
        for content in [*(damaged(raw, number, chance) for number in range(count)), *FOREIGN.values()]:
            file.write_bytes(content)
            try:
                well, why = (read_results(out) if results else read_sealed(file)) == whole, "read otherwise"
            except Refusal:
                well, why = True, ""
            except Exception as error:
                well, why = False, repr(error)
            trial.note(f"damaged {'results.json' if results else 'record'}", well, why)
        file.write_bytes(raw)


def in_the_way(trial: Trial) -> None:
    """A file or somebody's folder in the place of the results is told, and stays."""
    for what in ("file", "folder", "cache"):
        with trial.place() as place:
            mine = place / {"file": "out", "folder": "out/mine.txt", "cache": "cache"}[what]
            if what == "cache":
                shutil.rmtree(mine, ignore_errors=True)
            mine.parent.mkdir(exist_ok=True)
            mine.write_text("mine")
            status = run(trial.command.words, place)
            told = (place / "told").read_text()
            needs = what == "cache" or trial.name != "teacher"
            well = (
                well_told(status, told) and mine.read_text() == "mine" and (status == 2 or not needs or what == "cache")
            )
            trial.note("something in the way", well, f"{what}: status {status}: {told[-300:]!r}")


def not_finite(trial: Trial) -> None:
    """NaN at each entry ends the command with one line and a status of its own, and nothing half done."""
    code = (
        "import torch\n"
        "class Bad:\n    def __call__(self, x, t, c=None): return x * float('nan')\n"
        "class Late:\n    calls = 0\n"
        "    def __call__(self, x, t, c=None):\n        self.calls += 1\n"
        "        return x * (float('nan') if self.calls > 30 else 1.0)\n"
        "class Data:\n    def sample(self, n, g=None): return torch.full((n, 2), float('nan'))\n"
        "class Rare:\n    def sample(self, n, g=None):\n        x = torch.randn((n, 2), generator=g)\n"
        "        x[-1] = float('inf')\n        return x\n"
    )
    for what, words in {
        "expert": "--expert mine.Bad",
        "late expert": "--expert mine.Late",
        "data": "--data mine.Data",
        "one row of data": "--data mine.Rare",
        "weights": "--policy mine.Bad",
        "learning rate": "--lr 1e30 --lr_ramp constant",
    }.items():
        with trial.place() as place:
            (place / "mine.py").write_text(code)
            status = run(f"{trial.command.words} {words}", place)
            told = (place / "told").read_text()
            trial.note("NaN", status in (2, 3) and well_told(status, told), f"{what}: status {status}, {told[-300:]!r}")


def tried(trial: Trial, kills: int, quick: bool) -> None:
    """Do all to one command."""
    name = trial.name
    if name == "bench":
        results_flips(trial, 20 if quick else 200)
    for number in range(kills):
        trial.signalled(signal.SIGKILL, str(number))
    for number in range(max(1, kills // 4)):
        trial.signalled(signal.SIGTERM, str(number))
        trial.signalled(signal.SIGINT, str(number))
    short, step = name == "bench", 3 if name == "distill" else 1

    def by(fault: Callable[[], None]) -> Callable[[int, Path], Sabotage]:
        return lambda number, _: at_write(number, fault)

    trial.at_writes("killed at a write", by(killed), 3 if quick else 12 if short else 400)
    if short:
        trial.at_writes("worker killed at a write", in_workers, 1 if quick else 12)
    for kind, code in {"no space at a write": errno.ENOSPC, "read-only at a write": errno.EROFS}.items():
        trial.at_writes(kind, by(refused(code)), 2 if quick else 8 if short else 60, step)
    if not short:
        trial.starved((1000, 5000) if quick else (1000, 2000, 3000, 5000, 10_000, 30_000, 100_000))
    in_the_way(trial)
    if name == "distill":
        flips(trial, 3 if quick else 70)
        not_finite(trial)


def main(words: Sequence[str] | None = None) -> int:
    """Print what was tried, survived and lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; all if none is named"
    )
    parser.add_argument("--kills", type=int, default=20, help="random kills of each command")
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    given = parser.parse_args(words)
    import torch

    torch.set_num_threads(1)
    import dagdiff.commands.distill
    import dagdiff.runs.folder  # noqa: F401  (loaded once; each process that is started has it)

    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in given.commands or COMMANDS:
            trial = Trial(name, Path(folder) / name)
            try:
                tried(trial, given.kills, given.quick)
            finally:  # also where it is stopped
                for kind, count in trial.tried.items():
                    gone = trial.lost[kind]
                    print(f"{name:8} {kind:28} tried {count:4}  survived {count - gone:4}  lost {gone:4}", flush=True)
            lost += sum(trial.lost.values())
    print(f"lost: {lost}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
