import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.prepare import Ready, prepare
from data_tools.sources.base import Bad, Draft
from wholegrain.data.decode import decode_image
from wholegrain.data.record import Region

Photo = Callable[..., bytes]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# Well-formed, and 5 GB once decoded.
HUGE_PNG = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(bytes(1000)))
    + _chunk(b"IEND", b"")
)


@pytest.fixture
def draft(photo: Photo) -> Draft:
    return Draft(
        id="set/1",
        source="set",
        split="train",
        image=photo(1),
        where="annotations.json: image 1",
        size=(64, 48),
        captions=("a photo",),
        regions=(Region("region", (8.0, 6.0, 32.0, 24.0), ("a thing",)),),
    )


def test_a_sound_photo_is_stored_byte_for_byte(draft: Draft, photo: Photo) -> None:
    ready = prepare(draft)
    assert isinstance(ready, Ready)
    assert (ready.image, ready.kind) == (photo(1), "jpg")
    assert (ready.record.width, ready.record.height) == (64, 48)
    assert ready.record.regions == draft.regions


def test_the_size_comes_from_the_photo_where_annotations_say_none(draft: Draft) -> None:
    ready = prepare(replace(draft, size=None, regions=()))
    assert isinstance(ready, Ready)
    assert (ready.record.width, ready.record.height) == (64, 48)


def test_the_name_does_not_decide_the_kind(draft: Draft, tmp_path: Path) -> None:
    path = tmp_path / "really.jpg"
    path.write_bytes(_png())
    ready = prepare(replace(draft, image=path))
    assert isinstance(ready, Ready) and ready.kind == "png"


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda data: data[: len(data) // 2], "image: truncated"),
        (lambda data: b"<!DOCTYPE html><html>404 Not Found</html>", "image: not an image"),
        (lambda data: b"", "image: not an image"),
        (lambda data: b"GIF89a" + bytes(100), "image: not an image"),
        (lambda data: HUGE_PNG, "image: too large"),
    ],
)
def test_a_bad_photo_is_named(
    draft: Draft, photo: Photo, tmp_path: Path, spoil: Callable[[bytes], bytes], cause: str
) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(spoil(photo(1, 640, 480)))
    bad = prepare(replace(draft, image=path))
    assert isinstance(bad, Bad)
    assert (bad.id, bad.cause) == ("set/1", cause)
    assert str(path) in bad.detail


def test_a_missing_photo_is_named(draft: Draft, tmp_path: Path) -> None:
    bad = prepare(replace(draft, image=tmp_path / "none.jpg"))
    assert isinstance(bad, Bad) and bad.cause == "image: missing"
    bad = prepare(replace(draft, image=tmp_path))
    assert isinstance(bad, Bad) and bad.cause == "image: unreadable"


def test_another_size_than_annotated_is_bad(draft: Draft) -> None:
    bad = prepare(replace(draft, size=(48, 64)))
    assert isinstance(bad, Bad) and bad.cause == "image: wrong size"
    assert "64 x 48" in bad.detail and "48 x 64" in bad.detail


@pytest.mark.parametrize(
    ("box", "cause"),
    [
        ((60.0, 6.0, 32.0, 24.0), "record: regions[].box"),
        ((8.0, 6.0, -1.0, 24.0), "record: regions[].box"),
        ((8.0, 6.0, 0.0, 24.0), "record: regions[].box"),
        ((float("nan"), 6.0, 1.0, 24.0), "record: regions[].box"),
        ((8.0, 6.0, float("inf"), 24.0), "record: regions[].box"),
    ],
)
def test_a_bad_box_is_named(draft: Draft, box: tuple[float, ...], cause: str) -> None:
    regions = (*draft.regions, Region("region", box, ("x",)))  # type: ignore[arg-type]
    bad = prepare(replace(draft, regions=regions))
    assert isinstance(bad, Bad) and bad.cause == cause
    assert "annotations.json: image 1: regions[1].box" in bad.detail


def test_a_record_without_text_is_bad(draft: Draft) -> None:
    bad = prepare(replace(draft, captions=(), regions=()))
    assert isinstance(bad, Bad) and bad.cause == "record: captions"
    bad = prepare(replace(draft, captions=("fine", " ")))
    assert isinstance(bad, Bad) and bad.cause == "record: captions[]"


def test_reduced_photos_keep_boxes_in_place(draft: Draft, photo: Photo) -> None:
    boxes = ((8.0, 6.0, 32.0, 24.0), (300.0, 100.0, 40.0, 50.0))
    region = Region("region", (8.0, 6.0, 332.0, 144.0), ("two",), boxes=boxes)
    large = replace(draft, image=photo(3, 400, 250), size=(400, 250), regions=(region,))
    ready = prepare(large, max_side=101)
    assert isinstance(ready, Ready)
    record = ready.record
    assert (record.width, record.height) == (101, 63)
    decoded = decode_image(ready.image, "reduced")
    assert (decoded.width, decoded.height) == (101, 63)
    scale = np.array([101 / 400, 63 / 250] * 2)
    np.testing.assert_allclose(record.regions[0].boxes, boxes * scale)
    np.testing.assert_allclose(record.regions[0].box, region.box * scale)


def test_a_photo_that_is_small_enough_is_not_encoded_again(draft: Draft, photo: Photo) -> None:
    ready = prepare(draft, max_side=64)
    assert isinstance(ready, Ready) and ready.image == photo(1)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, format="PNG")
    return buffer.getvalue()
