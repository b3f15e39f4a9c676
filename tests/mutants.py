"""Would a test notice? Every mutant of tests/mutants.md is put into a copy of the tree, and its tests must fail.

Run: make mutants, or python tests/mutants.py [--workers N] [WORD ...] for those whose row holds one of the words.

The table is the one source: a file, what one line of it holds, what the mutant puts there, the law that this breaks,
and the tests that catch it. Exits with 1 if a mutant survives, if its text is not in the file exactly once, or if the
tests fail without it.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
MADE = (".git", ".venv", "runs", "build", "dist", "site")
"""What is made at the root of the tree, and no part of it; the package has rooms of these names."""

CACHED = ("__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
PATIENCE = 900.0
CAUGHT, SURVIVED, BROKEN = "caught", "SURVIVED", "BROKEN"


class Mutant(NamedTuple):
    """One row of the table."""

    file: str
    before: str
    after: str
    law: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.law}"

    def applied(self, text: str) -> str:
        """Return the file's text with the mutant in it.

        Raises:
            ValueError: if it does not apply exactly once.
        """
        found = text.count(self.before)
        if found != 1:
            raise ValueError(f"{self}: {self.before!r} stands there {found} times, not once")
        return text.replace(self.before, self.after)


def read_table(text: str) -> list[Mutant]:
    """Return the mutants of a table in Markdown, whose head names the five columns.

    Raises:
        ValueError: for a row that is no mutant.
    """
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    found = []
    for row in rows:
        cells = [cell.strip() for cell in row]
        if len(cells) != 5 or not all(cells):
            raise ValueError(f"a row needs file, before, after, law and tests, and no other bars; got {row}")
        file, before, after = (cell.removeprefix("`").removesuffix("`") for cell in cells[:3])
        tests = tuple(re.findall(r"`([^`]+)`", cells[4]))
        if before == after or not tests:
            raise ValueError(f"{file}: a mutant changes something and names its tests; got {row}")
        found.append(Mutant(file, before, after, cells[3], tests))
    return found


def copy_tree(root: Path, place: Path) -> Path:
    """Copy the tree, symlinks kept, without what is built or cached; return the copy."""
    made, cached = shutil.ignore_patterns(*MADE), shutil.ignore_patterns(*CACHED)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return cached(folder, names) | (made(folder, names) if Path(folder) == root else set())

    shutil.copytree(root, place, symlinks=True, ignore=left_out)
    return place


def run_tests(tree: Path, tests: Sequence[str]) -> int | None:
    """Run tests of a tree against its own code; return pytest's status, None if they did not end in time."""
    with tempfile.TemporaryDirectory() as cache:  # what a mutant trains must never be met again
        own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "DAGDIFF_CACHE": cache, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(words, cwd=tree, env={**os.environ, **own}, capture_output=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return None
    return done.returncode


def judge(mutant: Mutant, tree: Path) -> str:
    """Put the mutant into the tree, run its tests, take it out again; return what came of it.

    A test that fails, or hangs, has caught it; tests that can't be run have not.
    """
    file = tree / mutant.file
    text = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutant.applied(text), encoding="utf-8")
        return {0: SURVIVED, 1: CAUGHT, None: CAUGHT}.get(run_tests(tree, mutant.tests), BROKEN)
    except ValueError:
        return BROKEN
    finally:
        file.write_text(text, encoding="utf-8")


def run(mutants: Sequence[Mutant], root: Path, workers: int = 1) -> dict[Mutant, str]:
    """Judge every mutant in a copy of the tree, a copy a worker; print each as it comes; return all.

    Raises:
        ValueError: if the tests fail without a mutant, for then they show nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(workers):
            trees.put(copy_tree(root, Path(folder) / str(number)))
        tests = sorted({test for mutant in mutants for test in mutant.tests})

        def judged(mutant: Mutant) -> str:
            tree, started = trees.get(), time.monotonic()
            try:
                verdict = judge(mutant, tree)
            finally:
                trees.put(tree)
            print(f"{verdict:8} {time.monotonic() - started:4.0f} s  {mutant}", flush=True)
            return verdict

        status = run_tests(Path(folder) / "0", tests) if tests else 0
        if status != 0:
            raise ValueError(f"the tests do not pass without a mutant (pytest ends with {status}): {' '.join(tests)}")
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(mutants, pool.map(judged, mutants), strict=True))


def main(words: Sequence[str], table: Path = TABLE, root: Path = ROOT) -> int:
    """Judge the mutants that hold one of the words, or all; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="copies of the tree that are tested at once")
    parser.add_argument("words", nargs="*", help="only mutants whose row holds one of them")
    given = parser.parse_args(words)
    mutants = read_table(table.read_text(encoding="utf-8"))
    chosen = [mutant for mutant in mutants if not given.words or any(word in str(mutant) for word in given.words)]
    try:
        found = run(chosen, root, max(1, given.workers))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    missed = [mutant for mutant, verdict in found.items() if verdict != CAUGHT]
    print(f"{len(found) - len(missed)} of {len(found)} mutants are caught")
    return 1 if missed or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
