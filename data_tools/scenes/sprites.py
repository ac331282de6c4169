"""An object's picture: its drawing painted at four times the size, then reduced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_tools.scenes.config import COLOURS, SIZES, TEXTURES
from data_tools.scenes.kinds import DRAWINGS
from data_tools.scenes.shapes import Paint, rotation

SUPERSAMPLE: Final = 4
Colour = tuple[int, int, int]
Outline = list[tuple[float, float]]

_MATERIALS: Final[dict[Paint, Colour]] = {
    Paint.WHITE: (255, 255, 255),
    Paint.CREAM: (247, 228, 196),
    Paint.WOOD: (120, 78, 48),
    Paint.LEAF: (86, 160, 74),
    Paint.GLASS: (186, 226, 244),
    Paint.GOLD: (246, 190, 66),
}


@dataclass(frozen=True, slots=True)
class Look:
    """What the words can say about an object by itself."""

    kind: str
    colour: str
    texture: str
    size: str

    @property
    def attributes(self) -> tuple[str, str, str]:
        """colour, texture, size."""
        return self.colour, self.texture, self.size


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """`image` RGBA (h, w); `mask` bool (4h, 4w): the object without its shadow."""

    image: Image.Image
    mask: NDArray[np.bool_]
    box: tuple[float, float, float, float]
    """xyxy of the object within the sprite, in pixels."""


def paint_sprite(look: Look, picture_size: int, rng: np.random.Generator) -> Sprite:
    """Draw one object, with a little variation in size, tilt, shape and tone taken from `rng`."""
    low, high = SIZES[look.size]
    side = rng.uniform(low, high) * picture_size * SUPERSAMPLE
    stretch = np.sqrt(rng.uniform(0.94, 1.06))
    mirror = rng.choice((-1.0, 1.0))
    matrix = np.diag([side * stretch * mirror, side / stretch]) @ rotation(rng.uniform(-7, 7))
    drawing = DRAWINGS[look.kind]
    points = drawing.points @ matrix
    points -= points.min(axis=0) - SUPERSAMPLE
    width, height = (int(np.ceil(end / SUPERSAMPLE)) + 1 for end in points.max(axis=0))
    canvas = Image.new("RGBA", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    body = _jitter(COLOURS[look.colour], rng)
    outlines = drawing.polygons(points)
    fills = _fills(body)
    draw = ImageDraw.Draw(canvas)
    for polygon, paint in zip(outlines, drawing.paints, strict=True):
        draw.polygon(polygon, fill=fills[paint])
    if look.texture != "plain":
        marks = _marks(look.texture, canvas.size, side, rng)
        marks &= np.asarray(_stencil(canvas.size, outlines, drawing.paints))
        canvas.paste(_contrast(body), mask=Image.fromarray(marks))
    mask = np.asarray(canvas.getchannel("A")) > 127
    return Sprite(canvas.reduce(SUPERSAMPLE), mask, mask_box(mask))


def mask_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Tight xyxy box in pixels of a supersampled `mask` (4h, 4w), exact to 1/4 pixel."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, top, right, bottom = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    return left / SUPERSAMPLE, top / SUPERSAMPLE, right / SUPERSAMPLE, bottom / SUPERSAMPLE


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of `b` in it."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _fills(body: Colour) -> dict[Paint, tuple[int, ...]]:
    ink = mix(body, (30, 26, 40), 0.82)
    return {
        **_MATERIALS,
        Paint.BODY: body,
        Paint.SHADE: mix(body, (20, 16, 40), 0.24),
        Paint.LIGHT: mix(body, (255, 255, 255), 0.35),
        Paint.INK: ink,
        Paint.SHADOW: (24, 20, 40, 64),
    }


def _jitter(colour: Colour, rng: np.random.Generator) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-9, 10, 3), 0, 255).tolist()
    return red, green, blue


def _stencil(
    size: tuple[int, int], outlines: Sequence[Outline], paints: Sequence[Paint]
) -> Image.Image:
    """An L picture that is 255 where the textured part of the drawing shows, else 0."""
    stencil = Image.new("L", size)
    draw = ImageDraw.Draw(stencil)
    for polygon, paint in zip(outlines, paints, strict=True):
        draw.polygon(polygon, fill=255 if paint is Paint.BODY else 0)
    return stencil


def _contrast(body: Colour) -> Colour:
    """Dark marks on pale colours and pale marks on dark ones, weak enough to keep the name."""
    pale = sum(body) > 3 * 170
    return mix(body, (40, 36, 60), 0.45) if pale else mix(body, (255, 255, 255), 0.64)


def _marks(
    texture: str, size: tuple[int, int], side: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The marks of a texture, 255 or 0, (h, w) for `size` (w, h); at most half is marked."""
    period = side / 4.6
    x, y = (
        ((np.arange(length) + rng.uniform(0, period)) / period).astype(np.float32)
        for length in size
    )
    if texture == "striped":
        marks = (x + 0.6 * y[:, None]) % 1.0 < 0.38
    elif texture == "dotted":
        row, column = y % 1.0 - 0.5, x % 1.0 - 0.5
        shifted = (y + 0.5) % 1.0 - 0.5
        odd = (x // 1 % 2).astype(bool)
        marks = np.where(odd, (shifted**2)[:, None], (row**2)[:, None]) + column**2 < 0.27**2
    elif texture == "checked":
        marks = ((2 * x) // 1 % 2).astype(bool) ^ ((2 * y) // 1 % 2).astype(bool)[:, None]
    else:
        raise ValueError(f"texture is {texture!r}; one of {', '.join(TEXTURES)}")
    return marks.astype(np.uint8) * np.uint8(255)
