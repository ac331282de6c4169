"""One sample's record: what is said about an image, in whole, by region and by object.

Boxes are ``(x, y, w, h)`` floats in absolute pixels of the stored image, top-left origin. A record
made by :func:`parse_record` is sound: every box lies in the image, every text says something, and
every number is finite. :class:`Record` itself does not check, so that converters can build one
from raw annotations; the shard writer parses what it is given before it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wholegrain.data.record_fast import FastParser
from wholegrain.data.record_parse import (
    BOX_TOLERANCE_PX,
    ENCLOSING_TOLERANCE_PX,
    MAX_RECORD_BYTES,
    MAX_SIDE_PX,
    SCHEMA,
    Fields,
    load_json,
    parse_box,
)
from wholegrain.errors import RecordError

__all__ = [
    "BOX_TOLERANCE_PX",
    "MAX_RECORD_BYTES",
    "SCHEMA",
    "Absent",
    "Box",
    "Grain",
    "Record",
    "Reference",
    "Region",
    "enclosing_box",
    "parse_record",
]

Box: TypeAlias = tuple[float, float, float, float]
Grain: TypeAlias = Literal["region", "object"]

_GRAINS: dict[str, Grain] = {"region": "region", "object": "object"}


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a region's expressions stand in a referring-expression set.

    ``sent_ids`` is parallel to the region's texts. ``split`` is that set's own split, which may
    differ from the record's (RefCOCO-google puts one image into several).
    """

    set: str
    ref_id: int
    sent_ids: tuple[int, ...]
    split: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "sent_ids", tuple(self.sent_ids))


@dataclass(frozen=True, slots=True)
class Region:
    """A box of the image and the texts that describe it.

    ``boxes`` lists every box when one phrase owns several (Flickr30k any-box protocol); ``box`` is
    then the box that encloses them. It is empty where ``box`` is the only one.
    """

    grain: Grain
    box: Box
    texts: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    ref: Reference | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Absent:
    """Expressions for which nothing in the image is meant (gRefCOCO's no-target samples)."""

    texts: tuple[str, ...]
    ref: Reference | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of one image. ``split`` is the record's, ``id`` unique within it.

    ``photo`` names the photo itself, the same in all data sets that show it (``coco/391895`` in
    COCO 2014 and 2017, RefCOCO and Visual Genome), so that training and evaluation photos can be
    told apart across corpora; None where no other data set is known to show it.
    """

    id: str
    source: str
    split: str
    width: int
    height: int
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    license: str | None = None
    schema: int = SCHEMA
    photo: str | None = None
    absent: tuple[Absent, ...] = ()

    @property
    def photo_id(self) -> str:
        """``photo``, or the record's own id where there is none."""
        return self.photo or self.id

    def to_json(self) -> bytes:
        """Compact UTF-8 JSON with sorted keys: equal records give equal bytes."""
        try:
            text = json.dumps(
                _record_dict(self),
                ensure_ascii=False,
                allow_nan=False,
                sort_keys=True,
                separators=(",", ":"),
            )
            return text.encode()
        # NaN, infinity or half a surrogate pair; a type that JSON lacks, such as numpy's float32.
        except (ValueError, TypeError) as error:
            remedy = f"it cannot be written as JSON ({error}); mend the annotation"
            raise RecordError(f"record {self.id!r}", "record", self.source, remedy) from None


def enclosing_box(boxes: Iterable[Box]) -> Box:
    """The smallest xywh box that holds all of ``boxes`` (xywh, at least one)."""
    left, top, width, height = zip(*boxes, strict=True)
    x, y = min(left), min(top)
    right = max(a + w for a, w in zip(left, width, strict=True))
    bottom = max(b + h for b, h in zip(top, height, strict=True))
    return (x, y, right - x, bottom - y)


def parse_record(raw: bytes | str | dict[str, Any], where: str) -> Record:
    """Reads and checks one record.

    A box may stick out of the image by at most ``BOX_TOLERANCE_PX`` (annotation tools round) and
    is then clipped.

    Args:
        raw: JSON as bytes or text (at most ``MAX_RECORD_BYTES``), or the parsed object.
        where: file and member, for the messages.

    Raises:
        RecordError: names the file, the field, its value and the remedy.
    """
    if not isinstance(raw, dict):
        record = _parse_common(raw)
        if record is not None:
            return record
    return parse_record_fully(raw, where)


_parse_common = FastParser(Record, Region, Reference, Absent, _GRAINS)


