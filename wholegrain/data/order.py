"""Which samples form global batch b: a pure function.

Nothing is shuffled and nothing is remembered. A keyed permutation answers "which sample stands at
position p of epoch e" by arithmetic, so that a resume is one integer, the global batches are the
same at any number of ranks and loader workers, and a corpus of 10^9 samples needs no list of 10^9
numbers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from wholegrain.errors import ConfigError

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


@dataclass(frozen=True, slots=True)
class Part:
    """One corpus of a mixture.

    Attributes:
        name: unique in the mixture.
        size: number of samples.
        fingerprint: of the corpus; another content is another order.
        per_batch: its samples in each global batch.
    """

    name: str
    size: int
    fingerprint: str
    per_batch: int


@dataclass(frozen=True, slots=True)
class Slots:
    """Places of a global batch, in order; three int64 arrays of one length.

    Attributes:
        part: which part of the mixture.
        epoch: that part's epoch, counted from 0.
        index: sample of the part, 0..size-1.
    """

    part: Ints
    epoch: Ints
    index: Ints

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, chosen: slice) -> Slots:
        return Slots(self.part[chosen], self.epoch[chosen], self.index[chosen])

    def triples(self) -> list[tuple[int, int, int]]:
        """(part, epoch, index) of each place."""
        columns = (self.part.tolist(), self.epoch.tolist(), self.index.tolist())
        return list(zip(*columns, strict=True))


class Order:
    """The global batches of a run, as a function of (seed, parts) and the step.

    Each batch holds `per_batch` samples of each part. The j-th sample of a part in batch b stands
    at position p = b * per_batch + j of that part, which is epoch p // size and, in it, the sample
    that the epoch's permutation puts at p % size. So an epoch holds every sample once, its last
    samples share a batch with the first of the next, and nothing is dropped.

    Args:
        seed: of the run.
        parts: at least one.

    Raises:
        ConfigError: no part, two parts of one name, an empty part, or a share below 1.
    """

    def __init__(self, seed: int, parts: Sequence[Part]) -> None:
        if not parts:
            raise ConfigError("the mixture is empty; name at least one corpus")
        names = [part.name for part in parts]
        for part in parts:
            if names.count(part.name) > 1:
                raise ConfigError(f"two corpora are named {part.name!r}; give them two names")
            if part.size < 1:
                raise ConfigError(f"corpus {part.name!r} holds no sample; convert it again")
            if part.per_batch < 1:
                raise ConfigError(
                    f"corpus {part.name!r} has per_batch {part.per_batch}; set at least 1"
                )
        self.seed = seed
        self.parts = tuple(parts)
        self._layout = _spread([part.per_batch for part in parts])

    @property
    def batch_size(self) -> int:
        """Samples in a global batch."""
        return len(self._layout)

    def steps_per_epoch(self, part: int = 0) -> float:
        """Global batches in one epoch of a part."""
        return self.parts[part].size / self.parts[part].per_batch

    def batch(self, step: int) -> Slots:
        """The samples of global batch `step` (counted from 0), in order."""
        if step < 0:
            raise IndexError(f"step is {step}; steps count from 0")
        epochs = np.empty(self.batch_size, dtype=np.int64)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for number, part in enumerate(self.parts):
            first = step * part.per_batch
            positions = np.arange(first, first + part.per_batch, dtype=np.int64)
            epoch, within = np.divmod(positions, part.size)
            index = np.empty_like(within)
            for one in np.unique(epoch):  # one, or two where an epoch ends inside the batch
                here = epoch == one
                index[here] = self._permutation(part, int(one))(within[here])
            places = self._layout == number
            epochs[places], indices[places] = epoch, index
        return Slots(self._layout.copy(), epochs, indices)

    def rank_slice(self, step: int, rank: int, world: int) -> Slots:
        """The share of one rank in global batch `step`: a contiguous slice of it.

        Raises:
            ConfigError: the global batch does not divide by the number of ranks.
        """
        self.check_world(rank, world)
        share = self.batch_size // world
        return self.batch(step)[rank * share : (rank + 1) * share]

    def check_world(self, rank: int, world: int) -> None:
        """Refuses a world that cannot share the batch evenly, as `ConfigError`."""
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world} does not exist")
        if self.batch_size % world:
            shares = ", ".join(f"{part.name} {part.per_batch}" for part in self.parts)
            raise ConfigError(
                f"the global batch of {self.batch_size} samples ({shares}) does not divide by "
                f"{world} ranks; make the sum of per_batch a multiple of {world}"
            )

    def _permutation(self, part: Part, epoch: int) -> Permutation:
        key = stable_key("order", self.seed, part.name, part.fingerprint, epoch)
        return Permutation(key, part.size)


def _spread(shares: Sequence[int]) -> Ints:
    """Part of each place of a batch, the parts spread evenly.

    Each rank takes a contiguous slice, and every slice should hold the mixture, not one corpus.
    """
    part = np.repeat(np.arange(len(shares)), shares)
    place = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
    return part[np.lexsort((part, place))].astype(np.int64)
