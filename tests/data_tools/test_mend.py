"""What is dropped, clipped and kept of boxes and texts, and that all of it is counted."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.mend import LEAST_SHARE_INSIDE, mend
from data_tools.sources.base import Draft
from wholegrain.data.record import Box, Record, Reference, Region, parse_record
from wholegrain.data.record_parse import MAX_TEXT_CHARS
from wholegrain.errors import RecordError

SIZE = (64, 48)
INSIDE = (8.0, 6.0, 32.0, 24.0)


def draft(*regions: Region, captions: tuple[str, ...] = ("a photo",)) -> Draft:
    return Draft("a", "s", "train", b"", "here", SIZE, captions, regions)


def region(box: Box = INSIDE, **changes: object) -> Region:
    return Region(**{"grain": "region", "box": box, "texts": ("x",), **changes})


def mended(one: Draft) -> tuple[Draft, dict[str, int]]:
    left_out: Counter[str] = Counter()
    return mend(one, SIZE, left_out), dict(left_out)


def test_what_is_sound_stays_the_very_same() -> None:
    several = region((0.0, 0.0, 20.0, 20.0), boxes=((0.0, 0.0, 5.0, 5.0), (15.0, 15.0, 5.0, 5.0)))
    sound = draft(region(), several, region(grain="object", attributes=("red",)))
    found, left_out = mended(sound)
    assert found == sound and not left_out
    assert all(a is b for a, b in zip(found.regions, sound.regions, strict=True))


@pytest.mark.parametrize(
    ("box", "cause"),
    [
        ((math.nan, 1.0, 2.0, 2.0), "region: box not finite"),
        ((1.0, -math.inf, 2.0, 2.0), "region: box not finite"),
        ((1.0, 1.0, math.inf, 2.0), "region: box not finite"),
        ((1.0, 1.0, 0.0, 2.0), "region: box without area"),
        ((1.0, 1.0, 2.0, -3.0), "region: box without area"),
        ((40.0, 30.0, -32.0, -24.0), "region: box without area"),  # corners swapped
        ((64.5, 1.0, 2.0, 2.0), "region: box outside"),
        ((64.5, 1.0, 0.3, 2.0), "region: box outside"),  # within the tolerance, yet outside
        ((-30.0, 1.0, 5.0, 2.0), "region: box outside"),
        ((54.0, 0.0, 21.0, 10.0), "region: box outside"),  # 10 of 21 inside
        ((54.0, 38.0, 14.2, 14.2), "region: box outside"),  # 0.7 of each side, 0.49 of the area
        ((1e308, 1.0, 1e308, 2.0), "region: box outside"),
        ((0.0, 0.0, 1e300, 1e300), "region: box outside"),
    ],
)
def test_a_region_whose_box_is_of_no_use_is_dropped(box: Box, cause: str) -> None:
    found, left_out = mended(draft(region(), region(box)))
    assert found.regions == (region(),)
    assert left_out == {cause: 1}


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((-2.0, 6.0, 10.0, 8.0), (0.0, 6.0, 8.0, 8.0)),
        ((54.0, 0.0, 20.0, 10.0), (54.0, 0.0, 10.0, 10.0)),
        ((-4.0, -4.0, 72.0, 56.0), (0.0, 0.0, 64.0, 48.0)),
    ],
)
def test_a_box_that_is_mostly_inside_is_clipped(box: Box, clipped: Box) -> None:
    found, left_out = mended(draft(region(box)))
    assert found.regions == (region(clipped),)
    assert left_out == {"region: box clipped": 1}


def test_what_the_record_tolerates_is_left_to_it() -> None:
    edge = draft(region((-1.0, 0.0, 66.0, 48.5)))
    assert mended(edge) == (edge, {})


def test_each_of_several_boxes_is_judged_for_itself() -> None:
    boxes = ((0.0, 0.0, 5.0, 5.0), (15.0, 15.0, 5.0, 5.0), (90.0, 0.0, 5.0, 5.0))
    found, left_out = mended(draft(region((0.0, 0.0, 95.0, 20.0), boxes=boxes)))
    assert found.regions == (region((0.0, 0.0, 20.0, 20.0), boxes=boxes[:2]),)
    assert left_out == {"region: box outside": 1}
    found, left_out = mended(draft(region((0.0, 0.0, 95.0, 5.0), boxes=boxes[::2])))
    assert found.regions == (region(boxes[0]),)
    found, left_out = mended(draft(region((90.0, 0.0, 5.0, 5.0), boxes=boxes[2:])))
    assert found.regions == () and left_out == {"region: box outside": 1}


def test_regions_of_referring_expressions_are_never_touched() -> None:
    ref = Reference("refcoco-unc", 1, (2, 3), "val")
    asked = region((60.0, 6.0, 32.0, 24.0), texts=("left", " "), ref=ref)
    assert mended(draft(asked)) == (draft(asked), {})


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "blank"),
        (" \n\u3000", "blank"),
        ("\0\x1b", "blank"),
        ("\u200b\ufeff", "blank"),
        ("half \ud83d", "not Unicode"),
        ("x" * (MAX_TEXT_CHARS + 1), "too long"),
    ],
)
def test_texts_that_no_record_holds_are_dropped(text: str, cause: str) -> None:
    spoilt = draft(region(texts=("x", text), attributes=(text,)), captions=(text, "a photo"))
    found, left_out = mended(spoilt)
    assert found == draft(region(), captions=("a photo",))
    assert left_out == {
        f"caption: {cause}": 1,
        f"region: text {cause}": 1,
        f"attribute: {cause}": 1,
    }
    found, left_out = mended(draft(region(texts=(text,))))
    assert found == draft()
    assert left_out == {f"region: text {cause}": 1, "region: without text": 1}


@pytest.mark.parametrize("text", ["?", "\t.", "猫", "é", "\U0001f431", "a\0b"])
def test_a_text_that_shows_something_is_kept(text: str) -> None:
    assert mended(draft(region(texts=(text,)))) == (draft(region(texts=(text,))), {})


def test_what_is_no_text_at_all_is_left_for_the_record_to_name() -> None:
    odd = draft(captions=(None,))  # type: ignore[arg-type]
    assert mended(odd)[0] == odd
    odd = draft(captions="letters")  # type: ignore[arg-type]
    assert mended(odd)[0] == odd


NUMBER = st.one_of(
    st.floats(-10, 80), st.floats(width=64), st.sampled_from([0.0, -1.0, 48.0, 64.0, math.nan])
)
BOX = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)
TEXT = st.one_of(st.text(max_size=4), st.sampled_from(["a", "", "\ud800"]))


@given(
    st.lists(st.tuples(BOX, st.lists(BOX, max_size=3), st.lists(TEXT, max_size=3)), max_size=5),
    st.lists(TEXT, max_size=3),
)
def test_what_is_mended_is_a_sound_record(
    drawn: list[tuple[Box, list[Box], list[str]]], captions: list[str]
) -> None:
    regions = [
        region(box, texts=tuple(texts), boxes=tuple(boxes) if len(boxes) > 1 else ())
        for box, boxes, texts in drawn
    ]
    found, left_out = mended(draft(*regions, captions=(*captions, "a photo")))
    values = {"captions": found.captions, "regions": found.regions}
    record = Record("a", "s", "train", *SIZE, **values)
    try:
        parse_record(record.to_json(), "here")
    except RecordError as error:
        # A single box beside which several are listed must enclose them: no rule mends that.
        assert error.field.endswith(".box") and "enclose" in error.remedy
    gone = len(regions) - len(found.regions)
    assert gone <= sum(count for cause, count in left_out.items() if cause.startswith("region"))


def test_the_share_is_half() -> None:
    assert LEAST_SHARE_INSIDE == 0.5
