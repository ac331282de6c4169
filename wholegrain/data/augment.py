"""Augmentation that keeps boxes true: crop, mirror, resize, move, colour.

It works in two steps. `Augment.choose_view` draws which part of the stored image will be seen, from
sizes and boxes alone; so the decoder can be asked for no more pixels than needed. `Augment.render`
then makes the R x R image. The resize is torch's antialiased uint8 kernel: several times as fast as
Pillow's, and as decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from wholegrain.config import config
from wholegrain.data.colour import Planes, jitter_colour
from wholegrain.data.colour import to_planes as planes_of
from wholegrain.data.decode import Decoded, Pixels
from wholegrain.data.directions import has_direction, is_ambiguous
from wholegrain.data.geometry import Warp
from wholegrain.data.randaugment import rand_augment
from wholegrain.data.views import Corners, View, crop, open_crop, resized_crop

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
    """Mirroring. `careful`: not if any text of the image names a side (left, right, 3 o'clock).
    `swap`: those words are exchanged; not if a text is ambiguous ("right behind"). `blind`: always
    allowed, as X-VLM pretrained; texts may then be false."""

    flip_probability: Share = 0.5
    """Chance of mirroring where it is allowed."""

    colour: Share = 0.3
    """Strength of the change of brightness, contrast and saturation: each factor is uniform in
    1 - colour .. 1 + colour. Hue is left alone, because texts name colours."""

    randaugment_ops: Annotated[int, Field(ge=0, le=10)] = 0
    """Operations of RandAugment on top, each applied half of the time (X-VLM: 2)."""

    randaugment_magnitude: Annotated[int, Field(ge=0, le=10)] = 7
    """Strength of RandAugment's operations."""

    randaugment_boxes: Literal["still", "move"] = "still"
    """Which operations an image with boxes gets. `still`: those that move nothing, as X-VLM.
    `move`: all; a box then becomes the one that encloses what is seen of it, and an operation that
    would hide the region for which the image was cropped is left out."""

    @classmethod
    def plain(cls, resolution: int) -> AugmentConfig:
        """No randomness at all: the whole image squeezed to a square, as evaluation does."""
        return cls(resolution=resolution, mode="none", flip="never", colour=0.0)


class Augment:
    """Draws views and renders them; holds no state but its configuration."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def may_flip(self, texts: Iterable[str]) -> bool:
        """Whether an image that all these texts speak about may be mirrored."""
        match self.config.flip:
            case "careful":
                return not has_direction(texts)
            case "swap":
                return not is_ambiguous(texts)
            case rule:
                return rule == "blind"

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
        elif rules.mode == "crop":
            left, top, right, bottom = crop(width, height, anchor, rules.min_scale, rng)
        elif anchor is not None:
            left, top, right, bottom = open_crop(width, height, anchor, rng)
        else:
            left, top, right, bottom = resized_crop(width, height, rules.min_scale, rng)
        flipped = may_flip and bool(rng.random() < rules.flip_probability)
        return View(left, top, right - left, bottom - top, flipped)

    def render(
        self,
        decoded: Decoded,
        view: View,
        rng: np.random.Generator | None,
        has_boxes: bool,
        anchor: Corners | None = None,
        least_share: float = 0.5,
        out: Planes | None = None,
    ) -> tuple[Tensor, View]:
        """Makes the image of a view: `cut`, then `paint`, whose arguments see; without `rng` the
        first alone. Returns uint8 (3, R, R) and what it shows.
        """
        pixels, shown = self.cut(decoded, view)
        if rng is None:
            return torch.from_numpy(planes_of(pixels, out)), shown
        planes, shown = self.paint(pixels, shown, rng, has_boxes, anchor, least_share, out)
        return torch.from_numpy(planes), shown

    def cut(self, decoded: Decoded, view: View) -> tuple[Pixels, View]:
        """Crops, resizes and mirrors.

        Args:
            decoded: the image, perhaps at a reduced scale.
            view: in pixels of the stored image.

        Returns:
            uint8 (R, R, 3), contiguous; and the view that it truly shows: that asked for, widened
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
            pixels = cv2.flip(pixels, 1)  # type: ignore[assignment]  # uint8, as before
        return np.ascontiguousarray(pixels), shown

    def paint(
        self,
        pixels: Pixels,
        view: View,
        rng: np.random.Generator,
        has_boxes: bool,
        anchor: Corners | None = None,
        least_share: float = 0.5,
        out: Planes | None = None,
    ) -> tuple[Planes, View]:
        """RandAugment and colour.

        Args:
            pixels: of `cut`.
            view: what they show.
            has_boxes: the image has boxes; see `AugmentConfig.randaugment_boxes`.
            anchor: box (xyxy in pixels of the stored image) of which more than `least_share` must
                stay in sight when things are moved.
            out: uint8 (3, R, R) for the result; None takes memory of its own.

        Returns:
            uint8 (3, R, R), contiguous, and the view with the moves that were made.
        """
        rules = self.config
        if rules.randaugment_ops:

            def admitted(warps: tuple[Warp, ...]) -> bool:
                return anchor is None or view.moved(warps).place([anchor])[1][0] > least_share

            still = has_boxes and rules.randaugment_boxes == "still"
            amount = rules.randaugment_ops, rules.randaugment_magnitude
            planes, warps = rand_augment(planes_of(pixels, out), *amount, still, rng, admitted)
            view = view.moved(warps)
            if not rules.colour:
                if out is not None and planes is not out:
                    np.copyto(out, planes)
                return planes if out is None else out, view
            pixels = np.ascontiguousarray(planes.transpose(1, 2, 0))
        if rules.colour:
            pixels = jitter_colour(pixels, rules.colour, rng)
        return planes_of(pixels, out), view


def squeeze(pixels: Pixels, resolution: int) -> Pixels:
    """Resizes uint8 (h, w, 3) to (R, R, 3), bicubic and antialiased, whatever the aspect.

    Prediction must use this as well: a model sees what its training resize made.
    """
    if pixels.shape[:2] == (resolution, resolution):
        return pixels
    # The batch axis comes first, so that torch sees pixels that lie side by side (channels last),
    # for which its kernel need not copy the image to planes and back: twice as fast.
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    size = (resolution, resolution)
    resized = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result


def to_planes(pixels: Pixels) -> Tensor:
    """uint8 (h, w, 3) as a contiguous tensor (3, h, w) of its own memory."""
    return torch.from_numpy(planes_of(np.ascontiguousarray(pixels)))
