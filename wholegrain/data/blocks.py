"""The block-wise order: nearly sequential reads for storage that is slow to seek.

Rows of a corpus lie in the order of its shards, so a block of consecutive rows is one piece of a
shard. An epoch permutes the blocks, cuts that sequence into windows of some blocks, and permutes
the rows of each window among themselves. So at any time only one window's shards are in use (two
where a batch lies across windows), each is read once an epoch, and the order is still a pure
function of a key: no list of rows, no buffer.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wholegrain.data.permutation import Ints, Permutation, stable_key


class BlockPermutation:
    """A keyed bijection on 0..size-1, called like `Permutation`.

    Positions run through the windows in turn. With blocks of B rows of which the last has only r,
    and that last one standing at slot s of the permuted blocks, slot j begins at position

        j B - (B - r) [j > s],

    so neither blocks nor rows are ever listed.

    Args:
        key: any non-negative integer; another key is another permutation.
        size: at least 1.
        block: B, rows of a block.
        window: blocks of a window.
    """

    def __init__(self, key: int, size: int, block: int, window: int) -> None:
        if block < 1 or window < 1:
            raise ValueError(f"block is {block} and window {window}; both must be at least 1")
        self.size, self.block, self.window = size, block, window
        self._key = key
        self._count = -(-size // block)
        self._blocks = Permutation(stable_key("blocks", key), self._count)
        self._short = size - (self._count - 1) * block
        self._short_slot = self._blocks.inverse(self._count - 1)
        self._inside = lru_cache(maxsize=4)(self._window_permutation)

    def __call__(self, positions: Ints) -> Ints:
        """Images of `positions`, (N,) int64 in 0..size-1; int64 of the same shape.

        Raises:
            IndexError: a position outside.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= self.size):
            raise IndexError(f"positions must lie in 0..{self.size - 1}")
        images = np.empty_like(positions)
        windows = self._slot(positions) // self.window
        for window in np.unique(windows).tolist():
            here = windows == window
            start = self._start(window * self.window)
            within = start + self._inside(window)(positions[here] - start)
            slots = self._slot(within)
            images[here] = self._blocks(slots) * self.block + within - self._starts(slots)
        return images

    def _window_permutation(self, window: int) -> Permutation:
        first = window * self.window
        last = min(first + self.window, self._count)
        size = self._start(last) - self._start(first)
        return Permutation(stable_key("window", self._key, window), size)

    def _start(self, slot: int) -> int:
        """The position at which the block at `slot` begins."""
        return min(slot * self.block, self.size) if slot <= self._short_slot else self._late(slot)

    def _late(self, slot: int) -> int:
        return slot * self.block - (self.block - self._short)

    def _starts(self, slots: Ints) -> Ints:
        return slots * self.block - (self.block - self._short) * (slots > self._short_slot)

    def _slot(self, positions: Ints) -> Ints:
        """At which slot the block of each position stands."""
        early = np.minimum(positions // self.block, self._short_slot)
        late = (positions + self.block - self._short) // self.block
        return np.where(positions < self._late(self._short_slot + 1), early, late)
