"""Avatars: faces in colour, 32 x 32, drawn on the spot from styles that ship as a package, as many as one likes.

Every picture is a draw of its own from a law that can always be drawn from again, so a teacher memorises nothing and
held-out pictures are fresh ones. Ten styles are the classes of :func:`avatars`. Every second face wears glasses; with
and without are classes of their own in :func:`avatars_by_glasses`, whose biased set shows a student no glasses.

Drawn by DiceBear (https://www.dicebear.com, MIT) and rendered by resvg (MPL 2.0): ``pip install 'dagdiff[pictures]'``.
The styles and their licences:

==========  ====================  =============
style       by                    licence
==========  ====================  =============
adventurer  Lisa Wischofsky       CC BY 4.0
big-smile   Ashley Seo            CC BY 4.0
fun-emoji   Davis Uche            CC BY 4.0
lorelei     Lisa Wischofsky       CC0 1.0
micah       Micah Lanier          CC BY 4.0
miniavs     Webpixels             CC BY 4.0
notionists  Zoish                 CC0 1.0
open-peeps  Pablo Stanley         CC0 1.0
personas    Draftbit              CC BY 4.0
pixel-art   DiceBear              CC0 1.0
==========  ====================  =============
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dagdiff.checkpoint import cache_folder, save_arrays
from dagdiff.checks import Refusal, check_at_least
from dagdiff.envs.images import ImageWorld, split_at, to_states
from dagdiff.jobs.awaited import awaited
from dagdiff.progress import Progress

SIDE = 32
DRAWN, HELD_OUT = 12_000, 2_000
"""Pictures of a dataset, and those of them that are held out."""


class Glasses(NamedTuple):
    """The component of a style that glasses belong to, and its variants that are glasses; none of them means all.

    ``swapped`` components are always there, such as eyes: a bare face has another variant.
    """

    component: str
    variants: tuple[str, ...] = ()
    swapped: bool = False


STYLES: dict[str, Glasses] = {
    "adventurer": Glasses("glasses"),
    "big-smile": Glasses("accessories", ("glasses", "sunglasses")),
    "fun-emoji": Glasses("eyes", ("glasses", "shades"), swapped=True),
    "lorelei": Glasses("glasses"),
    "micah": Glasses("glasses"),
    "miniavs": Glasses("glasses"),
    "notionists": Glasses("glasses"),
    "open-peeps": Glasses(
        "accessories",
        ("glasses", "glasses2", "glasses3", "glasses4", "glasses5", "sunglasses", "sunglasses2"),
    ),
    "personas": Glasses("eyes", ("glasses", "sunglasses"), swapped=True),
    "pixel-art": Glasses("glasses"),
}
"""The styles, in the order of their labels, and how they wear glasses."""

GROUNDS = ("#b6e3f4", "#c0aede", "#d1d4f9", "#ffd5dc", "#ffdfbf", "#c9e4c5")
"""Colours behind the faces, one drawn for each."""


def avatars() -> ImageWorld:
    """Avatars by style, ten classes; the biased set lacks five of them."""
    pixels, styles, _ = _pictures()
    return split_at("avatars", to_states(pixels), styles, tuple(STYLES), DRAWN - HELD_OUT)


def avatars_by_glasses() -> ImageWorld:
    """The same avatars by style and glasses, the bare ones first; the biased set lacks all that wear glasses."""
    pixels, styles, glasses = _pictures()
    bare = len(STYLES)
    classes = (*STYLES, *(f"{style} with glasses" for style in STYLES))
    world = split_at("avatars-glasses", to_states(pixels), styles + bare * glasses, classes, DRAWN - HELD_OUT)
    return replace(world, hidden=tuple(range(bare, 2 * bare)))


def draw(style: str, seed: int, glasses: bool = False) -> np.ndarray:
    """Draw one avatar, ``(32, 32, 3)`` bytes; the same for the same style, seed and glasses.

    Raises:
        Refusal: for an unknown style, and where the packages are missing.
    """
    dicebear, resvg = _packages()
    if style not in STYLES:
        raise Refusal(f"unknown style {style!r}. Known: {', '.join(STYLES)}.")
    worn = STYLES[style]
    chosen: dict[str, Any] = {"seed": str(seed), "size": SIDE}
    if not worn.swapped:
        chosen[f"{worn.component}Probability"] = 100 if glasses else 0
    if worn.variants and (glasses or worn.swapped):
        chosen[f"{worn.component}Variant"] = list(worn.variants) if glasses else _others(style)
    ground = GROUNDS[int(hashlib.sha256(f"{style} {seed}".encode()).hexdigest(), 16) % len(GROUNDS)]
    svg = dicebear.Avatar(_style(style), chosen).to_string()
    look = {"width": SIDE, "height": SIDE, "background": ground, "skip_system_fonts": True}
    png = bytes(resvg.svg_to_bytes(svg_string=svg, **look))
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def drawn(number: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield so many avatars with the numbers of their style and of their glasses (0 bare, 1 with)."""
    check_at_least("number", number, 1)
    coins = torch.Generator().manual_seed(0)
    names = list(STYLES)
    for seed in range(number):
        label = int(torch.randint(len(names), (), generator=coins))
        glasses = bool(torch.rand((), generator=coins) < 0.5)
        yield draw(names[label], seed, glasses), label, int(glasses)


def _pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels ``(N, 3, 32, 32)`` uint8, styles and glasses ``(N,)`` int64: from the cache, or drawn into it."""
    _packages()
    folder = cache_folder() / "avatars"
    path = folder / f"{_fingerprint()}.npz"
    with awaited(folder / "drawing"):
        if not _whole(path):
            faces = Progress("drawing avatars, once", DRAWN).over(drawn(DRAWN))
            pixels, styles, glasses = (np.stack(column) for column in zip(*faces, strict=True))
            columns = {"images": pixels.transpose(0, 3, 1, 2), "styles": styles, "glasses": glasses}
            save_arrays(path, **columns)
        with np.load(path) as kept:
            images, labels, worn = (torch.from_numpy(kept[name]) for name in ("images", "styles", "glasses"))
    return images, labels.long(), worn.long()


def _whole(path: Path) -> bool:
    """Whether a file of the cache is there and can be read; one that is damaged is drawn again."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            return bool(kept["images"].shape == (DRAWN, 3, SIDE, SIDE) and len(kept["glasses"]) == DRAWN)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, BadZipFile):
        return False


def _fingerprint() -> str:
    """What the pictures depend on: the packages that draw them, the styles and the number."""
    packages = [version(name) for name in ("dicebear-core", "dicebear-styles", "resvg-py")]
    told = json.dumps([packages, list(STYLES.items()), GROUNDS, SIDE, DRAWN])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@cache
def _definition(style: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))
    return found


@cache
def _style(name: str) -> Any:
    dicebear, _ = _packages()
    return dicebear.Style(_definition(name))


def _others(style: str) -> list[str]:
    """The variants of the component of a style's glasses that are none."""
    worn = STYLES[style]
    return [name for name in _definition(style)["components"][worn.component]["variants"] if name not in worn.variants]


def _packages() -> tuple[Any, Any]:
    """Return dicebear and resvg; reject where they are missing."""
    try:
        import dicebear
        import dicebear_styles  # noqa: F401
        import resvg_py
    except ImportError as error:
        raise Refusal(
            f"avatars need a package that is missing ({error}). Run: pip install 'dagdiff[pictures]'"
        ) from None
    return dicebear, resvg_py
