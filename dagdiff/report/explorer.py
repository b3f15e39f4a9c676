"""The chain explorer's data: chains of student and expert from the same noise, small enough for a page.

The page's script (``templates/explorer.js``) draws them; it computes how far each state of a student is from the
expert's at the same step. Points are rounded to a thousandth, images to 256 greys or colours.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dagdiff.report.figures import ROLES, VARIANTS, Points
from dagdiff.report.glossary import variant_name
from dagdiff.report.plane import half_width

CHAINS, PICTURES, TARGET = 32, 6, 400
"""How many chains of points, chains of images, and points of the target a page holds."""

_FAR = 1e6  # where a state stands that is not finite, far outside of every frame
_SIDE = 64  # pixels of an image at most, that a page holds


def explored(name: str, times: Sequence[float], chains: Mapping[str, Points], truth: Points) -> dict[str, Any] | None:
    """Return what the explorer shows of one objective; None where nothing starts from the same noise.

    Args:
        name: of it.
        times: the grid, K + 1 times from 1 to 0.
        chains: "expert" and kinds of training -> ``(n, K + 1, *D)``, from noise to data.
        truth: points of the target, ``(n, *D)``.
    """
    chains = {
        kind: np.nan_to_num(paths.astype(float), nan=_FAR, posinf=_FAR, neginf=-_FAR) for kind, paths in chains.items()
    }
    expert, length = chains["expert"], len(times)
    alike = {
        kind: paths
        for kind, paths in chains.items()
        if paths.shape[1:] == expert.shape[1:] and paths.shape[1] == length and _paired(paths, expert)
    }
    if len(alike) < 2:
        return None
    pictures = expert.ndim == 5
    held = {kind: paths[: PICTURES if pictures else CHAINS] for kind, paths in alike.items()}
    found: dict[str, Any] = {
        "name": name,
        "times": [round(float(t), 4) for t in times],
        "kinds": [{"name": variant_name(kind), "colour": _colour(kind), "expert": kind == "expert"} for kind in held],
    }
    if not pictures:
        half = half_width([truth, held["expert"].reshape(-1, 2)])
        points = [np.round(paths, 3).tolist() for paths in held.values()]
        return {**found, "half": half, "target": np.round(truth[:TARGET].astype(float), 3).tolist(), "chains": points}
    stride = -(-max(expert.shape[-2:]) // _SIDE)
    seen = [paths[:, :, : 3 if paths.shape[2] >= 3 else 1, ::stride, ::stride] for paths in held.values()]
    greys = [np.round(127.5 * (np.clip(paths, -1.0, 1.0) + 1.0)).astype(np.uint8) for paths in seen]
    errors = [_distances(paths, held["expert"]) for paths in held.values()]
    return {
        **found,
        "shape": list(greys[0].shape),
        "pixels": [base64.b64encode(paths.tobytes()).decode("ascii") for paths in greys],
        "errors": errors,
    }


def _paired(paths: Points, expert: Points) -> bool:
    """Whether chains start from the expert's noise."""
    shown = min(len(paths), len(expert), PICTURES)
    return bool(shown and np.allclose(paths[:shown, 0], expert[:shown, 0], atol=1e-4))


def _distances(paths: Points, expert: Points) -> list[list[float]]:
    """Root mean square over an image's values, of chain and step."""
    shown = min(len(paths), len(expert))
    squares = (paths[:shown] - expert[:shown]) ** 2
    found: list[list[float]] = np.round(np.sqrt(squares.mean(axis=(2, 3, 4))), 4).tolist()
    return found


def _colour(kind: str) -> str:
    return ROLES["expert"] if kind == "expert" else VARIANTS.get(kind, "#555555")
