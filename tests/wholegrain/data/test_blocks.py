"""The block-wise order: a bijection that mixes, and reads few shards at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain.data.blocks import BlockPermutation
from wholegrain.data.order import Order, Part
from wholegrain.data.permutation import Permutation

GOLDEN = [403, 733, 716, 726, 736, 445]


@settings(deadline=None, max_examples=150)
@given(
    key=st.integers(0, 2**128),
    size=st.integers(1, 3000),
    block=st.integers(1, 400),
    window=st.integers(1, 20),
)
def test_it_is_a_bijection(key: int, size: int, block: int, window: int) -> None:
    images = BlockPermutation(key, size, block, window)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


@settings(deadline=None, max_examples=60)
@given(key=st.integers(0, 2**64), size=st.integers(1, 2000), ask=st.integers(0, 10**6))
def test_any_position_can_be_asked_alone(key: int, size: int, ask: int) -> None:
    order = BlockPermutation(key, size, 37, 4)
    assert order(np.array([ask % size]))[0] == order(np.arange(size))[ask % size]


@pytest.mark.parametrize("size", [10_000, 9_973, 10_001])
def test_no_more_blocks_than_a_window_has_are_open_at_a_time(size: int) -> None:
    block, window = 100, 8
    blocks = BlockPermutation(3, size, block, window)(np.arange(size)) // block
    count = blocks.max() + 1
    first = np.array([np.flatnonzero(blocks == b)[0] for b in range(count)])
    last = np.array([np.flatnonzero(blocks == b)[-1] for b in range(count)])
    open_at = [((first <= place) & (place <= last)).sum() for place in range(size)]
    assert max(open_at) == window
    # And blocks that lie together in the corpus are not read together.
    assert abs(np.corrcoef(np.arange(count), first)[0, 1]) < 0.35


@settings(deadline=None, max_examples=60)
@given(key=st.integers(0, 2**64), size=st.integers(1, 5000))
def test_a_permutation_can_be_walked_backwards(key: int, size: int) -> None:
    order = Permutation(key, size)
    for position in {0, size // 2, size - 1}:
        assert order.inverse(int(order(position))) == position


def test_batches_read_few_blocks_and_ranks_share_them_out() -> None:
    size, block, window, batch, world = 200_000, 1000, 16, 512, 8
    order = Order(5, [Part("a", size, "f", batch, block=block, window=window)])
    for step in range(0, size // batch, 17):
        whole = order.batch(step).index // block
        assert len(np.unique(whole)) <= 2 * window
        for rank in range(world):
            share = order.rank_slice(step, rank, world).index
            assert (np.diff(share) > 0).all()
            # An eighth of the batch comes from about an eighth of the window's blocks.
            assert len(np.unique(share // block)) <= 2 * window // world + 2


def test_an_epoch_of_a_rank_reads_each_block_for_a_short_while_only() -> None:
    size, block, window = 50_000, 500, 8
    order = Order(5, [Part("a", size, "f", 100, block=block, window=window)])
    last_seen: dict[int, int] = {}
    first_seen: dict[int, int] = {}
    for step in range(size // 100):
        for b in np.unique(order.batch(step).index // block).tolist():
            first_seen.setdefault(b, step)
            last_seen[b] = step
    spans = [last_seen[b] - first_seen[b] for b in first_seen]
    assert len(spans) == size // block
    assert max(spans) <= block * window // 100 + 1


def test_epochs_and_keys_differ() -> None:
    orders = [BlockPermutation(key, 5000, 100, 5)(np.arange(5000)) for key in (1, 2)]
    assert (orders[0] == orders[1]).mean() < 0.01


@pytest.mark.parametrize(("block", "window"), [(0, 3), (3, 0)])
def test_sizes_below_one_are_refused(block: int, window: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPermutation(1, 10, block, window)


def test_positions_outside_are_refused() -> None:
    with pytest.raises(IndexError, match=r"0\.\.9"):
        BlockPermutation(1, 10, 3, 2)(np.array([10]))


def test_the_order_never_changes() -> None:
    # A run that is resumed with a newer version must find the old order.
    assert BlockPermutation(7, 1000, 50, 4)(np.arange(6)).tolist() == GOLDEN
