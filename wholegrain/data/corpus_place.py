"""Where a corpus lies: in a folder, or at a URL whose files are read through the node's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wholegrain.data.corpus_manifest import MANIFEST, file_sha256, parse_manifest, read_manifest
from wholegrain.data.shard_table import ShardTable
from wholegrain.data.storage import LocalFile, as_url, default_cache, is_url, join
from wholegrain.errors import DataError

_ALL_LOOKED_FOR = 4096
_SHARDS_LOOKED_FOR = 256  # of more


class FolderPlace:
    """A corpus in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def manifest(self) -> dict[str, Any]:
        """The manifest, checked."""
        return read_manifest(self.path)

    def file(self, name: str, sha256: str | None = None, size: int | None = None) -> Path:
        """Where a file of the corpus can be read; whoever asks compares the digest."""
        return self.path / name

    def hashed(self, name: str, sha256: str, size: int | None) -> tuple[Path, str]:
        """Where a file of the corpus lies, and the sha256 that it has there; OSError as `open`."""
        path = self.path / name
        return path, file_sha256(path)

    def shard(self, shards: ShardTable, number: int) -> Path:
        """A name inside the folder, or an absolute path where tars were indexed in place."""
        file = shards.file(number)
        if not os.path.isabs(file) and os.path.basename(file) != file:
            raise DataError(
                f"{self.path}: shard {file!r} is neither a name nor an absolute path; index it"
            )
        return self.path / file

    def check_present(self, paths: Sequence[Path | str]) -> None:
        """Looks for each shard, or for 256 of very many; a read names any other that lacks."""
        count = len(paths)
        step = 1 if count <= _ALL_LOOKED_FOR else -(-count // _SHARDS_LOOKED_FOR)
        # One listing instead of a look-up a shard.
        present = set(os.listdir(self.path)) if step == 1 else set()
        for number in (*range(0, count, step), count - 1):
            path = Path(paths[number])
            listed = step == 1 and path.parent == self.path
            if path.name not in present if listed else not path.is_file():
                raise DataError(
                    f"{path}: the shard is missing; fetch it, or index the corpus again"
                )


class RemotePlace:
    """A corpus at a URL. What is read whole is held in the cache for as long as this lives."""

    def __init__(self, url: str) -> None:
        self.path = as_url(url)
        self._held: dict[str, LocalFile] = {}

    def manifest(self) -> dict[str, Any]:
        """The manifest, as it is there now, checked."""
        url = join(self.path, MANIFEST)
        with default_cache().local(url) as file:
            return parse_manifest(file.read(), url)

    def file(self, name: str, sha256: str | None = None, size: int | None = None) -> Path:
        """Where a copy of a file of the corpus can be read, with that digest."""
        if name not in self._held:
            url = join(self.path, name)
            self._held[name] = default_cache().local(url, size, sha256, hold=True)
        return self._held[name].path

    def hashed(self, name: str, sha256: str, size: int | None) -> tuple[Path, str]:
        """Where a copy of a file of the corpus lay, and the sha256 that it had.

        It is not held: all of a corpus may be more than the cache holds, or a process may open.
        """
        with (
            default_cache().local(join(self.path, name), size, sha256) as copy,
            copy.reader() as file,
        ):
            return copy.path, hashlib.file_digest(file, "sha256").hexdigest()

    def shard(self, shards: ShardTable, number: int) -> str:
        """URL of a shard."""
        file = shards.file(number)
        if os.path.basename(file) != file:
            raise DataError(
                f"{self.path}: shard {file!r} is no name in the corpus; a corpus of tars that were "
                "indexed in place cannot be moved"
            )
        return join(self.path, file)

    def check_present(self, paths: Sequence[Path | str]) -> None:
        """Storage is not asked for each shard: the first reads tell."""


def place_of(path: Path | str) -> FolderPlace | RemotePlace:
    """The place that a path or a URL names."""
    return RemotePlace(str(path)) if is_url(path) else FolderPlace(Path(os.path.abspath(path)))
