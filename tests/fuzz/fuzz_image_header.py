"""Any bytes have an image's header or are refused with a DataError, without a decoder."""

from __future__ import annotations

from tests.fuzz.pictures import pictures
from wholegrain.data.shard_image import image_kind, jpeg_scans, probe_image
from wholegrain.errors import DataError


def seeds() -> list[bytes]:
    """A small picture of each kind."""
    return pictures()


def check(data: bytes) -> bool:
    """Whether it is accepted; raises AssertionError, or whatever a reader must not."""
    assert jpeg_scans(data) >= 0
    try:
        header = probe_image(data, "a")
    except DataError as error:
        assert len(str(error)) < 400
        return False
    assert header.kind == image_kind(data)
    assert header.width >= 1 and header.height >= 1
    return True
