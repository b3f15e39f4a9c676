"""Pictures of a chain: the way it has come, and an arrow to where the expert would lead it.

A state of the plane, ``(2,)``, is a point on a map with its trail; an image ``(C, H, W)`` is shown as one, beside the
expert's prediction; any other state is a row of bars, one a coordinate.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frame = NDArray[np.uint8]
"""An RGB picture, ``(H, W, 3)`` bytes."""

Values = NDArray[np.float32]
"""One state, ``(*D,)``."""

SIDE = 320
"""Height and width of a frame in pixels; even, as video codecs want it."""


def draw_chain(trail: Sequence[Values], advice: Values | None, caption: str) -> Frame:
    """Draw one chain, ``(SIDE, SIDE, 3)``.

    Args:
        trail: its states so far, the newest last.
        advice: the expert's prediction at the newest; None, or one that is not finite, draws no arrow.
        caption: a line below.
    """
    canvas = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(canvas)
    if advice is not None and not np.isfinite(advice).all():
        advice = None
    if trail[-1].shape == (2,):
        _map(draw, trail, advice)
    elif trail[-1].ndim == 3:
        _pictures(canvas, draw, trail[-1], advice)
    else:
        _bars(draw, trail[-1].ravel(), None if advice is None else advice.ravel())
    draw.text((_MARGIN, _SIDE - _FOOT), caption, fill=_INK, font=ImageFont.load_default(_FOOT // 2))
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _map(draw: ImageDraw.ImageDraw, trail: Sequence[Values], advice: Values | None) -> None:
    """The plane, from -4 to 4 or as many doublings of it as the chain needs."""
    points = [*trail, *([] if advice is None else [advice])]
    half = _reach(np.stack(points), 4.0)
    width = _SIDE - _FOOT

    def place(point: Values) -> tuple[float, float]:
        return _SIDE / 2 + float(point[0]) / half * width / 2, width / 2 - float(point[1]) / half * width / 2

    (left, top), (right, bottom) = (
        place(np.array([-half, half], np.float32)),
        place(np.array([half, -half], np.float32)),
    )
    middle = place(np.zeros(2, np.float32))
    draw.rectangle((left, top, right, bottom), outline=_GRID, width=_THIN)
    draw.line((left, middle[1], right, middle[1]), fill=_GRID, width=_THIN)
    draw.line((middle[0], top, middle[0], bottom), fill=_GRID, width=_THIN)
    way = [place(point) for point in trail]
    if len(way) > 1:
        draw.line(way, fill=_STUDENT, width=_THICK)
    for x, y in way[:-1]:
        draw.circle((x, y), 2 * _THIN, fill=_STUDENT)
    if advice is not None:
        _arrow(draw, way[-1], place(advice))
    draw.circle(way[-1], 4 * _THIN, fill=_STUDENT)


def _pictures(canvas: Image.Image, draw: ImageDraw.ImageDraw, state: Values, advice: Values | None) -> None:
    """The state and, with an arrow, the expert's prediction beside it; -1 is black, 1 white."""
    shown = [state] if advice is None else [state, advice]
    room = (_SIDE - 2 * _MARGIN - _GAP * (len(shown) - 1)) // len(shown)
    for number, values in enumerate(shown):
        channels = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
        pixels = ((channels.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)
        height, width = pixels.shape[:2]
        scale = min(room / width, (_SIDE - _FOOT - 2 * _MARGIN) / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        canvas.paste(picture, (_MARGIN + number * (room + _GAP), (_SIDE - _FOOT - size[1]) // 2))
    if advice is not None:
        middle, left = (_SIDE - _FOOT) / 2, _MARGIN + room
        _arrow(draw, (left + _GAP * 0.1, middle), (left + _GAP * 0.9, middle))


def _bars(draw: ImageDraw.ImageDraw, state: Values, advice: Values | None) -> None:
    """A bar a coordinate, at most 32 of them, from -4 to 4 or as many doublings of it as they need."""
    state, advice = state[:32], None if advice is None else advice[:32]
    half = _reach(state if advice is None else np.stack([state, advice]), 4.0)
    height, slot = (_SIDE - _FOOT) / 2, (_SIDE - 2 * _MARGIN) / len(state)
    draw.line((_MARGIN, height, _SIDE - _MARGIN, height), fill=_GRID, width=_THIN)
    for number, value in enumerate(state):
        x, y = _MARGIN + (number + 0.5) * slot, height * (1.0 - float(value) / half)
        wide = min(0.2 * slot, 24.0)
        draw.rectangle((x - wide, min(y, height), x + wide, max(y, height)), fill=_STUDENT)
        if advice is not None:
            _arrow(draw, (x, y), (x, height * (1.0 - float(advice[number]) / half)))


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    """The expert's arrow."""
    length = math.dist(start, end)
    if length < 1.0:
        return
    draw.line((*start, *end), fill=_EXPERT, width=_THICK)
    u, v = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    head = min(float(_HEAD), length)
    base = end[0] - head * u, end[1] - head * v
    draw.polygon([end, *((base[0] - way * head * v / 2, base[1] + way * head * u / 2) for way in (1, -1))], _EXPERT)


def _reach(values: Values, least: float) -> float:
    """Return ``least``, doubled until all values fit: the scale seldom jumps within a chain."""
    most = float(np.abs(values).max())
    return least * 2.0 ** max(0, math.ceil(math.log2(max(most, least) / least)))


_STUDENT, _EXPERT, _GRID, _INK = "#882255", "#222222", "#cccccc", "#222222"
_SIDE = 2 * SIDE  # drawn twice as large and scaled down: smooth lines
_MARGIN, _GAP, _FOOT, _THIN, _THICK, _HEAD = 24, 80, 52, 2, 5, 22
