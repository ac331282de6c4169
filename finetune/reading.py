"""From boxes as a system wrote them to pixels, unless they cannot be what they are said to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.answers import Size
from finetune.conventions import PIXELS, Array, Boxes, better_reading, first_outside
from wholegrain.errors import DataError, RecordError

_ANYWAY = "with --trust-boxes they are measured as they are"


@dataclass(frozen=True)
class Reading:
    """How the boxes of a file are to be read."""

    convention: str = PIXELS
    """One of `finetune.conventions.CONVENTIONS`."""
    resized: Size | None = None
    """Width and height that every image was resized to, where the lines do not say."""
    trust: bool = False
    """Takes the boxes as declared, however unlikely they look."""

    def to_pixels(
        self,
        values: Array,
        sizes: Array,
        resized: Sequence[Size | None],
        where: Callable[[int], str],
        mean_iou: Callable[[Array], float],
    ) -> Array:
        """Boxes (N, 4) as xyxy pixels (N, 4).

        Args:
            values: as written; rows of NaN are answers without a box.
            sizes: (N, 2) width and height of the stored images.
            resized: of each box the size that its line gives, or None.
            where: file and line of a row.
            mean_iou: of boxes in pixels with the truth; tells a wrong convention.

        Raises:
            RecordError: a box reaches far beyond its image, or a size that is needed is missing.
            DataError: the boxes fit another convention far better.
        """
        given = [
            own or self.resized or ((1.0, 1.0) if np.isnan(box).any() else None)
            for own, box in zip(resized, values, strict=True)
        ]
        known = None
        if all(size is not None for size in given):
            known = np.array(given, dtype=np.float64).reshape(-1, 2)
        elif self.convention.endswith("_resized"):
            remedy = "add it as [width, height], or give --resized WIDTHxHEIGHT for all images"
            raise RecordError(where(given.index(None)), "resized", None, remedy)
        boxes = Boxes(values, sizes[:, 0], sizes[:, 1], self.convention, known)
        if not self.trust:
            _check(boxes, where, mean_iou)
        return boxes.to_pixels()


def _check(boxes: Boxes, where: Callable[[int], str], mean_iou: Callable[[Array], float]) -> None:
    better = better_reading(boxes, mean_iou)
    hint = "name their convention with --boxes"
    if better is not None:
        hint += f" (they fit {better[0]}: mean IoU {better[1]:.2f} instead of {better[2]:.2f})"
    outside = first_outside(boxes)
    if outside is not None:
        fault = f"as {boxes.convention} it lies far outside {boxes.frame(outside)}"
        value = boxes.values[outside].tolist()
        raise RecordError(where(outside), "box", value, f"{fault}; {hint}, or {_ANYWAY}")
    if better is not None:
        file = where(0).rsplit(":", 1)[0]
        raise DataError(f"{file}: its boxes are not {boxes.convention}; {hint}, or {_ANYWAY}")
