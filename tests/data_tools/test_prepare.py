import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.prepare import Ready, prepare
from data_tools.sources.base import Bad, Draft
from data_tools.threads import ordered_map
from wholegrain.data.decode import decode_image
from wholegrain.data.record import Box, Reference, Region
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import RecordError

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

ONE_PIXEL = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(bytes(2)))
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
        (lambda data: ONE_PIXEL, "image: too small"),
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


BAD_BOXES = [
    (60.0, 6.0, 32.0, 24.0),
    (8.0, 6.0, -1.0, 24.0),
    (8.0, 6.0, 0.0, 24.0),
    (float("nan"), 6.0, 1.0, 24.0),
    (8.0, 6.0, float("inf"), 24.0),
]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_bad_box_costs_its_region_and_is_counted(draft: Draft, box: Box) -> None:
    regions = (*draft.regions, Region("region", box, ("x",)))
    left_out: Counter[str] = Counter()
    ready = prepare(replace(draft, regions=regions), left_out=left_out)
    assert isinstance(ready, Ready)
    assert ready.record.regions == draft.regions
    assert left_out.total() == 1 and next(iter(left_out)).startswith("region: box ")


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_bad_box_of_a_referring_expression_makes_the_sample_bad(draft: Draft, box: Box) -> None:
    asked = Region("region", box, ("x",), ref=Reference("refcoco-unc", 1, (2,), "val"))
    left_out: Counter[str] = Counter()
    bad = prepare(replace(draft, regions=(*draft.regions, asked)), left_out=left_out)
    assert isinstance(bad, Bad) and bad.cause == "record: regions[].box"
    assert "annotations.json: image 1: regions[1].box" in bad.detail
    assert not left_out


def test_what_was_mended_in_a_bad_sample_is_not_counted(draft: Draft) -> None:
    regions = (Region("region", BAD_BOXES[0], ("x",)),)
    left_out: Counter[str] = Counter()
    bad = prepare(replace(draft, captions=(" ",), regions=regions), left_out=left_out)
    assert isinstance(bad, Bad) and bad.cause == "record: captions"
    assert not left_out


def test_threads_share_a_counter(draft: Draft) -> None:
    regions = (*draft.regions, *(Region("region", box, ("x",)) for box in BAD_BOXES))
    left_out: Counter[str] = Counter()
    drafts = [replace(draft, regions=regions)] * 200
    done = ordered_map(lambda one: prepare(one, left_out=left_out), drafts, 8)
    assert all(isinstance(ready, Ready) for ready in done)
    assert left_out == {
        "region: box outside": 200,
        "region: box without area": 400,
        "region: box not finite": 400,
    }


def test_a_record_without_text_is_bad(draft: Draft) -> None:
    bad = prepare(replace(draft, captions=(), regions=()))
    assert isinstance(bad, Bad) and bad.cause == "record: captions"
    left_out: Counter[str] = Counter()
    ready = prepare(replace(draft, captions=("fine", " ")), left_out=left_out)
    assert isinstance(ready, Ready) and ready.record.captions == ("fine",)
    assert left_out == {"caption: blank": 1}


def test_more_regions_than_a_record_holds_make_the_sample_bad(draft: Draft) -> None:
    bad = prepare(replace(draft, regions=draft.regions * 1_000_000))
    assert isinstance(bad, Bad) and bad.cause == "record: regions"


def test_a_record_of_too_many_bytes_is_refused_by_the_writer(draft: Draft, tmp_path: Path) -> None:
    wordy = Region("region", (8.0, 6.0, 32.0, 24.0), ("word " * 3000,))
    ready = prepare(replace(draft, regions=(wordy,) * 300))
    assert isinstance(ready, Ready)
    with ShardWriter(tmp_path / "c", source={}) as writer:
        with pytest.raises(RecordError, match="at most 4194304 bytes"):
            writer.write(ready.record, ready.image, ready.kind)
        small = prepare(draft)
        assert isinstance(small, Ready)
        writer.write(small.record, small.image, small.kind)
    assert writer.manifest["counts"]["images"] == 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("P", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("L", "JPEG")],
)
def test_photos_of_any_colour_kind_are_stored_as_they_came(
    draft: Draft, mode: str, kind: str
) -> None:
    image = Image.new("RGB", (64, 48), "red").convert("L" if mode == "I;16" else mode)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image
    buffer = io.BytesIO()
    image.save(buffer, kind)
    ready = prepare(replace(draft, image=buffer.getvalue()))
    assert isinstance(ready, Ready) and ready.image == buffer.getvalue()


def test_a_reduced_photo_keeps_its_pixels_as_stored_and_drops_the_orientation(
    draft: Draft,
) -> None:
    image = Image.new("RGB", (400, 250), "white")
    image.paste((200, 30, 40), (0, 0, 100, 250))  # red on the left of the stored pixels
    exif = image.getexif()
    exif[0x0112] = 6  # a viewer would turn it by a quarter
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    left = Region("region", (0.0, 0.0, 100.0, 250.0), ("the red part",))
    turned = replace(draft, image=buffer.getvalue(), size=(400, 250), regions=(left,))
    as_it_is, reduced = prepare(turned), prepare(turned, max_side=100)
    assert isinstance(as_it_is, Ready) and isinstance(reduced, Ready)
    assert as_it_is.image == buffer.getvalue()
    assert (reduced.record.width, reduced.record.height) == (100, 62)
    with Image.open(io.BytesIO(reduced.image)) as shown:
        assert shown.getexif().get(0x0112) is None
        pixels = np.asarray(shown).astype(int)
    x, y, w, h = (round(number) for number in reduced.record.regions[0].box)
    assert (x, y, w, h) == (0, 0, 25, 62)
    inside, outside = pixels[2:-2, 2 : w - 2], pixels[2:-2, w + 2 : -2]
    assert abs(inside - (200, 30, 40)).max() < 40 and outside.min() > 215


def test_a_strip_that_is_reduced_to_nothing_is_bad(draft: Draft, photo: Photo) -> None:
    strip = replace(draft, image=photo(1, 1000, 20), size=None, regions=())
    assert isinstance(prepare(strip), Ready)
    bad = prepare(strip, max_side=100)
    assert isinstance(bad, Bad) and bad.cause == "image: too small"
    assert "1000 x 20 px become 100 x 2" in bad.detail


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
