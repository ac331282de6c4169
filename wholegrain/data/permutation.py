"""A keyed permutation of any size that takes no memory, and keys for all that is drawn."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_ROUNDS = 8  # a Feistel network of 4 is already pseudo-random; 8 covers tiny sizes as well
_MAX_SIZE = 1 << 62


def stable_key(*parts: int | str) -> int:
    """A 128-bit key made from numbers and words; the same on every machine and Python."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # Length and kind go in as well, so that ("ab", "c") and ("a", "bc") differ.
        raw = part.encode() if isinstance(part, str) else b"%d" % part
        digest.update(struct.pack("<?Q", isinstance(part, str), len(raw)))
        digest.update(raw)
    return int.from_bytes(digest.digest(), "little")


def keyed_rng(*parts: int | str) -> np.random.Generator:
    """A random generator whose draws depend on `parts` alone; costs about 10 microseconds."""
    key = stable_key(*parts)
    words = np.array([key & (2**64 - 1), key >> 64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


class Permutation:
    """A keyed bijection on 0..size-1 that takes no memory.

    A Feistel network on pairs (left, right) of digits to base a = ceil(sqrt(size)),

        (left, right) -> (right, (left + F_k(right)) mod a),

    is a bijection on 0..a^2-1 whatever F is. Results beyond `size` are sent through again until
    they fall inside (cycle walking); as a^2 exceeds `size` by at most 2 sqrt(size), that is rare.

    Args:
        key: any non-negative integer; another key is another permutation.
        size: at least 1.
    """

    def __init__(self, key: int, size: int) -> None:
        if not 1 <= size <= _MAX_SIZE:
            raise ValueError(f"size is {size}; it must lie in 1..2**62")
        self.size = size
        self._base = np.uint64(isqrt(size - 1) + 1)
        self._round_keys = [
            np.uint64(stable_key("round", key, number) & (2**64 - 1)) for number in range(_ROUNDS)
        ]

    def __call__(self, positions: NDArray[np.integer] | Sequence[int] | int) -> Ints:
        """Images of `positions`, any shape; int64 of the same shape.

        Raises:
            IndexError: a position outside 0..size-1.
        """
        inside = np.asarray(positions, dtype=np.int64)
        if inside.size and (inside.min() < 0 or inside.max() >= self.size):
            raise IndexError(f"positions must lie in 0..{self.size - 1}")
        values = self._network(inside.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(inside.shape)

    def inverse(self, value: int) -> int:
        """The position whose image is `value`."""
        if not 0 <= value < self.size:
            raise IndexError(f"values must lie in 0..{self.size - 1}")
        position = self._backwards(value)
        while position >= self.size:  # the walk of __call__, the other way round
            position = self._backwards(position)
        return position

    def _backwards(self, value: int) -> int:
        base = int(self._base)
        left, right = divmod(value, base)
        for key in reversed(self._round_keys):
            scrambled = int(_mix(np.array([np.uint64(left) ^ key]))[0]) % base
            left, right = (right - scrambled) % base, left
        return left * base + right

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = np.divmod(values, self._base)
        for key in self._round_keys:
            left, right = right, (left + _mix(right ^ key) % self._base) % self._base
        return left * self._base + right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective scrambling of 64-bit words (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
