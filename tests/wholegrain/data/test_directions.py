from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain.data.directions import has_direction, is_ambiguous, swap_directions


@pytest.mark.parametrize(
    "text",
    [
        "man on the left",
        "RIGHT one",
        "left-most cup",
        "leftmost cup",
        "far right,",
        "far-left",
        "topleft",
        "a lefthanded pitcher",
        "rt guy",
        "lhs",
        "left/right",
        "guy on r",
        "John (L) with Mary",
        "the dog at 3 o'clock",
        "three o’clock cup",
        "cup at the 9:00 position",
        "dancers turn counter-clockwise",
        "anticlockwise",
        "rigth guy",
    ],
)
def test_words_for_sides_are_seen(text: str) -> None:
    assert has_direction(["a dog", text])


@pytest.mark.parametrize(
    "text",
    [
        "an upright piano",
        "bright shirt",
        "cleft rock",
        "a fright",
        "lefties",
        "leftover pizza",
        "a copyright sign",
        "alright",
        "human rights march",
        "shirt",
        "12 o'clock",
        "the shadow at six o'clock",
        "a clock that shows 3:00",
        "I'll wait, you're late",
        "l'oréal",
        "élleft",
        "r2d2",
        "",
    ],
)
def test_words_that_only_contain_them_are_not(text: str) -> None:
    assert not has_direction([text])
    assert not is_ambiguous([text])
    assert swap_directions(text) == text


def test_texts_do_not_run_together() -> None:
    assert has_direction(["le", "left"])
    assert not has_direction(["le", "ft"])
    assert not is_ambiguous(["on the right", "behind the car"])
    assert is_ambiguous(["right behind the car"])


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("left of the right tree", "right of the left tree"),
        ("Left bright car, RIGHT side", "Right bright car, LEFT side"),
        ("leftmost and rightmost", "rightmost and leftmost"),
        ("left_one", "right_one"),
        ("the left-hand cup", "the right-hand cup"),
        ("the Left-Hand, right-handed leftHand", "the Right-Hand, left-handed rightHand"),
        ("TopLeft bottomright", "TopRight bottomleft"),
        ("left/right", "right/left"),
        ("rhs", "lhs"),
        ("lft guy", "rt guy"),
        ("2nd from l, then the R side", "2nd from r, then the L side"),
        ("Ann (L) and Bob (r)", "Ann (R) and Bob (l)"),
        ("3 o'clock and 10 oclock", "9 o'clock and 2 oclock"),
        ("Three O'Clock, ELEVEN O'CLOCK", "Nine O'Clock, ONE O'CLOCK"),
        ("12 o'clock, 6 o'clock", "12 o'clock, 6 o'clock"),
        ("the cup at the 4:00 position", "the cup at the 8:00 position"),
        ("walks clockwise", "walks counterclockwise"),
    ],
)
def test_sides_are_exchanged(text: str, swapped: str) -> None:
    assert not is_ambiguous([text])
    assert swap_directions(text) == swapped
    assert swap_directions(swapped) == text


@pytest.mark.parametrize(
    "text",
    [
        "right behind the car",
        "a dog right next to the bench",
        "stares right at the camera",
        "a man standing right in front",
        "all right",
        "that's right",
        "the right answer",
        "a right angle",
        "a bag left behind",
        "pizza left on a plate",
        "a skier has left a trail",
        "a five o'clock shadow",
        "3 o'clock in the afternoon",
        "3 o'clock p.m.",
        "between 2 and 3 o'clock",
        "anti-clockwise",
        "an L shaped sofa",
        "Toys R Us",
        "rght one",
    ],
)
def test_texts_that_may_mean_something_else_are_ambiguous(text: str) -> None:
    assert is_ambiguous(["a dog", text])
    assert has_direction(["a dog", text])  # what cannot be exchanged is not safe to mirror either


@pytest.mark.parametrize(
    "text",
    [
        "man on right behind bench",
        "the left hand",
        "the right one",
        "guy on left in red",
        "far right",
    ],
)
def test_plain_sides_are_not_ambiguous(text: str) -> None:
    assert not is_ambiguous([text])


SIDES = ["left", "right", "leftmost", "right-hand", "lefthanded", "lhs", "clockwise", "(r)", "rt"]
SIDES += ["on the l", "counterclockwise", "topleft", "4 o'clock", "seven o'clock", "twelve o'clock"]
OTHERS = [
    "a",
    "bright",
    "upright",
    "leftover",
    "copyright",
    "clock",
    "dog",
    "l'eau",
    "3",
    "right's",
]
WORDS = st.tuples(
    st.sampled_from(SIDES + OTHERS)
    | st.text(st.characters(categories=["L", "P", "Nd"]), max_size=6),
    st.sampled_from([str, str.upper, str.capitalize]),
).map(lambda pair: pair[1](pair[0]))


def _core(text: str) -> str:
    """The text with everything gone that is one of a pair."""
    pairs = r"left|right|lft|rt|lhs|rhs|[lr]|counterclockwise|clockwise|\d+"
    hours = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    return re.sub(rf"{pairs}|{hours}", "", text, flags=re.IGNORECASE)


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, max_size=8), st.sampled_from([" ", ", ", "  ", "/"]))
def test_exchanging_twice_gives_the_text_back(words: list[str], gap: str) -> None:
    text = gap.join(words)
    swapped = swap_directions(text)
    assert swap_directions(swapped) == text
    assert _core(swapped) == _core(text)
    # What the quick look says is what the expressions say.
    if swapped != text:
        assert has_direction([text])
    if is_ambiguous([text]):
        assert has_direction([text])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(OTHERS[:7]), max_size=10))
def test_no_other_word_is_touched(words: list[str]) -> None:
    text = " ".join(words)
    assert swap_directions(text) == text


def test_real_expressions(real_data: Path) -> None:
    lines = (real_data / "refcoco_native" / "refs.jsonl").read_text().splitlines()
    texts = [json.loads(line)["expression"] for line in lines]
    sided = [text for text in texts if re.search(r"\b(left|right)(most)?\b", text)]
    assert len(sided) > 20
    for text in sided:
        assert has_direction([text])
        assert swap_directions(text) != text
        assert swap_directions(swap_directions(text)) == text
    for text in set(texts) - set(sided):
        assert swap_directions(text) == text or "o'clock" in text
