"""Avatars: what is drawn, how the worlds are labelled, and what the cache survives."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from dagdiff.checks import Refusal
from dagdiff.envs import avatars
from dagdiff.envs.images import biased

pytestmark = pytest.mark.skipif(find_spec("resvg_py") is None, reason="needs the extra pictures")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Worlds of 60 pictures and two styles, whose validation takes its time, in a cache of their own."""
    monkeypatch.setattr(avatars, "DRAWN", 60)
    monkeypatch.setattr(avatars, "HELD_OUT", 12)
    monkeypatch.setattr(avatars, "STYLES", {name: avatars.STYLES[name] for name in ("fun-emoji", "pixel-art")})
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path))
    return tmp_path / "avatars"


def test_an_avatar_is_the_same_for_the_same_seed() -> None:
    first = avatars.draw("pixel-art", 3)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, avatars.draw("pixel-art", 3))
    assert not np.array_equal(first, avatars.draw("pixel-art", 4))


def test_glasses_change_the_face_and_nothing_else() -> None:
    bare, worn = (avatars.draw("pixel-art", 3, glasses).astype(int) for glasses in (False, True))
    changed = np.abs(bare - worn).sum(2) > 30
    assert 4 <= changed.sum() <= 32 * 32 / 3, "glasses are some pixels"
    rows = np.flatnonzero(changed.any(1))
    assert rows.min() >= 6 and rows.max() <= 26, "and they sit in the face"


def test_one_set_of_pictures_has_two_labellings(few: Path) -> None:
    by_style, by_glasses = avatars.avatars(), avatars.avatars_by_glasses()
    assert torch.equal(by_style.train.points, by_glasses.train.points)
    assert by_style.shape == (3, 32, 32) and len(by_style.test.points) == 12
    assert by_style.classes == ("fun-emoji", "pixel-art")
    assert by_glasses.classes == ("fun-emoji", "pixel-art", "fun-emoji with glasses", "pixel-art with glasses")
    styles, worn = by_style.train.labels, by_glasses.train.labels
    assert styles is not None and worn is not None
    assert torch.equal(worn % 2, styles)
    glasses = worn >= 2
    assert 20 < int(glasses.sum()) < 40
    shown = biased(by_glasses)
    assert shown.labels is not None and shown.labels.max() == 1 and len(shown.points) == int((~glasses).sum())
    assert set(biased(by_glasses, missing=[0]).labels.tolist()) == {1, 2, 3}  # type: ignore[union-attr]
    assert set(biased(by_style).labels.tolist()) == {0}, "the upper half"  # type: ignore[union-attr]


def test_every_variant_that_is_glasses_is_known() -> None:
    """A style may draw glasses as eyes: a bare face must have none of them."""
    for style, worn in avatars.STYLES.items():
        for component, part in avatars._definition(style)["components"].items():
            named = {name for name in part["variants"] if "glasses" in name.lower() or name == "shades"}
            assert named <= set(worn.variants) and (not named or component == worn.component), (style, component)


@pytest.mark.parametrize("style", ["fun-emoji", "personas"])
def test_glasses_that_are_eyes_are_swapped(style: str) -> None:
    """Bare faces of many seeds have other eyes than those with glasses, which are of the two kinds."""
    chosen = [avatars._others(style), list(avatars.STYLES[style].variants)]
    assert not {*chosen[0]} & {*chosen[1]} and len(chosen[0]) + len(chosen[1]) == len(
        avatars._definition(style)["components"]["eyes"]["variants"]
    )
    dark = [np.mean([avatars.draw(style, seed, glasses)[10:20].min(2) for seed in range(24)]) for glasses in (0, 1)]
    assert dark[1] < dark[0] - 2, "glasses cover more than eyes do"


def test_pictures_are_all_different(few: Path) -> None:
    points = torch.cat([avatars.avatars().train.points, avatars.avatars().test.points])
    assert len({hashlib.sha256(each.numpy().tobytes()).digest() for each in points}) >= 0.95 * len(points)


def test_a_damaged_cache_is_drawn_again(few: Path) -> None:
    first = avatars.avatars().train.points
    (kept,) = few.glob("*.npz")
    whole = kept.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not an npz file"):
        kept.write_bytes(damaged)
        assert torch.equal(avatars.avatars().train.points, first)
        assert kept.read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pixelart", 0), "unknown style 'pixelart'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(words: tuple[str, int], told: str) -> None:
    with pytest.raises(Refusal, match=told):
        avatars.draw(*words)


def test_without_the_packages_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(Refusal, match=r"avatars need a package that is missing .* pip install 'dagdiff\[pictures\]'"):
        avatars.avatars()
