import argparse

import pytest

from data_tools.looking.filters import RecordFilter, TextQuery, said, text_query
from wholegrain.data.record import Absent, Record, Region

BOX = (0.0, 0.0, 5.0, 5.0)
RECORD = Record(
    "a/1",
    "a",
    "train",
    20,
    10,
    captions=("A man walks two dogs.",),
    regions=(
        Region("region", BOX, ("the brown dog", "left one"), ("animals",)),
        Region("object", BOX, ("cat",), ("black", "small")),
    ),
    absent=(Absent(("the purple cow",)),),
)


@pytest.mark.parametrize(
    ("query", "text", "found"),
    [
        ("dog", "Two DOGS run", True),
        ("dog", "a hotdog", False),
        ("two run", "Two dogs run", True),
        ("two cats", "Two dogs run", False),
        ("run two", "Two dogs run", True),
        ("man", "a woman", False),
        ("hot-dog", "a hot-dog stand", True),
        ("c++", "written in C++", True),
        ("(left)", "the one (left)", True),
        ("犬", "黒い犬が走る", True),
        ("كلب", "والكلب", True),
        ("Über", "über allem", True),
        ("🐕", "a 🐕 runs", True),
        ("/^two .*run$/", "Two dogs run", True),
        ("/dogs?$/", "two dogs run", False),
        ("/", "either/or", True),
    ],
)
def test_words_begin_words(query: str, text: str, found: bool) -> None:
    assert TextQuery(query).found_in(text) is found


@pytest.mark.parametrize(
    ("source", "grain", "text", "matches"),
    [
        (None, None, None, True),
        ("a", None, None, True),
        ("b", None, None, False),
        (None, "object", None, True),
        (None, None, "dog", True),
        (None, "image", "brown", False),
        (None, "region", "brown", True),
        (None, "object", "dog", False),
        (None, "object", "black small", True),
        (None, "region", "animals", True),
        (None, "region", "purple", True),
        # Both words must stand in one text.
        (None, None, "walks brown", False),
        ("b", "region", "brown", False),
    ],
)
def test_a_record_must_meet_every_condition(
    source: str | None, grain: str | None, text: str | None, matches: bool
) -> None:
    query = None if text is None else TextQuery(text)
    assert RecordFilter(source, grain, query).matches(RECORD) is matches


def test_a_grain_that_a_record_lacks() -> None:
    captioned = Record("a/2", "a", "train", 20, 10, captions=("words",))
    assert RecordFilter(grain="image").matches(captioned)
    assert not RecordFilter(grain="region").matches(captioned)
    assert not RecordFilter(grain="object").matches(captioned)


def test_all_that_is_said() -> None:
    assert list(said(RECORD, "object")) == ["cat", "black, small"]
    assert list(said(RECORD, None)) == [
        *("A man walks two dogs.", "the brown dog", "left one", "animals"),
        *("cat", "black, small", "the purple cow"),
    ]


@pytest.mark.parametrize("given", ["/(/", "", "  "])
def test_queries_that_mean_nothing(given: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no regular|holds no word"):
        text_query(given)
