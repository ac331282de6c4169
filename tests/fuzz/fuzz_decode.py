"""Any bytes are pixels of the size that the header says, or an ImageError."""

from __future__ import annotations

import numpy as np

from tests.fuzz.pictures import mend_crcs, pictures
from wholegrain.data import decode
from wholegrain.data.shard_image import probe_image
from wholegrain.errors import DataError

# Of the real limit an engine would make use at every turn, at a second an input.
LIMIT_PX = 1 << 20


def seeds() -> list[bytes]:
    """A small picture of each kind."""
    return pictures()


def check(data: bytes) -> bool:
    """Whether it is accepted; raises AssertionError, or whatever a decoder must not."""
    limits = decode.MAX_PIXELS, decode.MAX_SCANNED_PIXELS
    decode.MAX_PIXELS, decode.MAX_SCANNED_PIXELS = LIMIT_PX, 20 * LIMIT_PX
    try:
        if data.startswith(b"\x89PNG"):
            _check(mend_crcs(data))
        return _check(data)
    finally:
        decode.MAX_PIXELS, decode.MAX_SCANNED_PIXELS = limits


def _check(data: bytes) -> bool:
    accepted = False
    for least in (None, 9):
        try:
            found = decode.decode_image(data, "a", least)
        except decode.ImageError as error:
            assert error.cause in {"truncated", "not an image", "too large", "too small"}
            assert len(str(error)) < 1000
            continue
        accepted = True
        height, width, colours = found.pixels.shape
        assert colours == 3 and found.pixels.dtype == np.uint8
        assert min(found.width, found.height) >= 8 and found.width * found.height <= LIMIT_PX
        assert (width, height) == (found.width, found.height) or min(width, height) >= 9
        try:
            header = probe_image(data, "a")
        except DataError:
            continue  # a decoder forgives more
        assert header.width * header.height > 0
    return accepted
