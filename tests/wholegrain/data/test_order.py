from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain.data.order import Order, Part
from wholegrain.data.permutation import Permutation, keyed_rng, stable_key
from wholegrain.errors import ConfigError

GOLDEN_PERMUTATION = [94, 714, 592, 486, 35, 848]
GOLDEN_KEY = 247121458874894382931978364751702352190


def _parts() -> list[Part]:
    return [Part("coco", 53, "f1", 5), Part("flickr", 17, "f2", 3)]


@settings(deadline=None, max_examples=60)
@given(key=st.integers(0, 2**128), size=st.integers(1, 3000))
def test_permutation_is_a_bijection(key: int, size: int) -> None:
    image = Permutation(key, size)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@pytest.mark.parametrize("size", [30, 64, 65, 1000, 1024, 1025])
def test_permutation_is_neither_identity_nor_the_same_for_two_keys(size: int) -> None:
    ranks = np.arange(size)
    one, other = Permutation(1, size)(ranks), Permutation(2, size)(ranks)
    assert (one == ranks).mean() < 0.2
    assert (one == other).mean() < 0.2


def test_permutation_scatters_neighbours_evenly() -> None:
    size = 10_000
    image = Permutation(5, size)(np.arange(size))
    correlation = np.corrcoef(np.arange(size), image)[0, 1]
    steps = np.abs(np.diff(image))
    assert abs(correlation) < 0.04  # 4 standard errors
    assert abs(steps.mean() / size - 1 / 3) < 0.02  # of independent uniform numbers


def test_small_permutations_are_all_reached_about_equally_often() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(2400):
        found = tuple(Permutation(key, 4)(np.arange(4)).tolist())
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 24
    assert max(counts.values()) < 2 * min(counts.values())


def test_permutation_of_a_billion_needs_no_list_and_answers_any_position() -> None:
    size = 10**9 + 7
    ask = Permutation(3, size)
    positions = np.array([0, 1, size // 2, size - 1])
    together = ask(positions)
    assert together.tolist() == [int(ask(int(p))) for p in positions]
    assert len(set(together.tolist())) == 4
    assert (together >= 0).all() and (together < size).all()


def test_permutation_never_changes() -> None:
    # A run that is resumed with a newer version must find the old order.
    assert Permutation(7, 1000)(np.arange(6)).tolist() == GOLDEN_PERMUTATION
    assert stable_key("order", 3) == GOLDEN_KEY


def test_permutation_refuses_what_lies_outside() -> None:
    with pytest.raises(IndexError, match=r"0\.\.9"):
        Permutation(1, 10)([10])
    with pytest.raises(ValueError, match="size is 0"):
        Permutation(1, 0)


def test_keys_tell_words_from_numbers_and_keep_borders() -> None:
    keys = [stable_key("ab", "c"), stable_key("a", "bc"), stable_key(1), stable_key("1")]
    assert len(set(keys)) == 4
    assert keyed_rng(1, 2).random() == keyed_rng(1, 2).random()
    assert keyed_rng(1, 2).random() != keyed_rng(2, 1).random()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=3),
)
def test_each_epoch_of_each_part_holds_every_sample_once(
    seed: int, sizes: list[tuple[int, int]]
) -> None:
    order = Order(seed, [Part(f"p{n}", size, "f", per) for n, (size, per) in enumerate(sizes)])
    epochs = 3
    steps = max(-(-size * epochs // per) for size, per in sizes)
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(steps):
        for part, epoch, index in order.batch(step).triples():
            seen.setdefault((part, epoch), []).append(index)
    for number, (size, _) in enumerate(sizes):
        for epoch in range(epochs):
            assert sorted(seen[number, epoch]) == list(range(size))


def test_every_batch_has_the_same_composition() -> None:
    order = Order(0, _parts())
    for step in range(40):
        assert np.bincount(order.batch(step).part).tolist() == [5, 3]


def test_every_rank_gets_a_share_of_every_part() -> None:
    order = Order(0, [Part("a", 100, "f", 12), Part("b", 100, "g", 4)])
    for rank in range(4):
        assert np.bincount(order.rank_slice(3, rank, 4).part).tolist() == [3, 1]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_global_batch_in_order(world: int) -> None:
    order = Order(11, _parts())
    for step in (0, 7, 31):
        together = [t for r in range(world) for t in order.rank_slice(step, r, world).triples()]
        assert together == order.batch(step).triples()


def test_order_depends_on_seed_epoch_and_fingerprint_and_on_nothing_else() -> None:
    def first_epoch(seed: int, fingerprint: str, epoch: int = 0) -> list[int]:
        order = Order(seed, [Part("a", 60, fingerprint, 6)])
        return [i for s in range(10) for i in order.batch(10 * epoch + s).index.tolist()]

    assert first_epoch(1, "f") == first_epoch(1, "f")
    different = [first_epoch(1, "f"), first_epoch(2, "f"), first_epoch(1, "g")]
    different.append(first_epoch(1, "f", epoch=1))
    assert len({tuple(order) for order in different}) == 4


def test_two_parts_over_one_corpus_are_ordered_independently() -> None:
    order = Order(0, [Part("a", 50, "f", 10), Part("b", 50, "f", 10)])
    batch = order.batch(0)
    assert batch.index[batch.part == 0].tolist() != batch.index[batch.part == 1].tolist()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "mixture is empty"),
        ([Part("a", 0, "f", 1)], "'a' holds no sample"),
        ([Part("a", 3, "f", 0)], "per_batch 0"),
        ([Part("a", 3, "f", 1), Part("a", 4, "g", 1)], "two corpora are named 'a'"),
    ],
)
def test_unsound_mixtures_are_refused(parts: list[Part], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Order(0, parts)


def test_a_world_that_cannot_share_the_batch_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"8 samples \(coco 5, flickr 3\).*3 ranks"):
        Order(0, _parts()).rank_slice(0, 0, 3)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Order(0, _parts()).rank_slice(0, 2, 2)


def test_steps_count_from_zero() -> None:
    order = Order(0, _parts())
    assert order.batch_size == 8
    assert order.steps_per_epoch(0) == pytest.approx(10.6)
    with pytest.raises(IndexError):
        order.batch(-1)
