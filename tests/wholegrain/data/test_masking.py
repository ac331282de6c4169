from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain.config import from_dict
from wholegrain.data.batch import IGNORED
from wholegrain.data.masking import (
    MaskingConfig,
    Vocabulary,
    choose_positions,
    mask_count,
    mask_tokens,
)
from wholegrain.errors import ConfigError

VOCABULARY = Vocabulary(mask_id=4, size=1000)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("length", "count"),
    [(2, 1), (3, 1), (6, 2), (9, 2), (10, 2), (13, 3), (17, 4), (25, 6), (33, 8), (40, 8)],
)
def test_counts_of_the_specification(length: int, count: int) -> None:
    rules = MaskingConfig()
    assert mask_count(length, rules) == count
    starts = [True] * length
    assert {len(choose_positions(starts, rules, _rng(s))) for s in range(50)} == {count}


def test_the_cap_of_the_larger_recipe() -> None:
    assert mask_count(40, MaskingConfig(max_masks=6)) == 6


@settings(deadline=None, max_examples=100)
@given(starts=st.lists(st.booleans(), max_size=39), seed=st.integers(0, 2**31))
def test_cls_is_never_masked_and_the_count_holds_for_any_words(
    starts: list[bool], seed: int
) -> None:
    starts = [True, *starts]
    ids = list(range(100, 100 + len(starts)))
    masked, labels = mask_tokens(ids, starts, VOCABULARY, MaskingConfig(), _rng(seed))
    hidden = [i for i, label in enumerate(labels) if label != IGNORED]
    assert len(hidden) == min(mask_count(len(ids), MaskingConfig()), len(ids) - 1)
    assert 0 not in hidden
    assert all(labels[i] == ids[i] for i in hidden)
    assert all(masked[i] == ids[i] for i in range(len(ids)) if i not in hidden)


def test_words_are_hidden_whole_unless_cut_off() -> None:
    # Eight words of two pieces; the quarter of 17 tokens is 4, two whole words.
    starts = [True] + [True, False] * 8
    rules = MaskingConfig(skipgram=0.0)
    for seed in range(50):
        positions = choose_positions(starts, rules, _rng(seed))
        assert len(positions) == 4
        assert {p - (0 if starts[p] else 1) for p in positions} == {
            p for p in positions if starts[p]
        }
    split = MaskingConfig(skipgram=0.0, whole_word=False)
    halves = [choose_positions(starts, split, _rng(seed)) for seed in range(50)]
    assert any(not starts[p] and p - 1 not in found for found in halves for p in found)


def test_skipgrams_hide_neighbours() -> None:
    starts = [True] * 13  # three tokens

    def runs(skipgram: float) -> int:
        rules = MaskingConfig(skipgram=skipgram)
        found = [choose_positions(starts, rules, _rng(s)) for s in range(400)]
        return sum(b - a == 1 for positions in found for a, b in zip(positions, positions[1:]))  # noqa: B905, RUF007

    assert runs(1.0) > 2 * runs(0.0)


def test_replacements_are_80_10_10() -> None:
    ids, starts = [2, *range(500, 532)], [True] * 33
    fates: Counter[str] = Counter()
    entries = []
    for seed in range(1500):
        masked, labels = mask_tokens(ids, starts, VOCABULARY, MaskingConfig(), _rng(seed))
        for shown, label in zip(masked, labels, strict=True):
            if label != IGNORED:
                kind = "mask" if shown == 4 else "kept" if shown == label else "random"
                fates[kind] += 1
                entries += [shown] if kind == "random" else []
    total = sum(fates.values())
    assert total == 1500 * 8
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.015)
    assert fates["random"] / total == pytest.approx(0.1, abs=0.012)
    assert min(entries) < 20 and max(entries) > 980  # all of the vocabulary


def test_every_position_is_as_likely() -> None:
    counts = np.zeros(20)
    for seed in range(3000):
        counts[choose_positions([True] * 20, MaskingConfig(skipgram=0), _rng(seed))] += 1
    assert counts[0] == 0
    assert counts[1:].min() > 0.8 * counts[1:].mean()
    assert counts[1:].max() < 1.2 * counts[1:].mean()


def test_the_same_generator_masks_the_same() -> None:
    ids, starts = list(range(20)), [True] * 20
    once = mask_tokens(ids, starts, VOCABULARY, MaskingConfig(), _rng(3))
    assert once == mask_tokens(ids, starts, VOCABULARY, MaskingConfig(), _rng(3))
    assert once != mask_tokens(ids, starts, VOCABULARY, MaskingConfig(), _rng(4))


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="exceed 1"):
        from_dict(MaskingConfig, {"mask_share": 0.8, "random_share": 0.3})
