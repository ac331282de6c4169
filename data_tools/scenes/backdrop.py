"""The place behind the objects: a gradient, some land, harmless clutter and a little noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from data_tools.scenes.shapes import Points, band
from data_tools.scenes.sprites import Colour, mix

_SUPERSAMPLE: Final = 2


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of background: how it is spoken of and painted."""

    phrase: str
    sky: tuple[Colour, Colour]
    """Colours at the top and at the bottom of the picture."""
    land: tuple[Colour, ...]
    """Colours of the layers of land, far to near; none for a place without a horizon."""
    clutter: Callable[[ImageDraw.ImageDraw, int, np.random.Generator, Place, float], None]
    rolling: float = 0.03
    """Height of the land's waves as a share of the side."""


def _tufts(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    for _ in range(rng.integers(6, 14)):
        x, y = rng.uniform(0, side), rng.uniform(horizon + 0.05, 1) * side
        tone = mix(place.land[-1], (20, 60, 40), rng.uniform(0.12, 0.3))
        for lean in (-0.02, 0.0, 0.02):
            tip = (x + lean * side, y - rng.uniform(0.02, 0.045) * side)
            draw.line([(x, y), tip], fill=tone, width=max(1, side // 128))


def _clouds(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    for _ in range(rng.integers(1, 4)):
        x, y, r = (
            rng.uniform(0, side),
            rng.uniform(0.03, 0.3) * side,
            rng.uniform(0.03, 0.06) * side,
        )
        tone = mix(place.sky[0], (255, 255, 255), 0.45)
        for dx, scale in ((-1.2, 0.7), (0, 1), (1.3, 0.8)):
            reach = r * scale
            draw.ellipse([x + dx * r - reach, y - reach, x + dx * r + reach, y + reach], fill=tone)


def _meadow(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    _clouds(draw, side, rng, place, horizon)
    _tufts(draw, side, rng, place, horizon)


def _pebbles(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    for _ in range(rng.integers(10, 26)):
        x, y = rng.uniform(0, side), rng.uniform(horizon + 0.06, 1) * side
        r = rng.uniform(0.006, 0.016) * side
        tone = mix(place.land[-1], (70, 60, 60), rng.uniform(0.1, 0.35))
        draw.ellipse([x - 1.4 * r, y - r, x + 1.4 * r, y + r], fill=tone)


def _specks(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    for _ in range(rng.integers(18, 40)):
        x, y, r = *rng.uniform(0, side, 2), rng.uniform(0.004, 0.011) * side
        draw.ellipse([x - r, y - r, x + r, y + r], fill=mix(place.sky[1], (255, 255, 255), 0.6))


def _squiggles(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    for _ in range(rng.integers(4, 9)):
        t = np.linspace(0, 1, 14)
        wave = 0.03 * np.sin(t * rng.uniform(6, 16) + rng.uniform(0, 6))
        path = np.stack([t * rng.uniform(0.12, 0.3), wave], axis=1)
        path = (path + rng.uniform(-0.1, 0.95, 2)) * side
        tone = mix(place.sky[1], _SQUIGGLE_TONES[rng.integers(len(_SQUIGGLE_TONES))], 0.22)
        draw.polygon(band(path, side * 0.012).ravel().tolist(), fill=tone)


def _planks(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, place: Place, horizon: float
) -> None:
    tone = mix(place.land[-1], (60, 30, 20), 0.2)
    vanishing = (0.5 * side, (horizon - 0.8) * side)
    for x in np.linspace(-0.8, 1.8, rng.integers(8, 14)) * side:
        share = (1 - horizon) / 1.8
        far = (x + (vanishing[0] - x) * share, horizon * side)
        draw.line([(x, side), far], fill=tone, width=max(1, side // 128))
    wall = mix(place.sky[0], (255, 255, 255), 0.25)
    step = rng.uniform(0.09, 0.14)
    for x in np.arange(rng.uniform(0, step), 1, step):
        draw.rectangle([x * side, 0, (x + step * 0.4) * side, horizon * side - 1], fill=wall)


_SQUIGGLE_TONES: Final[tuple[Colour, ...]] = (
    (220, 60, 60),
    (60, 110, 220),
    (60, 160, 80),
    (150, 80, 190),
    (120, 120, 120),
)

PLACES: Final[dict[str, Place]] = {
    "meadow": Place(
        "in a meadow",
        ((176, 216, 240), (222, 240, 240)),
        ((178, 214, 152), (154, 200, 128)),
        _meadow,
    ),
    "beach": Place(
        "on a beach",
        ((188, 226, 244), (232, 244, 244)),
        ((122, 190, 214), (240, 222, 178)),
        _pebbles,
        rolling=0.012,
    ),
    "snow": Place(
        "in the snow",
        ((168, 188, 216), (206, 220, 236)),
        ((216, 228, 240), (228, 236, 244)),
        _specks,
    ),
    "night": Place(
        "at night",
        ((74, 82, 138), (128, 122, 178)),
        ((104, 122, 158), (92, 112, 146)),
        _specks,
    ),
    "desert": Place(
        "in the desert",
        ((250, 214, 178), (252, 236, 204)),
        ((226, 170, 122), (236, 190, 138)),
        _pebbles,
        rolling=0.045,
    ),
    "room": Place(
        "in a room",
        ((208, 206, 226), (216, 214, 232)),
        ((206, 168, 130),),
        _planks,
        rolling=0.0,
    ),
    "paper": Place(
        "on paper",
        ((244, 240, 228), (230, 226, 214)),
        (),
        _squiggles,
    ),
}
"""Name -> place."""


def paint_backdrop(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """The empty place `name` as an RGB picture of side x side pixels."""
    place = PLACES[name]
    big = side * _SUPERSAMPLE
    canvas = _gradient(place.sky, big)
    draw = ImageDraw.Draw(canvas)
    horizon = rng.uniform(0.34, 0.56)
    for k, colour in enumerate(place.land):
        level = horizon + 0.14 * k
        draw.polygon(_ridge(level, place.rolling, big, rng).ravel().tolist(), fill=colour)
    place.clutter(draw, big, rng, place, horizon)
    pixels = np.asarray(canvas.reduce(_SUPERSAMPLE))
    noise = np.frombuffer(rng.bytes(side * side), np.uint8).reshape(side, side, 1) % 11
    # Shift by noise - 5 + light without leaving uint8: no place is painted near black.
    light = int(rng.integers(-10, 11))
    brighter = np.minimum(pixels, 255 - 15) + noise
    return Image.fromarray(brighter - np.uint8(15) + np.uint8(light + 10))


def _gradient(sky: tuple[Colour, Colour], side: int) -> Image.Image:
    column = np.linspace(np.array(sky[0]), np.array(sky[1]), side).round().astype(np.uint8)
    return Image.fromarray(column[:, None]).resize((side, side), Image.Resampling.NEAREST)


def _ridge(level: float, rolling: float, side: int, rng: np.random.Generator) -> Points:
    x = np.linspace(0, 1, 24)
    waves = np.sin(x * rng.uniform(3, 9) + rng.uniform(0, 6)) * rolling
    ridge = np.stack([x, level + waves], axis=1)
    return np.concatenate([ridge, [[1, 1.01], [0, 1.01]]]) * side
