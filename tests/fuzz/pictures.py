"""Small pictures of each kind that a corpus may meet."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin


def pictures() -> list[bytes]:
    """JPEG, PNG and WebP of 16 x 12 px: all colour kinds, animated, progressive, with metadata."""
    pixels = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3)
    rgb = Image.fromarray(pixels)
    exif = rgb.getexif()
    exif[0x0112] = 6
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "words " * 20, zip=True)
    texts.add_itxt("Title", "wörter", zip=True)
    more: dict[str, object] = {
        "save_all": True,
        "append_images": [Image.new("RGB", (16, 12), "red")],
    }
    cmyk = np.ascontiguousarray(np.asarray(rgb.convert("CMYK")))
    return [
        _saved(rgb, "JPEG"),
        _saved(rgb, "JPEG", progressive=True, exif=exif),
        _saved(rgb.convert("L"), "JPEG"),
        _saved(rgb.convert("CMYK"), "JPEG"),
        bytes(simplejpeg.encode_jpeg(cmyk, 90, "CMYK")),
        _saved(rgb, "PNG", pnginfo=texts, exif=exif),
        _saved(rgb, "PNG", **more),
        *(_saved(rgb.convert(mode), "PNG") for mode in ("L", "LA", "P", "1", "RGBA")),
        _saved(Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300), "PNG"),
        _saved(rgb, "WEBP", exif=exif),
        _saved(rgb, "WEBP", lossless=True),
        _saved(rgb.convert("RGBA"), "WEBP"),
        _saved(rgb, "WEBP", **more),
        _saved(rgb, "GIF"),
        b"<!DOCTYPE html><html>404</html>",
    ]


def mend_crcs(data: bytes) -> bytes:
    """A PNG with right check sums, so that damage gets past them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        if at + 12 + length > len(out):
            break
        struct.pack_into(">I", out, at + 8 + length, zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
