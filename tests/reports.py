"""Folders of results with known numbers, for tests of what is read from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dagdiff.report.results import IDENTITY
from dagdiff.tasks.base import Task

TASK = "gaussians8-biased"
LOSSES = ("loss_forward", "loss_expert", "loss_own", "data_mismatch", "own_errors", "loss_gap", "end_error")
PLANE = [*(name for metric in Task.metrics for name in metric.numbers), *LOSSES]
Energies = Mapping[str, Sequence[float | None]]


def entry(variant: str, seed: int, energy: float | None, **changes: Any) -> dict[str, Any]:
    metrics = dict.fromkeys(PLANE, 0.5) | {"energy": energy, "w2": 0.1 + seed / 100, "coverage": 0.9 - seed / 100}
    metrics |= {"loss_forward": 0.2, "loss_own": 0.8 if variant == "forward" else 0.22}
    config = f"{changes.get('objective', 'consistency')}-{variant}-{seed}-{changes.get('steps', 4)}"
    return {
        "task": TASK,
        "world": "gaussians8",
        "data": "biased",
        "objective": "consistency",
        "variant": variant,
        "shares": [0.25, 0.5, 0.25],
        "seed": seed,
        "steps": 4,
        "updates": 600,
        "nfe_student": 1000 + seed,
        "nfe_expert": 4000,
        "seconds": 2.0 + seed,
        "config": config,
        "samples": "samples/run.npz",
        "metrics": metrics,
        "by_step": {
            "t": [1.0, 0.75, 0.5, 0.25],
            "loss_forward": [0.1, 0.2, 0.2, None],
            "loss_own": [0.1, 0.4, 0.8, 2.0],
        },
        **changes,
    }


def content(energies: Energies, **changes: Any) -> dict[str, Any]:
    """Records of one task and objective: variant -> energy distances of seeds 0, 1, ..."""
    runs = [entry(name, seed, value, **changes) for name, of in energies.items() for seed, value in enumerate(of)]
    yardstick = dict.fromkeys(PLANE, 0.9) | {"energy": 0.0005, "mode_kl": None}
    reference = {
        "floor": yardstick | {"energy": 0.0001},
        "expert": yardstick,
        "expert_by_nfe": {str(steps): yardstick | {"energy": 0.5 / steps} for steps in (1, 2, 4, 8)},
        "samples": f"samples/{TASK}.npz",
    }
    settings = {"seeds": 3, "out": "/home/somebody/secret/runs", "tasks": [TASK]}
    versioned = {"suite": "toy2d", "dagdiff": "0.0.9", "identity": IDENTITY, "settings": settings}
    return {**versioned, "records": runs, "references": {TASK: reference}}


def folder(path: Path, found: dict[str, Any]) -> Path:
    """Write a folder of results with samples of known clouds."""
    rng = np.random.default_rng(0)
    (path / "samples").mkdir(parents=True, exist_ok=True)
    clouds = {name: rng.normal(size=(200, 2)) for name in ("data", "truth", "x")}
    np.savez(path / "samples" / f"{TASK}.npz", **clouds, chains=rng.normal(size=(64, 5, 2)))
    np.savez(path / "samples" / "run.npz", x=rng.normal(size=(200, 2)), chains=rng.normal(size=(64, 5, 2)))
    (path / "results.json").write_text(json.dumps(found))
    return path


GAIN = {"forward": [0.0071, 0.0069, 0.0070], "mixture": [0.0021, 0.0026, 0.0022]}
