"""Read access to a corpus folder: any sample by its number, in one read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.corpus_manifest import LAYOUT_RECORDS, file_sha256, read_manifest
from wholegrain.data.index_file import INDEX, IndexRows, open_index
from wholegrain.data.record import Record, parse_record
from wholegrain.data.record_plain import (
    plain_captions,
    plain_id,
    plain_meta,
    plain_record,
    plain_size,
)
from wholegrain.data.shard_image import IMAGE_KINDS, ImageKind, probe_image
from wholegrain.data.shard_table import SHARDS, Column, ShardTable
from wholegrain.data.shard_tar import BLOCK, member_name
from wholegrain.errors import DataError

_FAULTS_SHOWN = 10
_SHARDS_LOOKED_FOR = 4096


class Corpus:
    """A corpus folder, or the part of one that belongs to a split.

    Opening reads the manifest and maps the index; no sample is touched. Instances may be pickled,
    forked and used by several threads.

    Attributes:
        path: the folder.
        manifest: the whole folder's manifest, also in a split's view.
        shards: the whole folder's table of shards.
        split: the split of this view, or None for the whole.
        fingerprint: names the exact content and order of the samples seen through this view.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        index: IndexRows,
        shards: ShardTable,
        files: ShardFiles,
        split: str | None,
    ) -> None:
        self.path, self.manifest, self.split = path, manifest, split
        self.shards = shards
        self._index, self._files = index, files
        self._records = manifest["layout"] == LAYOUT_RECORDS
        self._splits = list(manifest["splits"])
        self._rows = range(len(index))
        self.fingerprint: str = manifest["fingerprint"]
        if split is not None:
            self._rows = _rows_of_split(manifest, split)
            self.fingerprint = hashlib.sha256(f"{self.fingerprint}:{split}".encode()).hexdigest()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens the folder that a converter or ``data_tools index`` has made.

        Raises:
            DataError: no corpus, an empty one, a missing shard, or an index that does not fit.
        """
        folder = Path(os.path.abspath(path))
        manifest = read_manifest(folder)
        shards = ShardTable.open(folder / SHARDS)
        index = IndexRows(folder / INDEX)
        samples, rows = shards.total_samples, manifest["index"]["rows"]
        if not len(index) == samples == rows:
            raise DataError(
                f"{folder}: the index has {len(index)} rows for {samples} samples, the manifest "
                f"says {rows}; run `python -m data_tools index {folder}`"
            )
        paths = Column(len(shards), partial(_shard_path, folder, shards))
        _check_present(folder, paths)
        files = ShardFiles(paths, Column(len(shards), shards.bytes))
        return cls(folder, manifest, index, shards, files, None)

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
        return open_index(self.path / INDEX)[self._rows.start : self._rows.stop]

    def select(self, split: str | None) -> Corpus:
        """The view of one split; None gives this very view.

        Raises:
            DataError: there is no such split; the message lists those there are.
        """
        if split is None or split == self.split:
            return self
        if self.split is not None:
            raise DataError(f"{self}: has split {self.split!r} only, not {split!r}; select anew")
        return type(self)(self.path, self.manifest, self._index, self.shards, self._files, split)

    def record(self, i: int) -> Record:
        """Sample ``i``'s record.

        Raises:
            IndexError: ``i`` is not in ``[0, len)``.
            DataError: the shard or the record is damaged.
        """
        number = self._number(i)
        row = self._index[number]
        where = f"{self._files.path(int(row['shard']))}: sample {number}"
        meta = self._read(row, "meta")
        return parse_record(meta, where) if self._records else self._plain(row, meta, where)

    def image_bytes(self, i: int) -> bytes:
        """Sample ``i``'s image, encoded as it is stored; errors as in :meth:`record`."""
        return self._read(self._index[self._number(i)], "image")

    def image_kind(self, i: int) -> ImageKind:
        """The format that sample ``i``'s file name claims."""
        return IMAGE_KINDS[self._index[self._number(i)]["kind"]]

    def verify(self, progress: Callable[[str], None] | None = None) -> None:
        """Compares every byte of the folder with the manifest, whatever the view.

        Args:
            progress: called with each file's name when it is done.

        Raises:
            DataError: lists each missing or altered file.
        """
        expected = [
            (self.path / INDEX, self.manifest["index"]["sha256"]),
            (self.path / SHARDS, self.manifest["shards"]["sha256"]),
        ]
        paths = self._files.paths
        shards = ((paths[n], self.shards.sha256(n)) for n in range(len(paths)))
        faults = []
        for path, digest in chain(expected, shards):
            try:
                found = file_sha256(path)
            except OSError as error:
                faults.append(f"{path} cannot be read ({error.strerror})")
            else:
                if found != digest:
                    faults.append(f"{path} has sha256 {found}, the manifest {digest}")
            if progress is not None:
                progress(path.name)
        if faults:
            listed = "; ".join(faults[:_FAULTS_SHOWN])
            more = (
                f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
            )
            raise DataError(
                f"{self.path}: altered since it was made: {listed}{more}; fetch it again"
            )

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
        path = self._files.path(shard)
        read = partial(self._files.read, shard)
        return plain_id(path, member_name(read, path, data - int(row["head"]) * BLOCK, data))


def _reopen(path: str, split: str | None, fingerprint: str) -> Corpus:
    corpus = Corpus.open(path).select(split)
    if corpus.fingerprint != fingerprint:
        raise DataError(f"{path}: changed while in use; start again")
    return corpus


def _shard_path(folder: Path, shards: ShardTable, number: int) -> Path:
    """A name inside the folder, or an absolute path where tars were indexed in place."""
    file = shards.file(number)
    if not os.path.isabs(file) and os.path.basename(file) != file:
        raise DataError(
            f"{folder}: shard {file!r} is neither a name nor an absolute path; index it"
        )
    return folder / file


def _check_present(folder: Path, paths: Sequence[Path]) -> None:
    """Looks for each shard, or for 4,096 of very many; a read names any other that lacks."""
    count = len(paths)
    step = max(1, -(-count // _SHARDS_LOOKED_FOR))
    # One listing instead of a look-up a shard.
    present = set(os.listdir(folder)) if step == 1 else None
    for number in {*range(0, count, step), count - 1}:
        path = paths[number]
        listed = present is not None and path.parent == folder
        if path.name not in present if listed else not path.is_file():  # type: ignore[operator]
            raise DataError(f"{path}: the shard is missing; fetch it, or index the corpus again")


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
