"""Small diffusers pipelines with random weights, one of each family, and how they are saved."""

import shutil
from pathlib import Path
from typing import Any

import torch

from dagdiff.benchmarks.small.classic import (
    SD_BETAS,
    clip,
    ddpm,
    dit,
    flux,
    sd3,
    sdxl,
    stable_diffusion,
    t5,
    text_unet,
    unet,
    vae,
)

__all__ = [
    "SD_BETAS", "clip", "ddpm", "dit", "flux", "save", "sd3", "sdxl", "seeded", "stable_diffusion", "t5", "text_unet",
    "unet", "vae",
]  # fmt: skip


def save(pipeline: Any, folder: Path, pickled: bool = False, flat: bool = False) -> str:
    """Save a pipeline; with its weights as .bin, or in the flat layout of the google/ddpm-* repositories."""
    pipeline.save_pretrained(folder, safe_serialization=not pickled)
    if flat:
        for part in ("unet", "scheduler"):
            for file in (folder / part).iterdir():
                shutil.move(file, folder / file.name)
            (folder / part).rmdir()
    return str(folder)


def seeded(make: Any, *arguments: Any, **options: Any) -> Any:
    """Make a pipeline whose random weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **options)
