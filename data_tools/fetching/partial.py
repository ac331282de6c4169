"""A download that is not finished: ``NAME.partial`` and what is known of it.

Beside the bytes lies ``NAME.partial.json``: the address they came from, the validator (ETag or
Last-Modified) that the server gave them, and how many of them are surely on the disk. After a kill
every byte is still there; after a power cut only those are, and the rest may be zeros.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from data_tools.fetching.ledger import new_hashers, write_json
from wholegrain.data.shard_folder import sync_folder
from wholegrain.errors import DataError

_SYNC_EVERY = 64 << 20
"""Bytes between two syncs: what a power cut can cost where no digest is known."""
_SPARE = 64 << 20
"""Bytes of the disk that a download leaves free."""
_BLOCK = 1 << 20


@dataclass
class _Origin:
    """What is known of the bytes in the partial file."""

    url: str | None = None
    etag: str | None = None
    """Strong ETags only: a weak one may stay the same for other bytes."""
    modified: str | None = None
    total: int | None = None
    """Announced size of the whole file."""
    synced: int = 0
    """Bytes that are on the disk whatever happens."""
    pieces: int = 0
    """Responses that the bytes are made of."""


class Partial:
    """Bytes so far, with their running digests. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open what an earlier run left for ``path``, or an empty partial file."""
        self.path = path
        self.aside = path.with_name(path.name + ".partial")
        self.notes = path.with_name(path.name + ".partial.json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.aside.open("ab", buffering=0)
        except OSError as error:
            raise DataError(f"{self.aside}: cannot be written ({error.strerror})") from None
        self.size = self.aside.stat().st_size
        self._hashers, self._hashed = new_hashers(), 0
        self.origin = _Origin()
        self._read_notes()
        self._found = self.size  # by this run, and not written by it

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream.closed:
            return
        if self.size:
            self.sync()
        else:
            self.aside.unlink(missing_ok=True)
            self.notes.unlink(missing_ok=True)
        self._stream.close()

    def _read_notes(self) -> None:
        # Notes that are broken or of another version cost the resume, never the download.
        try:
            origin = _Origin(**json.loads(self.notes.read_bytes()))
            usable = isinstance(origin.synced, int) and 0 <= origin.synced <= self.size
        except (OSError, ValueError, TypeError, RecursionError):
            usable = False
        if usable:
            self.origin = origin
        else:
            self._truncate(0)

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` takes."""
        return self.origin.etag or self.origin.modified

    def begin(self, url: str, *, known: bool) -> int:
        """Position to go on from at this address, 0 for a new start.

        Args:
            url: the address that is asked next.
            known: whether a published digest will judge the whole file. Then bytes may come from
                several addresses, and those that a power cut may have eaten are used as well.
        """
        if self.size and not known:
            if url != self.origin.url or self.validator is None:
                self.restart()
            elif self.origin.synced < self._found:
                self._truncate(self.origin.synced)
        self._found = 0
        self._catch_up()
        return self.size

    def restart(self) -> None:
        """Forget all bytes."""
        self._truncate(0)
        self.origin = _Origin()

    def note(self, url: str, etag: str | None, modified: str | None, total: int | None) -> None:
        """Record the response that the next bytes come from."""
        pieces, synced = self.origin.pieces + 1, self.origin.synced
        self.origin = _Origin(url, etag, modified, total, synced, pieces)
        write_json(self.notes, asdict(self.origin))

    def write(self, block: bytes) -> None:
        """Append bytes. DataError if the disk is full."""
        view = memoryview(block)
        try:
            while view:
                view = view[self._stream.write(view) or 0 :]
        except OSError as error:
            raise DataError(
                f"{self.aside}: {error.strerror} after {self.size:,} bytes; make room and run "
                "again, the download goes on from there"
            ) from None
        self.size += len(block)
        for hasher in self._hashers.values():
            hasher.update(block)
        self._hashed = self.size
        if self.size - self.origin.synced >= _SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Make the bytes so far durable, and note that they are."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise DataError(f"{self.aside}: cannot be written ({error.strerror})") from None
        if self.origin.synced != self.size:
            self.origin.synced = self.size
            write_json(self.notes, asdict(self.origin))

    def digests(self) -> dict[str, str]:
        """Name of the hash function -> digest of the bytes so far."""
        self._catch_up()
        return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}

    def finish(self) -> None:
        """Give the file its name."""
        self._move(self.path)
        self.rejected.unlink(missing_ok=True)

    def reject(self) -> Path:
        """Put the bytes where nobody takes them for the file; returns that place."""
        self._move(self.rejected)
        return self.rejected

    @property
    def rejected(self) -> Path:
        """Where bytes with a wrong digest are kept, to be looked at."""
        return self.path.with_name(self.path.name + ".rejected")

    def check_room(self, total: int) -> None:
        """DataError if the disk cannot take the rest of a file of ``total`` bytes."""
        free = shutil.disk_usage(self.aside.parent).free
        if (need := total - self.size) > free - _SPARE:
            raise DataError(
                f"{self.path}: {need:,} bytes are to come and {self.aside.parent} has {free:,} "
                "free; make room, or choose another --out"
            )

    def _move(self, to: Path) -> None:
        self.sync()
        self._stream.close()
        os.replace(self.aside, to)
        sync_folder(to.parent)
        self.notes.unlink(missing_ok=True)

    def _truncate(self, size: int) -> None:
        # Opened for appending, so the next write goes to the new end.
        self._stream.truncate(size)
        self.size = size
        self._hashers, self._hashed = new_hashers(), 0
        self.origin.synced = min(self.origin.synced, size)

    def _catch_up(self) -> None:
        """Feed the digests with bytes of an earlier run."""
        if self._hashed == self.size:
            return
        with self.aside.open("rb", buffering=0) as stream:
            stream.seek(self._hashed)
            while block := stream.read(_BLOCK):
                for hasher in self._hashers.values():
                    hasher.update(block)
                self._hashed += len(block)
