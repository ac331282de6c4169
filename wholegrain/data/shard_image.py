"""The kind and size of an image from its first bytes, without a decoder.

A few microseconds, and no foreign byte reaches an image library before its claimed size is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from wholegrain.errors import DataError

ImageKind: TypeAlias = Literal["jpg", "png", "webp"]
IMAGE_KINDS: tuple[ImageKind, ...] = ("jpg", "png", "webp")
MAX_IMAGE_BYTES = 128 << 20

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers C0..CF; C4, C8 and CC are tables and an extension.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
_JPEG_SCAN = 0xDA
_JPEG_END_OF_HEADER = frozenset({0xD9, _JPEG_SCAN})


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file claims to be; ``width`` and ``height`` in px, as stored (no rotation)."""

    kind: ImageKind
    width: int
    height: int


def image_kind(data: bytes) -> ImageKind | None:
    """The format that the first bytes show, or None if it is none that a corpus may hold."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == _PNG_SIGNATURE:
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def probe_image(data: bytes, where: str) -> ImageHeader:
    """Reads kind and size from the header.

    Raises:
        DataError: not an image (an HTML page, say), cut off inside the header, or of no size.
    """
    kind = image_kind(data)
    if kind is None:
        start = bytes(data[:16])
        raise DataError(
            f"{where}: not a JPEG, PNG or WebP image, it begins with {start!r}; fetch it again"
        )
    read = {"jpg": _jpeg_size, "png": _png_size, "webp": _webp_size}[kind]
    try:
        width, height = read(data)
    except (struct.error, IndexError):
        raise DataError(f"{where}: {kind} image cut off in its header; fetch it again") from None
    if width < 1 or height < 1:
        raise DataError(f"{where}: {kind} image of {width} x {height} px; drop it")
    return ImageHeader(kind, width, height)


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, position in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
        if marker in _JPEG_END_OF_HEADER:
            break
    raise IndexError("image data before the frame header")


def jpeg_scans(data: bytes) -> int:
    """How often the image data of a JPEG go over its pixels, at most; 1 for the usual kind.

    A baseline image in one scan is told by its header, and nothing more of it is read.
    """
    try:
        parts = progressive = 0
        for marker, position in _jpeg_segments(data):
            if marker in _JPEG_FRAMES:
                parts, progressive = data[position + 7], marker not in (0xC0, 0xC1)
            elif marker == _JPEG_SCAN:
                if parts and data[position + 2] == parts and not progressive:
                    return 1
                break
            elif marker in _JPEG_END_OF_HEADER:
                break
    except (struct.error, IndexError):
        pass
    return data.count(bytes((0xFF, _JPEG_SCAN)))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and offset of its contents, of each segment; IndexError or struct.error at the end."""
    position = 2
    while True:
        # Encoders pad with FF, and some cameras leave stray bytes between segments.
        position = data.find(b"\xff", position)
        if position < 0:
            raise IndexError("no frame header")
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        yield marker, position
        if marker and marker not in _JPEG_STANDALONE:
            position += struct.unpack_from(">H", data, position)[0]


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return 1 + (low_w | high_w << 16), 1 + (low_h | high_h << 16)
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise IndexError("no image chunk")
