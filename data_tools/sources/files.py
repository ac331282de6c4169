"""Opening what others wrote: folders of photos, JSON, XML and the refer tool's pickles."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from data_tools.sources.base import listing_digest
from data_tools.sources.plain_pickle import load_plain_pickle
from wholegrain.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PICKLE_LIMIT = 1 << 28
"""Largest pickle read, in bytes; RefCOCOg, the largest published one, has 26 MB."""


class ImageFolder:
    """The photos of one folder, listed once, so that a missing one costs no system call."""

    def __init__(self, root: Path) -> None:
        """List ``root`` (not its subfolders). DataError if it is no folder or holds no photo."""
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of images; pass the folder with the photos")
        self.root = root
        with os.scandir(root) as entries:
            self._sizes = {
                entry.name: entry.stat().st_size
                for entry in entries
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()
            }
        if not self._sizes:
            kinds = " ".join(IMAGE_SUFFIXES)
            raise DataError(f"{root}: the folder holds no image ({kinds}); pass another folder")

    def digest(self) -> str:
        """Checksum of the listing, see :func:`listing_digest`."""
        return listing_digest(self._sizes.items())

    def find(self, *names: str) -> Path:
        """Path of the first name that exists, or of the first name (then it is missing).

        Only the last part of a name is used: ``train2014/COCO_x.jpg`` is looked up as
        ``COCO_x.jpg``, and no name can lead out of the folder.
        """
        plain = [PurePosixPath(name.replace("\\", "/")).name for name in names]
        return self.root / next((name for name in plain if name in self._sizes), plain[0])


class SharedFile(io.RawIOBase):
    """A file for reading that forked processes may use at once.

    They share the descriptor and with it the kernel's position, which none of them relies on: each
    keeps its own.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._descriptor, [buffer], self._at)
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def coco_names(file_name: str, image_id: int) -> list[str]:
    """Names under which a COCO photo may lie: as annotated, as in 2017, as in 2014."""
    bare = f"{image_id:012d}.jpg"
    old = [f"COCO_{split}2014_{bare}" for split in ("train", "val", "test")]
    return [file_name, bare, *old] if file_name else [bare, *old]


def read_json(path: Path) -> Any:
    """Parse a JSON file. DataError names the file, and line and column where it is broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path of the annotations") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); download the file again") from None


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse an XML document that declares nothing. ValueError if it is broken or has a DTD.

    Entities can be declared in a DTD only, so refusing one closes the door on entity expansion and
    on external entities alike; annotation files have no use for it.
    """

    def refuse(*_: object) -> NoReturn:
        raise ValueError("the XML holds a document type declaration, which annotations never do")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"broken XML ({error})") from None
    return builder.close()


def read_plain_pickle(path: Path) -> Any:
    """Load a pickle of plain containers, numbers and text; nothing in it can run.

    Files of the refer tool were written by Python 2: its byte strings are read as UTF-8.
    DataError names the file when it is too large, broken, or asks for any class or function.
    """
    size = path.stat().st_size
    if size > PICKLE_LIMIT:
        raise DataError(f"{path}: {size} bytes, more than the limit of {PICKLE_LIMIT}")
    try:
        return load_plain_pickle(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{path}: not a pickle of plain data ({error}); download the file from its publisher "
            "again, and do not load this one by other means"
        ) from None
