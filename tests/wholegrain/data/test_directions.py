from __future__ import annotations

import pytest

from wholegrain.data.directions import has_direction, swap_directions


@pytest.mark.parametrize(
    "text",
    [
        "man on the left",
        "RIGHT one",
        "left-most cup",
        "leftmost cup",
        "far right,",
        "rt guy",
        "lhs",
    ],
)
def test_words_for_sides_are_seen(text: str) -> None:
    assert has_direction(["a dog", text])


@pytest.mark.parametrize(
    "text", ["an upright piano", "bright shirt", "cleft rock", "a fright", "lefties", "shirt", ""]
)
def test_words_that_only_contain_them_are_not(text: str) -> None:
    assert not has_direction([text])
    assert swap_directions(text) == text


def test_texts_do_not_run_together() -> None:
    assert has_direction(["le", "left"])
    assert not has_direction(["le", "ft"])


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("left of the right tree", "right of the left tree"),
        ("Left bright car, RIGHT side", "Right bright car, LEFT side"),
        ("leftmost and rightmost", "rightmost and leftmost"),
        ("left_one", "right_one"),
        ("the left-hand cup", "the right-hand cup"),
        ("rhs", "lhs"),
    ],
)
def test_sides_are_exchanged(text: str, swapped: str) -> None:
    assert swap_directions(text) == swapped
    assert swap_directions(swapped) == text
