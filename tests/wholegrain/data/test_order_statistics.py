"""Is the keyed order as good as a shuffle? Each statistic against what chance allows.

A correct order fails one of these with a probability of about 10^-4 each for another key; the keys
are fixed, so they either always pass or always fail.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wholegrain.data.blocks import BlockPermutation
from wholegrain.data.permutation import Ints, Permutation

KEYS = range(400)
Z = 4.5  # standard deviations; with some thousand comparisons about one chance in a hundred


def chi_square_excess(counts: np.ndarray, expected: float) -> float:
    """How many standard deviations the chi-square of counts lies above its mean."""
    degrees = counts.size - 1
    chi = ((counts - expected) ** 2 / expected).sum()
    return float((chi - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("size", [17, 64, 65, 100])
def test_each_sample_is_as_likely_at_each_position(size: int) -> None:
    counts = np.zeros((size, size))
    keys = range(60 * size)
    for key in keys:
        counts[np.arange(size), Permutation(key, size)(np.arange(size))] += 1
    assert chi_square_excess(counts, len(keys) / size) < Z


def test_neighbours_in_the_corpus_are_not_neighbours_in_the_order() -> None:
    size = 1000
    gaps = []
    for key in KEYS:
        positions = np.argsort(Permutation(key, size)(np.arange(size)))
        gaps.append(np.abs(np.diff(positions)))
    # The distance d of two random positions has probability 2 (n - d) / (n (n - 1)).
    found = np.bincount(np.concatenate(gaps), minlength=size)[1:]
    distance = np.arange(1, size)
    expected = len(KEYS) * (size - 1) * 2 * (size - distance) / (size * (size - 1))
    chi = ((found - expected) ** 2 / expected).sum()
    assert abs(chi - (size - 2)) / np.sqrt(2 * (size - 2)) < Z


def test_pairs_of_positions_are_independent() -> None:
    """Cells of (image of p, image of p + 1) on a grid are hit equally often."""
    size, cells = 4096, 16
    counts = np.zeros((cells, cells))
    for key in KEYS:
        image = Permutation(key, size)(np.arange(size)) * cells // size
        np.add.at(counts, (image[:-1], image[1:]), 1)
    assert chi_square_excess(counts, counts.sum() / cells**2) < Z


def test_two_epochs_are_independent() -> None:
    size, cells = 4096, 16
    counts = np.zeros((cells, cells))
    for key in KEYS:
        one, other = (Permutation(2 * key + n, size)(np.arange(size)) for n in range(2))
        np.add.at(counts, (one * cells // size, other * cells // size), 1)
    # Both margins are fixed, so there are (cells - 1)^2 degrees of freedom.
    expected = counts.sum() / cells**2
    chi = ((counts - expected) ** 2 / expected).sum()
    degrees = (cells - 1) ** 2
    assert abs(chi - degrees) / np.sqrt(2 * degrees) < Z


def test_cycles_are_as_many_as_those_of_a_random_permutation() -> None:
    size = 500
    cycles = []
    for key in KEYS:
        image = Permutation(key, size)(np.arange(size))
        seen = np.zeros(size, dtype=bool)
        count = 0
        for start in range(size):
            if not seen[start]:
                count += 1
                at = start
                while not seen[at]:
                    seen[at] = True
                    at = image[at]
        cycles.append(count)
    harmonic = sum(1 / n for n in range(1, size + 1))
    variance = sum(1 / n - 1 / n**2 for n in range(1, size + 1))
    assert abs(np.mean(cycles) - harmonic) < Z * np.sqrt(variance / len(KEYS))


def _batches(make: Callable[[int], Callable[[Ints], Ints]], size: int, batch: int) -> np.ndarray:
    """(keys, batches): how many samples of the first half of the corpus each batch holds."""
    rows = []
    for key in range(100):
        image = make(key)(np.arange(size)).reshape(-1, batch)
        rows.append((image < size // 2).sum(1))
    return np.array(rows)


def test_a_batch_is_a_fair_sample_of_the_corpus() -> None:
    size, batch = 4096, 64
    halves = _batches(lambda key: Permutation(key, size), size, batch)
    # Hypergeometric: drawn without replacement.
    variance = batch / 4 * (size - batch) / (size - 1)
    assert abs(halves.mean() - batch / 2) < 1e-9  # over an epoch it is exact
    assert 0.9 < halves.var() / variance < 1.1


def test_a_block_wise_batch_is_fair_up_to_its_window() -> None:
    """Blocks of one half come in whole, so the spread is wider, by what the window says."""
    size, batch, block, window = 4096, 64, 32, 16
    halves = _batches(lambda key: BlockPermutation(key, size, block, window), size, batch)
    assert abs(halves.mean() - batch / 2) < 1e-9
    # Of a window's 16 blocks, h come from the first half (hypergeometric over 128 blocks), and the
    # batch is a sample of the window's rows.
    blocks, rows = size // block, window * block
    of_window = 1 / (4 * window) * (blocks - window) / (blocks - 1)
    within = batch * (1 / 4 - of_window) * (rows - batch) / (rows - 1)
    expected = batch**2 * of_window + within
    assert 0.85 < halves.var() / expected < 1.15


def test_rows_of_a_window_are_mixed_evenly() -> None:
    size, block, window = 2048, 64, 8
    counts = np.zeros((8, 8))
    for key in KEYS:
        image = BlockPermutation(key, size, block, window)(np.arange(size))
        within = image % block * 8 // block  # where in its block
        place = np.arange(size) % (block * window) * 8 // (block * window)  # where in its window
        np.add.at(counts, (place, within), 1)
    expected = counts.sum() / 64
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 49) / np.sqrt(2 * 49) < Z
