"""Augmentation that keeps boxes true: crop, mirror, resize, colour.

It works in two steps. `Augment.choose_view` draws which part of the stored image will be seen, from
sizes and boxes alone; so the decoder can be asked for no more pixels than needed. `Augment.render`
then makes the R x R image. The resize is torch's antialiased uint8 kernel: about 4 times as fast as
Pillow's and twice as fast as decoding itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, log, sqrt
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from wholegrain import boxes as box_ops
from wholegrain.config import config
from wholegrain.data.decode import Decoded, Pixels
from wholegrain.data.directions import has_direction
from wholegrain.data.randaugment import rand_augment

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_MEAN_STRIDE = 13  # odd, so that the pixels that stand for the mean come from all columns
_LOG_ASPECT = log(4 / 3)
_CROP_ATTEMPTS = 10

Share = Annotated[float, Field(ge=0, le=1)]


@config
class AugmentConfig:
    """How a stored image becomes the square that the model sees."""

    resolution: Annotated[int, Field(ge=8, le=4096)] = 224
    """Side R of the square image, in pixels."""

    mode: Literal["none", "crop", "xvlm"] = "crop"
    """`none` squeezes the whole image. `crop` takes a random part that holds one box entirely.
    `xvlm` draws as X-VLM does: of an image with boxes each edge uniformly between the box's edge
    and the image's; of another as torchvision's RandomResizedCrop, which takes no part whose sides
    do not fit."""

    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Smallest share of the image's area that a crop shows; the largest is 1. Sides are in the
    ratio 3:4 to 4:3, unless the box that must stay needs more."""

    flip: Literal["never", "careful", "swap", "blind"] = "careful"
    """Mirroring. `careful`: not if any text of the image says left or right. `swap`: those words
    are exchanged. `blind`: always allowed, as X-VLM pretrained; texts may then be false."""

    flip_probability: Share = 0.5
    """Chance of mirroring where it is allowed."""

    colour: Share = 0.3
    """Strength of the change of brightness, contrast and saturation: each factor is uniform in
    1 - colour .. 1 + colour. Hue is left alone, because texts name colours."""

    randaugment_ops: Annotated[int, Field(ge=0, le=10)] = 0
    """Operations of RandAugment on top, each applied half of the time (X-VLM: 2). An image with
    boxes gets only those that move nothing. They cost more than decoding does."""

    randaugment_magnitude: Annotated[int, Field(ge=0, le=10)] = 7
    """Strength of RandAugment's operations."""

    @classmethod
    def plain(cls, resolution: int) -> AugmentConfig:
        """No randomness at all: the whole image squeezed to a square, as evaluation does."""
        return cls(resolution=resolution, mode="none", flip="never", colour=0.0)


