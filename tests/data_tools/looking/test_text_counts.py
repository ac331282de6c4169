from collections import Counter

import numpy as np
import pytest

from data_tools.looking.text_counts import TextCounts


def counted(texts: list[str], most: int = 200_000) -> TextCounts:
    counts = TextCounts(most)
    for text in texts:
        counts.add(text)
    return counts


def test_few_texts_are_counted_exactly() -> None:
    found = counted(["A dog", "a  dog ", "a cat", "two"])
    assert found.most_common(2) == [("a dog", 2), ("a cat", 1)]
    assert (found.total, found.different, found.repeated_share) == (4, 3, 0.5)
    assert found.exact and found.lost == 0


def test_nothing() -> None:
    found = TextCounts()
    assert not found and found.different == 0 and found.repeated_share == 0


def test_long_texts_are_cut_and_kept_apart() -> None:
    found = counted(["x" * 5000 + "a", "x" * 5000 + "b", "x" * 5000 + "b"])
    assert found.different == 2
    assert [(len(text), count) for text, count in found.most_common(5)] == [(160, 2), (160, 1)]
    assert all(text.endswith("x…") for text, _ in found.most_common(5))


def test_many_texts_are_estimated_in_bounded_memory() -> None:
    # Half of all texts are from a frequent few, the others occur once each.
    rng = np.random.default_rng(5)
    frequent = [f"frequent {n}" for n in rng.geometric(0.2, 20_000)]
    texts = [text for pair in zip(frequent, map(str, range(20_000)), strict=True) for text in pair]
    found = counted(texts, most=1000)
    true = Counter(texts)
    assert not found.exact and found.lost > 0
    assert len(found._counts) <= 1000 and len(found._by_hash or ()) <= 1000
    assert found.different == pytest.approx(len(true), rel=0.15)
    assert found.total == 40_000
    for text, count in found.most_common(5):
        assert true[text] - found.lost <= count <= true[text]
    assert found.most_common(1)[0][0] == "frequent 1"


def test_the_estimate_of_repeated_texts() -> None:
    texts = [str(n) for n in range(10_000)] + [str(n) for n in range(0, 10_000, 2)]
    found = counted(texts, most=2000)
    assert not found.exact
    assert found.repeated_share == pytest.approx(2 / 3, abs=0.05)
