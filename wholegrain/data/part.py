"""One part of a corpus: some shards with their rows, complete or not there at all.

A conversion is cut into parts, which any process may write, in any order, as often as it takes:
what a part holds does not depend on who writes it. :func:`assemble` makes the corpus of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from wholegrain.data.assemble import Part, Tally, assemble_corpus
from wholegrain.data.corpus_manifest import LAYOUT_RECORDS
from wholegrain.data.index_file import IndexWriter, id_hash, index_row
from wholegrain.data.record import Record, parse_record
from wholegrain.data.repeated import check_unique
from wholegrain.data.shard_image import IMAGE_KINDS, MAX_IMAGE_BYTES, ImageKind, probe_image
from wholegrain.data.shard_table import ShardInfo
from wholegrain.data.shard_tar import BLOCK, ShardFile, padded
from wholegrain.errors import DataError, RecordError

_MARKER, _ROWS, _IDS = "json", "npy", "ids"


class PartWriter:
    """Context manager that writes part ``number`` of a corpus into ``folder``.

    The same records in the same order give the same bytes. The part exists when its marker
    ``part-NNNNNN.json`` does, which is written last; an exception leaves no trace, and what a
    killed run left is overwritten. Two processes may write the same part: both write the same
    bytes aside, and each renames its own.

    Args:
        folder: exists already.
        number: names the shards ``shard-NNNNNN.tar``, ``shard-NNNNNN_0001.tar``, ...
        max_samples, max_bytes: a shard is closed when either would be exceeded.
        label: what messages name in place of ``folder``.

    Attributes:
        notes: JSON values that the marker keeps.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        *,
        max_samples: int = 1000,
        max_bytes: int = 256 << 20,
        label: Path | None = None,
    ) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise DataError(f"{folder}: max_samples and max_bytes must be at least 1")
        self.folder, self.number, self._label = folder, number, label or folder
        self.notes: dict[str, Any] = {}
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._tally = Tally()
        self._ids: dict[int, None] = {}  # in order
        self._shards: list[ShardInfo] = []
        self._written: list[tuple[Path, Path]] = []  # aside, final
        self._shard: ShardFile | None = None
        self._failure: DataError | None = None

    def __enter__(self) -> Self:
        self._rows_aside = self._aside(f"part-{self.number:06d}.{_ROWS}")
        self._index = IndexWriter(self._rows_aside).__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The caller may have taken the failure for one bad sample; half a part is no part.
        failure = error or self._failure
        try:
            if failure is None:
                try:
                    self._finish()
                except OSError as fault:
                    raise self._disk_error(fault) from fault
                return
        except BaseException as fault:
            failure = fault
            raise
        finally:
            if failure is not None:
                self._abandon(failure)
        if error is None and self._failure is not None:
            raise self._failure

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
        where = f"{self._label}: record {record.id!r}"
        meta = record.to_json()
        record = parse_record(meta, where)
        _check_image(record, image, ext, where)
        identity = record_hash(record.split, record.id)
        if identity in self._ids:
            raise RecordError(where, "id", record.id, "already in this split; merge the records")
        try:
            self._append(record, record.to_json(), image, ext)
        except OSError as error:
            self._failure = self._disk_error(error)
            raise self._failure from error
        self._ids[identity] = None

    def _disk_error(self, error: OSError) -> DataError:
        reason = error.strerror
        return DataError(f"{self._label}: cannot be written ({reason}); free space and rerun")

    def _append(self, record: Record, meta: bytes, image: bytes, ext: ImageKind) -> None:
        shard = self._shard_with_room(2 * BLOCK + padded(len(image)) + padded(len(meta)))
        key = f"{self.number:06d}{len(self._ids):05d}"
        image_offset = shard.append(f"{key}.{ext}", image)
        meta_offset = shard.append(f"{key}.json", meta)
        shard.samples += 1
        self._index.add(
            index_row(
                image=image_offset,
                image_bytes=len(image),
                meta=meta_offset,
                meta_bytes=len(meta),
                id=id_hash(record.photo_id),
                shard=len(self._shards),
                captions=len(record.captions),
                regions=len(record.regions),
                split=self._tally.add(record),
                kind=IMAGE_KINDS.index(ext),
                head=1,
            )
        )

    def _shard_with_room(self, size: int) -> ShardFile:
        shard = self._shard
        if shard is not None and (
            shard.samples >= self._max_samples or shard.bytes + size > self._max_bytes
        ):
            self._close_shard(shard)
            shard = None
        if shard is None:
            more = len(self._shards)
            name = f"shard-{self.number:06d}" + (f"_{more:04d}" if more else "") + ".tar"
            shard = self._shard = ShardFile(self._aside(name))
        return shard

    def _close_shard(self, shard: ShardFile) -> None:
        name = shard.path.name.removeprefix(".").partition(".partial-")[0]
        self._shards.append(ShardInfo(name, shard.close(), shard.bytes, shard.samples))
        self._written.append((shard.path, self.folder / name))
        self._shard = None

    def _finish(self) -> None:
        if self._shard is not None:
            self._close_shard(self._shard)
        self._index.__exit__(None, None, None)
        stem = f"part-{self.number:06d}"
        self._written.append((self._rows_aside, self.folder / f"{stem}.{_ROWS}"))
        ids = np.fromiter(self._ids, dtype="<u8", count=len(self._ids)).tobytes()
        marker = {
            "number": self.number,
            "samples": len(self._ids),
            "shards": [asdict(shard) for shard in self._shards],
            "splits": self._tally.split_counts(),
            "notes": self.notes,
        }
        for suffix, data in (
            (_IDS, ids),
            (_MARKER, json.dumps(marker, ensure_ascii=False).encode()),
        ):
            aside = self._aside(f"{stem}.{suffix}")
            self._written.append((aside, self.folder / f"{stem}.{suffix}"))
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for aside, final in self._written:  # the marker is the last
            aside.replace(final)

    def _abandon(self, failure: BaseException) -> None:
        if self._shard is not None:
            self._shard.abandon()
            self._shard.path.unlink(missing_ok=True)
        with suppress(OSError, ValueError):  # what is closed already
            self._index.__exit__(type(failure), failure, failure.__traceback__)
        for aside, _ in self._written:
            aside.unlink(missing_ok=True)

    def _aside(self, name: str) -> Path:
        path = self.folder / f".{name}.partial-{os.uname().nodename}-{os.getpid()}"
        path.unlink(missing_ok=True)  # of an earlier attempt with our number
        return path


