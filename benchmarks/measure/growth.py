"""How much more memory does a run need that is ten times as long, and what does saving it cost?

Run: python -m dagdiff.benchmarks.measure.growth --chains 4096 --rounds 20

Each run is a process of its own, so the peak is that of the run alone, libraries among it. The time is the processor's,
with checkpoints as usual and with none; a run that is ten times as long is the one that is measured.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SETTINGS = "--task gaussians8-biased --policy fresh --policy.width 32 --policy.depth 2 --substeps 2 --samples 200"


class Run(NamedTuple):
    """What a run has taken."""

    peak: float
    """MB (10^6 bytes) of memory."""
    seconds: float
    """Of the processor."""


def run(folder: Path, chains: int, rounds: int, saving: bool = True) -> Run:
    """Distil in a process of its own, four updates a round; return what it has taken.

    Raises:
        RuntimeError: if it fails.
    """
    words = f"distill {SETTINGS} --chains {chains} --rounds {rounds} --updates {4 * rounds} --heldout 16 --device cpu"
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        from dagdiff.cli import main
        from dagdiff.runs.keeping import Keeper

        if not saving:
            Keeper.watch = lambda keeper: None  # type: ignore[method-assign, assignment]
        os._exit(main([*words.split(), "--out", str(folder / f"{rounds}-{saving}")]))
    _, status, taken = os.wait4(process, 0)
    if status != 0:
        raise RuntimeError(f"the run of {rounds} rounds has ended with status {status}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return Run(taken.ru_maxrss * unit / 1e6, taken.ru_utime + taken.ru_stime)


def main(words: Sequence[str] | None = None) -> None:
    """Print both peaks and both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=20, help="of the shorter run, a tenth of the longer one's")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        short = run(Path(folder), given.chains, given.rounds)
        long = run(Path(folder), given.chains, 10 * given.rounds)
        plain = run(Path(folder), given.chains, 10 * given.rounds, saving=False)
    told = f"{given.rounds} rounds of {given.chains:,} chains"
    print(
        f"{told}: peak {short.peak:.0f} MB; ten times as many: {long.peak:.0f} MB, {long.peak / short.peak:.3f} of it"
    )
    print(f"processor time with checkpoints {long.seconds:.1f} s, without {plain.seconds:.1f} s")


if __name__ == "__main__":
    main()
