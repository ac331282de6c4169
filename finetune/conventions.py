"""How systems write boxes, and what that means in pixels of the stored image.

A convention is an order of the four numbers and a unit, joined: ``xyxy_pixels``, ``yxyx_1000``.
Every box goes to pixels in float64 and back to nothing: no rounding, no clipping.

A wrong convention gives a wrong figure without any error, so answers are checked against the one
that is named: no box may reach far beyond its frame, and no other convention may fit them far
better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wholegrain import boxes as convert

Array = NDArray[np.float64]

PIXELS = "xyxy_pixels"
BOXES = {
    "xyxy": "left, top, right, bottom",
    "xywh": "left, top, width, height",
    "cxcywh": "centre, width, height",
    "yxyx": "top, left, bottom, right",
}
UNITS = {
    "pixels": "pixels of the stored image",
    "unit": "fractions of the image, 0 to 1",
    "1000": "thousandths of the image (Qwen-VL, Qwen3-VL, InternVL; Gemini as yxyx)",
    "1000bins": "numbers of 1000 bins, 0 to 999, that stand for their middle (Florence-2)",
    "1024": "1024ths of the image (PaliGemma as yxyx)",
    "resized": "pixels of the image as that system resized it (Qwen2.5-VL)",
    "square": "fractions of the image padded evenly to a square (LLaVA; TransVG as cxcywh)",
}
_CORNERS_ONLY = ("1000bins",)
CONVENTIONS = tuple(
    f"{order}_{unit}"
    for unit in UNITS
    for order in BOXES
    if unit not in _CORNERS_ONLY or order in ("xyxy", "yxyx")
)

_ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "xyxy": lambda box: box,
    "xywh": convert.xywh_to_xyxy,
    "cxcywh": convert.cxcywh_to_xyxy,
    "yxyx": lambda box: box[..., [1, 0, 3, 2]],
}
_FIXED_FRAMES = {"unit": 1.0, "square": 1.0, "1000": 1000.0, "1000bins": 1000.0, "1024": 1024.0}

# Centre and size, each a fraction of the image, cannot name a box that reaches further.
_REACH = 0.5
_SLACK = 1e-6
# Another reading is believed only where it is better by this much and by this factor.
_BETTER_BY, _BETTER_TIMES, _FEWEST = 0.2, 1.5, 10


@dataclass(frozen=True)
class Boxes:
    """Boxes in the convention of their writer, one a row."""

    values: Array
    """(N, 4); rows of NaN are answers without a box."""
    widths: Array
    """(N,) of the stored images, in pixels."""
    heights: Array
    """(N,)"""
    convention: str = PIXELS
    resized: Array | None = None
    """(N, 2) width and height that the writer resized each image to; needed for ``*_resized``."""

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(
                f"unknown box convention {self.convention!r}; use one of {CONVENTIONS}"
            )
        if self.unit == "resized" and self.resized is None:
            raise ValueError(f"{self.convention} needs the sizes that the images were resized to")

    @property
    def order(self) -> str:
        """Which four numbers."""
        return self.convention.split("_")[0]

    @property
    def unit(self) -> str:
        """In what."""
        return self.convention.split("_")[1]

    def to_pixels(self) -> Array:
        """The boxes (N, 4) as xyxy pixels of the stored images."""
        if self.unit == "pixels":
            return self._corners().numpy()
        widths, heights = _tensor(self.widths), _tensor(self.heights)
        fractions = _tensor(self.fractions())
        if self.unit != "square":
            return convert.denormalise(fractions, widths, heights).numpy()
        side = torch.maximum(widths, heights)
        padding = torch.stack([side - widths, side - heights], dim=-1) / 2
        return (convert.denormalise(fractions, side, side) - padding.repeat(1, 2)).numpy()

    def frame(self, row: int) -> str:
        """In words, what a box lies in."""
        if self.unit == "pixels":
            return f"its image of {self.widths[row]:g} x {self.heights[row]:g}"
        if self.unit == "resized":
            assert self.resized is not None
            return "its resized image of {:g} x {:g}".format(*self.resized[row])
        return f"0 to {_FIXED_FRAMES[self.unit]:g}"

    def fractions(self) -> Array:
        """The boxes (N, 4) as xyxy fractions of what their numbers count in: 0 to 1 inside."""
        if self.unit in _FIXED_FRAMES:
            return (self._corners() / _FIXED_FRAMES[self.unit]).numpy()
        widths, heights = self.widths, self.heights
        if self.unit == "resized":
            assert self.resized is not None
            widths, heights = self.resized.T
        return convert.normalise(self._corners(), _tensor(widths), _tensor(heights)).numpy()

    def _corners(self) -> Tensor:
        """The boxes as xyxy, in the unit of the numbers."""
        corners = _ORDERS[self.order](_tensor(self.values))
        return corners + 0.5 if self.unit == "1000bins" else corners


def first_outside(boxes: Boxes) -> int | None:
    """The first box that reaches further out of its frame than any sensible answer.

    A model may answer a little beyond the image; centre and size given as fractions, up to half of
    it. What lies further out is in another unit.
    """
    fractions = boxes.fractions()
    with np.errstate(invalid="ignore"):
        far = (fractions < -_REACH - _SLACK) | (fractions > 1 + _REACH + _SLACK)
    rows = np.flatnonzero(far.any(axis=1))
    return int(rows[0]) if len(rows) else None


def better_reading(
    boxes: Boxes, mean_iou: Callable[[Array], float]
) -> tuple[str, float, float] | None:
    """A convention under which the answers meet the truth far better than under their own.

    Args:
        boxes: the answers.
        mean_iou: of xyxy pixels (N, 4) with the truth.

    Returns:
        Its name, the mean IoU under it, and the mean IoU under the declared one; None if no other
        is better by 0.2 and by half, or if there are fewer than ten boxes, which prove nothing.
    """
    if np.count_nonzero(~np.isnan(boxes.values).any(axis=1)) < _FEWEST:
        return None
    found = {
        name: mean_iou(replace(boxes, convention=name).to_pixels())
        for name in CONVENTIONS
        if boxes.resized is not None or not name.endswith("_resized")
    }
    own = found[boxes.convention]
    best = max(found, key=lambda name: found[name])
    if found[best] < own + _BETTER_BY or found[best] < own * _BETTER_TIMES:
        return None
    return best, found[best], own


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
