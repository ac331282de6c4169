"""Slices of an evaluation: where a model is strong and where the average hides that it is not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wholegrain.data.directions import has_direction

Mask = NDArray[np.bool_]

# COCO calls an object small below 32 x 32 px and medium below 96 x 96 px. Photos come in many sizes
# here, so both are taken relative to COCO's usual 640 x 480. Phrases often mean a large part of the
# photo, which a guess meets easily, so the largest boxes stand apart.
_COCO_AREA = 640 * 480
_SIZES = (
    ("small", 32**2 / _COCO_AREA),
    ("medium", 96**2 / _COCO_AREA),
    ("large", 0.25),
    ("very large", np.inf),
)
_LENGTHS = (("1-2 words", 2), ("3-5 words", 5), ("6-10 words", 10), ("over 10 words", np.inf))

_SPATIAL = re.compile(
    r"\b(above|background|behind|below|beneath|beside|between|bottom(most)?|cent(er|re)|clos(er|est)|"
    r"corner|edge|far(ther|thest)?|furth(er|est)|first|second|third|fourth|last|foreground|front|"
    r"inside|outside|low(er|est)|middle|near(er|est)?|next|o'clock|top(most)?|under(neath)?|"
    r"upper(most)?)\b",
    re.IGNORECASE,
)


def mentions_place(text: str) -> bool:
    """Whether a text says where its object is, by whole words ("bright" does not say "right")."""
    return has_direction([text]) or _SPATIAL.search(text) is not None


def slices_of(
    texts: Sequence[str], shares: NDArray[np.float64], box_counts: NDArray[np.int64]
) -> dict[str, Mask]:
    """Named, possibly empty masks (E,) over the expressions.

    Sizes (``size:``), lengths (``length:``), ``place:`` (spatial words or none) and ``boxes:`` (one
    or several) each divide the expressions completely.

    Args:
        texts: of the expressions, (E,).
        shares: area of the merged true box over that of the image, (E,).
        box_counts: how many boxes the phrase owns, (E,).
    """
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    placed = np.array([mentions_place(text) for text in texts], dtype=bool)
    sizes = {f"size: {name}": mask for name, mask in _bins(shares, _SIZES, inclusive=False)}
    lengths = {f"length: {name}": mask for name, mask in _bins(words, _LENGTHS, inclusive=True)}
    return {
        **sizes,
        **lengths,
        "place: said": placed,
        "place: not said": ~placed,
        "boxes: one": box_counts == 1,
        "boxes: several": box_counts > 1,
    }


def _bins(
    values: NDArray[np.float64], bins: Sequence[tuple[str, float]], inclusive: bool
) -> list[tuple[str, Mask]]:
    edges = [edge for _, edge in bins[:-1]]
    # `right=True` puts a value that equals an edge below it.
    places = np.digitize(values, edges, right=inclusive)
    return [(name, places == place) for place, (name, _) in enumerate(bins)]
