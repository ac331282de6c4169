"""A node's cache of remote files: fetched once, shared by its processes, bounded in size."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from wholegrain.data.storage.cache_folder import Busy, CacheFolder, Claim
from wholegrain.data.storage.download import Download, stat_patiently
from wholegrain.data.storage.local_file import LocalFile
from wholegrain.data.storage.prefetch import Prefetcher
from wholegrain.data.storage.retry import Patience, StorageGone
from wholegrain.data.storage.settings import StorageConfig, current
from wholegrain.data.storage.urls import as_url, local_path, place_of, shown
from wholegrain.errors import ConfigError, DataError

_REMEMBER_S = 60.0
_REMEMBERED = 1000
_DOUBTED_S = 5.0


class RemoteFile(NamedTuple):
    """A file at a URL, its length in bytes and its sha256 in hexadecimal, where they are known."""

    url: str
    size: int | None = None
    sha256: str | None = None


class NodeCache:
    """Copies of remote files in one folder of the node.

    Safe among threads, forked children and any number of processes; may be pickled. A file with a
    known sha256 is the same file wherever it comes from; others go by URL and length.

    Args:
        folder: on a local disk.
        max_bytes: that all copies together never exceed.
        config: how files are fetched; the process's settings by default.
    """

    def __init__(self, folder: Path, max_bytes: int, config: StorageConfig | None = None) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._config = config or current()
        self._files = CacheFolder(folder, max_bytes)
        self._prefetcher = Prefetcher(self._fetch_ahead, self._config.prefetch)
        # Each sample of a bad shard would otherwise fetch it anew.
        self._bad: dict[str, tuple[float, str]] = {}
        self._gone: dict[str, float] = {}

    @classmethod
    def of(cls, config: StorageConfig) -> NodeCache:
        """This process's cache with these settings."""
        folder, max_bytes = config.folder(), config.max_bytes()
        key = f"{folder} {max_bytes} {config!r}"
        found = _caches.get(key)
        if found is None:
            found = _caches.setdefault(key, cls(folder, max_bytes, config))
        return found

    def __reduce__(self) -> tuple[type[NodeCache], tuple[Path, int, StorageConfig]]:
        return type(self), (self.folder, self.max_bytes, self._config)

    def local(
        self,
        url: str,
        size: int | None = None,
        sha256: str | None = None,
        *,
        hold: bool = False,
    ) -> LocalFile:
        """An open local copy of the file, fetched if need be.

        Args:
            url: where it lies; ``file://`` is opened in place.
            size: its length in bytes; None: storage is asked.
            sha256: its digest in hexadecimal; None: only its length is checked.
            hold: keep the copy from being evicted until it is closed, for what stays in use for
                long without being read through `ShardFiles`, such as a mapped index. Without it
                an evicted copy stays readable, but others have to fetch the file again.

        Raises:
            StorageGone: storage gives nothing for too long.
            DataError: the file is missing, refused, or not what is expected.
            ConfigError: the cache is too small or cannot be used, or the driver is not installed.
        """
        url = as_url(url)
        path = local_path(url)
        if path is not None:
            return _open_in_place(path, size)
        place = place_of(url)
        patience = self._patience(url, place)
        try:
            local = self._local(RemoteFile(url, size, sha256), patience, hold)
        except StorageGone:
            self._gone[place] = time.monotonic()
            raise
        self._gone.pop(place, None)
        return local

    def prefetch(self, files: Iterable[RemoteFile]) -> None:
        """Has files fetched in the background, in this order; those asked for later come first.

        Only so many wait as the settings say, none of them known to be here already. An error
        shows when the file is needed.
        """
        self._prefetcher.want(
            file for file in files if local_path(file.url) is None and not self._is_here(file)
        )

    def _is_here(self, file: RemoteFile) -> bool:
        return file.sha256 is not None and self._files.whole(file.sha256.lower()).exists()

    def _local(self, file: RemoteFile, patience: Patience, hold: bool) -> LocalFile:
        file, key = self._identify(file, patience)
        while True:
            found = self._hit(file, key, hold)
            if found is not None:
                return found
            if file.size is None:
                size = stat_patiently(file.url, self._config, patience).size
                file = file._replace(size=_known(file.url, size))
            assert file.size is not None
            claim = self._files.is_busy(key, file.size) or self._claim(file, key)
            if isinstance(claim, Busy):
                patience.wait(claim.state, claim.reason)
            elif claim is not None:
                local = self._download(file, key, claim, patience)
                if not hold or local.hold():
                    return local
                local.close()

    def _identify(self, file: RemoteFile, patience: Patience) -> tuple[RemoteFile, str]:
        """The key of a file's copy; asks storage only where neither digest nor length is known."""
        if file.sha256 is not None:
            key = file.sha256.lower()
            if len(key) != 64 or set(key) - set("0123456789abcdef"):
                raise DataError(
                    f"{shown(file.url)}: sha256 is {file.sha256!r}; make the manifest anew"
                )
            return file._replace(sha256=key), key
        tag = ""
        if file.size is None:
            found = stat_patiently(file.url, self._config, patience)
            # Without a tag nothing tells an old copy from a new file: then each opening fetches.
            tag = found.tag or os.urandom(16).hex()
            file = file._replace(size=_known(file.url, found.size))
        identity = f"{file.url}\n{file.size}\n{tag}"
        return file, hashlib.sha256(identity.encode()).hexdigest()

    def _hit(self, file: RemoteFile, key: str, hold: bool) -> LocalFile | None:
        while True:
            try:
                local = LocalFile.open(self._files.whole(key), cached=True)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise ConfigError(
                    f"{self._files.whole(key)}: cannot be read ({error.strerror}); let all users "
                    "of the cache read its files, or set another storage.cache"
                ) from None
            if file.size is not None and local.size != file.size:
                local.close()
                self._files.drop(key)
                return None
            if hold and not local.hold():
                local.close()  # it was evicted between the two
                continue
            local.touch()
            return local

    def _claim(self, file: RemoteFile, key: str) -> Claim | Busy | None:
        known = self._bad.get(key)
        if known is not None and time.monotonic() - known[0] < _REMEMBER_S:
            raise DataError(known[1])
        assert file.size is not None
        return self._files.claim(key, file.size, shown(file.url))

    def _download(self, file: RemoteFile, key: str, claim: Claim, patience: Patience) -> LocalFile:
        assert file.size is not None
        try:
            Download(
                file.url, file.size, file.sha256, self._config, patience, self._files.free
            ).run(claim.descriptor)
            return claim.keep()
        except StorageGone:
            raise
        except DataError as error:
            claim.abandon()
            if len(self._bad) >= _REMEMBERED:
                self._bad.clear()
            self._bad[key] = time.monotonic(), str(error)
            raise
        finally:
            claim.release()

    def _patience(self, url: str, place: str) -> Patience:
        # Who has just waited for this storage in vain does not wait as long for the next file.
        since = self._gone.get(place)
        doubted = since is not None and time.monotonic() - since < self._config.patience_s
        if not doubted:
            return Patience(url, self._config)
        limit_s = min(self._config.patience_s, _DOUBTED_S)
        return Patience(url, replace(self._config, attempts=1, patience_s=limit_s))

    def _fetch_ahead(self, file: RemoteFile) -> None:
        """Fetches a file that is neither here nor being fetched."""
        patience = Patience(file.url, replace(self._config, attempts=2))
        file, key = self._identify(file, patience)
        if file.size is None or self._files.whole(key).exists():
            return
        claim = self._claim(file, key)
        if isinstance(claim, Claim):
            self._download(file, key, claim, patience).close()


_caches: dict[str, NodeCache] = {}


def _known(url: str, size: int | None) -> int:
    if size is None:
        raise DataError(
            f"{shown(url)}: the server does not say how long the file is; have it served as a "
            "plain file with a Content-Length"
        )
    return size


def _open_in_place(path: Path, size: int | None) -> LocalFile:
    try:
        local = LocalFile.open(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror}); fetch it, or index the corpus again"
        ) from None
    if size is not None and local.size != size:
        found = local.size
        local.close()
        raise DataError(f"{path}: {found} bytes where the manifest says {size}; fetch it again")
    return local
