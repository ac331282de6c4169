"""Which samples form global batch b: a pure function.

Nothing is shuffled and nothing is remembered. A keyed permutation answers "which sample stands at
position p of epoch e" by arithmetic, so that a resume is one integer, the global batches are the
same at any number of ranks and loader workers, and a corpus of 10^9 samples needs no list of 10^9
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wholegrain.data.blocks import BlockPermutation
from wholegrain.data.permutation import Ints, Permutation, stable_key
from wholegrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Part:
    """One corpus of a mixture.

    Attributes:
        name: unique in the mixture.
        size: number of samples.
        fingerprint: of the corpus; another content is another order.
        per_batch: its samples in each global batch.
        block: rows of a block in the block-wise order; None permutes all samples at once.
        window: blocks that are mixed with each other.
    """

    name: str
    size: int
    fingerprint: str
    per_batch: int
    block: int | None = None
    window: int = 16


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
    samples share a batch with the first of the next, and nothing is dropped. Corpora of a mixture
    end their epochs at different steps, each for itself.

    In the block-wise order a part's samples of a batch are sorted by row, so that the contiguous
    share of a rank comes from few shards.

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
        self._places = [np.flatnonzero(self._layout == n) for n in range(len(parts))]
        self._permutation = lru_cache(maxsize=4 * len(parts))(self._make_permutation)

    @property
    def batch_size(self) -> int:
        """Samples in a global batch."""
        return len(self._layout)

    def steps_per_epoch(self, part: int = 0) -> float:
        """Global batches in one epoch of a part."""
        return self.parts[part].size / self.parts[part].per_batch

    def epochs(self, step: int) -> list[float]:
        """Epochs of each part that `step` global batches have read."""
        return [step * part.per_batch / part.size for part in self.parts]

    def batch(self, step: int) -> Slots:
        """The samples of global batch `step` (counted from 0), in order."""
        return self._slots(step, 0, self.batch_size)

    def rank_slice(self, step: int, rank: int, world: int) -> Slots:
        """The share of one rank in global batch `step`: a contiguous slice of it.

        Raises:
            ConfigError: the global batch does not divide by the number of ranks.
        """
        self.check_world(rank, world)
        share = self.batch_size // world
        return self._slots(step, rank * share, (rank + 1) * share)

    def _slots(self, step: int, start: int, stop: int) -> Slots:
        """Places `start` .. `stop` - 1 of a global batch."""
        if step < 0:
            raise IndexError(f"step is {step}; steps count from 0")
        layout = self._layout[start:stop].copy()
        epochs, indices = np.empty_like(layout), np.empty_like(layout)
        for number, part in enumerate(self.parts):
            low, high = np.searchsorted(self._places[number], (start, stop))
            first = step * part.per_batch
            if part.block is None:
                epoch, index = self._read(number, first + low, first + high)
            else:  # sorted as a whole before it is cut
                epoch, index = self._read(number, first, first + part.per_batch)
                order = np.lexsort((index, epoch))[low:high]
                epoch, index = epoch[order], index[order]
            places = self._places[number][low:high] - start
            epochs[places], indices[places] = epoch, index
        return Slots(layout, epochs, indices)

    def _read(self, number: int, first: int, last: int) -> tuple[Ints, Ints]:
        """Epochs and samples at positions `first` .. `last` - 1 of a part."""
        positions = np.arange(first, last, dtype=np.int64)
        epoch, within = np.divmod(positions, self.parts[number].size)
        index = np.empty_like(within)
        for one in np.unique(epoch).tolist():  # one, or two where an epoch ends inside
            here = epoch == one
            index[here] = self._permutation(number, one)(within[here])
        return epoch, index

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

    def __getstate__(self) -> tuple[int, tuple[Part, ...]]:
        return self.seed, self.parts

    def __setstate__(self, state: tuple[int, tuple[Part, ...]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _make_permutation(self, number: int, epoch: int) -> Permutation | BlockPermutation:
        part = self.parts[number]
        key = stable_key("order", self.seed, part.name, part.fingerprint, epoch)
        if part.block is None:
            return Permutation(key, part.size)
        return BlockPermutation(key, part.size, part.block, part.window)


def _spread(shares: Sequence[int]) -> Ints:
    """Part of each place of a batch, the parts spread evenly.

    Each rank takes a contiguous slice, and every slice should hold the mixture, not one corpus.
    """
    part = np.repeat(np.arange(len(shares)), shares)
    place = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
    return part[np.lexsort((part, place))].astype(np.int64)
