"""``fetched.json``: what was fetched, and what its bytes were.

Each file has its size, its digests, the address it came from and the time of its last change. A
file that still has that size and time is not read again; `--verify` reads it all the same. Where
nobody published a digest, the first download decides: later ones must bring the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.fetching.catalogue import File
from wholegrain.data.shard_folder import sync_folder
from wholegrain.errors import DataError

LEDGER = "fetched.json"
_VERSION = 1
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one file turned out to be."""

    bytes: int
    sha256: str
    md5: str
    trust: str
    """``published``: a digest of the catalogue was met; ``first use``: there is none."""
    url: str | None
    """Where it came from; None if a person put it there."""
    mtime_ns: int

    def fits(self, file: File) -> bool:
        """Whether these bytes are the ones that the catalogue asks for, as far as it knows."""
        digests = all(getattr(self, name) == digest for name, digest in file.digests.items())
        return digests and file.bytes in (None, self.bytes)

    def is_of(self, path: Path) -> bool:
        """Whether the file is untouched, by size and time of change."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.bytes, self.mtime_ns)


class Ledger:
    """The receipts of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read the folder's ledger. DataError if it is not one."""
        self.path = folder / LEDGER
        try:
            content = json.loads(self.path.read_bytes())
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']!r}")
            self._receipts = {name: _receipt(each) for name, each in content["files"].items()}
        except FileNotFoundError:
            self._receipts = {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}: not a record of fetched files ({error}); remove it, and the files "
                "are read and recorded anew"
            ) from None

    def get(self, name: str) -> Receipt | None:
        """The receipt of a file, if there is one."""
        return self._receipts.get(name)

    def put(self, name: str, receipt: Receipt) -> None:
        """Record a file, durably."""
        self._receipts[name] = receipt
        listed = {name: dataclasses.asdict(self._receipts[name]) for name in sorted(self._receipts)}
        write_json(self.path, {"version": _VERSION, "files": listed})


def hash_file(path: Path) -> dict[str, str]:
    """Name of the hash function -> digest of a file, in one reading."""
    hashers = new_hashers()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def new_hashers() -> dict[str, Any]:
    """The hash functions that publishers of data sets use."""
    return {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}


def write_json(path: Path, content: object) -> None:
    """Write aside, sync, rename: the file is whole or as it was."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, ensure_ascii=False, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    sync_folder(path.parent)


def _receipt(values: dict[str, Any]) -> Receipt:
    receipt = Receipt(**values)
    if not isinstance(receipt.bytes, int) or not isinstance(receipt.sha256, str):
        raise ValueError("a receipt without bytes and sha256")
    return receipt
