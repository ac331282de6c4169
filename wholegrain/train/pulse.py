"""A sign of life, for other processes that wait for what this one makes."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Pulse:
    """Within the block a thread touches a file, which is gone afterwards.

    What is made may show no change for long, while gigabytes are flushed for instance; that its
    maker lives shows all the same, and stops to show when the machine dies or loses its storage.

    Args:
        path: of the file.
        every_s: seconds between touches.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self._path, self._every_s = path, every_s
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        with suppress(OSError):  # no room for it: those who wait have their patience
            self._path.touch()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink()

    def _beat(self) -> None:
        while not self._left.wait(self._every_s):
            with suppress(OSError):  # never made anew: somebody may have taken the folder away
                os.utime(self._path)


def last_beat(path: Path) -> int | None:
    """What is another number after each touch; None where there is no such file."""
    try:
        # Opening, unlike a bare stat, has a network file system look at what is there now.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None
