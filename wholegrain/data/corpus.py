"""Read access to a corpus folder: any sample by its number, in one read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np

from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.corpus_manifest import LAYOUT_RECORDS
from wholegrain.data.corpus_place import FolderPlace, RemotePlace, place_of
from wholegrain.data.index_file import INDEX, open_index
from wholegrain.data.record import Record, parse_record
from wholegrain.data.record_plain import (
    plain_captions,
    plain_id,
    plain_meta,
    plain_record,
    plain_size,
)
from wholegrain.data.row_file import RowFile
from wholegrain.data.shard_image import IMAGE_KINDS, ImageKind, probe_image
from wholegrain.data.shard_table import SHARDS, Column, ShardTable
from wholegrain.data.shard_tar import BLOCK, member_name
from wholegrain.data.storage import NodeCache, RemoteFile, StorageGone, file_name
from wholegrain.errors import DataError

_FAULTS_SHOWN = 10
_PATHS_KEPT = 256
_ROWS_KEPT = 1024  # a batch's, between its records and its images


class Corpus:
    """A corpus folder, or the part of one that belongs to a split.

    Opening reads the manifest and maps the index; no sample is touched. Instances may be pickled,
    forked and used by several threads.

    Attributes:
        path: the folder, or the URL as text.
        manifest: the whole folder's manifest, also in a split's view.
        shards: the whole folder's table of shards.
        split: the split of this view, or None for the whole.
        fingerprint: names the exact content and order of the samples seen through this view.
    """

    def __init__(
        self,
        place: FolderPlace | RemotePlace,
        manifest: dict[str, Any],
        index: RowFile,
        shards: ShardTable,
        files: ShardFiles,
        split: str | None,
    ) -> None:
        self.path: Path | str = place.path
        self.manifest, self.split, self.shards = manifest, split, shards
        self._place = place
        self._index, self._files = index, files
        self._records = manifest["layout"] == LAYOUT_RECORDS
        self._splits = list(manifest["splits"])
        self._row = lru_cache(_ROWS_KEPT)(index.__getitem__)
        self._rows = range(len(index))
        self.fingerprint: str = manifest["fingerprint"]
        if split is not None:
            self._rows = _rows_of_split(manifest, split)
            self.fingerprint = hashlib.sha256(f"{self.fingerprint}:{split}".encode()).hexdigest()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens what a converter or ``data_tools index`` has made.

        Args:
            path: a folder, or a URL (``s3://bucket/corpus``, ``gs://``, ``hdfs://``, ``https://``).

        Raises:
            DataError: no corpus, an empty one, a missing shard, or an index that does not fit.
            StorageGone: a URL's storage does not answer.
            ConfigError: the driver for a URL is not installed.
        """
        place = place_of(path)
        manifest = place.manifest()
        shards = ShardTable.open(place.file(SHARDS, manifest["shards"]["sha256"]))
        index_path = place.file(INDEX, manifest["index"]["sha256"])
        index = RowFile(index_path, open_index(index_path))
        rows, count = manifest["index"]["rows"], manifest["shards"]["count"]
        if (len(index), len(shards)) != (rows, count):
            raise DataError(
                f"{place.path}: {len(index)} rows of the index and {len(shards)} shards, where the "
                f"manifest says {rows} and {count}; run `python -m data_tools index {place.path}`"
            )
        path_of: Callable[[int], Path | str] = partial(place.shard, shards)
        paths = Column(count, lru_cache(_PATHS_KEPT)(path_of))
        place.check_present(paths)
        files = ShardFiles(paths, Column(count, shards.bytes), Column(count, shards.sha256))
        return cls(place, manifest, index, shards, files, None)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        part = "" if self.split is None else f", split={self.split!r}"
        return f"Corpus({str(self.path)!r}{part}, {len(self)} samples)"

    def __reduce__(self) -> tuple[Callable[..., Corpus], tuple[str, str | None, str]]:
        return _reopen, (str(self.path), self.split, self.fingerprint)

    @property
    def splits(self) -> dict[str, int]:
        """Samples by split, of the whole folder."""
        return dict(self.manifest["splits"])

    @property
    def index(self) -> np.ndarray:
        """This view's rows of ``INDEX_DTYPE``, memory-mapped."""
        return open_index(self._index.path)[self._rows.start : self._rows.stop]

    def select(self, split: str | None) -> Corpus:
        """The view of one split; None gives this very view.

        Raises:
            DataError: there is no such split; the message lists those there are.
        """
        if split is None or split == self.split:
            return self
        if self.split is not None:
            raise DataError(f"{self}: has split {self.split!r} only, not {split!r}; select anew")
        return type(self)(self._place, self.manifest, self._index, self.shards, self._files, split)

    def record(self, i: int) -> Record:
        """Sample ``i``'s record.

        Raises:
            IndexError: ``i`` is not in ``[0, len)``.
            DataError: the shard or the record is damaged.
        """
        number = self._number(i)
        row = self._row(number)
        where = f"{self._files.path(int(row['shard']))}: sample {number}"
        meta = self._read(row, "meta")
        return parse_record(meta, where) if self._records else self._plain(row, meta, where)

    def image_bytes(self, i: int) -> bytes:
        """Sample ``i``'s image, encoded as it is stored; errors as in :meth:`record`."""
        return self._read(self._row(self._number(i)), "image")

    def image_kind(self, i: int) -> ImageKind:
        """The format that sample ``i``'s file name claims."""
        kind = int(self._row(self._number(i))["kind"])
        if kind >= len(IMAGE_KINDS):
            raise DataError(
                f"{self.path}: the index is damaged at sample {i}; index the tars again"
            )
        return IMAGE_KINDS[kind]

    def verify(self, progress: Callable[[str], None] | None = None) -> None:
        """Compares every byte of the folder with the manifest, whatever the view.

        Args:
            progress: called with each file's name when it is done.

        Raises:
            DataError: lists each missing or altered file.
            StorageGone: a URL's storage does not answer, which says nothing of the files.
        """
        faults = []
        for name, digest, size in self._files_and_digests():
            try:
                path, found = self._place.hashed(name, digest, size)
            except OSError as error:
                where = os.path.join(self.path, name)
                faults.append(f"{where} cannot be read ({error.strerror})")
            except StorageGone:
                raise
            except DataError as error:
                faults.append(str(error))
            else:
                if found != digest:
                    faults.append(f"{path} has sha256 {found}, the manifest {digest}")
            if progress is not None:
                progress(os.path.basename(name))
        if faults:
            listed = "; ".join(faults[:_FAULTS_SHOWN])
            more = (
                f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
            )
            raise DataError(
                f"{self.path}: altered since it was made: {listed}{more}; fetch it again"
            )

    def shard_name(self, i: int) -> str:
        """Where sample ``i`` is stored, for messages."""
        return str(self._files.path(int(self._row(self._number(i))["shard"])))

    @property
    def is_remote(self) -> bool:
        """Whether it lies at a URL."""
        return isinstance(self._place, RemotePlace)

    def _remote_shards(self, samples: Iterable[int]) -> Iterator[RemoteFile]:
        """The shards that hold these samples."""
        shards = (int(self._row(self._number(i))["shard"]) for i in samples)
        yield from self._files.remote(dict.fromkeys(shards))

    def _files_and_digests(self) -> Iterator[tuple[str, str, int | None]]:
        yield INDEX, self.manifest["index"]["sha256"], None
        yield SHARDS, self.manifest["shards"]["sha256"], None
        yield from ((shard.file, shard.sha256, shard.bytes) for shard in self.shards)

    def _number(self, i: int) -> int:
        """The row of the whole folder's index that is this view's sample ``i``."""
        if not 0 <= i < len(self._rows):
            raise IndexError(f"sample {i} of {self!r}")
        return int(self._rows[i])

    def _read(self, row: np.void, part: str) -> bytes:
        length = int(row[f"{part}_bytes"])
        return self._files.read(int(row["shard"]), int(row[part]), length) if length else b""

    def _plain(self, row: np.void, meta: bytes, where: str) -> Record:
        fields = plain_meta(meta, where)
        captions = plain_captions(fields, self._read(row, "text"), where)
        size = plain_size(fields)
        if size is None:
            header = probe_image(self._read(row, "image"), where)
            size = header.width, header.height
        return plain_record(
            fields,
            captions,
            size,
            sample_id=self._plain_id(row),
            source=self.manifest["plain"]["source"],
            split=self._splits[row["split"]],
            where=where,
        )

    def _plain_id(self, row: np.void) -> str:
        shard, data = int(row["shard"]), int(row["image"])
        path = Path(file_name(self._files.path(shard)))
        read = partial(self._files.read, shard)
        return plain_id(path, member_name(read, path, data - int(row["head"]) * BLOCK, data))


