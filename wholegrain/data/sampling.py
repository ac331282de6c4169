"""Which of an image's texts go into a batch.

An image may carry five captions and fifty phrases; a batch takes a few of each, drawn anew in each
epoch. Evaluation takes them in order, without chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from pydantic import Field

from wholegrain.config import config
from wholegrain.data.batch import IMAGE, OBJECT, REGION
from wholegrain.data.record import Record, Region

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)] | None
_GRAIN = {"region": REGION, "object": OBJECT}


@config
class ConceptSampling:
    """How many concepts an image brings, and which regions count."""

    captions_per_image: Count = 1
    """Image concepts of an image; None takes every caption."""

    phrases_as_captions: bool = False
    """A record without captions offers the phrases of its regions in their place, as ALBEF's list
    of Visual Genome captions does."""

    max_regions: Count = 5
    """Most region concepts of an image; None takes all."""

    max_objects: Count = 5
    """Most object concepts of an image; None takes all."""

    max_concepts: Annotated[int, Field(ge=1)] | None = None
    """Most concepts of an image in all, captions first (X-VLM: 5); None sets no limit beside those
    of each grain."""

    texts_per_region: Annotated[int, Field(ge=1)] | None = 1
    """Texts taken of each region, each a concept of its own; None takes all, as evaluation of
    referring expressions does."""

    min_area_kept: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A region is dropped unless the crop shows more than this share of its box."""

    anchor_first: bool = True
    """The region that a crop was made for is surely among the chosen; X-VLM leaves it to chance."""

    distinct_texts: bool = True
    """Takes a text once an image: "a man" twice on one image is a false negative of itself."""

    reference: str | None = None
    """Only regions that are referring expressions of this set, as SET or SET:SPLIT, for instance
    `refcoco-unc:testA`."""

    max_tokens: Annotated[int, Field(ge=2, le=512)] = 40
    """Longer texts are cut; ``[CLS]`` counts."""

    def most_concepts(self) -> int | None:
        """The most concepts that an image can bring; None where nothing bounds them."""
        if self.captions_per_image is None or self.max_regions is None or self.max_objects is None:
            return self.max_concepts
        # A grain's limit counts texts, however many a region has.
        count = self.captions_per_image + self.max_regions + self.max_objects
        return count if self.max_concepts is None else min(count, self.max_concepts)

    @classmethod
    def everything(cls, reference: str | None = None, max_tokens: int = 40) -> ConceptSampling:
        """Every text of every region, and every caption unless `reference` asks for expressions."""
        return cls(
            captions_per_image=0 if reference else None,
            max_regions=None,
            max_objects=None,
            texts_per_region=None,
            min_area_kept=0.0,
            distinct_texts=False,
            reference=reference,
            max_tokens=max_tokens,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may become a concept: of `region` (-1: a caption), its `text_index`-th."""

    grain: int
    text: str
    region: int
    text_index: int


def usable_regions(record: Record, rules: ConceptSampling) -> list[int]:
    """Positions of the regions that the rules admit."""
    limits = {"region": rules.max_regions, "object": rules.max_objects}
    return [
        position
        for position, region in enumerate(record.regions)
        if limits[region.grain] != 0 and _is_referred(region, rules.reference)
    ]


def caption_candidates(
    record: Record, rules: ConceptSampling, rng: np.random.Generator | None
) -> list[Candidate]:
    """The chosen captions; without `rng` the first ones."""
    texts: Sequence[str] = record.captions
    if not texts and rules.phrases_as_captions:
        phrases = (region for region in record.regions if region.grain == "region")
        texts = [text for region in phrases for text in region.texts]
    chosen = _some(range(len(texts)), rules.captions_per_image, rng)
    return [Candidate(IMAGE, texts[i], -1, i) for i in chosen]


def region_candidates(
    record: Record,
    positions: Sequence[int],
    shares: Sequence[float],
    anchor: int | None,
    rules: ConceptSampling,
    rng: np.random.Generator | None,
) -> Iterator[Candidate]:
    """Texts of regions that the view shows, up to the limits of each grain.

    Args:
        positions: regions to choose among, from `usable_regions`.
        shares: parallel to `positions`, the share of the box that the view shows.
        anchor: the region that the crop was made for; with `anchor_first` it comes first.
        rng: None takes regions and texts in the record's order.
    """
    left = {"region": rules.max_regions, "object": rules.max_objects}
    share_of = dict(zip(positions, shares, strict=True))
    order = _some(positions, None, rng)
    if anchor is not None and rules.anchor_first:
        order.remove(anchor)
        order.insert(0, anchor)
    used: set[str] = set()
    for position in order:
        region = record.regions[position]
        budget = left[region.grain]
        if budget == 0 or share_of[position] <= rules.min_area_kept:
            continue
        texts: Sequence[int] = range(len(region.texts))
        if rules.distinct_texts:
            texts = [i for i in texts if region.texts[i].casefold() not in used]
        chosen = _some(texts, rules.texts_per_region, rng)
        if budget is not None:
            chosen = chosen[:budget]
            left[region.grain] = budget - len(chosen)
        used.update(region.texts[i].casefold() for i in chosen)
        for i in chosen:
            yield Candidate(_GRAIN[region.grain], _wording(region, i, rng), position, i)


def _wording(region: Region, text_index: int, rng: np.random.Generator | None) -> str:
    """The text, for an object with one of its attributes before it: "red car"."""
    text = region.texts[text_index]
    if region.grain != "object" or not region.attributes:
        return text
    draw = 0 if rng is None else int(rng.random() * len(region.attributes))
    return f"{region.attributes[draw]} {text}"


def _is_referred(region: Region, reference: str | None) -> bool:
    if reference is None:
        return True
    if region.ref is None:
        return False
    name, _, split = reference.partition(":")
    return region.ref.set == name and (not split or region.ref.split == split)


def _some(items: Sequence[T], count: int | None, rng: np.random.Generator | None) -> list[T]:
    """`count` of the items (None: all), in random order; without `rng` the first, in order."""
    items = list(items)
    if count == 0 or not items:
        return []
    if rng is None:
        return items[:count]
    if count == 1:
        return [items[int(rng.random() * len(items))]]
    return [items[i] for i in rng.permutation(len(items))[:count].tolist()]
