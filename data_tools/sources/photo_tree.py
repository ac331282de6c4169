"""Photos in a folder and its subfolders, as the large sets are unpacked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_tools.sources.files import IMAGE_SUFFIXES
from wholegrain.errors import DataError

_DEEPEST = 4  # such as images/v1/patch8 below the root; a loop of links ends here too


class PhotoTree:
    """A folder with millions of photos below it: their number and a checksum are held, no names."""

    def __init__(self, root: Path) -> None:
        """List everything below ``root``. DataError if it is no folder or holds no photo."""
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of images; pass the folder with the photos")
        self.root = root
        self.count = 0
        total = 0
        for name, size in _listing(str(root), "", 0):
            # A sum does not depend on the order, so nothing needs to be sorted or kept.
            entry = hashlib.sha256(f"{name}\0{size}".encode("utf-8", "surrogateescape")).digest()
            total += int.from_bytes(entry, "big")
            self.count += 1
        if not self.count:
            kinds = " ".join(IMAGE_SUFFIXES)
            raise DataError(f"{root}: no image ({kinds}) in it or below; pass another folder")
        self._digest = f"{total % (1 << 256):064x}"

    def digest(self) -> str:
        """Checksum of the names (with their folders) and sizes of all photos."""
        return self._digest

    def find(self, *names: str) -> Path:
        """Path of the first name that exists, or of the first name (then it is missing).

        Each is looked up as it is and with its leading folders taken off one by one:
        ``images/v1/patch8/x.jpg``, ``v1/patch8/x.jpg``, ``patch8/x.jpg``, ``x.jpg``. No name leads
        out of the folder.
        """
        whole = [_inner(name) for name in names]
        for parts in whole:
            for skip in range(len(parts)):
                path = self.root.joinpath(*parts[skip:])
                if path.is_file():
                    return path
        return self.root.joinpath(*whole[0])


def _inner(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name.replace("\\", "/").replace("\0", "")).parts
    return tuple(part for part in parts if part not in ("/", "//", "..")) or ("unnamed",)


def _listing(folder: str, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """(path below the root, bytes) of every photo."""
    deeper = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                if entry.is_file():
                    yield prefix + entry.name, entry.stat().st_size
            elif depth < _DEEPEST and entry.is_dir():
                deeper.append(entry.name)
    for name in deeper:
        yield from _listing(os.path.join(folder, name), f"{prefix}{name}/", depth + 1)
