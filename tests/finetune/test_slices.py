"""Slices divide the expressions completely, by whole words."""

import numpy as np
import pytest

from finetune.slices import mentions_place, slices_of


@pytest.mark.parametrize(
    "text", ["man on the LEFT", "the one in front", "rightmost cup", "3 o'clock", "closest dog"]
)
def test_place_is_said(text: str) -> None:
    assert mentions_place(text)


@pytest.mark.parametrize("text", ["bright lamp", "a leftover pizza", "the stopwatch", "nearby"])
def test_parts_of_words_say_no_place(text: str) -> None:
    assert not mentions_place(text)


def test_bins_and_their_borders() -> None:
    texts = ["dog", "a b c", "a b c d e", "a b c d e f", "w " * 11]
    shares = np.array([32**2 / (640 * 480) - 1e-9, 32**2 / (640 * 480), 0.03, 0.25, 1.0])
    masks = slices_of(texts, shares, np.array([1, 1, 2, 1, 3]))
    members = {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
    assert members["size: small"] == [0]
    assert members["size: medium"] == [1]
    assert members["size: large"] == [2]
    assert members["size: very large"] == [3, 4]
    assert members["length: 1-2 words"] == [0]
    assert members["length: 3-5 words"] == [1, 2]
    assert members["length: 6-10 words"] == [3]
    assert members["length: over 10 words"] == [4]
    assert members["boxes: several"] == [2, 4]
    for kind in ("size", "length", "place", "boxes"):
        parts = [place for name in masks if name.startswith(kind) for place in members[name]]
        assert sorted(parts) == list(range(5))
