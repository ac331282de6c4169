"""A local copy of a remote file, held open, so that nobody's clearing up can take it away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from io import BufferedReader
from pathlib import Path
from typing import Self

_TOUCH_EVERY_S = 60.0


class LocalFile:
    """A file that stays readable until `close`, even when the cache drops it meanwhile.

    Attributes:
        path: where it lay when it was opened.
        descriptor: of the open file, read-only.
        size: in bytes.
        cached: whether it is a copy in a cache, rather than the file itself.
    """

    _close = staticmethod(os.close)  # the module is gone when an interpreter's last objects go

    def __init__(self, path: Path, descriptor: int, cached: bool = False) -> None:
        self.path, self.descriptor, self.cached = path, descriptor, cached
        self.size = os.fstat(descriptor).st_size
        self._touched = -_TOUCH_EVERY_S

    @classmethod
    def open(cls, path: Path, cached: bool = False) -> Self:
        """Opens ``path``; raises OSError as `os.open`."""
        return cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), cached)

    @property
    def evicted(self) -> bool:
        """Whether the cache has dropped it, so that open handles alone keep its bytes."""
        return self.cached and os.fstat(self.descriptor).st_nlink == 0

    def hold(self) -> bool:
        """Keeps the cache from dropping the file until it is closed; False if it has already."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        return not self.evicted

    def touch(self) -> None:
        """Says that a copy is in use; costs something once a minute only."""
        if not self.cached:
            return
        now = time.monotonic()
        if now - self._touched >= _TOUCH_EVERY_S:
            self._touched = now
            with contextlib.suppress(OSError):  # another user's file, or a read-only disk
                os.utime(self.descriptor)

    def reader(self) -> BufferedReader:
        """A file object on the same bytes, for `numpy.memmap` and the like; outlives `close`."""
        # By its number: the name may be gone or stand for another file.
        return open(f"/proc/self/fd/{self.descriptor}", "rb")

    def read(self) -> bytes:
        """The whole content."""
        with self.reader() as file:
            return file.read()

    def close(self) -> None:
        """Lets go of the file."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            self._close(self.descriptor)
