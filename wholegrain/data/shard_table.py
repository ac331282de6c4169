"""``shards.npy``: one row a shard, memory-mapped, so that a million shards open at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from wholegrain.data.row_file import RowFile
from wholegrain.errors import DataError

SHARDS = "shards.npy"

_HASHED_ROWS = 1 << 16
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: ``file`` is a name in the corpus folder, or an absolute path if indexed in place."""

    file: str
    sha256: str
    bytes: int
    samples: int


class ShardTable(Sequence[ShardInfo]):
    """The shards of a corpus, by number; a row is read when it is asked for."""

    def __init__(self, rows: np.ndarray | RowFile) -> None:
        self._rows = rows

    @classmethod
    def of(cls, shards: Iterable[ShardInfo]) -> ShardTable:
        """A table in memory."""
        shards = list(shards)
        names = [shard.file.encode() for shard in shards]
        rows = np.zeros(len(shards), dtype=_dtype(max(map(len, names), default=1)))
        for row, shard, name in zip(rows, shards, names, strict=True):
            digest = np.frombuffer(bytes.fromhex(shard.sha256), dtype=np.uint8)
            row["file"], row["sha256"] = name, digest
            row["bytes"], row["samples"] = shard.bytes, shard.samples
        return cls(rows)

    @classmethod
    def open(cls, path: Path) -> ShardTable:
        """Maps a table read-only.

        Raises:
            DataError: there is none, or it is of another layout.
        """
        remedy = "run `python -m data_tools index` on the folder, or fetch it again"
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy's reading of a damaged header raises almost anything
            raise DataError(f"{path}: not a readable table of shards ({error}); {remedy}") from None
        names = rows.dtype.names if isinstance(rows, np.ndarray) and rows.ndim == 1 else None
        width = rows.dtype["file"].itemsize if names and "file" in names else 1
        if rows.dtype != _dtype(width):
            raise DataError(f"{path}: a table of another layout; {remedy}")
        return cls(RowFile(path, rows))

    def save(self, path: Path) -> None:
        """Writes the table as a plain ``.npy``."""
        with open(path, "wb") as file:
            np.lib.format.write_array(file, self._all(), version=(2, 0), allow_pickle=False)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> ShardInfo:  # type: ignore[override]
        """One shard's row."""
        return ShardInfo(
            self.file(number), self.sha256(number), self.bytes(number), self.samples(number)
        )

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[number] for number in range(len(self)))

    def file(self, number: int) -> str:
        """Name or absolute path of a shard."""
        raw: bytes = self._rows[number]["file"]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            remedy = "run `python -m data_tools index` on the folder, or fetch it again"
            raise DataError(f"{SHARDS}: name {raw[:80]!r} is not UTF-8; {remedy}") from None

    def sha256(self, number: int) -> str:
        """Digest of a shard, in hex."""
        return bytes(self._rows[number]["sha256"]).hex()

    def bytes(self, number: int) -> int:
        """Size of a shard."""
        return int(self._rows[number]["bytes"])

    def samples(self, number: int) -> int:
        """Samples in a shard."""
        return int(self._rows[number]["samples"])

    @property
    def total_bytes(self) -> int:
        """Of all shards."""
        return int(self._all()["bytes"].sum())

    @property
    def total_samples(self) -> int:
        """In all shards."""
        return int(self._all()["samples"].sum())

    def fingerprint(self) -> str:
        """sha256 over the shards' sha256, in order: a name for the corpus's exact content."""
        digest = hashlib.sha256()
        rows = self._all()
        for start in range(0, len(rows), _HASHED_ROWS):
            digest.update(rows["sha256"][start : start + _HASHED_ROWS].tobytes())
        return digest.hexdigest()

    def _all(self) -> np.ndarray:
        if isinstance(self._rows, RowFile):
            return np.load(self._rows.path, mmap_mode="r", allow_pickle=False)
        return self._rows


class Column(Sequence[T]):
    """What `get` says of each of `count` shards, asked for when it is needed."""

    def __init__(self, count: int, get: Callable[[int], T]) -> None:
        self._count, self._get = count, get

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> T:  # type: ignore[override]
        if not 0 <= number < self._count:
            raise IndexError(f"shard {number} of {self._count}")
        return self._get(number)


def _dtype(width: int) -> np.dtype:
    fields = [("sha256", "u1", (32,)), ("bytes", "<u8"), ("samples", "<u8"), ("file", f"S{width}")]
    return np.dtype(fields)