def parse_record_fully(raw: bytes | str | dict[str, Any], where: str) -> Record:
    """What :func:`parse_record` means, field by field: it decides wherever there is a fault."""
    fields = Fields(load_json(raw, where) if not isinstance(raw, dict) else raw, where, "")
    schema = fields.integer("schema", 1, 1 << 31)
    if schema != SCHEMA:
        remedy = (
            f"this version of wholegrain reads record schema {SCHEMA} only: update wholegrain, or "
            "convert the source again with this version"
        )
        raise RecordError(where, "schema", schema, remedy)
    width = fields.integer("width", 1, MAX_SIDE_PX)
    height = fields.integer("height", 1, MAX_SIDE_PX)
    record = Record(
        id=fields.text("id"),
        source=fields.text("source"),
        split=fields.text("split"),
        width=width,
        height=height,
        captions=fields.texts("captions"),
        regions=tuple(_parse_region(item, width, height) for item in fields.objects("regions")),
        license=fields.optional_text("license"),
        photo=fields.optional_text("photo"),
        absent=tuple(_parse_absent(item) for item in fields.objects("absent")),
    )
    fields.refuse_unknown()
    if not record.captions and not record.regions and not record.absent:
        remedy = "a record needs a caption or a region with a text; leave the image out otherwise"
        raise RecordError(where, "captions", [], remedy)
    return record


def _parse_region(fields: Fields, width: int, height: int) -> Region:
    grain = _GRAINS.get(fields.text("grain"))
    if grain is None:
        raise fields.error("grain", fields.text("grain"), f"use one of {', '.join(_GRAINS)}")
    box = parse_box(fields.required("box"), width, height, fields, "box")
    texts = fields.texts("texts")
    if not texts:
        raise fields.error("texts", [], "give the region at least one text or leave it out")
    boxes = _parse_boxes(fields, box, width, height)
    ref = _parse_reference(fields, len(texts))
    attributes = fields.texts("attributes")
    fields.refuse_unknown()
    return Region(
        grain=grain,
        box=enclosing_box(boxes) if boxes else box,
        texts=texts,
        attributes=attributes,
        ref=ref,
        boxes=boxes,
    )


def _parse_absent(fields: Fields) -> Absent:
    texts = fields.texts("texts")
    if not texts:
        raise fields.error("texts", [], "give at least one text or leave it out")
    ref = _parse_reference(fields, len(texts))
    fields.refuse_unknown()
    return Absent(texts, ref)


def _parse_boxes(fields: Fields, box: Box, width: int, height: int) -> tuple[Box, ...]:
    raw = fields.sequence("boxes")
    boxes = tuple(
        parse_box(item, width, height, fields, f"boxes[{i}]") for i, item in enumerate(raw)
    )
    if not boxes:
        return ()
    around = enclosing_box(boxes)
    if any(abs(a - b) > ENCLOSING_TOLERANCE_PX for a, b in zip(around, box, strict=True)):
        raise fields.error("box", list(box), f"with several boxes it must enclose them: {around}")
    return boxes if len(boxes) > 1 else ()


def _parse_reference(fields: Fields, texts: int) -> Reference | None:
    inner = fields.optional_object("ref")
    if inner is None:
        return None
    reference = Reference(
        set=inner.text("set"),
        ref_id=inner.integer("ref_id", 0, 1 << 62),
        sent_ids=inner.integers("sent_ids", 0, 1 << 62),
        split=inner.text("split"),
    )
    inner.refuse_unknown()
    if len(reference.sent_ids) != texts:
        raise inner.error("sent_ids", reference.sent_ids, f"give one for each of {texts} texts")
    return reference


def _record_dict(record: Record) -> dict[str, Any]:
    out: dict[str, Any] = {
        "schema": record.schema,
        "id": record.id,
        "source": record.source,
        "split": record.split,
        "width": record.width,
        "height": record.height,
        "captions": record.captions,
        "regions": [_region_dict(region) for region in record.regions],
    }
    if record.license is not None:
        out["license"] = record.license
    if record.photo is not None:
        out["photo"] = record.photo
    if record.absent:
        out["absent"] = [
            {"texts": each.texts, **({"ref": _reference_dict(each.ref)} if each.ref else {})}
            for each in record.absent
        ]
    return out


def _region_dict(region: Region) -> dict[str, Any]:
    out: dict[str, Any] = {
        "grain": region.grain,
        "box": region.box,
        "texts": region.texts,
        "attributes": region.attributes,
    }
    if len(region.boxes) > 1:
        out["boxes"] = region.boxes
    if region.ref is not None:
        out["ref"] = _reference_dict(region.ref)
    return out


def _reference_dict(ref: Reference) -> dict[str, Any]:
    return {
        "set": ref.set,
        "ref_id": ref.ref_id,
        "sent_ids": ref.sent_ids,
        "split": ref.split,
    }
