"""Archives to folders, member by member: nothing leaves the folder, nothing grows without bound.

A zip or tar comes from somebody else. Members with an absolute name or ``..``, links, devices and
encrypted members make the whole archive refused; sizes are bounded before they are read and while
they are. The folder appears whole or not at all, with a note of the archives that it came from.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Self

from data_tools.fetching.catalogue import is_plain_path
from data_tools.fetching.ledger import write_json
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.errors import DataError

MARKER = ".unpacked.json"
_VERSION = 1
_MOST_MEMBERS = 5_000_000
_MOST_GROWTH = 50
"""Bytes that may come out of one byte of archive; JSON of boxes gives about 10."""
_ALWAYS_ALLOWED = 1 << 30
_LONGEST_HEADER = 1 << 20
_LONGEST_TAIL = 64 << 20
_SPARE = 64 << 20
_BLOCK = 1 << 20

# What the libraries raise on bytes that are no archive.
_BROKEN = (
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
)

_Member = tuple[str, int, IO[bytes]]
"""(name, announced bytes, stream)."""


def is_unpacked(folder: Path, archives: dict[str, str]) -> bool:
    """Whether the folder holds just these archives (name -> sha256), unpacked."""
    try:
        noted = json.loads((folder / MARKER).read_bytes())
        return bool(noted["version"] == _VERSION and noted["archives"] == archives)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def unpack(archives: Sequence[Path], folder: Path, digests: dict[str, str]) -> int:
    """Make ``folder`` of one or several archives; a single folder at an archive's top is dropped.

    Args:
        archives: zip or tar files, these also compressed.
        folder: is made, or replaced if it was unpacked before.
        digests: name of each archive -> its sha256, noted in the folder.

    Returns:
        The number of files.

    Raises:
        DataError: the archive is broken, hostile or too large, or the folder holds other things.
    """
    count = 0
    with atomic_folder(folder, overwrite=True, marker=MARKER) as partial:
        for number, archive in enumerate(archives):
            # Aside first: whether all lies below one folder is known at the end alone, and
            # reading 50 GB of tar.gz twice would be a high price for knowing it before.
            aside = partial / f".unpacking-{number}"
            aside.mkdir()
            count += _unpack_one(archive, aside)
            _move_up(archive, aside, partial)
        write_json(partial / MARKER, {"version": _VERSION, "archives": digests, "files": count})
        # One sync of everything, since one for each of 100,000 photos would take hours.
        os.sync()
    return count


def _move_up(archive: Path, aside: Path, folder: Path) -> None:
    """What was unpacked to ``aside``, without a single folder around it, to ``folder``."""
    top = list(aside.iterdir())
    base = top[0] if len(top) == 1 and top[0].is_dir() else aside
    for path in list(base.iterdir()):
        if (target := folder / path.name).exists():
            raise DataError(f"{archive}: {path.name} is in another archive of the folder too")
        path.rename(target)
    if base != aside:
        base.rmdir()
    aside.rmdir()


def _unpack_one(archive: Path, folder: Path) -> int:
    count = 0
    room = _MOST_GROWTH * archive.stat().st_size + _ALWAYS_ALLOWED
    try:
        for name, size, stream in _members(archive):
            if _is_litter(name):
                continue
            room -= size
            if room < 0 or count >= _MOST_MEMBERS:
                raise DataError(
                    f"{archive}: {name}: the archive holds more than {_MOST_GROWTH} times its own "
                    f"size, or over {_MOST_MEMBERS:,} files; it is not unpacked"
                )
            _check_disk(folder, size, archive)
            _write(stream, folder / name, size, f"{archive}: {name}")
            count += 1
    except NotImplementedError as error:
        raise DataError(f"{archive}: {error}; unpack it with another program") from None
    except _BROKEN as error:
        raise DataError(f"{archive}: broken archive ({error}); fetch it again") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{archive}: two members would be one file: {error.filename}") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from None
    if not count:
        raise DataError(f"{archive}: holds no file")
    return count


def _is_litter(name: str) -> bool:
    """What macOS leaves in archives."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._")


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        return _zip_members(archive)
    if tarfile.is_tarfile(archive):
        return _tar_members(archive)
    raise DataError(f"{archive}: neither zip nor tar; fetch it again")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                continue
            # Other systems than Unix leave the file type out.
            if kind not in (0, stat.S_IFREG):
                raise _refused(archive, info.filename, "a link or special file")
            if info.flag_bits & 1:
                raise _refused(archive, info.filename, "encrypted")
            _check_name(archive, info.orig_filename)
            with file.open(info) as stream:
                yield info.filename, info.file_size, stream


class _BoundedInfo(tarfile.TarInfo):
    """Refuses the headers (long names, attributes) that tarfile would read into memory whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        files = (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE)
        if info.type not in files and info.size > _LONGEST_HEADER:
            raise tarfile.TarError(f"a header of {info.size:,} bytes")
        return info


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*", tarinfo=_BoundedInfo) as file:
        while (info := file.next()) is not None:
            file.members = []  # type: ignore[attr-defined]  # else it holds a million headers
            name = info.name.removeprefix("./")
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise _refused(archive, info.name, "a link, sparse or special file")
            _check_name(archive, name)
            stream = file.extractfile(info)
            assert stream is not None  # a regular file has contents
            yield name, info.size, stream
        _read_to_end(file, archive)


def _read_to_end(file: tarfile.TarFile, archive: Path) -> None:
    """What compressors put last is a checksum, and it is compared by reading past the tar's end."""
    left = _LONGEST_TAIL
    while block := file.fileobj.read(_BLOCK):
        left -= len(block)
        if left < 0:
            raise DataError(f"{archive}: over {_LONGEST_TAIL:,} bytes behind the end of the tar")


def _check_name(archive: Path, name: str) -> None:
    if not is_plain_path(name):
        raise _refused(archive, name, "a name that leads out of the folder, or may elsewhere")


def _refused(archive: Path, name: str, what: str) -> DataError:
    return DataError(
        f"{archive}: member {name[:200]!r} is {what}; nothing of the archive is unpacked"
    )


def _check_disk(folder: Path, size: int, archive: Path) -> None:
    if size > (free := shutil.disk_usage(folder).free) - _SPARE:
        raise DataError(f"{archive}: a member of {size:,} bytes, and {free:,} are free; make room")


def _write(stream: IO[bytes], path: Path, size: int, where: str) -> None:
    """Exactly ``size`` bytes to a file that does not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = size
    with path.open("xb") as out:
        # One byte more than announced is asked for: it also has zipfile check the CRC.
        while block := stream.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            out.write(block)
    if left:
        raise DataError(f"{where}: {size - left:,} bytes and not {size:,}; fetch the archive again")
