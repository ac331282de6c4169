"""Slices divide the expressions completely."""

import numpy as np

from finetune.slices import slices_of


def test_bins_and_their_borders() -> None:
    texts = ["dog", "a b c", "a b c d e", "a b c d e f", "w " * 11]
    shares = np.array([32**2 / (640 * 480) - 1e-9, 32**2 / (640 * 480), 0.03, 0.25, 1.0])
    masks = slices_of(texts, shares, np.array([1, 1, 2, 1, 3]), [()] * 5)
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
    for kind in ("size", "length", "place", "relation", "about", "boxes"):
        parts = [place for name in masks if name.startswith(kind) for place in members[name]]
        assert sorted(parts) == list(range(5))


def test_annotated_kinds_decide_before_words() -> None:
    texts = ["the man", "the man", "a player", "his hat"]
    kinds = [("animals",), (), ("people", "other"), ("clothing",)]
    masks = slices_of(texts, np.full(4, 0.1), np.ones(4, dtype=int), kinds)
    members = {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
    assert members["about: people"] == [1, 2]
    assert members["about: other"] == [0, 3]
    assert members["kind: people"] == [2]
    assert members["kind: other"] == [2]
    assert members["kind: clothing"] == [3]
    assert members["kind: scene"] == []


def test_nothing_has_no_size() -> None:
    masks = slices_of(["a", "b"], np.array([np.nan, 1.0]), np.array([0, 1]), [(), ()])
    members = {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
    assert members["boxes: none"] == [0]
    assert members["size: very large"] == [1]
    assert [0] not in [members[name] for name in masks if name.startswith("size")]
