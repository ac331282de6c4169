"""Finds an id that occurs twice in a split, in a corpus of any size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from wholegrain.data.assemble import Part
from wholegrain.data.index_file import open_index
from wholegrain.data.record_parse import load_json
from wholegrain.errors import DataError

_BUCKET_IDS = 1 << 22
"""Hashes sorted at a time: 32 MiB."""


def check_unique(folder: Path, parts: Sequence[Part], ids: Sequence[Path]) -> None:
    """Refuses records of one id in one split.

    Args:
        folder: where the parts lie; hashes that memory should not hold are sorted there.
        parts: as they will be assembled.
        ids: of each part the file of 64-bit hashes of (split, id), one a row.

    Raises:
        DataError: names the id and both its places.
    """
    total = sum(part.tally.images for part in parts)
    for bucket in _buckets(folder, ids, total):
        values, counts = np.unique(bucket, return_counts=True)
        for value in values[counts > 1]:
            _refuse(folder, parts, ids, value)


def _buckets(folder: Path, ids: Sequence[Path], total: int) -> Iterator[np.ndarray]:
    """The hashes, all equal ones together, in pieces that fit into memory."""
    bits = max(0, (max(total, 1) - 1).bit_length() - _BUCKET_IDS.bit_length() + 1)
    if not bits:
        yield np.concatenate([np.zeros(0, "<u8"), *map(_hashes, ids)])
        return
    with tempfile.TemporaryDirectory(prefix=".ids.partial-", dir=folder) as place:
        files = [Path(place) / str(number) for number in range(1 << bits)]
        for path in ids:
            hashes = _hashes(path)
            bucket = (hashes >> np.uint64(64 - bits)).astype(np.int64)
            order = np.argsort(bucket, kind="stable")
            ends = np.cumsum(np.bincount(bucket, minlength=1 << bits))
            for number, piece in enumerate(np.split(hashes[order], ends[:-1])):
                if len(piece):
                    with open(files[number], "ab") as file:
                        file.write(piece.tobytes())
        for file_path in files:
            if file_path.exists():
                yield _hashes(file_path)


def _hashes(path: Path) -> np.ndarray:
    return np.fromfile(path, dtype="<u8")


def _refuse(folder: Path, parts: Sequence[Part], ids: Sequence[Path], value: np.uint64) -> None:
    """Raises, unless the hashes are equal by chance (10^9 samples: about 1 in 40)."""
    first: dict[tuple[str, str], str] = {}
    for part, path in zip(parts, ids, strict=True):
        for number in np.flatnonzero(_hashes(path) == value).tolist():
            if part.rows is None:
                raise AssertionError("a part without rows has ids")
            row = open_index(part.rows)[number]
            place = f"{part.shards[row['shard']].file}, sample {number} of its part"
            with open(folder / part.shards[row["shard"]].file, "rb") as file:
                file.seek(int(row["meta"]))
                meta = load_json(file.read(int(row["meta_bytes"])), place)
            key = (str(meta["split"]), str(meta["id"]))
            if key in first:
                raise DataError(
                    f"{folder}: id {key[1]!r} occurs twice in split {key[0]!r} ({first[key]}; "
                    f"{place}); merge the records, or convert the sources apart"
                )
            first[key] = place
