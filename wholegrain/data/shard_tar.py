"""Tar as corpora use it: headers written byte for byte the same, and read with suspicion.

The reader walks headers only and touches no member's data. It is our own rather than
``tarfile`` because a shard may come from anywhere: extension headers are bounded, a cut archive is
an error instead of an early end, and nothing but regular files and directories is let through.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from wholegrain.errors import DataError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
# Long names and pax records of one member; real ones take one to three blocks.
MAX_HEADER_BLOCKS = 255
MAX_NAME_BYTES = 4096  # as long as a path may be

_REGULAR, _DIRECTORY = frozenset(b"0\x007"), ord("5")
_KINDS = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a device",
    ord("4"): "a device",
    ord("6"): "a pipe",
    ord("S"): "a sparse file",
}
_PAX_LENGTH = re.compile(rb"(\d{1,6}) ")

Read = Callable[[int, int], bytes]


class TarRefusedError(DataError):
    """A tar that is whole, but holds what no shard may: links, devices, names that lead out."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: header at ``header``, ``size`` bytes from ``data`` (offsets)."""

    name: str
    header: int
    data: int
    size: int


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def tar_header(name: str, size: int) -> bytes:
    """One block, equal for equal arguments: time, owner and mode are constants."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def scan_tar(path: Path) -> Iterator[Member]:
    """Yields the regular members in order, after checking each header.

    Raises:
        DataError: no tar, compressed or cut short.
        TarRefusedError: a member is a link or a device, or its name is absolute or climbs with
            ``..``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from None
    try:
        end = os.fstat(descriptor).st_size
        reader = _HeaderReader(
            lambda offset, length: os.pread(descriptor, length, offset), path, end
        )
        offset = 0
        while (found := reader.next(offset)) is not None:
            member, is_file = found
            if is_file:
                yield member
            offset = member.data + padded(member.size)
    finally:
        os.close(descriptor)


def member_name(read: Read, path: Path, header: int, data: int) -> str:
    """The name of the member whose headers lie in ``[header, data)``, by ``read(offset, n)``."""
    found = _HeaderReader(read, path, None).next(header)
    if found is None or found[0].data != data:
        raise DataError(f"{path}: no tar member at byte {header}; index the corpus again")
    return found[0].name


class ShardFile:
    """One growing tar that knows its offset and its digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 - closed in close or abandon
        self._digest = hashlib.sha256()
        self.bytes = 0
        self.samples = 0

    def append(self, name: str, data: bytes) -> int:
        """Adds a member; returns where its data begins."""
        self._put(tar_header(name, len(data)))
        offset = self.bytes
        self._put(data)
        self._put(bytes(padded(len(data)) - len(data)))
        return offset

    def close(self) -> str:
        """Ends the archive, makes it durable and returns its sha256."""
        with self._file:
            self._put(END_OF_ARCHIVE)
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Lets go of a file that nobody will read."""
        with suppress(OSError):  # closing flushes, which a full disk refuses
            self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)


class _HeaderReader:
    """Reads one member's headers, with the GNU and pax extensions that precede it."""

    def __init__(self, read: Read, path: Path, end: int | None) -> None:
        self._read, self._path, self._end = read, path, end

    def next(self, start: int) -> tuple[Member, bool] | None:
        """The member at ``start`` and whether it is a file; None at the end-of-archive marker."""
        offset, name, size_override = start, None, None
        while True:
            block = self._read(offset, BLOCK)
            if len(block) < BLOCK:
                self._fail(offset, "the archive is cut off here; fetch or convert it again")
            if block == bytes(BLOCK):
                return None
            self._check_sum(block, offset)
            kind, size = block[156], self._size(block, offset)
            offset += BLOCK
            if offset - start > MAX_HEADER_BLOCKS * BLOCK:
                self._fail(start, "the member's headers are too large; write the tar again")
            if kind not in b"LKxg":
                break
            if size > MAX_HEADER_BLOCKS * BLOCK:
                self._fail(start, "the member's headers are too large; write the tar again")
            extension = self._read(offset, size)
            if len(extension) < size:
                self._fail(offset, "the archive is cut off here; fetch or convert it again")
            if kind == ord("L"):
                name = extension.split(b"\0", 1)[0]
            elif kind == ord("x"):
                name, size_override = self._pax(extension, offset, name, size_override)
            offset += padded(size)
        size = size if size_override is None else size_override
        text = self._safe_name(_name(block) if name is None else name, start)
        is_file = kind in _REGULAR and not text.endswith("/")
        if not is_file:
            self._check_directory(kind, text, start)
            size = 0
        if self._end is not None and offset + padded(size) > self._end:
            self._fail(start, f"member {text!r} is cut off; fetch or convert the tar again")
        return Member(text, start, offset, size), is_file

    def _check_directory(self, kind: int, name: str, offset: int) -> None:
        if kind != _DIRECTORY and kind not in _REGULAR:
            what = _KINDS.get(kind, f"of type {chr(kind)!r}")
            self._refuse(offset, f"member {name!r} is {what}; a shard holds plain files only")

    def _check_sum(self, block: bytes, offset: int) -> None:
        computed = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        digits = block[148:156].strip(b" \0")
        if not digits or not _is_octal(digits) or int(digits, 8) != computed:
            remedy = "damaged or compressed: uncompress it first" if not offset else "damaged"
            self._fail(offset, f"no tar header here ({remedy}, or fetch it again)")

    def _size(self, block: bytes, offset: int) -> int:
        field = block[124:136]
        if field[0] == 0x80:  # GNU: big-endian binary, for sizes that octal cannot hold
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if not digits or not _is_octal(digits):
            self._fail(offset, f"the member's size {field!r} is no octal number; fetch it again")
        return int(digits, 8)

    def _pax(
        self, records: bytes, offset: int, name: bytes | None, size: int | None
    ) -> tuple[bytes | None, int | None]:
        position = 0
        while position < len(records):
            found = _PAX_LENGTH.match(records, position)
            length = int(found[1]) if found else 0
            record = records[position : position + length]
            if not found or length < len(found[0]) + 2 or not record.endswith(b"\n"):
                self._fail(offset, "a pax header is malformed; write the tar again")
            key, _, value = record[len(found[0]) : -1].partition(b"=")
            if key == b"path":
                name = value
            elif key == b"size" and value.isdigit() and len(value) < 20:
                size = int(value)
            elif key == b"size" or key.startswith(b"GNU.sparse"):
                self._fail(offset, f"pax field {key!r} is not supported; write the tar again")
            position += length
        return name, size

    def _safe_name(self, raw: bytes, offset: int) -> str:
        if len(raw) > MAX_NAME_BYTES:
            self._refuse(
                offset, f"a member name of {len(raw)} bytes, above {MAX_NAME_BYTES}; rename it"
            )
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self._fail(offset, f"member name {raw!r} is not UTF-8; rename it")
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            self._refuse(offset, f"member name {name!r} is empty, absolute or climbs; rename it")
        return name

    def _fail(self, offset: int, what: str) -> NoReturn:
        raise DataError(f"{self._path}: byte {offset}: {what}")

    def _refuse(self, offset: int, what: str) -> NoReturn:
        raise TarRefusedError(f"{self._path}: byte {offset}: {what}")


def _is_octal(digits: bytes) -> bool:
    return all(48 <= digit <= 55 for digit in digits)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    # Only POSIX ustar has a prefix; GNU ("ustar  ") keeps times in that place.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
