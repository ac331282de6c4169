"""Writes a corpus: WebDataset tars with an index and a manifest, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from wholegrain.data.corpus_manifest import (
    LAYOUT_RECORDS,
    MANIFEST,
    ShardInfo,
    Tally,
    write_manifest,
)
from wholegrain.data.index_file import INDEX, IndexWriter, id_hash, index_row
from wholegrain.data.record import Record, parse_record
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.data.shard_image import IMAGE_KINDS, MAX_IMAGE_BYTES, ImageKind, probe_image
from wholegrain.data.shard_tar import BLOCK, END_OF_ARCHIVE, padded, tar_header
from wholegrain.errors import DataError, RecordError


class ShardWriter:
    """Context manager that turns records and images into the corpus folder ``out``.

    The same records in the same order give the same bytes and so the same fingerprint. Nothing
    appears at ``out`` before a clean exit; an exception inside the block leaves no trace.

    Args:
        out: folder to make.
        source: kept in the manifest: the converter, its arguments and ``key``, a digest of its
            inputs by which a later run can tell that nothing changed.
        max_samples, max_bytes: a shard is closed when either would be exceeded.
        overwrite: replace an existing corpus at ``out``, at the end.

    Raises:
        DataError: ``out`` exists; nothing was written by the end; the disk is full.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        source: dict[str, Any],
        max_samples: int = 1000,
        max_bytes: int = 256 << 20,
        overwrite: bool = False,
    ) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise DataError(f"{out}: max_samples and max_bytes must be at least 1")
        self.out = Path(out)
        self.manifest: dict[str, Any] = {}
        json.dumps(source)  # a value that no manifest can hold must not surface after hours of work
        self._source, self._overwrite = source, overwrite
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._tally = Tally()
        self._seen: set[int] = set()
        self._shards: list[ShardInfo] = []
        self._shard: _ShardFile | None = None
        self._failure: DataError | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(
                atomic_folder(self.out, overwrite=self._overwrite, marker=MANIFEST)
            )
            # Left in reverse order: the last shard, the index, the manifest, the folder's rename.
            stack.push(self._write_manifest)
            self._index = stack.enter_context(IndexWriter(self._folder / INDEX))
            stack.push(self._close_last_shard)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._failure is not None:
            # The caller took the failure for one bad sample; half a corpus must not pass as whole.
            self._stack.__exit__(DataError, self._failure, self._failure.__traceback__)
            raise self._failure
        try:
            self._stack.__exit__(kind, error, trace)
        except OSError as fault:
            if fault is error:
                raise
            raise self._disk_error(fault) from fault

    def write(self, record: Record, image: bytes, ext: ImageKind) -> None:
        """Appends one sample. A refused sample leaves the writer as it was, ready for the next.

        Args:
            record: checked against the schema and against the image's real size.
            image: encoded bytes, stored unchanged.
            ext: the image's format, which the bytes must show.

        Raises:
            RecordError: the record breaks the schema, repeats an id within its split, or differs
                from the image in size.
            DataError: the image is none, too large, or not of format ``ext``; or the disk is full,
                after which every further call fails too.
        """
        if self._failure is not None:
            raise self._failure
        where = f"{self.out}: record {record.id!r}"
        record = parse_record(record.to_json(), where)
        _check_image(record, image, ext, where)
        identity = id_hash(f"{record.split}\n{record.id}")
        if identity in self._seen:
            raise RecordError(where, "id", record.id, "already in this split; merge the records")
        self._seen.add(identity)
        try:
            self._append(record, image, ext)
        except OSError as error:
            self._failure = self._disk_error(error)
            raise self._failure from error

    def _disk_error(self, error: OSError) -> DataError:
        return DataError(f"{self.out}: cannot be written ({error.strerror}); free space and rerun")

    def _append(self, record: Record, image: bytes, ext: ImageKind) -> None:
        meta = record.to_json()
        shard = self._shard_with_room(2 * BLOCK + padded(len(image)) + padded(len(meta)))
        key = f"{self._tally.images:09d}"
        split = self._tally.add(record)
        image_offset = shard.append(f"{key}.{ext}", image)
        meta_offset = shard.append(f"{key}.json", meta)
        shard.samples += 1
        self._index.add(
            index_row(
                image=image_offset,
                image_bytes=len(image),
                meta=meta_offset,
                meta_bytes=len(meta),
                id=id_hash(record.id),
                shard=len(self._shards),
                captions=len(record.captions),
                regions=len(record.regions),
                split=split,
                kind=IMAGE_KINDS.index(ext),
                head=1,
            )
        )

    def _shard_with_room(self, size: int) -> _ShardFile:
        shard = self._shard
        if shard is not None and (
            shard.samples >= self._max_samples or shard.bytes + size > self._max_bytes
        ):
            self._shards.append(shard.close())
            shard = None
        if shard is None:
            shard = _ShardFile(self._folder / f"shard-{len(self._shards):06d}.tar")
        self._shard = shard
        return shard

    def _close_last_shard(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shard is not None and error is None:
            self._shards.append(self._shard.close())
        elif self._shard is not None:
            self._shard.abandon()

    def _write_manifest(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.manifest = write_manifest(
                self._folder,
                name=str(self._source.get("name", self.out.name)),
                layout=LAYOUT_RECORDS,
                source=self._source,
                tally=self._tally,
                shards=self._shards,
            )


class _ShardFile:
    """One growing tar that knows its offset and its digest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 - closed in close or abandon
        self._digest = hashlib.sha256()
        self.bytes = 0
        self.samples = 0

    def append(self, name: str, data: bytes) -> int:
        """Adds a member; returns where its data begins."""
        self._put(tar_header(name, len(data)))
        offset = self.bytes
        self._put(data)
        self._put(bytes(padded(len(data)) - len(data)))
        return offset

    def close(self) -> ShardInfo:
        """Ends the archive and makes it durable."""
        with self._file:
            self._put(END_OF_ARCHIVE)
            self._file.flush()
            os.fsync(self._file.fileno())
        return ShardInfo(self._path.name, self._digest.hexdigest(), self.bytes, self.samples)

    def abandon(self) -> None:
        """Lets go of a file that nobody will read."""
        with suppress(OSError):  # closing flushes, which a full disk refuses
            self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)


def _check_image(record: Record, image: bytes, ext: ImageKind, where: str) -> None:
    if len(image) > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: image of {len(image)} bytes, above {MAX_IMAGE_BYTES}; shrink it")
    header = probe_image(image, where)
    if header.kind != ext:
        raise RecordError(where, "ext", ext, f"the image is a {header.kind}; name it so")
    for field, said, real in (
        ("width", record.width, header.width),
        ("height", record.height, header.height),
    ):
        if said != real:
            remedy = f"the stored image has {real} px; scale the boxes to it"
            raise RecordError(where, field, said, remedy)
