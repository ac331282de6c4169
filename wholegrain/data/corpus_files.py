"""Positioned reads from many shards, local or remote, with a bounded number of open files."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wholegrain.data.storage import LocalFile, NodeCache, RemoteFile, StorageConfig
from wholegrain.data.storage import current as current_storage
from wholegrain.data.storage.urls import is_url, shown
from wholegrain.errors import DataError

MAX_OPEN = 32


class ShardFiles:
    """Opens shards as they are asked for, in each process for itself, and closes the stalest.

    Safe to share between threads, to pickle and to fork: reads carry their own offset, and a child
    process begins with no open file and a lock of its own.

    Args:
        paths: of the shards; a text of the form ``scheme://...`` is a URL, whose file is read
            through the node's cache. Any sequence; an element is asked for when its shard is read.
        sizes: bytes of each shard, by the manifest.
        digests: sha256 of each shard in hexadecimal, which a fetched copy is compared with; None:
            its length must do.
        storage: how remote shards are fetched; the process's settings by default.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        sizes: Sequence[int],
        digests: Sequence[str] | None = None,
        storage: StorageConfig | None = None,
    ) -> None:
        self.paths, self._sizes, self._digests = paths, sizes, digests
        self._storage = storage or current_storage()
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "paths": self.paths,
            "_sizes": self._sizes,
            "_digests": self._digests,
            "_storage": self._storage,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def storage(self) -> StorageConfig:
        """How remote shards are fetched."""
        return self._storage

    def path(self, shard: int) -> Path | str:
        """Where shard number ``shard`` lies: a path, or a URL as text."""
        if not 0 <= shard < len(self.paths):
            raise DataError(f"the index names shard {shard} of {len(self.paths)}; index again")
        return self.paths[shard]

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """``length`` bytes of shard number ``shard`` from ``offset``.

        Raises:
            DataError: the shard is missing, unreadable, or not of the size in the manifest; for a
                remote one also, not of its sha256.
            StorageGone: the shard's storage does not answer. It is a `DataError`, but no sample's
                fault.
        """
        handle = self._open(shard)
        if offset + length > handle.size:  # of a damaged index; no buffer is made for it
            raise self._beyond(shard, offset + length)
        try:
            data = os.pread(handle.descriptor, length, offset)
            # One call returns at most 2 GB, and less on an interrupted network file system.
            while len(data) < length:
                more = os.pread(handle.descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(f"{self._name(shard)}: cannot be read ({error.strerror})") from error
        if len(data) < length:
            raise self._beyond(shard, offset + length)
        return data

    def _beyond(self, shard: int, end: int) -> DataError:
        return DataError(
            f"{self._name(shard)}: ends before byte {end}, where the index places a sample; fetch "
            "the shard or index the corpus again"
        )

    def prefetch(self, shards: Iterable[int]) -> None:
        """Has remote shards fetched in the background, in the order in which they will be read.

        A later call replaces what still waits of an earlier one, also of another corpus; see
        :func:`wholegrain.data.corpus.prefetch`. Local shards are passed over.
        """
        remote = self.remote(shards)
        first = next(remote, None)
        if first is not None:
            NodeCache.of(self._storage).prefetch(_chained(first, remote))

    def remote(self, shards: Iterable[int]) -> Iterator[RemoteFile]:
        """Those of the shards that lie at URLs, as the cache knows them."""
        for shard in shards:
            path = self.path(shard)
            if is_url(path):
                yield RemoteFile(str(path), int(self._sizes[shard]), self._digest(shard))

    def _digest(self, shard: int) -> str | None:
        return None if self._digests is None else self._digests[shard]

    def _name(self, shard: int) -> str:
        return shown(str(self.paths[shard]))

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._handles: OrderedDict[int, LocalFile] = OrderedDict()

    def _open(self, shard: int) -> LocalFile:
        if self._pid != os.getpid():
            # Forked: the parent's lock may have been held by a thread that does not exist here.
            self._start()
        with self._lock:
            handle = self._handles.get(shard)
            if handle is not None:
                self._handles.move_to_end(shard)
        if handle is None:
            # Outside the lock: a fetch takes its time, and open shards can be read meanwhile.
            opened = self._opened(shard)
            with self._lock:
                self._drop_evicted()
                handle = self._handles.setdefault(shard, opened)
                if len(self._handles) > MAX_OPEN:
                    self._handles.popitem(last=False)
        handle.touch()
        return handle

    def _opened(self, shard: int) -> LocalFile:
        path, size = self.path(shard), int(self._sizes[shard])
        if is_url(path):
            return NodeCache.of(self._storage).local(str(path), size, self._digest(shard))
        return _open_local(Path(path), size)

    def _drop_evicted(self) -> None:
        """Closes the copies that the cache has dropped: their bytes take up room until then."""
        for shard in [shard for shard, handle in self._handles.items() if handle.evicted]:
            del self._handles[shard]


def _open_local(path: Path, size: int) -> LocalFile:
    try:
        file = LocalFile.open(path)
    except OSError as error:
        remedy = "fetch it, or index the corpus again"
        raise DataError(f"{path}: cannot be opened ({error.strerror}); {remedy}") from None
    if file.size != size:
        raise DataError(
            f"{path}: {file.size} bytes where the manifest says {size}; fetch the shard again, or "
            "index the corpus again if the change is meant"
        )
    return file


def _chained(first: RemoteFile, rest: Iterator[RemoteFile]) -> Iterator[RemoteFile]:
    yield first
    yield from rest
