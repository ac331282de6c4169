"""All pairs of 64-bit hashes that differ in few bits, without comparing all pairs.

A hash is four bands of 16 bits. Two hashes that differ in at most 11 bits have a band in which they
differ in at most two: so a table of the known hashes by each band, looked up at the 137 values that
are at most two bits away, finds every such pair, and 1 of some 200 others to compare in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_BANDS, _BITS = 4, 16
_PAIRS_AT_A_TIME = 1 << 16  # what the processor's cache holds


@dataclass(frozen=True, slots=True)
class _Table:
    """The known hashes by one band: those with value ``v`` stand at ``starts[v]:starts[v + 1]``."""

    starts: NDArray[np.int32]
    order: NDArray[np.int64]
    hashes: NDArray[np.uint64]


class HammingIndex:
    """Known hashes, to be searched for those near others.

    Args:
        known: uint64 (N,).
        radius: bits in which a pair may differ.
    """

    def __init__(self, known: NDArray[np.uint64], radius: int) -> None:
        self.radius = radius
        known = np.ascontiguousarray(known)
        self._size = max(1, len(known))
        self._masks = _masks(radius // _BANDS)
        self._tables = [_table(known, band) for band in _bands(known)]

    def search(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (number in ``hashes``, number in ``known``) within the radius, in order."""
        hashes = np.ascontiguousarray(hashes)
        found = [np.zeros(0, np.int64)]
        for table, band in zip(self._tables, _bands(hashes), strict=True):
            for mask in self._masks:
                found.extend(self._compare(hashes, band ^ mask, table))
        codes = np.unique(np.concatenate(found))
        return codes // self._size, codes % self._size

    def _compare(
        self, hashes: NDArray[np.uint64], keys: NDArray[np.uint16], table: _Table
    ) -> Iterator[NDArray[np.int64]]:
        """Codes of the near pairs among each hash and the known ones of its key."""
        starts = table.starts[keys]
        counts = table.starts[1:][keys] - starts
        ends = np.cumsum(counts, dtype=np.int64)
        first = 0
        while first < len(counts):
            done = int(ends[first - 1]) if first else 0
            # At least one hash at a time, whose candidates are at most all that is known.
            last = max(first + 1, int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, "right")))
            part = counts[first:last]
            begin = np.concatenate([[0], ends[first : last - 1] - done])
            places = np.repeat(starts[first:last] - begin.astype(np.int32), part)
            places += np.arange(len(places), dtype=np.int32)
            apart = np.bitwise_count(np.repeat(hashes[first:last], part) ^ table.hashes[places])
            near = np.flatnonzero(apart <= self.radius)
            if len(near):
                mine = first + np.searchsorted(begin, near, "right") - 1
                # Hashes without candidates begin where the next one does; the last one has them.
                yield mine * self._size + table.order[places[near]]
            first = last


def _bands(hashes: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """(4, N)."""
    return hashes.view(np.uint16).reshape(-1, _BANDS).T


def _masks(errors: int) -> list[np.uint16]:
    """All 16-bit values with at most ``errors`` bits set."""
    places = [c for count in range(errors + 1) for c in combinations(range(_BITS), count)]
    return [np.uint16(sum(1 << bit for bit in bits)) for bits in places]


def _table(known: NDArray[np.uint64], band: NDArray[np.uint16]) -> _Table:
    order = np.argsort(band, kind="stable")
    counts = np.bincount(band, minlength=1 << _BITS)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return _Table(starts, order, known[order])
