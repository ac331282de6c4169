"""The search against its slow reference: every pair."""

import numpy as np
import pytest
from numpy.typing import NDArray

from data_tools.auditing import hamming
from data_tools.auditing.hamming import HammingIndex


def every_pair(
    hashes: NDArray[np.uint64], known: NDArray[np.uint64], radius: int
) -> list[tuple[int, int]]:
    apart = np.bitwise_count(hashes[:, None] ^ known[None])
    return [(int(a), int(b)) for a, b in np.argwhere(apart <= radius)]


def flipped(hashes: NDArray[np.uint64], rng: np.random.Generator) -> NDArray[np.uint64]:
    """Each with 0 to 14 of its bits flipped."""
    out = hashes.copy()
    for place in range(len(out)):
        for bit in rng.choice(64, rng.integers(0, 15), replace=False):
            out[place] ^= np.uint64(1) << np.uint64(bit)
    return out


@pytest.mark.parametrize("radius", [0, 3, 7, 8, 11, 12])
def test_it_finds_every_pair_and_no_other(radius: int) -> None:
    rng = np.random.default_rng(radius)
    known = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    known[100:110] = known[0]  # equal ones are all found
    hashes = np.concatenate(
        [flipped(known[:400], rng), rng.integers(0, 2**64, 300, dtype=np.uint64)]
    )
    rows, entries = HammingIndex(known, radius).search(hashes)
    found = list(zip(rows.tolist(), entries.tolist(), strict=True))
    assert found == every_pair(hashes, known, radius)
    assert len(found) > (30 if radius else 5)


def test_memory_is_bounded_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Two bands are the same everywhere: every hash has all that is known as candidates.
    known = rng.integers(0, 2**32, 500, dtype=np.uint64)
    hashes = flipped(known[:60], rng)
    expected = every_pair(hashes, known, 11)
    for pairs in (1, 7, 501, 1 << 16):
        monkeypatch.setattr(hamming, "_PAIRS_AT_A_TIME", pairs)
        rows, entries = HammingIndex(known, 11).search(hashes)
        assert list(zip(rows.tolist(), entries.tolist(), strict=True)) == expected


def test_nothing_known_and_nothing_asked() -> None:
    none = np.zeros(0, np.uint64)
    some = np.arange(5, dtype=np.uint64)
    for known, hashes in ((none, some), (some, none), (none, none)):
        rows, entries = HammingIndex(known, 11).search(hashes)
        assert len(rows) == len(entries) == 0
