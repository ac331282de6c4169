"""From a draft to what is stored: the photo read, checked and perhaps made smaller."""

from __future__ import annotations

import dataclasses
import io
import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_tools.mend import mend
from data_tools.sources.base import Bad, Draft
from wholegrain.data.decode import MIN_SIDE_PX, Decoded, ImageError, decode_image
from wholegrain.data.record import Box, Record, Region, parse_record
from wholegrain.data.record_parse import MAX_ITEMS
from wholegrain.data.shard_image import MAX_IMAGE_BYTES, ImageKind, probe_image
from wholegrain.errors import DataError, RecordError

FILE_LIMIT = 256 << 20
"""Largest photo read, in bytes."""

JPEG_QUALITY = 92

# Threads prepare photos side by side, and adding to a counter is not one step.
_COUNTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Ready:
    """A sound record and the encoded photo that it describes."""

    record: Record
    image: bytes
    kind: ImageKind


def prepare(
    draft: Draft, max_side: int | None = None, left_out: Counter[str] | None = None
) -> Ready | Bad:
    """Check one draft against its photo, and mend its boxes and texts (:func:`mend`).

    The photo is decoded in full: truncation shows nowhere else, and once here is cheaper than in
    every epoch. It is stored byte for byte as it came unless a side exceeds ``max_side`` px; then
    it is reduced and written as JPEG, and the boxes are scaled by the exact ratio of the sizes.
    The pixels keep the order in which the file stores them: an EXIF orientation is neither applied
    (boxes refer to the pixels as stored) nor kept in a reduced photo.

    Args:
        left_out: counts what was mended in samples that are ready; safe to share among threads.
    """
    try:
        data = _read(draft)
        decoded = decode_image(data, _place(draft))
    except FileNotFoundError:
        return Bad(draft.id, "image: missing", f"{_place(draft)}: no such file")
    except OSError as error:
        return Bad(draft.id, "image: unreadable", f"{_place(draft)}: {error}")
    except ImageError as error:
        return Bad(draft.id, f"image: {error.cause}", str(error))
    size = (decoded.width, decoded.height)
    if draft.size is not None and draft.size != size:
        return Bad(
            draft.id,
            "image: wrong size",
            f"{_place(draft)}: {size[0]} x {size[1]} px, but {draft.where} says "
            f"{draft.size[0]} x {draft.size[1]}, so its boxes would be wrong",
        )
    mended: Counter[str] = Counter()
    try:
        record = _checked(mend(draft, size, mended), size)
    except RecordError as error:
        return Bad(draft.id, _cause(error.field), str(error))
    ready = _stored(draft, data, decoded, record, max_side)
    if left_out is not None and mended and isinstance(ready, Ready):
        with _COUNTING:
            left_out.update(mended)
    return ready


def _stored(
    draft: Draft, data: bytes, decoded: Decoded, record: Record, max_side: int | None
) -> Ready | Bad:
    if max_side is not None and max(record.width, record.height) > max_side:
        return _reduced(draft, record, decoded, max_side)
    if len(data) > MAX_IMAGE_BYTES:
        detail = f"{_place(draft)}: {len(data)} bytes, more than {MAX_IMAGE_BYTES}; pass --max-side"
        return Bad(draft.id, "image: too large", detail)
    try:
        # By its bytes: the names of photos lie too often.
        kind = probe_image(data, _place(draft)).kind
    except DataError as error:  # of a header that decoders forgive and an index cannot read
        return Bad(draft.id, "image: truncated", str(error))
    return Ready(record, data, kind)


def _read(draft: Draft) -> bytes:
    if isinstance(draft.image, bytes):
        return draft.image
    try:
        size = draft.image.stat().st_size
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise OSError(f"no name that a file may have ({error})") from None
    if size > FILE_LIMIT:
        raise OSError(f"{size} bytes, more than the limit of {FILE_LIMIT}")
    return draft.image.read_bytes()


def _place(draft: Draft) -> str:
    return str(draft.image) if isinstance(draft.image, Path) else draft.where


def _checked(draft: Draft, size: tuple[int, int]) -> Record:
    if len(draft.regions) > MAX_ITEMS:  # a million of them would be copied first
        remedy = f"a list holds at most {MAX_ITEMS} items"
        raise RecordError(draft.where, "regions", len(draft.regions), remedy)
    record = Record(
        id=draft.id,
        source=draft.source,
        split=draft.split,
        width=size[0],
        height=size[1],
        captions=draft.captions,
        regions=draft.regions,
        license=draft.license,
        photo=draft.photo,
        absent=draft.absent,
    )
    # As a dict rather than JSON: the field at fault is then named even where it is NaN.
    return parse_record(dataclasses.asdict(record), draft.where)


def _cause(field: str) -> str:
    """``regions[12].box`` -> ``record: regions[].box``, so that equal faults count together."""
    return "record: " + re.sub(r"\[\d+\]", "[]", field)


def _reduced(draft: Draft, record: Record, decoded: Decoded, max_side: int) -> Ready | Bad:
    from PIL import Image

    ratio = max_side / max(record.width, record.height)
    width, height = (round(side * ratio) for side in (record.width, record.height))
    if min(width, height) < MIN_SIDE_PX:
        detail = (
            f"{_place(draft)}: {record.width} x {record.height} px become {width} x {height} at "
            f"--max-side {max_side}, and a side must keep {MIN_SIDE_PX} px"
        )
        return Bad(draft.id, "image: too small", detail)
    image = Image.fromarray(decoded.pixels).resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    scale = (width / record.width, height / record.height)
    regions = tuple(_scaled(region, scale) for region in record.regions)
    record = dataclasses.replace(record, width=width, height=height, regions=regions)
    return Ready(record, buffer.getvalue(), "jpg")


def _scaled(region: Region, scale: tuple[float, float]) -> Region:
    def move(box: Box) -> Box:
        x, y, w, h = box
        return x * scale[0], y * scale[1], w * scale[0], h * scale[1]

    boxes = tuple(move(box) for box in region.boxes)
    return dataclasses.replace(region, box=move(region.box), boxes=boxes)