def prefetch(wanted: Iterable[tuple[Corpus, Iterable[int]]]) -> None:
    """Has shards at URLs fetched in the background, those of samples that will be read soon.

    The corpora take turns, since few files may wait. A later call replaces what still waits of an
    earlier one, so that one call is for all corpora that are read side by side.
    """
    queues: dict[NodeCache, list[Iterator[RemoteFile]]] = {}
    for corpus, samples in wanted:
        if corpus.is_remote:
            cache = NodeCache.of(corpus._files.storage)
            queues.setdefault(cache, []).append(corpus._remote_shards(samples))
    for cache, files in queues.items():
        turns = (file for turn in zip_longest(*files) for file in turn if file is not None)
        cache.prefetch(turns)


def _reopen(path: str, split: str | None, fingerprint: str) -> Corpus:
    corpus = Corpus.open(path).select(split)
    if corpus.fingerprint != fingerprint:
        raise DataError(f"{path}: changed while in use; start again")
    return corpus


def _rows_of_split(manifest: dict[str, Any], split: str) -> range:
    counts = manifest["splits"]
    if split not in counts:
        have = ", ".join(f"{name} ({count})" for name, count in counts.items())
        raise DataError(f"corpus {manifest['name']!r}: no split {split!r}; it has {have}")
    start = 0
    for name, count in counts.items():
        if name == split:
            break
        start += count
    return range(start, start + counts[split])
