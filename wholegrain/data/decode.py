"""From the bytes of an image file to RGB pixels, or to an error that says what is wrong with them.

The header is read first, so that a file which claims 40,000 x 40,000 pixels costs nothing. JPEG
goes through libjpeg-turbo, at a reduced scale where fewer pixels suffice; what it refuses, and PNG
and WebP, goes through Pillow. An EXIF orientation is *not* applied: boxes refer to the pixels as
the file stores them. Of an animation the first picture is taken.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from wholegrain.data.shard_image import jpeg_scans
from wholegrain.errors import DataError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64_000_000
"""Larger images are refused; decoded they would take 200 MB a loader worker."""

MIN_SIDE_PX = 8
"""Smaller images are refused: they are tracking pixels and spacers, and show nothing."""

# Each scan of a JPEG runs over the whole image, and a scan of 100 bytes may come a million times.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS

_FORMATS = ("JPEG", "PNG", "WEBP")
_JPEG_MAGIC = b"\xff\xd8"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_WHITE = 255


class ImageError(DataError):
    """An image that cannot be used.

    Args:
        where: file and member.
        cause: one or two words by which bad samples are counted.
        detail: what was found, and the remedy.
    """

    def __init__(self, where: str, cause: str, detail: str) -> None:
        self.where, self.cause, self.detail = where, cause, detail
        super().__init__(f"{where}: {detail}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        return type(self), (self.where, self.cause, self.detail)


@dataclass(frozen=True, slots=True)
class Decoded:
    """RGB pixels and the size of the file they come from.

    Attributes:
        pixels: uint8 (h, w, 3); smaller than the stored image if a reduced scale was enough.
        width, height: of the stored image, in pixels: the frame that boxes refer to.
    """

    pixels: Pixels
    width: int
    height: int


def decode_image(
    data: bytes, where: str, min_side: int | None = None, smallest: int = MIN_SIDE_PX
) -> Decoded:
    """Decodes JPEG, PNG or WebP of any colour kind to RGB.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparency is laid on white.

    Args:
        data: the file.
        where: file and member, for the message.
        min_side: pixels that the shorter side must keep; a JPEG may then be decoded at half its
            size or less. None decodes at full size.
        smallest: side in pixels under which a stored image is refused.

    Raises:
        ImageError: not an image, truncated, above `MAX_PIXELS`, or a side under `smallest`.
    """
    if data[:2] == _JPEG_MAGIC:
        decoded = _decode_jpeg(data, where, min_side, smallest)
        if decoded is not None:
            return decoded
    return _decode_any(data, where, smallest)


def check_size(decoded: Decoded, width: int, height: int, where: str) -> None:
    """Refuses an image whose stored size is not the record's: its boxes would all be wrong.

    Raises:
        ImageError: the sizes differ.
    """
    if (decoded.width, decoded.height) != (width, height):
        raise ImageError(
            where,
            "wrong size",
            f"the image is {decoded.width} x {decoded.height} px, but its record says width "
            f"{width}, height {height}, and boxes refer to that; convert the source again",
        )


def _decode_jpeg(data: bytes, where: str, min_side: int | None, smallest: int) -> Decoded | None:
    """The fast path; None where only Pillow can tell (CMYK, harmless or harmful defects)."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_frame(width, height, where, smallest)
    _check_scans(data, width * height, where)
    if colours in ("CMYK", "YCCK"):
        return None
    least_height = least_width = 0
    if min_side is not None:
        short = min(width, height)
        least_height = -(-height * min_side // short)
        least_width = -(-width * min_side // short)
    try:
        # Factors below 2 decode fewer pixels but more slowly: libjpeg-turbo has no fast code there.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=least_height, min_width=least_width, min_factor=2
        )
    except ValueError:
        return None
    return Decoded(pixels, width, height)


def _decode_any(data: bytes, where: str, smallest: int) -> Decoded:
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning comes at a limit above ours.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(where, "too large", _too_large(str(error))) from None
    except MemoryError:
        raise
    except Exception as error:  # of a damaged header Pillow raises almost anything
        if kind := _kind_by_magic(data):
            known = isinstance(error, ValueError)
            reason = str(error) if known else "its header cannot be read"
            raise _damaged(where, kind, data, reason) from None
        raise ImageError(where, "not an image", _describe_foreign(data)) from None
    check_frame(image.width, image.height, where, smallest)
    if data[:2] == _JPEG_MAGIC:
        _check_scans(data, image.width * image.height, where)
    try:
        return Decoded(_to_rgb(image), image.width, image.height)
    except MemoryError:
        raise
    except Exception as error:  # of damaged bytes Pillow raises almost anything
        reason = str(error) or type(error).__name__
        raise _damaged(where, str(image.format), data, reason) from None


def _kind_by_magic(data: bytes) -> str | None:
    if data.startswith(_JPEG_MAGIC):
        return "JPEG"
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _damaged(where: str, kind: str, data: bytes, reason: str) -> ImageError:
    if "too large" in reason or "Too much memory" in reason:  # Pillow on compressed texts of a PNG
        detail = (
            f"the {kind} holds a text or profile that is too large ({reason}); write it without"
        )
        return ImageError(where, "too large", detail)
    detail = (
        f"the {kind} of {len(data):,} bytes is damaged or cut short ({reason}); fetch it again or "
        "leave it out"
    )
    return ImageError(where, "truncated", detail)


def check_frame(width: int, height: int, where: str, smallest: int = MIN_SIDE_PX) -> None:
    """Refuses a size above `MAX_PIXELS` or with a side under `smallest`.

    Raises:
        ImageError: of the cause "too large" or "too small".
    """
    if width * height > MAX_PIXELS:
        raise ImageError(where, "too large", _too_large(f"{width} x {height} px"))
    if min(width, height) < smallest:
        detail = f"the image has {width} x {height} px, and a side needs {smallest}; leave it out"
        raise ImageError(where, "too small", detail)


def _check_scans(data: bytes, pixels: int, where: str) -> None:
    scans = jpeg_scans(data)
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        detail = (
            f"the JPEG of {len(data):,} bytes goes over its {pixels:,} pixels {scans} times, which "
            "is made to take long; leave it out"
        )
        raise ImageError(where, "too large", detail)


def _too_large(found: str) -> str:
    return (
        f"the image header claims {found}, above the limit of {MAX_PIXELS // 10**6} megapixels; "
        "shrink the image (and its boxes) or leave it out"
    )


def _describe_foreign(data: bytes) -> str:
    if not data:
        return "the image has no bytes; fetch it again or leave it out"
    start = data[:512].lstrip().lower()
    kind = "an HTML page" if start.startswith((b"<!doctype html", b"<html")) else "not an image"
    return (
        f"the image is {kind} (it begins with {data[:16]!r}); JPEG, PNG and WebP are read: fetch "
        "it again or leave it out"
    )


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (_WHITE,) * 4)
        return np.array(Image.alpha_composite(ground, layer).convert("RGB"))
    return np.array(image.convert("RGB"))
