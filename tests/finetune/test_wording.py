"""What texts speak of, by whole words."""

import pytest

from finetune.wording import mentions_place, mentions_relation, names_people


@pytest.mark.parametrize(
    "text", ["man on the LEFT", "the one in front", "rightmost cup", "3 o'clock", "closest dog"]
)
def test_place_is_said(text: str) -> None:
    assert mentions_place(text)


@pytest.mark.parametrize("text", ["bright lamp", "a leftover pizza", "the stopwatch", "nearby"])
def test_parts_of_words_say_no_place(text: str) -> None:
    assert not mentions_place(text)


@pytest.mark.parametrize(
    "text",
    [
        "the cup next to the plate",
        "cat on the table",
        "dog Behind a man",
        "bus in front of the church",
        "woman holding an umbrella",
        "the one closest to us",
        "left of the vase",
        "chair by the window",
    ],
)
def test_relation_is_said(text: str) -> None:
    assert mentions_relation(text)


@pytest.mark.parametrize(
    "text",
    [
        "man on the left",
        "cup on the far right",
        "on the top",
        "the tall one in the middle",
        "man in red",
        "painted by hand",
        "overcoat",
        "the front one",
        "third from left",
    ],
)
def test_a_place_in_the_photo_is_no_relation(text: str) -> None:
    assert not mentions_relation(text)


@pytest.mark.parametrize(
    "text",
    [
        "a man",
        "Woman in red",
        "two kids playing",
        "the guy next to the dog",
        "umpire",
        "on the left a boy",
        "people",
        "man with a horse",
        "a group of people in a park",
        "her",
        "couple on the bench",
    ],
)
def test_people_are_named(text: str) -> None:
    assert names_people(text)


@pytest.mark.parametrize(
    "text",
    [
        "the dog behind the man",
        "the man's hat",
        "horse with rider",
        "baby elephant",
        "mango",
        "cup held by woman",
        "chair",
        "the boy’s bat",
        "a woman 's face",
        "her hair",
        "a couple of dogs",
        "one of the bikes near the men",
    ],
)
def test_people_are_not_what_is_named(text: str) -> None:
    assert not names_people(text)
