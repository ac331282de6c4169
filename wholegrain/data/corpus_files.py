"""Positioned reads from many shards with a bounded number of open files."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from wholegrain.errors import DataError

MAX_OPEN = 32


class ShardFiles:
    """Opens shards as they are asked for, in each process for itself, and closes the stalest.

    Safe to share between threads, to pickle and to fork: reads carry their own offset, and a child
    process begins with no open file and a lock of its own.
    """

    def __init__(self, paths: list[Path], sizes: list[int]) -> None:
        self.paths, self._sizes = paths, sizes
        self._start()

    def path(self, shard: int) -> Path:
        """Where shard number ``shard`` lies."""
        if shard >= len(self.paths):
            raise DataError(f"the index names shard {shard} of {len(self.paths)}; index again")
        return self.paths[shard]

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """``length`` bytes of shard number ``shard`` from ``offset``.

        Raises:
            DataError: the shard is missing, unreadable, or not of the size in the manifest.
        """
        handle = self._open(shard)
        try:
            data = os.pread(handle.descriptor, length, offset)
            # One call returns at most 2 GB, and less on an interrupted network file system.
            while len(data) < length:
                more = os.pread(handle.descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(f"{self.paths[shard]}: cannot be read ({error.strerror})") from error
        if len(data) < length:
            raise DataError(
                f"{self.paths[shard]}: ends before byte {offset + length}, where the index places "
                "a sample; fetch the shard or index the corpus again"
            )
        return data

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._handles: OrderedDict[int, _Handle] = OrderedDict()

    def _open(self, shard: int) -> _Handle:
        if self._pid != os.getpid():
            # Forked: the parent's lock may have been held by a thread that does not exist here.
            self._start()
        with self._lock:
            handle = self._handles.get(shard)
            if handle is None:
                handle = self._handles[shard] = _Handle(self.path(shard), self._sizes[shard])
                if len(self._handles) > MAX_OPEN:
                    self._handles.popitem(last=False)
            else:
                self._handles.move_to_end(shard)
            return handle


class _Handle:
    """An open file that closes when its last user, maybe a thread amid a read, lets go of it."""

    def __init__(self, path: Path, size: int) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            remedy = "fetch it, or index the corpus again"
            raise DataError(f"{path}: cannot be opened ({error.strerror}); {remedy}") from None
        found = os.fstat(self.descriptor).st_size
        if found != size:
            raise DataError(
                f"{path}: {found} bytes where the manifest says {size}; fetch the shard again, or "
                "index the corpus again if the change is meant"
            )

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
