from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from wholegrain.data.decode import MIN_SIDE_PX, ImageError, check_size, decode_image

RED, GREEN = (200, 30, 40), (20, 180, 60)


def _two_colours(width: int = 64, height: int = 48) -> np.ndarray:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, GREEN
    return pixels


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _jpeg(width: int = 64, height: int = 48) -> bytes:
    return bytes(simplejpeg.encode_jpeg(_two_colours(width, height), quality=95))


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT" + bytes(1000)


def _jpeg_header(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims another size."""
    data = bytearray(_jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _shows_two_colours(pixels: np.ndarray, tolerance: int = 12) -> bool:
    row, quarter = pixels.shape[0] // 2, pixels.shape[1] // 4
    left, right = pixels[row, quarter].astype(int), pixels[row, -quarter].astype(int)
    return bool((abs(left - RED) < tolerance).all() and (abs(right - GREEN) < tolerance).all())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_reads_each_format(kind: str) -> None:
    decoded = decode_image(_encoded(Image.fromarray(_two_colours()), kind, quality=95), "a")
    assert decoded.pixels.shape == (48, 64, 3) and decoded.pixels.dtype == np.uint8
    assert (decoded.width, decoded.height) == (64, 48)
    assert _shows_two_colours(decoded.pixels)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP")]
)
def test_converts_colour_kinds_to_rgb(mode: str, kind: str) -> None:
    image = Image.fromarray(_two_colours())
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    data = _encoded(image, kind, quality=95)
    decoded = decode_image(data, "a")
    assert decoded.pixels.shape == (48, 64, 3)
    assert _shows_two_colours(decoded.pixels, 40 if mode == "CMYK" else 12)


def test_grey_images_become_rgb() -> None:
    grey = Image.new("L", (20, 10), 90)
    for data in (_encoded(grey, "JPEG"), _encoded(grey, "PNG")):
        pixels = decode_image(data, "a").pixels
        assert pixels.shape == (10, 20, 3)
        assert abs(pixels.astype(int) - 90).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.repeat(np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16), 8, axis=0)
    values = np.repeat(values, 2, axis=1)
    pixels = decode_image(_encoded(Image.fromarray(values), "PNG"), "a").pixels
    assert pixels[0, ::2, 0].tolist() == [0, 0x40, 0x80, 0xFF]


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    assert (decode_image(_encoded(clear, "PNG"), "a").pixels == 255).all()
    palette = Image.new("P", (9, 9), 0)
    data = _encoded(palette, "PNG", transparency=0)
    assert (decode_image(data, "a").pixels == 255).all()
    half = Image.new("LA", (9, 9), (100, 51))  # grey with alpha: a fifth of it over white
    pixels = decode_image(_encoded(half, "PNG"), "a").pixels
    assert pixels.shape == (9, 9, 3) and abs(pixels.astype(int) - 224).max() <= 1


def test_ycck_is_read_as_cmyk_is() -> None:
    cmyk = np.asarray(Image.fromarray(_two_colours()).convert("CMYK"))
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(255 - cmyk), 95, "CMYK", fastdct=False)
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    assert _shows_two_colours(decode_image(bytes(data), "a").pixels, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_taken(kind: str) -> None:
    first, second = Image.fromarray(_two_colours()), Image.new("RGB", (64, 48), "blue")
    data = _encoded(first, kind, save_all=True, append_images=[second], quality=95)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    decoded = decode_image(data, "a")
    assert decoded.pixels.shape == (48, 64, 3)
    assert _shows_two_colours(decoded.pixels)


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE_PX - 1, 600), (600, MIN_SIDE_PX - 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_is_too_small_to_show_anything_is_refused(kind: str, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} px.*leave it out") as caught:
        decode_image(_encoded(Image.new("RGB", size), kind), "a")
    assert caught.value.cause == "too small"
    decode_image(_encoded(Image.new("RGB", (MIN_SIDE_PX, 600)), kind), "a")


def _scans(data: bytes, more: int) -> bytes:
    """A progressive JPEG whose last scan comes `more` times again."""
    scan, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[scan:end] * more + data[end:]


def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_refused_at_once() -> None:
    small = _encoded(Image.fromarray(_two_colours()), "JPEG", progressive=True)
    assert _shows_two_colours(decode_image(_scans(small, 5), "a").pixels, 40)
    large = _encoded(Image.new("L", (8000, 8000)), "JPEG", progressive=True)
    for data in (_scans(small, 500), _scans(large, 20), _scans(large, 100_000)):
        with pytest.raises(ImageError, match="times, which is made to take long") as caught:
            decode_image(data, "a")
        assert caught.value.cause == "too large"


def _with_chunk(kind: bytes, body: bytes) -> bytes:
    """A sound PNG with one more chunk before its pixels."""
    data = _encoded(Image.fromarray(_two_colours()), "PNG")
    chunk = struct.pack(">I", len(body)) + kind + body
    return data[:33] + chunk + struct.pack(">I", zlib.crc32(kind + body)) + data[33:]


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
)
def test_compressed_texts_and_profiles_of_a_png_are_bounded(kind: bytes, head: bytes) -> None:
    bomb = _with_chunk(kind, head + zlib.compress(bytes(200 << 20)))
    with pytest.raises(ImageError) as caught:
        decode_image(bomb, "a")
    assert caught.value.cause == "too large"
    small = decode_image(_with_chunk(kind, head + zlib.compress(b"a word")), "a")
    assert _shows_two_colours(small.pixels)


def test_orientation_is_not_applied_since_boxes_refer_to_stored_pixels() -> None:
    image = Image.fromarray(_two_colours())
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    decoded = decode_image(_encoded(image, "JPEG", exif=exif, quality=95), "a")
    assert decoded.pixels.shape == (48, 64, 3)
    assert _shows_two_colours(decoded.pixels)


def test_decodes_at_a_reduced_scale_where_that_suffices() -> None:
    data = _jpeg(640, 480)
    decoded = decode_image(data, "a", min_side=100)
    assert 100 <= min(decoded.pixels.shape[:2]) < 480
    assert (decoded.width, decoded.height) == (640, 480)
    assert _shows_two_colours(decoded.pixels)
    assert decode_image(data, "a", min_side=400).pixels.shape == (480, 640, 3)
    assert decode_image(data, "a", min_side=9999).pixels.shape == (480, 640, 3)


@pytest.mark.parametrize(
    ("data", "cause", "message"),
    [
        (_jpeg(640, 480)[:-300], "truncated", "cut short.*fetch it again"),
        (_jpeg()[:300], "truncated", "JPEG of 300 bytes"),
        (_encoded(Image.fromarray(_two_colours()), "PNG")[:-40], "truncated", "cut short"),
        (b"  <!DOCTYPE html><html><body>404</body></html>", "not an image", "an HTML page"),
        (b"<html>", "not an image", "an HTML page"),
        (b"GIF89a" + bytes(40), "not an image", "JPEG, PNG and WebP are read"),
        (b"", "not an image", "no bytes"),
        (b"\xff\xd8\xff\xe0 broken", "truncated", "header.*fetch it again"),
        (_png_header(64, 64)[:20], "truncated", "the PNG of 20 bytes"),
        (_jpeg_header(40_000, 40_000), "too large", "40000 x 40000 px.*64 megapixels"),
        (_png_header(40_000, 40_000), "too large", "64 megapixels"),
        (_png_header(9_000, 8_000), "too large", "9000 x 8000 px"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_files_are_named_with_cause_and_remedy(data: bytes, cause: str, message: str) -> None:
    with pytest.raises(ImageError, match=rf"^shard-3\.tar:17\.jpg: .*{message}") as caught:
        decode_image(data, "shard-3.tar:17.jpg")
    assert caught.value.cause == cause


def test_errors_cross_process_borders() -> None:
    error = ImageError("here", "truncated", "what to do")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.cause) == (str(error), "truncated")


def test_another_size_than_the_record_says_is_refused() -> None:
    decoded = decode_image(_jpeg(64, 48), "a")
    check_size(decoded, 64, 48, "a")
    with pytest.raises(ImageError, match=r"64 x 48 px.*width 48, height 64.*convert") as caught:
        check_size(decoded, 48, 64, "a")
    assert caught.value.cause == "wrong size"


def test_real_photos_agree_with_pillow(real_data: Path) -> None:
    photos = sorted((real_data / "refcoco_native" / "images").glob("*.jpg"))[:6]
    assert photos
    for photo in photos:
        with Image.open(photo) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        found = decode_image(photo.read_bytes(), str(photo)).pixels
        assert abs(found - expected).mean() < 1
