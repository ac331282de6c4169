"""Merges the rows of parts into a corpus's index, table of shards and manifest.

Parts are written apart (by other processes, on other machines, in any order) and each numbers its
shards and splits from 0. The index groups rows by split, so that a split is a range of rows, and
keeps the order of parts, shards and samples within one. Memory does not grow with the corpus.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wholegrain.data.corpus_manifest import write_manifest
from wholegrain.data.index_file import INDEX, INDEX_DTYPE, npy_header, open_index
from wholegrain.data.record import Record
from wholegrain.data.shard_folder import sync_folder
from wholegrain.data.shard_table import SHARDS, ShardInfo, ShardTable
from wholegrain.errors import DataError

_CHUNK_ROWS = 1 << 16
COUNTED = ("images", "captions", "regions", "objects", "phrases", "expressions", "references")


class Tally:
    """Counts what records hold, by split; splits are numbered in order of appearance."""

    def __init__(self, splits: dict[str, dict[str, int]] | None = None) -> None:
        self._splits: dict[str, Counter[str]] = {
            split: Counter(counts) for split, counts in (splits or {}).items()
        }

    def add(self, record: Record) -> int:
        """Counts one record; returns the number of its split."""
        counts = self._splits.setdefault(record.split, Counter())
        counts["images"] += 1
        counts["captions"] += len(record.captions)
        for region in record.regions:
            counts["objects" if region.grain == "object" else "regions"] += 1
            if region.grain == "region":
                counts["phrases"] += len(region.texts)
            if region.ref is not None:
                counts["expressions"] += len(region.texts)
                counts["references"] += 1
        for absent in record.absent:
            counts["expressions"] += len(absent.texts)
            counts["references"] += 1
        return list(self._splits).index(record.split)

    def update(self, other: Tally) -> None:
        """Adds another tally's counts."""
        for split, counts in other._splits.items():
            self._splits.setdefault(split, Counter()).update(counts)

    @property
    def images(self) -> int:
        """Records counted so far."""
        return sum(counts["images"] for counts in self._splits.values())

    def counts(self) -> dict[str, int]:
        """Images, captions, region and object boxes, region texts, referring expressions and
        the references that own them, over all splits.
        """
        total: Counter[str] = sum(self._splits.values(), Counter())
        return {name: total[name] for name in COUNTED}

    def split_counts(self) -> dict[str, dict[str, int]]:
        """The same for each split, in order of first appearance."""
        return {
            split: {name: counts[name] for name in COUNTED}
            for split, counts in self._splits.items()
        }

    def splits(self) -> dict[str, int]:
        """Images by split, in order of first appearance."""
        return {split: counts["images"] for split, counts in self._splits.items()}


@dataclass(frozen=True)
class Part:
    """Rows and shards of one part.

    Attributes:
        rows: ``.npy`` of ``INDEX_DTYPE`` whose ``shard`` and ``split`` count within the part;
            None for a part without samples.
        shards: the part's tars.
        tally: its counts; the order of its splits is the numbering of ``split``.
    """

    rows: Path | None
    shards: Sequence[ShardInfo] = ()
    tally: Tally = field(default_factory=Tally)


def assemble_corpus(
    folder: Path,
    parts: Sequence[Part],
    *,
    name: str,
    layout: str,
    source: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes ``index.npy``, ``shards.npy`` and, last, ``manifest.json`` into ``folder``.

    Each file is written aside and renamed, so a killed run can simply be repeated.

    Returns:
        The manifest.

    Raises:
        DataError: the parts hold no sample.
    """
    tally = Tally()
    shards: list[ShardInfo] = []
    for part in parts:
        tally.update(part.tally)
        shards += part.shards
    if not tally.images:
        raise DataError(f"{folder}: no sample, so no corpus is made; check the source's paths")
    aside = folder / f".{INDEX}.partial-{os.getpid()}"
    table = ShardTable.of(shards)
    try:
        _write_index(aside, parts, tally)
        aside.replace(folder / INDEX)
        table.save(aside)
        aside.replace(folder / SHARDS)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(folder)
    return write_manifest(
        folder,
        name=name,
        layout=layout,
        source=source,
        counts=tally.counts(),
        split_counts=tally.split_counts(),
        table=table,
        extra=extra,
    )


def _write_index(path: Path, parts: Sequence[Part], tally: Tally) -> None:
    """Puts each row where its split's rows have got to."""
    sizes = tally.splits()
    ids = {split: number for number, split in enumerate(sizes)}
    starts = np.cumsum([0, *sizes.values()])
    width = INDEX_DTYPE.itemsize
    header = npy_header(int(starts[-1]))
    cursor = starts[:-1] * width + len(header)
    with open(path, "wb") as file:
        file.write(header)
        for rows in _renumbered(parts, ids):
            for split in np.unique(rows["split"]):
                chosen = rows[rows["split"] == split]
                file.seek(cursor[split])
                file.write(chosen.tobytes())
                cursor[split] += len(chosen) * width
        file.flush()
        os.fsync(file.fileno())
    if (cursor != starts[1:] * width + len(header)).any():
        raise AssertionError("the parts hold other numbers of rows than they counted")


def _renumbered(parts: Sequence[Part], ids: dict[str, int]) -> Iterator[np.ndarray]:
    """The parts' rows in chunks, shards and splits numbered over the whole corpus."""
    first_shard = 0
    for part in parts:
        if part.rows is not None:
            rows = open_index(part.rows)
            splits = np.array([ids[split] for split in part.tally.splits()], dtype=np.uint16)
            for start in range(0, len(rows), _CHUNK_ROWS):
                chunk = np.array(rows[start : start + _CHUNK_ROWS])
                chunk["shard"] += np.uint32(first_shard)
                chunk["split"] = splits[chunk["split"]]
                yield chunk
        first_shard += len(part.shards)
