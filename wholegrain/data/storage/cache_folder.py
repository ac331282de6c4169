"""The folder of a node's cache: who downloads what, what is whole, and what has to go.

Whole files are called ``KEY.whole``, those being downloaded ``KEY.SIZE.partial``; nothing else in
the folder is touched. Whoever downloads holds a lock on the partial file, which dies with him, and
renames it when it is whole. The size in its name is a reservation: the bound is kept although a
download has only begun. There is no other state, so there is none to go stale after a SIGKILL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wholegrain.data.storage.forks import close_lock, open_lock
from wholegrain.data.storage.local_file import LocalFile
from wholegrain.errors import ConfigError, DataError

_NAME = re.compile(r"([0-9a-f]{64})\.(?:whole|(\d+)\.partial)")
_LOCK = ".lock"
_STALE_S = 3600.0  # a partial file that nobody has been going on with
_LOCK_PATIENCE_S = 120.0

Evicted = Callable[[Path], object]


class Claim:
    """The right to download one file: its partial file, locked.

    Attributes:
        descriptor: of the partial file, for reading and writing.
    """

    def __init__(self, folder: CacheFolder, path: Path, whole: Path, descriptor: int) -> None:
        self._folder, self._path, self._whole = folder, path, whole
        self.descriptor = descriptor

    def keep(self) -> LocalFile:
        """Makes the downloaded bytes durable and puts them in place; returns them, open.

        They are open before they are in place, because from then on they may be evicted.
        """
        os.fsync(self.descriptor)
        with self._folder.locked():
            local = LocalFile.open(self._path, cached=True)
            self._path.rename(self._whole)
        local.path = self._whole
        return local

    def abandon(self) -> None:
        """Removes the bytes, which are of no use to the next one."""
        with self._folder.locked():
            self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Lets others go on; bytes that were neither kept nor abandoned stay for them."""
        # Unlocked by name too: a child forked in this very moment may have the file open still.
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        close_lock(self.descriptor)


@dataclass(frozen=True, slots=True)
class Busy:
    """Why there is no claim now; ``state`` changes with the progress of the others."""

    reason: str
    state: object


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    partial: bool
    bytes: int
    """On the disk, or reserved there."""
    found: int
    """On the disk."""
    mtime: float


