"""Reads the common shape of a record with few operations, and leaves any doubt to the full parser.

A record is parsed once a sample in training. What this parser accepts is what the full one in
:mod:`wholegrain.data.record` gives, equal to the last bit; whatever it does not recognise (a fault,
an integer in a box, a box that sticks out) it hands back, so that every check and every message
stays in one place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wholegrain.data.record_parse import (
    ENCLOSING_TOLERANCE_PX,
    MAX_ITEMS,
    MAX_RECORD_BYTES,
    MAX_SIDE_PX,
    MAX_TEXT_CHARS,
    SCHEMA,
    SURROGATE,
    Fields,
    parse_box,
    refuse_constant,
)
from wholegrain.errors import RecordError

if TYPE_CHECKING:
    from wholegrain.data.record import Absent, Box, Grain, Record, Reference, Region

_KEYS = frozenset(
    {
        "schema",
        "id",
        "source",
        "split",
        "width",
        "height",
        "captions",
        "regions",
        "license",
        "photo",
        "absent",
    }
)
_MAX_ID = 1 << 62
# Kept, because json.loads makes a new decoder at each call that says what to do about NaN.
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
_NOWHERE = Fields({}, "", "")


class _Doubt(Exception):
    """Something else than the common shape."""


# What odd values make of the statements below: each of them is a doubt, none an answer.
_DOUBTS = (_Doubt, ValueError, TypeError, KeyError, OverflowError, RecursionError, RecordError)


class FastParser:
    """Makes records of bytes or text; the classes are given, since their module imports this one.

    Args:
        record, region, reference, absent: the classes of :mod:`wholegrain.data.record`.
        grains: what ``grain`` may be.
    """

    def __init__(
        self,
        record: type[Record],
        region: type[Region],
        reference: type[Reference],
        absent: type[Absent],
        grains: Mapping[str, Grain],
    ) -> None:
        self._record, self._region = record, region
        self._reference, self._absent = reference, absent
        self._grains = grains
        # A frozen class sets its fields twice as slowly as its slots are set here.
        self._setters = tuple(
            region.__dict__[name].__set__
            for name in ("grain", "box", "texts", "attributes", "ref", "boxes")
        )

    def __call__(self, raw: bytes | str) -> Record | None:
        """The record, or None where only the full parser can tell."""
        if len(raw) > MAX_RECORD_BYTES:
            return None
        try:
            # Strict, unlike json.loads: bytes that hold half a surrogate pair end here.
            text = raw if isinstance(raw, str) else raw.decode()
            # What is left of them is spelt out, which records of ours have for controls only.
            escaped = "\\u" in text or isinstance(raw, str)
            return self._parse(_DECODER.decode(text), escaped, len(text) > MAX_TEXT_CHARS)
        except _DOUBTS:
            return None

    def _parse(self, values: Any, escaped: bool, is_long: bool) -> Record:
        if type(values) is not dict or not values.keys() <= _KEYS:
            raise _Doubt
        width, height = values["width"], values["height"]
        if type(width) is not int or type(height) is not int or type(values["schema"]) is not int:
            raise _Doubt
        if values["schema"] != SCHEMA or not (
            1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX
        ):
            raise _Doubt
        captions = values.get("captions", [])
        raw_regions, raw_absent = values.get("regions", []), values.get("absent", [])
        if type(captions) is not list or type(raw_regions) is not list:
            raise _Doubt
        # Every text of the record, so that they are checked in one go.
        texts = [values["id"], values["source"], values["split"], *captions]
        licence, photo = values.get("license"), values.get("photo")
        if licence is not None:
            texts.append(licence)
        if photo is not None:
            texts.append(photo)
        regions = self._regions(raw_regions, width, height, texts)
        absent = self._absences(raw_absent, texts) if raw_absent != [] else ()
        _check_texts(texts, escaped, is_long)
        if not (captions or regions or absent) or len(regions) > MAX_ITEMS:
            raise _Doubt
        return self._record(
            values["id"],
            values["source"],
            values["split"],
            width,
            height,
            tuple(captions),
            regions,
            licence,
            SCHEMA,
            photo,
            absent,
        )

    def _regions(
        self, items: list[Any], width: int, height: int, seen: list[Any]
    ) -> tuple[Region, ...]:
        kind, grains, new = self._region, self._grains, object.__new__
        set_grain, set_box, set_texts, set_attributes, set_ref, set_boxes = self._setters
        regions = []
        for item in items:
            texts = item["texts"]
            attributes = item.get("attributes")
            ref = several = None
            unknown = len(item) - 3
            if attributes is not None:
                unknown -= 1
            if unknown:  # the rarer fields, or one that there is not
                ref, several = item.get("ref"), item.get("boxes")
                if unknown != (ref is not None) + (several is not None):
                    raise _Doubt
            if type(texts) is not list or not texts:
                raise _Doubt
            seen += texts
            if attributes:
                if type(attributes) is not list:
                    raise _Doubt
                seen += attributes
                attributes = tuple(attributes)
            elif attributes is not None and attributes != []:
                raise _Doubt
            box = _box(item["box"], width, height)
            boxes: tuple[Box, ...] = ()
            if several is not None:
                box, boxes = _several(several, box, width, height)
            region = new(kind)
            set_grain(region, grains[item["grain"]])
            set_box(region, box)
            set_texts(region, tuple(texts))
            set_attributes(region, attributes or ())
            set_ref(region, None if ref is None else self._refer(ref, len(texts), seen))
            set_boxes(region, boxes)
            regions.append(region)
        return tuple(regions)

    def _absences(self, items: list[Any], seen: list[Any]) -> tuple[Absent, ...]:
        if type(items) is not list:
            raise _Doubt
        absent = []
        for item in items:
            texts, ref = item["texts"], item.get("ref")
            if type(texts) is not list or not texts or len(item) != 1 + (ref is not None):
                raise _Doubt
            seen += texts
            absent.append(
                self._absent(
                    tuple(texts), None if ref is None else self._refer(ref, len(texts), seen)
                )
            )
        return tuple(absent)

    def _refer(self, ref: dict[str, Any], texts: int, seen: list[Any]) -> Reference:
        ref_id, sent_ids = ref["ref_id"], ref["sent_ids"]
        if len(ref) != 4 or type(sent_ids) is not list or len(sent_ids) != texts:
            raise _Doubt
        for number in (ref_id, *sent_ids):
            if type(number) is not int or not 0 <= number <= _MAX_ID:
                raise _Doubt
        seen.append(ref["set"])
        seen.append(ref["split"])
        return self._reference(ref["set"], ref_id, tuple(sent_ids), ref["split"])


def _box(value: Any, width: int, height: int) -> Box:
    x, y, w, h = value
    if (
        type(x) is float
        and type(y) is float
        and type(w) is float
        and type(h) is float
        and x >= 0.0
        and y >= 0.0
        and w > 0.0
        and h > 0.0
        and x + w <= width
        and y + h <= height
    ):
        return (x, y, w, h)
    # Integers, and boxes that a rounding error takes over the edge.
    return parse_box(value, width, height, _NOWHERE, "box")


def _several(values: list[Any], box: Box, width: int, height: int) -> tuple[Box, tuple[Box, ...]]:
    """The region's box and boxes where it lists several; they must fit each other."""
    if type(values) is not list or len(values) > MAX_ITEMS:
        raise _Doubt
    if not values:
        return box, ()
    boxes = tuple([_box(value, width, height) for value in values])
    left, top, w, h = boxes[0]
    right, bottom = left + w, top + h
    for x, y, w, h in boxes:
        left, top = min(left, x), min(top, y)
        right, bottom = max(right, x + w), max(bottom, y + h)
    around = (left, top, right - left, bottom - top)
    for a, b in zip(around, box, strict=True):
        if abs(a - b) > ENCLOSING_TOLERANCE_PX:
            raise _Doubt
    return around, boxes if len(boxes) > 1 else ()


_is_space: Callable[[str], bool] = str.isspace


def _check_texts(texts: list[Any], escaped: bool, is_long: bool) -> None:
    # isspace refuses what is no text with a TypeError, and takes an empty text for sound.
    if not all(texts) or any(map(_is_space, texts)) or len(texts) > MAX_ITEMS:
        raise _Doubt
    # No text is longer than the record that holds it.
    if is_long and max(map(len, texts)) > MAX_TEXT_CHARS:
        raise _Doubt
    if escaped and SURROGATE.search("\n".join(texts)) is not None:
        raise _Doubt
