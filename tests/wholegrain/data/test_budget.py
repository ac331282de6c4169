"""No more concepts than fit, or exactly as many as are asked for."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from wholegrain.data.batch import IMAGE, WHOLE_IMAGE, Concept, Sample
from wholegrain.data.budget import ConceptBudget


def samples(*counts: int) -> list[Sample]:
    """Images with so many concepts, which are told apart by their first token."""
    made, token = [], 0
    for count in counts:
        ids = range(token, token + count)
        concepts = [Concept(IMAGE, WHOLE_IMAGE, str(i), [i], [i], [i]) for i in ids]
        made.append(Sample(f"image/{len(made)}", torch.zeros(3, 8, 8), concepts, len(made)))
        token += count
    return made


def tokens(kept: list[Sample]) -> list[list[int]]:
    return [[concept.ids[0] for concept in sample.concepts] for sample in kept]


def kept(budget: ConceptBudget, seed: int, *counts: int) -> list[list[int]]:
    return tokens(budget.kept(samples(*counts), np.random.default_rng(seed)))


@pytest.mark.parametrize("exact", [False, True])
def test_what_fits_is_left_alone(exact: bool) -> None:
    given = samples(2, 0, 3)
    found = ConceptBudget(5, exact).kept(given, np.random.default_rng(0))
    assert all(one is other for one, other in zip(found, given, strict=True))
    assert kept(ConceptBudget(9), 0, 2, 0, 3) == [[0, 1], [], [2, 3, 4]]


@pytest.mark.parametrize("exact", [False, True])
def test_a_surplus_is_dropped_at_random_and_images_stay(exact: bool) -> None:
    counts: Counter[int] = Counter()
    for seed in range(600):
        found = kept(ConceptBudget(4, exact), seed, 3, 1, 4)
        assert len(found) == 3
        together = list(chain(*found))
        assert len(together) == len(set(together)) == 4
        assert together == sorted(together)  # each stays with its image, in its order
        assert all(
            low <= t < high
            for row, (low, high) in zip(found, ((0, 3), (3, 4), (4, 8)), strict=True)
            for t in row
        )
        counts.update(together)
    assert all(0.4 < counts[token] / 600 < 0.6 for token in range(8))


def test_a_lack_is_filled_with_what_there_is() -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        found = kept(ConceptBudget(9, exact=True), seed, 3, 0, 2)
        together = list(chain(*found))
        assert len(together) == 9
        assert set(together) == set(range(5))  # nothing is lost
        assert not found[1]
        counts.update(together)
    assert all(1.6 < counts[token] / 400 < 2.0 for token in range(5))  # 9 / 5 each


def test_nothing_can_be_made_of_nothing() -> None:
    assert kept(ConceptBudget(4, exact=True), 0, 0, 0) == [[], []]


def test_the_choice_is_the_generators() -> None:
    budget = ConceptBudget(6)
    assert kept(budget, 3, 9, 9) == kept(budget, 3, 9, 9) != kept(budget, 4, 9, 9)
