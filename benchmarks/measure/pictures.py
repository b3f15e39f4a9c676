"""The memory in which pictures become states: a process that caches N of them, against one that caches ten times N.

Run: python -m dagdiff.benchmarks.measure.pictures

Pictures of 256 x 256 and a small pipeline with random weights are made in a folder that is deleted afterwards. Each
number of pictures is cached by a process of its own, ``dagdiff cache``; its peak is what the system says at its end.
The states are far smaller than the pictures, and the library itself is in each peak: :func:`measure` tells its share.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dagdiff.benchmarks.small.classic import stable_diffusion, vae
from dagdiff.checks import Refusal

SIDE = 256
"""Pixels of a picture's side."""


class Peak(NamedTuple):
    """What a process needed at most."""

    pictures: int
    bytes: int


def measure(numbers: Sequence[int] = (200, 2000), side: int = SIDE) -> list[Peak]:
    """Return the peak of memory for each number of pictures; the first process caches ten, for the library's share."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_pipeline(folder / "pipeline", side)
        found = []
        for number in (10, *numbers):
            draw(folder / str(number), number, side)
            found.append(Peak(number, _peak(folder, number)))
        return found


def save_pipeline(folder: Path, side: int) -> None:
    """Write a small text-to-image pipeline for pictures of that size, whose autoencoder halves them three times."""
    pipeline: Any = stable_diffusion(sample_size=side // 8)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    pipeline.register_modules(vae=vae(block_out_channels=[8] * 4, **kinds))
    pipeline.save_pretrained(folder)


def draw(folder: Path, number: int, side: int) -> None:
    """Write pictures of smooth noise, each with one of four captions."""
    folder.mkdir()
    chance = np.random.default_rng(number)
    for row in range(number):
        small = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side)).save(folder / f"{row:05d}.jpg")
        (folder / f"{row:05d}.txt").write_text(f"noise of kind {row % 4}", encoding="utf-8")


def table(peaks: Sequence[Peak], side: int = SIDE) -> str:
    """Return the peaks as a table, beside what all pictures are as floats."""
    rows = ["| pictures | peak, MB | over ten pictures, MB | all pictures as floats, MB |", "|---|---|---|---|"]
    for peak in peaks:
        over, floats = peak.bytes - peaks[0].bytes, 12 * side**2 * peak.pictures
        rows.append(f"| {peak.pictures:,} | {peak.bytes / 1e6:.0f} | {over / 1e6:.0f} | {floats / 1e6:,.0f} |")
    return "\n".join(rows)


def _peak(folder: Path, number: int) -> int:
    """The peak of a process that caches the pictures, in bytes."""
    words = ["--pipeline.path", str(folder / "pipeline"), "--pipeline.images", str(folder / str(number))]
    program = (
        "import resource, sys; from dagdiff.cli import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "cache", *words, "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "DAGDIFF_CACHE": str(folder / "cache")}
    )
    if done.returncode:
        raise Refusal(f"caching {number} pictures failed: {done.stderr.strip().splitlines()[-1]:.200}")
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(table(measure()))
