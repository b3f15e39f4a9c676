"""Sealed JSON: an object that holds the SHA-256 of all else that it holds, so that a damaged file is noticed.

The digest is of the content, not of the bytes: spaces, the order of names and the spelling of a number don't matter.
"""

import json
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import content_hash, finite, save_json
from dagdiff.checks import Refusal
from dagdiff.reading import MEGABYTE, Kind, check_kind, read_json

SEAL = "digest"
"""The name under which the digest stands."""


def save_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write an object as :func:`dagdiff.checkpoint.save_json` does, with its digest first."""
    plain = json.loads(json.dumps(finite(content), allow_nan=False))
    save_json(path, {SEAL: _digest(plain), **plain})


def read_sealed(path: Path, kind: Kind = dict, most: int = 64 * MEGABYTE, required: bool = True) -> dict[str, Any]:
    """Return what :func:`save_sealed` wrote, without the digest.

    Args:
        path: the file.
        kind: of the content (:mod:`dagdiff.reading`).
        most: bytes that it may hold.
        required: reject a file without a digest; else it is read as it is, as older ones are.

    Raises:
        Refusal: if it can't be read, holds something else, or is not what was written.
    """
    content: dict[str, Any] = read_json(path, dict, most)
    kept = content.pop(SEAL, None)
    if (required or kept is not None) and kept != _digest(content):
        raise Refusal(
            f"{path} is damaged or was changed: its SHA-256 is not the one that it holds. Copy it again, or delete it "
            "and run the command again."
        )
    check_kind(content, kind, str(path))
    return content


def _digest(content: dict[str, Any]) -> str:
    return content_hash(json.dumps(content, sort_keys=True))
