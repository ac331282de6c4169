"""One file from storage to the disk: block after block, hashed as it comes, verified."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

from wholegrain.data.storage.remote import Stat, read_range, stat
from wholegrain.data.storage.retry import (
    Patience,
    ShortReadError,
    is_timeout,
    is_transient,
    refused,
)
from wholegrain.data.storage.settings import StorageConfig
from wholegrain.data.storage.urls import shown
from wholegrain.errors import DataError, WholegrainError

_log = logging.getLogger(__name__)

_FETCHES = 3  # the first, and twice from scratch
_SMALLEST_BLOCK = 1 << 16
_HASH_CHUNK = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class Download:
    """Fetches one file into an open one.

    Args:
        url: the file.
        size: its length in bytes.
        sha256: its digest in hexadecimal; None: only the length is checked, and that storage says
            the same of the file after the download as before.
        config: sizes and limits of the requests.
        patience: shared with the waiting that came before.
        free: asked for room, in bytes, when the disk is full; returns how many it made.
    """

    def __init__(
        self,
        url: str,
        size: int,
        sha256: str | None,
        config: StorageConfig,
        patience: Patience,
        free: Callable[[int], int],
    ) -> None:
        self._url, self._size, self._sha256 = url, size, sha256
        self._config, self._patience, self._free = config, patience, free
        self._block = config.block_bytes()

    def run(self, descriptor: int) -> None:
        """Fills the open file with exactly the file's bytes.

        Bytes that are there already are gone on from where a digest will tell whether they are
        right.

        Raises:
            StorageGone: no byte came for too long.
            DataError: there is no such file, it must not be read, it is not what is expected, or
                the disk is full.
        """
        faults = []
        for fetch in range(_FETCHES):
            if fetch or self._sha256 is None:
                os.ftruncate(descriptor, 0)
            fault = self._fetch(descriptor)
            if fault is None:
                return
            faults.append(fault)
            _log.warning("%s: fetch %d: %s", shown(self._url), fetch + 1, fault)
        os.ftruncate(descriptor, 0)
        raise DataError(
            f"{shown(self._url)}: {faults[-1]}, {_FETCHES} times in a row; put the file there "
            "again, or make the manifest anew if the change is meant"
        )

    def _fetch(self, descriptor: int) -> str | None:
        """Fetches what is missing; returns what is wrong with the result."""
        before = stat_patiently(self._url, self._config, self._patience)
        if before.size is not None and before.size != self._size:
            return f"{before.size} bytes where the manifest says {self._size}"
        digest = hashlib.sha256()
        offset = _hash_start(descriptor, self._size, digest)
        while offset < self._size:
            data = self._next_block(offset)
            self._write(descriptor, data, offset)
            digest.update(data)
            offset += len(data)
        os.ftruncate(descriptor, self._size)
        if self._sha256 is None:
            after = stat_patiently(self._url, self._config, self._patience)
            return None if after == before else "it changed while it was read"
        found = digest.hexdigest()
        return None if found == self._sha256 else f"sha256 {found}, the manifest {self._sha256}"

    def _next_block(self, offset: int) -> bytes:
        """The bytes from `offset`: a block, or all the rest if storage knows no ranges."""
        while True:
            stop = min(offset + self._block, self._size)
            timeout = min(self._config.timeout_s, self._patience.left())
            try:
                data = read_range(self._url, offset, stop, self._config, timeout)
                if len(data) > stop - offset and len(data) == self._size:
                    data = data[offset:]
                elif len(data) != stop - offset:
                    raise ShortReadError(f"{len(data)} bytes in place of {stop - offset}")
            except Exception as error:
                _raise_if_permanent(self._url, error)
                if is_timeout(error):  # slow is not gone: smaller blocks get through
                    self._block = max(_SMALLEST_BLOCK, self._block // 2)
                self._patience.failed(error)
            else:
                self._patience.progress()
                self._block = min(self._config.block_bytes(), self._block * 2)
                return data

    def _write(self, descriptor: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(descriptor, view, offset)
            except OSError as error:
                left = self._size - offset
                if error.errno in _NO_ROOM and self._free(left):
                    continue
                raise DataError(
                    f"{shown(self._url)}: the copy cannot be written to the cache "
                    f"({error.strerror}, {left} bytes left to write); free space there, or set "
                    "storage.cache to a folder on another disk"
                ) from error
            view, offset = view[written:], offset + written


def stat_patiently(url: str, config: StorageConfig, patience: Patience) -> Stat:
    """Length and tag of a file, asked for until there is an answer.

    Raises:
        StorageGone: there was none for too long.
        DataError: there is no such file, or it must not be read.
    """
    while True:
        try:
            found = stat(url, config, min(config.timeout_s, patience.left()))
        except Exception as error:
            _raise_if_permanent(url, error)
            patience.failed(error)
        else:
            patience.progress()
            return found


def _raise_if_permanent(url: str, error: Exception) -> None:
    if isinstance(error, WholegrainError):
        raise error
    if not is_transient(error):
        raise refused(url, error) from error


def _hash_start(descriptor: int, size: int, digest: Any) -> int:
    """Hashes what is there of at most `size` bytes; returns how many they are."""
    offset = 0
    while offset < size:
        data = os.pread(descriptor, min(_HASH_CHUNK, size - offset), offset)
        if not data:
            break
        digest.update(data)
        offset += len(data)
    return offset