@dataclass(frozen=True, slots=True)
class View:
    """The part of the stored image that is seen, in its pixels, and whether it is mirrored."""

    left: float
    top: float
    width: float
    height: float
    flipped: bool = False

    def place(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Where boxes of the stored image lie in the view.

        Args:
            boxes: (N, 4) xyxy in pixels of the stored image.

        Returns:
            (N, 4) cxcywh in 0..1 of the view, clipped to it, and (N,) the share of each box's area
            that the view shows.
        """
        corner = boxes.new_tensor([self.left, self.top, self.left, self.top])
        unit = box_ops.normalise(boxes - corner, self.width, self.height)
        clipped = unit.clamp(0, 1)
        share = box_ops.area(clipped) / box_ops.area(unit).clamp(min=1e-12)
        placed = box_ops.xyxy_to_cxcywh(clipped)
        if self.flipped:
            placed[:, 0] = 1 - placed[:, 0]
        return placed, share

    def min_side(self, width: int, height: int, resolution: int) -> int:
        """Pixels that the shorter side of the whole image needs for the view to fill R x R."""
        need = max(resolution / self.width, resolution / self.height)
        short = min(width, height)
        return min(short, ceil(short * need))


class Augment:
    """Draws views and renders them; holds no state but its configuration."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def may_flip(self, texts: Iterable[str]) -> bool:
        """Whether an image that all these texts speak about may be mirrored."""
        if self.config.flip == "careful":
            return not has_direction(texts)
        return self.config.flip != "never"

    def choose_view(
        self,
        width: int,
        height: int,
        anchor: Sequence[float] | None,
        may_flip: bool,
        rng: np.random.Generator,
    ) -> View:
        """Draws a view of whole pixels.

        Args:
            width, height: of the stored image.
            anchor: xyxy box in pixels that must stay wholly inside; None for none.
            may_flip: see `may_flip`.
        """
        rules = self.config
        if rules.mode == "none":
            left, top, right, bottom = 0, 0, width, height
        elif rules.mode == "xvlm" and anchor is not None:
            left, right = _open_span(anchor[0], anchor[2], width, rng)
            top, bottom = _open_span(anchor[1], anchor[3], height, rng)
        elif rules.mode == "xvlm":
            left, top, right, bottom = _resized_crop(width, height, rules.min_scale, rng)
        else:
            area = width * height * rng.uniform(rules.min_scale, 1.0)
            ratio = exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
            spans = (anchor[0::2], anchor[1::2]) if anchor is not None else (None, None)
            left, right = _span(sqrt(area * ratio), width, spans[0], rng)
            top, bottom = _span(sqrt(area / ratio), height, spans[1], rng)
        flipped = may_flip and bool(rng.random() < rules.flip_probability)
        return View(left, top, right - left, bottom - top, flipped)

    def render(
        self, decoded: Decoded, view: View, rng: np.random.Generator | None, has_boxes: bool
    ) -> tuple[Tensor, View]:
        """Makes the image of a view.

        Args:
            decoded: the image, perhaps at a reduced scale.
            view: in pixels of the stored image.
            rng: for colour; None leaves colours alone.
            has_boxes: forbids operations that would move things under their boxes.

        Returns:
            uint8 (3, R, R), contiguous, and the view that it truly shows: that asked for, widened
            to whole pixels of the decoded image.
        """
        rows, columns = decoded.pixels.shape[:2]
        x, y = columns / decoded.width, rows / decoded.height
        left, top = floor(view.left * x + 1e-6), floor(view.top * y + 1e-6)
        right = min(columns, ceil((view.left + view.width) * x - 1e-6))
        bottom = min(rows, ceil((view.top + view.height) * y - 1e-6))
        shown = View(left / x, top / y, (right - left) / x, (bottom - top) / y, view.flipped)
        pixels = squeeze(decoded.pixels[top:bottom, left:right], self.config.resolution)
        if view.flipped:
            pixels = pixels[:, ::-1]
        if rng is not None and self.config.randaugment_ops:
            rules = self.config
            pixels = rand_augment(
                pixels, rules.randaugment_ops, rules.randaugment_magnitude, has_boxes, rng
            )
        if rng is not None and self.config.colour:
            pixels = jitter_colour(pixels, self.config.colour, rng)
        return to_planes(pixels), shown


def squeeze(pixels: Pixels, resolution: int) -> Pixels:
    """Resizes uint8 (h, w, 3) to (R, R, 3), bicubic and antialiased, whatever the aspect.

    Prediction must use this as well: a model sees what its training resize made.
    """
    if pixels.shape[:2] == (resolution, resolution):
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    size = (resolution, resolution)
    resized = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result


def to_planes(pixels: Pixels) -> Tensor:
    """uint8 (h, w, 3) as a contiguous tensor (3, h, w) of its own memory."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def jitter_colour(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Random brightness b, contrast c and saturation s, as one affine map of the colours:

        p' = b (c (s p + (1 - s) grey(p)) + (1 - c) mean grey)

    with each factor uniform in 1 - strength .. 1 + strength.
    """
    b, c, s = 1 + strength * (2 * rng.random(3) - 1)
    values = pixels.reshape(-1, 3).astype(np.float32)
    mean = float((values[::_MEAN_STRIDE] @ _LUMA).mean())
    mix = s * np.eye(3, dtype=np.float32) + (1 - s) * _LUMA[:, None]
    changed = values @ (b * c * mix).astype(np.float32)
    changed += np.float32(b * (1 - c) * mean + 0.5)  # + 0.5: the cast below cuts off
    np.maximum(changed, 0, out=changed)
    np.minimum(changed, 255, out=changed)
    return changed.astype(np.uint8).reshape(pixels.shape)


def _span(
    wanted: float, limit: int, keep: Sequence[float] | None, rng: np.random.Generator
) -> tuple[int, int]:
    """A random interval of 0..limit, about `wanted` long, that holds the interval `keep`."""
    low, high = (floor(keep[0]), ceil(keep[1])) if keep is not None else (limit, 0)
    low, high = max(low, 0), min(high, limit)
    length = min(max(round(wanted), high - low, 1), limit)
    first, last = max(0, high - length), min(low, limit - length)
    start = first + int(rng.random() * (last - first + 1))
    return start, start + length


def _resized_crop(
    width: int, height: int, min_scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom as torchvision's RandomResizedCrop draws them.

    It draws up to ten times until the sides fit, then takes the largest central part of an admitted
    shape.
    """
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
        wide, high = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(rng.random() * (width - wide + 1))
            top = int(rng.random() * (height - high + 1))
            return left, top, left + wide, top + high
    wide, high = (
        min(width, max(1, round(height * 4 / 3))),
        min(height, max(1, round(width * 4 / 3))),
    )
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _open_span(low: float, high: float, limit: int, rng: np.random.Generator) -> tuple[int, int]:
    """Ends drawn on either side of a box's interval, anywhere up to the image's edge."""
    first, last = max(0, floor(low)), min(limit, ceil(high))
    start = int(rng.random() * (first + 1))
    return start, last + int(rng.random() * (limit - last + 1))
