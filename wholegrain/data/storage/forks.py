"""What a forked child must not share with its parent: locks on files, and event loops.

A lock by `flock` belongs to the open file, which a fork shares: the child would hold the lock of a
parent that has died, and a download would wait for one that nobody makes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_guard = threading.Lock()
_descriptors: set[int] = set()


def open_lock(path: str | os.PathLike[str], flags: int) -> int:
    """Opens a file whose locks a forked child does not inherit; close it by `close_lock`."""
    with _guard:  # no fork between opening and noting it down
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        _descriptors.add(descriptor)
    return descriptor


def close_lock(descriptor: int) -> None:
    """Closes what `open_lock` opened, and so gives its lock back."""
    with _guard:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _after_in_child() -> None:
    global _guard  # noqa: PLW0603  the fork itself holds the old one
    _guard = threading.Lock()
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    # fsspec's lock may have been held by a thread that does not exist here.
    asyn = sys.modules.get("fsspec.asyn")
    if asyn is not None:
        asyn.reset_lock()


def _before() -> None:
    _guard.acquire()


def _after_in_parent() -> None:
    _guard.release()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
