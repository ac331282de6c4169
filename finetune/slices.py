"""Slices of an evaluation: where a model is strong and where the average hides that it is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.wording import mentions_place, mentions_relation, names_people

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

KINDS = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
"""What Flickr30k Entities calls its entities; published results are broken down by them."""


def slices_of(
    texts: Sequence[str],
    shares: NDArray[np.float64],
    box_counts: NDArray[np.int64],
    kinds: Sequence[Sequence[str]],
) -> dict[str, Mask]:
    """Named, possibly empty masks (E,) over the expressions.

    Sizes (``size:``), lengths (``length:``), ``place:`` and ``relation:`` (such words or none),
    ``about:`` (people or anything else) and ``boxes:`` (none, one or several) each divide the
    expressions completely. ``kind:`` holds what is annotated; an entity may be of several kinds.

    Args:
        texts: of the expressions, (E,).
        shares: area of the merged true box over that of the image, (E,); NaN where there is none,
            which puts the expression into no size.
        box_counts: how many boxes the phrase owns, (E,).
        kinds: those of `KINDS` that are annotated, often none. Where there are some they decide
            what is about people, else the words do.
    """
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    placed = np.array([mentions_place(text) for text in texts], dtype=bool)
    related = np.array([mentions_relation(text) for text in texts], dtype=bool)
    people = np.array(
        [
            "people" in kind if kind else names_people(text)
            for text, kind in zip(texts, kinds, strict=True)
        ],
        dtype=bool,
    )
    sized = ~np.isnan(shares)
    sizes = {f"size: {name}": mask & sized for name, mask in _bins(shares, _SIZES, inclusive=False)}
    lengths = {f"length: {name}": mask for name, mask in _bins(words, _LENGTHS, inclusive=True)}
    return {
        **sizes,
        **lengths,
        "place: said": placed,
        "place: not said": ~placed,
        "relation: said": related,
        "relation: not said": ~related,
        "about: people": people,
        "about: other": ~people,
        "boxes: none": box_counts == 0,
        "boxes: one": box_counts == 1,
        "boxes: several": box_counts > 1,
        **{
            f"kind: {name}": np.array([name in kind for kind in kinds], dtype=bool)
            for name in KINDS
        },
    }


def _bins(
    values: NDArray[np.float64], bins: Sequence[tuple[str, float]], inclusive: bool
) -> list[tuple[str, Mask]]:
    edges = [edge for _, edge in bins[:-1]]
    # `right=True` puts a value that equals an edge below it.
    places = np.digitize(values, edges, right=inclusive)
    return [(name, places == place) for place, (name, _) in enumerate(bins)]
