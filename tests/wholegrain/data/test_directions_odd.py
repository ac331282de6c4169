"""Sides in odd letters, and words that are sides in one text and none in another."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wholegrain.data.directions import has_direction, is_ambiguous, swap_directions


@pytest.mark.parametrize(
    "text",
    [
        "the rıght dog",
        "RİGHT",
        "the rıght-hand dog",
        "clockwiſe",
        "fıve o'clock",
        "ſeven o'clock",
        "cloc\N{KELVIN SIGN}wise",
    ],
)
def test_words_in_letters_that_only_look_alike_stay_and_are_ambiguous(text: str) -> None:
    assert swap_directions(text) == text
    assert is_ambiguous(["a dog", text])
    assert has_direction(["a dog", text])


def test_such_letters_in_other_words_do_not_matter() -> None:
    text = "a street of Kadıköy, İstanbul, on the left"
    assert swap_directions(text) == "a street of Kadıköy, İstanbul, on the right"
    assert not is_ambiguous([text])
    assert not has_direction(["a street of Kadıköy"])


@pytest.mark.parametrize(
    "text",
    [
        "as he left the stadium",
        "people who left early",
        "she left yesterday",
        "the team left home",
        "a boy left his shoes",
        "as the train left .",
        "after everyone left",
        "food left to eat",
        "one slice of pizza left",
        "two slices of pizza left .",
        "there is one left",
        "half of the sandwich left",
        "some cake left, and a fork",
        "a left-wing politician",
        "a Right-Winger",
        "a right wing party",
        "the right to vote",
        "the right to the city",
        "the right place",
        "the right shoes",
        "the right thing",
        "a rt 66 sign",
        "RT. 66",
        "running right toward the camera",
    ],
)
def test_leaving_remains_claims_and_roads_are_ambiguous(text: str) -> None:
    assert is_ambiguous(["a dog", text])
    assert has_direction(["a dog", text])


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("man on the left", "man on the right"),
        ("left of the house", "right of the house"),
        ("left hand", "right hand"),
        ("the right dog", "the left dog"),
        ("top right", "top left"),
        ("guy on right side", "guy on left side"),
        ("guy left", "guy right"),
        ("man left white hat", "man right white hat"),
        ("two men on the left", "two men on the right"),
        ("left two people", "right two people"),
        ("two left shoes", "two right shoes"),
        ("two men looking left", "two men looking right"),
        ("the black one left", "the black one right"),
        ("looks left down the street", "looks right down the street"),
        ("second from left", "second from right"),
        ("left to right", "right to left"),
        ("from right to left", "from left to right"),
        ("on the right to the side", "on the left to the side"),
        ("to his right to the left of her", "to his left to the right of her"),
        ("on the left a dog", "on the right a dog"),
        ("to their left a man", "to their right a man"),
        ("the right wing of the plane", "the left wing of the plane"),
        ("the right place mat", "the left place mat"),
        ("rt guy", "lft guy"),
    ],
)
def test_true_sides_are_still_exchanged(text: str, swapped: str) -> None:
    assert not is_ambiguous([text])
    assert swap_directions(text) == swapped
    assert swap_directions(swapped) == text


@pytest.mark.parametrize("run", ["-", " ", "as "])
def test_no_run_takes_quadratic_time(run: str) -> None:
    """Where one does, this takes most of an hour."""
    text = "left " + run * (300_000 // len(run)) + "clock"
    assert has_direction([text])
    assert not is_ambiguous([text])
    assert swap_directions(text) == text.replace("left", "right")


LETTERS = st.sampled_from("leftrighıİſK1 -'ockw\N{KELVIN SIGN}")


@settings(deadline=None, max_examples=300)
@given(st.text(LETTERS, max_size=24))
@example("İrt")
def test_any_letters_can_be_exchanged(text: str) -> None:
    swapped = swap_directions(text)
    assert swap_directions(swapped.lower()) == text.lower() or is_ambiguous([text])
    if swapped != text:
        assert has_direction([text])
    if is_ambiguous([text]):
        assert has_direction([text])