def record_hash(split: str, record_id: str) -> int:
    """64 bits by which a repeated id is found."""
    return id_hash(f"{split}\n{record_id}")


def read_part(folder: Path, number: int) -> dict[str, Any] | None:
    """The marker of a complete part: number, samples, shards, splits, notes; None without one.

    Raises:
        DataError: the marker is damaged.
    """
    path = folder / f"part-{number:06d}.{_MARKER}"
    try:
        marker = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it and run again") from None
    if not isinstance(marker, dict) or marker.get("number") != number:
        raise DataError(f"{path}: not the marker of part {number}; remove it and run again")
    return marker


def assemble(
    folder: Path,
    parts: int,
    *,
    name: str,
    source: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the corpus of parts 0 .. ``parts`` - 1 in ``folder`` and returns its manifest.

    Memory grows by about a kilobyte a part. A killed run is simply repeated: the parts' own files
    are removed at the very end.

    Raises:
        DataError: a part is missing, an id occurs twice in a split, or there is no sample.
    """
    found = list(_parts(folder, parts))
    ids = [folder / f"part-{number:06d}.{_IDS}" for number in range(parts)]
    check_unique(folder, found, ids)
    manifest = assemble_corpus(
        folder, found, name=name, layout=LAYOUT_RECORDS, source=source, extra=extra
    )
    for number in range(parts):
        for suffix in (_MARKER, _ROWS, _IDS):
            (folder / f"part-{number:06d}.{suffix}").unlink(missing_ok=True)
    for leftover in folder.glob(".*.partial-*"):  # of processes that were killed
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return manifest


def _parts(folder: Path, parts: int) -> Iterator[Part]:
    for number in range(parts):
        marker = read_part(folder, number)
        if marker is None:
            raise DataError(f"{folder}: part {number} of {parts} is not there; run the conversion")
        yield Part(
            rows=folder / f"part-{number:06d}.{_ROWS}" if marker["samples"] else None,
            shards=[ShardInfo(**shard) for shard in marker["shards"]],
            tally=Tally(marker["splits"]),
        )


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
