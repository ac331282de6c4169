"""The index file beside the shards: one fixed-size row a sample, memory-mapped.

A row says where a sample's image and texts lie, so a corpus of any size opens without reading it
and any sample is one read at a known place. The file is a plain ``.npy`` of ``INDEX_DTYPE``.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from wholegrain.errors import DataError

INDEX = "index.npy"

# 56 bytes. Offsets and lengths are bytes in the shard; a length of 0 means there is no such
# member. `text` is the .txt of plain WebDataset tars. `head` is how many 512-byte blocks before
# `image` the image member's first header begins (the key is read from there). `id` is `id_hash` of
# the photo's identity.
INDEX_DTYPE = np.dtype(
    [
        ("image", "<u8"),
        ("meta", "<u8"),
        ("text", "<u8"),
        ("id", "<u8"),
        ("shard", "<u4"),
        ("image_bytes", "<u4"),
        ("meta_bytes", "<u4"),
        ("text_bytes", "<u4"),
        ("captions", "<u2"),
        ("regions", "<u2"),
        ("split", "<u2"),  # position in the manifest's splits; rows are grouped by it
        ("kind", "u1"),  # position in IMAGE_KINDS
        ("head", "u1"),
    ]
)

Row = tuple[int, ...]


def id_hash(photo_id: str) -> int:
    """64 bits of a photo's identity, for finding the same photo in two corpora."""
    return int.from_bytes(hashlib.blake2b(photo_id.encode(), digest_size=8).digest(), "little")


def npy_header(rows: int) -> bytes:
    """What stands before `rows` rows in an index file; of one length for any number of them."""
    descr = np.lib.format.dtype_to_descr(INDEX_DTYPE)
    header = {"descr": descr, "fortran_order": False, "shape": (rows,)}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_2_0(buffer, header)
    return buffer.getvalue()


def index_row(
    *,
    image: int,
    image_bytes: int,
    id: int,
    shard: int,
    captions: int,
    regions: int,
    split: int,
    kind: int,
    head: int,
    meta: int = 0,
    meta_bytes: int = 0,
    text: int = 0,
    text_bytes: int = 0,
) -> Row:
    """The values of one row, in the order of ``INDEX_DTYPE``."""
    offsets = (image, meta, text, id, shard, image_bytes, meta_bytes, text_bytes)
    return (*offsets, captions, regions, split, kind, head)


class IndexWriter:
    """Appends rows to ``path``; complete after a clean exit, gone after an exception.

    Rows go to disk as they come, so memory does not grow with the corpus.
    """

    _FLUSH_ROWS = 4096

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._written = 0

    def __enter__(self) -> Self:
        try:
            self._file = open(self._path, "xb")
        except OSError as error:
            remedy = "write the index to another folder"
            raise DataError(f"{self._path}: cannot be made ({error.strerror}); {remedy}") from error
        self._file.write(npy_header(0))
        return self

    def add(self, row: Row) -> None:
        """``row``: values in the order of ``INDEX_DTYPE``."""
        self._rows.append(row)
        if len(self._rows) >= self._FLUSH_ROWS:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
                self._file.seek(0)
                # numpy pads the header so that the first axis can grow in place.
                self._file.write(npy_header(self._written))
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            with suppress(OSError):  # what matters is flushed above; a full disk may refuse more
                self._file.close()
            if error is not None:
                self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._file.write(np.array(self._rows, dtype=INDEX_DTYPE).tobytes())
        self._written += len(self._rows)
        self._rows.clear()


def open_index(path: Path) -> np.ndarray:
    """Maps an index read-only: ``(N,)`` of ``INDEX_DTYPE``; no row is read."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's reading of a damaged header raises almost anything
        raise DataError(f"{path}: not a readable index ({error}); run `data_tools index`") from None
    if not isinstance(rows, np.ndarray) or rows.dtype != INDEX_DTYPE or rows.ndim != 1:
        raise DataError(f"{path}: an index of another layout; run `data_tools index` again")
    return rows
