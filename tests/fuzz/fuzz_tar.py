"""Any bytes are a tar whose members lie within it, or a DataError."""

from __future__ import annotations

import io
import tarfile

from tests.fuzz.scratch import scratch_file
from wholegrain.data.index_scan import scan_samples
from wholegrain.data.shard_tar import BLOCK, member_name, scan_tar
from wholegrain.errors import DataError

_LONG = "deep/" * 30 + "name.jpg"


def seeds() -> list[bytes]:
    """Tars of each format, and one with a link, which is refused; the first byte says whether check
    sums are mended before reading.
    """
    gnu = tarfile.GNU_FORMAT
    tars = [_tar(form) for form in (tarfile.USTAR_FORMAT, gnu, tarfile.PAX_FORMAT)]
    return [mend + tar for tar in (*tars, _tar(gnu, linked=True)) for mend in (b"\0", b"\1")]


def _tar(form: int, linked: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        names = ["000.jpg", "000.json", "001.txt"]
        for name in names if form == tarfile.USTAR_FORMAT else [*names, _LONG, "ü.png"]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 20, 0.5 if form == tarfile.PAX_FORMAT else 0
            tar.addfile(info, io.BytesIO(bytes(20)))
        if linked:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    return buffer.getvalue().rstrip(b"\0") + bytes(2048)


def check(data: bytes) -> bool:
    """Whether it is accepted; raises AssertionError, or whatever a reader must not."""
    body = bytearray(data[1:])
    if data[:1] == b"\1":
        is_text = False  # of an extended header: the block behind it
        for start in range(0, len(body) - BLOCK + 1, BLOCK):
            block = body[start : start + BLOCK]
            if any(block[148:156]) and not is_text:
                block[148:156] = b" " * 8
                body[start + 148 : start + 156] = b"%06o\0 " % (sum(block) & 0o777777)
            is_text = not is_text and block[156] in b"xgLK"
    path = scratch_file(bytes(body))
    try:
        members = list(scan_tar(path))
    except DataError as error:
        assert len(str(error)) < 3000
        return False
    for member in members:
        assert member.data + member.size <= len(body)
        assert not member.name.startswith("/") and ".." not in member.name.split("/")

        def read(offset: int, length: int) -> bytes:
            return bytes(body[offset : offset + length])

        assert member_name(read, path, member.header, member.data) == member.name
    try:
        for sample in scan_samples(path):
            sample.image()
    except DataError:
        return False
    return True