class CacheFolder:
    """Claims, whole files and evictions in one folder; safe among any number of processes.

    Args:
        folder: made when it is first needed.
        max_bytes: that all files together never exceed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = folder, max_bytes

    def whole(self, key: str) -> Path:
        """Where the whole file of a key lies, or would."""
        return self.path / f"{key}.whole"

    def claim(self, key: str, size: int, what: str) -> Claim | Busy | None:
        """The right to download ``size`` bytes as ``key``; None: the file is there already.

        Evicts what has to go for them. Does not wait for other downloads. ``what`` is the file's
        name in messages.

        Raises:
            ConfigError: the folder cannot be used, or is too small for the file.
        """
        if size > self.max_bytes:
            raise ConfigError(
                f"{what}: {size} bytes do not fit into the cache {self.path} of {self.max_bytes} "
                f"bytes; set storage.cache_gb (or WHOLEGRAIN_CACHE_GB) above {size / 1e9:.4g}"
            )
        path = self.path / f"{key}.{size}.partial"
        with self.locked():
            if self.whole(key).exists():
                return None
            new = not path.exists()
            descriptor = self._open(path, os.O_RDWR | os.O_CREAT)
            granted = False
            try:
                if not _lock_now(descriptor, fcntl.LOCK_EX):
                    status = os.fstat(descriptor)
                    state = status.st_size, status.st_mtime_ns
                    return Busy("another process of this node downloads it", state)
                entries = list(self._entries())
                missing = self._make_room(entries, size, path)
                granted = missing <= 0
                if granted:
                    return Claim(self, path, self.whole(key), descriptor)
                if new:
                    path.unlink()
            finally:
                if not granted:
                    close_lock(descriptor)
        reason = (
            f"the cache {self.path} is full of files in use (bound {self.max_bytes} bytes, "
            f"{missing} more needed); raise storage.cache_gb"
        )
        return Busy(
            reason, tuple(sorted((e.path.name, e.found) for e in entries if e.path != path))
        )

    def is_busy(self, key: str, size: int) -> Busy | None:
        """Whether another one downloads the file now, without asking for the folder's lock."""
        path = self.path / f"{key}.{size}.partial"
        try:
            descriptor = open_lock(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            if _lock_now(descriptor, fcntl.LOCK_SH):
                return None
            status = os.fstat(descriptor)
            state = status.st_size, status.st_mtime_ns
            return Busy("another process of this node downloads it", state)
        finally:
            close_lock(descriptor)

    def free(self, wanted: int) -> int:
        """Evicts files of ``wanted`` bytes, or as many as can be; returns their bytes.

        For a disk that is full before the bound is reached.
        """
        freed = 0
        with self.locked():
            for entry in sorted(self._entries(), key=_expendable):
                if freed >= wanted:
                    break
                if self._remove(entry):
                    freed += entry.found
        return freed

    def drop(self, key: str) -> None:
        """Removes a whole file that is found damaged."""
        with self.locked():
            self.whole(key).unlink(missing_ok=True)

    def _make_room(self, entries: list[_Entry], wanted: int, mine: Path) -> int:
        """Evicts until ``wanted`` bytes fit; returns how many are missing still."""
        others = [entry for entry in entries if entry.path != mine]
        running = [entry for entry in others if entry.partial and _in_use(entry.path)]
        missing = sum(entry.bytes for entry in running) + wanted - self.max_bytes
        if missing > 0:  # nothing that we may evict would be enough
            return missing
        missing = sum(entry.bytes for entry in others) + wanted - self.max_bytes
        now = time.time()
        for entry in sorted(others, key=_expendable):
            stale = entry.partial and now - entry.mtime > _STALE_S
            if (missing > 0 or stale) and self._remove(entry):
                missing -= entry.bytes
        return missing

    def _entries(self) -> Iterator[_Entry]:
        with os.scandir(self.path) as found:
            for item in found:
                match = _NAME.fullmatch(item.name)
                if match is None:
                    continue
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:  # became whole this moment; then listed so, or next time
                    continue
                reserved = max(int(match[2] or 0), status.st_size)
                partial = match[2] is not None
                yield _Entry(Path(item.path), partial, reserved, status.st_size, status.st_mtime)

    def _remove(self, entry: _Entry) -> bool:
        """Deletes a file, unless somebody holds it or is downloading it."""
        try:
            descriptor = open_lock(entry.path, os.O_RDONLY)
        except OSError:
            return False
        try:
            if not _lock_now(descriptor, fcntl.LOCK_EX):
                return False
            with contextlib.suppress(FileNotFoundError):
                entry.path.unlink()
            return True
        except OSError:  # another user's, in a folder that only lets owners delete
            return False
        finally:
            close_lock(descriptor)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock, under which names are given and taken; for moments only."""
        self._make_folder()
        descriptor = self._open(self.path / _LOCK, os.O_RDONLY | os.O_CREAT)
        try:
            start = time.monotonic()
            while not _lock_now(descriptor, fcntl.LOCK_EX):
                if time.monotonic() - start > _LOCK_PATIENCE_S:
                    raise DataError(
                        f"{self.path / _LOCK}: locked by a process that does not go on; end it "
                        "(`fuser` names it), or set another storage.cache"
                    )
                time.sleep(0.005)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            close_lock(descriptor)

    def _make_folder(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(self.path, error) from None

    def _open(self, path: Path, flags: int) -> int:
        try:
            return open_lock(path, flags)
        except OSError as error:
            raise self._unusable(path, error) from None

    def _unusable(self, path: Path, error: OSError) -> ConfigError:
        return ConfigError(
            f"{path}: the cache cannot be used ({error.strerror}); set storage.cache or "
            "WHOLEGRAIN_CACHE to a folder on a local disk that you may write"
        )


def _expendable(entry: _Entry) -> tuple[bool, float]:
    """What goes first: what a dead process left, then what was used least recently."""
    return not entry.partial, entry.mtime


def _in_use(path: Path) -> bool:
    try:
        descriptor = open_lock(path, os.O_RDONLY)
    except OSError:
        return path.exists()  # another user's, perhaps running
    try:
        return not _lock_now(descriptor, fcntl.LOCK_EX)
    finally:
        close_lock(descriptor)


def _lock_now(descriptor: int, kind: Any) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
