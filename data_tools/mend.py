"""What becomes of a photo's faulty boxes and texts: dropped or clipped by rule, and counted.

Large annotations have a faulty box here and there, which is no reason to lose the photo with its
other regions. What is mended is counted by cause in ``left_out`` and stands in the manifest.

A region of a referring-expression set is left as it is: an evaluation must not lose or move a box
that published results were measured with. The record's own check then rejects the whole sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from data_tools.sources.base import Draft
from wholegrain.data.record import BOX_TOLERANCE_PX, Box, Region, enclosing_box
from wholegrain.data.record_parse import MAX_ITEMS, MAX_TEXT_CHARS, SURROGATE

LEAST_SHARE_INSIDE = 0.5
"""Of the area of a box that sticks out; one with less in the photo shows something else."""


def mend(draft: Draft, size: tuple[int, int], left_out: Counter[str]) -> Draft:
    """The draft without what no record may hold; counts in ``left_out`` what was dropped.

    - A box that is not finite, has no area, or lies outside: the region is dropped. With several
      boxes, that box is.
    - A box that sticks out by more than the record's tolerance is clipped if at least
      ``LEAST_SHARE_INSIDE`` of its area lies inside, else dropped as one that lies outside.
    - A text that says nothing, is longer than a record allows, or holds half a surrogate pair is
      dropped; so is a region without a text left.

    Args:
        size: width and height of the photo in px.
    """
    if len(draft.regions) > MAX_ITEMS:
        return draft  # which no record can hold, however many would be dropped
    captions = _sound_texts(draft.captions, "caption:", left_out)
    regions = [_mended(region, size, left_out) for region in draft.regions]
    return dataclasses.replace(
        draft, captions=captions, regions=tuple(region for region in regions if region is not None)
    )


def _mended(region: Region, size: tuple[int, int], left_out: Counter[str]) -> Region | None:
    if region.ref is not None:
        return region
    boxes = tuple(
        sound for box in region.boxes or (region.box,) if (sound := _box(box, size, left_out))
    )
    if not boxes:
        return None
    texts = _sound_texts(region.texts, "region: text", left_out)
    if not texts:
        left_out["region: without text"] += 1
        return None
    attributes = _sound_texts(region.attributes, "attribute:", left_out)
    if len(region.boxes) > 1:
        box = region.box if boxes == region.boxes else enclosing_box(boxes)
        boxes = boxes if len(boxes) > 1 else ()
    else:
        box, boxes = boxes[0], region.boxes and boxes
    if (box, texts, attributes, boxes) == _parts(region):
        return region
    return dataclasses.replace(region, box=box, texts=texts, attributes=attributes, boxes=boxes)


def _parts(region: Region) -> tuple[object, ...]:
    return region.box, region.texts, region.attributes, region.boxes


def _box(box: Box, size: tuple[int, int], left_out: Counter[str]) -> Box | None:
    if not all(math.isfinite(number) for number in box):
        left_out["region: box not finite"] += 1
        return None
    x, y, w, h = box
    if w <= 0 or h <= 0:
        left_out["region: box without area"] += 1
        return None
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + w, float(size[0])), min(y + h, float(size[1]))
    share = max(right - left, 0.0) / w * (max(bottom - top, 0.0) / h)
    if _within_tolerance(box, size) and share > 0:
        return box
    if share < LEAST_SHARE_INSIDE:
        left_out["region: box outside"] += 1
        return None
    left_out["region: box clipped"] += 1
    return left, top, right - left, bottom - top


def _within_tolerance(box: Box, size: tuple[int, int]) -> bool:
    x, y, w, h = box
    slack = BOX_TOLERANCE_PX
    return x >= -slack and y >= -slack and x + w <= size[0] + slack and y + h <= size[1] + slack


def _sound_texts(texts: tuple[str, ...], what: str, left_out: Counter[str]) -> tuple[str, ...]:
    if not isinstance(texts, tuple):  # a reader's mistake, which the record's check names
        return texts
    faults = [_fault(text) for text in texts]
    if not any(faults):
        return texts
    left_out.update(f"{what} {fault}" for fault in faults if fault)
    return tuple(text for text, fault in zip(texts, faults, strict=True) if not fault)


def _fault(text: object) -> str:
    """Why a text is dropped, or nothing."""
    if not isinstance(text, str):
        return ""  # the record's check names it
    if len(text) > MAX_TEXT_CHARS:
        return "too long"
    # Blanks, controls, zero-width marks: nothing of them reaches a tokenizer.
    if not text[:1].isalnum() and not any(c.isprintable() and not c.isspace() for c in text):
        return "blank"
    return "" if text.isascii() or SURROGATE.search(text) is None else "not Unicode"
