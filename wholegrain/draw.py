"""Boxes and their labels drawn on a photo, legible whatever the photo shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

# Bright on any photo, told apart by most colour-blind readers; dark text stands well on all.
PALETTE: tuple[Colour, ...] = (
    (255, 160, 46),
    (92, 214, 255),
    (126, 231, 135),
    (255, 138, 190),
    (250, 229, 84),
    (190, 165, 255),
    (255, 118, 94),
    (72, 224, 196),
)
_INK = (20, 20, 20)
_MIN_SIDE, _MAX_SIDE = 640, 2048
_FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc")


def draw_boxes(
    photo: np.ndarray | Image.Image,
    boxes: Sequence[Box],
    labels: Sequence[str],
    *,
    colours: Sequence[Colour] = PALETTE,
) -> Image.Image:
    """A copy of the photo with labelled boxes.

    A small photo is enlarged and a huge one shrunk, so that labels can be read in both.

    Args:
        photo: uint8 RGB (H, W, 3) or an image.
        boxes: xyxy in pixels of `photo`.
        labels: one for each box; '' draws the box alone. Long ones are cut with an ellipsis.
        colours: taken in turn.
    """
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(photo)
    image, scale = _readable_size(image.convert("RGB"))
    pen = ImageDraw.Draw(image)
    unit = max(image.size) / 640  # line width and type grow with the picture
    width = max(2, round(2.5 * unit))
    font = _font(round(15 * unit))
    scaled = [_visible(box, scale, image.size, width) for box in boxes]
    for index, box in enumerate(scaled):
        _outline(pen, box, colours[index % len(colours)], width)
    taken: list[Box] = []
    # Labels come after all boxes: no line may run through a word.
    for index, (box, label) in enumerate(zip(scaled, labels, strict=True)):
        if label:
            # As wide as its box, or half the picture: the rest is worth more than the last words.
            room = max(box[2] - box[0], image.width / 2)
            tag = _Tag(pen, font, _fit(label, font, room), width)
            place = tag.place(box, image.size, taken)
            tag.draw(place, colours[index % len(colours)])
            taken.append(place)
    return image


class _Tag:
    """A label on a filled plate."""

    def __init__(
        self, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, text: str, line: int
    ) -> None:
        self.pen, self.font, self.text, self.line = pen, font, text, line
        ascent, descent = font.getmetrics()
        self.pad = max(2, round(0.3 * font.size))
        self.width = font.getlength(text) + 2 * self.pad
        self.height = ascent + descent + self.pad

    def place(self, box: Box, size: tuple[int, int], taken: Sequence[Box]) -> Box:
        """Above the box, below it, or inside: where it hides least of other labels and the box."""
        left, top, right, bottom = box
        x_at_left = left - self.line / 2
        x_at_right = right - self.width + self.line / 2
        rows = (
            top - self.height - self.line / 2,
            bottom + self.line / 2,
            top + self.line,
            bottom - self.height - self.line,
        )
        best, least = None, float("inf")
        for order, y in enumerate(rows):
            for x in (x_at_left, x_at_right):
                plate, shift = self._inside(x, y, size)
                hidden = sum(_shared(plate, other) for other in taken) / (self.width * self.height)
                cost = order + abs(shift) / self.height + 20 * hidden
                cost += 10 * _shared(plate, box) / max(_area(box), 1)
                if cost < least:
                    best, least = plate, cost
        assert best is not None
        return best

    def _inside(self, x: float, y: float, size: tuple[int, int]) -> tuple[Box, float]:
        """The plate moved into the picture, and how far it had to move up or down."""
        moved_x = min(max(x, 0), max(size[0] - self.width, 0))
        moved_y = min(max(y, 0), max(size[1] - self.height, 0))
        plate = (moved_x, moved_y, moved_x + self.width, moved_y + self.height)
        return plate, moved_y - y

    def draw(self, plate: Box, colour: Colour) -> None:
        self.pen.rounded_rectangle(plate, radius=self.pad, fill=colour)
        middle = (plate[0] + self.pad, (plate[1] + plate[3]) / 2)
        self.pen.text(middle, self.text, font=self.font, fill=_INK, anchor="lm")


def _readable_size(image: Image.Image) -> tuple[Image.Image, float]:
    longest = max(image.size)
    scale = min(max(longest, _MIN_SIDE), _MAX_SIDE) / longest
    if scale == 1:
        return image.copy(), 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS), scale


def _visible(box: Box, scale: float, size: tuple[int, int], line: int) -> Box:
    """The box in the picture's pixels, moved in so far that the whole line can be seen."""
    reach_x, reach_y = size[0] - 1 - line, size[1] - 1 - line
    left, right = (min(max(box[i] * scale, line), max(reach_x, line)) for i in (0, 2))
    top, bottom = (min(max(box[i] * scale, line), max(reach_y, line)) for i in (1, 3))
    return left, top, max(left, right), max(top, bottom)


def _outline(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    """The coloured line between two dark ones, centred on the box's edge."""
    edge = max(1, width // 2)
    for grow, line, ink in ((width / 2 + edge, width + 2 * edge, _INK), (width / 2, width, colour)):
        left, top, right, bottom = box
        pen.rectangle((left - grow, top - grow, right + grow, bottom + grow), None, ink, line)


def _fit(label: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The label in one line, cut with an ellipsis to `width` pixels."""
    text = " ".join(label.split())[:400]
    if font.getlength(text) + font.size <= width:
        return text
    while text and font.getlength(text + "…") + font.size > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return max(across, 0) * max(down, 0)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A face with wide coverage if the machine has one, else the one that Pillow carries."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    fallback = ImageFont.load_default(size)
    assert isinstance(fallback, ImageFont.FreeTypeFont)
    return fallback
