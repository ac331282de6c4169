import pytest

from data_tools.looking.cards import Text, card_of, marks
from data_tools.looking.filters import RecordFilter, TextQuery
from wholegrain.data.record import Absent, Record, Reference, Region

NOTHING_ASKED = RecordFilter()


def test_marks_draw_every_box_of_a_phrase() -> None:
    ref = Reference("refcoco-unc", 7, (1, 2, 3), "val")
    boxes = ((0.0, 0.0, 10.0, 10.0), (50.0, 20.0, 50.0, 20.0))
    both = Region("region", (0.0, 0.0, 100.0, 40.0), ("men", "two", "men"), ("people",), ref, boxes)
    one = Region("object", (25.0, 10.0, 5.0, 5.0), ("dog",), ("red",))
    first, second = marks(Record("i", "s", "val", 100, 40, regions=(both, one)))
    assert first.boxes == boxes
    assert first.corners == ((0, 0), (50, 50))
    assert first.texts == (Text("region", "men", 2), Text("region", "two"))
    assert first.attributes == (Text("region", "people"),)
    assert first.references == ("refcoco-unc 7",)
    assert (second.number, second.grain, second.corners) == (2, "object", ((25, 25),))
    assert second.attributes == (Text("object", "red"),)
    assert first.colour != second.colour


def test_an_object_and_its_phrases_share_a_mark() -> None:
    box = (25.0, 10.0, 5.0, 5.0)
    dog = Region("object", box, ("dog",), ("red",))
    phrase = Region("region", box, ("the dog", "a red dog"), ("red",))
    (mark,) = marks(Record("i", "s", "val", 100, 40, regions=(dog, phrase)))
    assert (mark.grain, mark.boxes) == ("region", (box,))
    assert [(text.grain, text.words) for text in mark.texts] == [
        *(("object", "dog"), ("region", "the dog"), ("region", "a red dog")),
    ]


def nested() -> Record:
    boxes = ((5.0, 5.0, 4.0, 4.0), (0.0, 0.0, 90.0, 40.0), (1.0, 1.0, 30.0, 30.0))
    names = ("nose", "sky", "red dog")
    regions = tuple(
        Region("object" if n else "region", box, (name,))
        for n, (box, name) in enumerate(zip(boxes, names, strict=True))
    )
    absent = (Absent(("the cow",)),)
    return Record("i", "s", "val", 100, 40, ("words",), regions, absent=absent)


def test_small_boxes_are_drawn_over_large_ones() -> None:
    card = card_of(nested(), 9, NOTHING_ASKED, str)
    assert [mark.number for mark in card.drawn] == [2, 3, 1]


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        (NOTHING_ASKED, "nose"),
        (RecordFilter(grain="object"), "sky"),
        (RecordFilter(text=TextQuery("dog")), "red dog"),
        (RecordFilter(grain="region", text=TextQuery("dog")), "nose"),
    ],
)
def test_what_is_asked_for_is_drawn_before_the_limit(wanted: RecordFilter, first: str) -> None:
    card = card_of(nested(), 1, wanted, str)
    assert [text.words for mark in card.marks for text in mark.texts] == [first]
    assert card.rest == 2
    assert card.absent == (Text("region", "the cow"),)


def test_long_texts_are_folded_at_a_word() -> None:
    assert Text("image", "short").folded == ("short", "")
    text = "word " * 1000
    head, tail = Text("image", text).folded
    assert head + tail == text and head.endswith("word") and len(head) <= 320
    head, tail = Text("image", "x" * 5000).folded
    assert (len(head), len(tail)) == (320, 4680)
