"""The record: what is accepted is sound, what is not is named."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegrain.data.record import (
    MAX_RECORD_BYTES,
    Record,
    Reference,
    Region,
    enclosing_box,
    parse_record,
)
from wholegrain.data.record_plain import plain_captions, plain_size, split_key
from wholegrain.errors import DataError, RecordError

WHERE = "shard-000000.tar:000000007.json"


def raw(**changes: object) -> dict:
    record = {
        "schema": 1,
        "id": "coco/391895",
        "source": "coco2014",
        "split": "train",
        "width": 640,
        "height": 360,
        "captions": ["a man on a motor bike"],
        "regions": [{"grain": "region", "box": [10, 20.5, 30, 40], "texts": ["man in red"]}],
        **changes,
    }
    return {key: value for key, value in record.items() if value is not ...}


def region(**changes: object) -> dict:
    return raw(regions=[{"grain": "object", "box": [0, 0, 5, 5], "texts": ["cat"], **changes}])


def test_full_record_survives_the_round_trip() -> None:
    record = Record(
        id="coco/1",
        source="coco",
        split="val",
        width=100,
        height=50,
        captions=("ein Hund läuft", "二匹の犬"),
        regions=(
            Region(
                "region",
                (0.0, 0.0, 30.0, 20.0),
                ("two dogs", "les chiens"),
                ("brown",),
                Reference("refcoco-unc", 7, (3, 4), "testA"),
                ((0.0, 0.0, 10.0, 10.0), (20.0, 10.0, 10.0, 10.0)),
            ),
            Region("object", (1 / 3, 0.1, 2 / 3, 0.7), ("dog",)),
        ),
        license="CC BY 4.0",
    )
    data = record.to_json()
    assert parse_record(data, WHERE) == record
    assert parse_record(data.decode(), WHERE) == record
    assert parse_record(json.loads(data), WHERE).to_json() == data


def test_json_is_compact_sorted_and_spells_out_only_what_is_there() -> None:
    record = Record("a", "s", "train", 4, 3, ("x",), (Region("object", (0, 0, 1, 1), ("y",)),))
    assert record.to_json() == (
        b'{"captions":["x"],"height":3,"id":"a","regions":[{"attributes":[],"box":[0,0,1,1],'
        b'"grain":"object","texts":["y"]}],"schema":1,"source":"s","split":"train","width":4}'
    )


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (raw(schema=2), "schema"),
        (raw(schema=...), "schema"),
        (raw(id=""), "id"),
        (raw(id=7), "id"),
        (raw(split=...), "split"),
        (raw(width=0), "width"),
        (raw(width=640.0), "width"),
        (raw(height=True), "height"),
        (raw(height=1 << 40), "height"),
        (raw(captions="a cat"), "captions"),
        (raw(captions=["ok", " \n"]), "captions[1]"),
        (raw(captions=[None]), "captions[0]"),
        (raw(captions=["\ud800"]), "captions[0]"),
        (raw(captions=[], regions=[]), "captions"),
        (raw(captions=["x"] * 70_000), "captions"),
        (raw(regions={}), "regions"),
        (raw(regions=["cat"]), "regions[0]"),
        (raw(license=3), "license"),
        (raw(captoins=["a"]), "captoins"),
        (region(grain="image"), "regions[0].grain"),
        (region(texts=[]), "regions[0].texts"),
        (region(texts=["ok", ""]), "regions[0].texts[1]"),
        (region(attributes=[1]), "regions[0].attributes[0]"),
        (region(colour="red"), "regions[0].colour"),
        (region(box=[0, 0, 5]), "regions[0].box"),
        (region(box=[0, 0, 5, "5"]), "regions[0].box"),
        (region(box=[0, 0, 5, None]), "regions[0].box"),
        (region(box=[0, 0, 5, True]), "regions[0].box"),
        (region(box=[math.nan, 0, 5, 5]), "regions[0].box"),
        (region(box=[0, 0, math.inf, 5]), "regions[0].box"),
        (region(box=[0, 0, 10**400, 5]), "regions[0].box"),
        (region(box=[0, 0, -5, 5]), "regions[0].box"),
        (region(box=[0, 0, 5, 0]), "regions[0].box"),
        (region(box=[-1.5, 0, 5, 5]), "regions[0].box"),
        (region(box=[636, 0, 5.5, 5]), "regions[0].box"),
        (region(box=[0, 356, 5, 5.5]), "regions[0].box"),
        (region(box=[640.5, 0, 0.4, 5]), "regions[0].box"),
        (region(boxes=[[0, 0, 5, 5], [50, 50, 5, 5]]), "regions[0].box"),
        (region(boxes=[[0, 0, 5, 5], [0, 0, 5, -5]]), "regions[0].boxes[1]"),
        (region(ref=[]), "regions[0].ref"),
        (region(ref={"set": "r", "ref_id": 1, "sent_ids": [1]}), "regions[0].ref.split"),
        (
            region(ref={"set": "r", "ref_id": 1, "sent_ids": [1, 2], "split": "val"}),
            "regions[0].ref.sent_ids",
        ),
    ],
)
def test_a_fault_is_named_with_file_field_and_remedy(record: dict, field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(record, WHERE)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{WHERE}: {field} is ")
    assert caught.value.remedy
    assert isinstance(caught.value, DataError)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"<html>",
        b'{"schema": 1, "id": "\xff"}',
        b'{"width": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        b" " * (MAX_RECORD_BYTES + 1),
        json.dumps(region(box=[math.nan, 0, 1, 1])).encode(),
        json.dumps(region(box=[0, 0, math.inf, 1])).encode(),
    ],
    ids=range(12),
)
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(RecordError, match=WHERE):
        parse_record(data, WHERE)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    data = json.dumps(region()).replace("[0, 0, 5, 5]", "[0, 0, 1e999, 5]")
    with pytest.raises(RecordError, match="finite"):
        parse_record(data, WHERE)


def test_a_misspelt_field_gets_a_suggestion() -> None:
    with pytest.raises(RecordError, match="did you mean 'captions'"):
        parse_record(raw(caption=["a"]), WHERE)


def test_boxes_up_to_a_pixel_outside_are_clipped_and_others_untouched() -> None:
    def box(*values: float) -> tuple:
        return parse_record(region(box=list(values)), WHERE).regions[0].box

    assert box(-1, -0.5, 641, 360.5) == (0, 0, 640, 360)
    assert box(635.5, 355, 5.5, 6) == (635.5, 355, 4.5, 5)
    assert box(0.1, 0.2, 639.9, 359.8) == (0.1, 0.2, 639.9, 359.8)


@given(
    st.tuples(st.floats(-1, 640), st.floats(-1, 360), st.floats(1e-6, 642), st.floats(1e-6, 362))
)
def test_an_accepted_box_is_inside_and_parsing_again_changes_nothing(box: tuple) -> None:
    try:
        once = parse_record(region(box=list(box)), WHERE)
    except RecordError:
        x, y, w, h = box
        assert x + w > 641 or y + h > 361 or x >= 640 or y >= 360 or x + w <= 0 or y + h <= 0
        return
    x, y, w, h = once.regions[0].box
    assert x >= 0 and y >= 0 and w > 0 and h > 0
    assert x + w <= 640 + 1e-9 and y + h <= 360 + 1e-9
    assert parse_record(once.to_json(), WHERE) == once


def test_several_boxes_are_enclosed_and_a_single_one_is_not_listed() -> None:
    two = [[0, 0, 5, 5], [50, 50, 5, 5]]
    several = parse_record(region(box=[0.5, 0, 54, 55], boxes=two), WHERE).regions[0]
    assert several.box == (0, 0, 55, 55)
    assert several.boxes == ((0, 0, 5, 5), (50, 50, 5, 5))
    assert parse_record(region(boxes=[[0, 0, 5, 5]]), WHERE).regions[0].boxes == ()
    assert enclosing_box([(3, 4, 5, 6), (1, 8, 2, 4)]) == (1, 4, 7, 8)


@pytest.mark.parametrize(
    "bad",
    [
        Record("a", "s", "train", 9, 9, regions=(Region("object", (0, 0, math.nan, 1), ("y",)),)),
        Record("a", "s", "train", 9, 9, captions=("\ud800",)),
        Record("a", "s", "train", 9, 9, captions=(b"bytes",)),  # type: ignore[arg-type]
    ],
)
def test_what_json_cannot_hold_is_an_error_of_the_record(bad: Record) -> None:
    with pytest.raises(RecordError, match="'a'"):
        bad.to_json()


def test_a_text_given_for_a_tuple_of_texts_is_not_spelt_out_letter_by_letter() -> None:
    record = Record("a", "s", "train", 9, 9, captions="cat")  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="captions"):
        parse_record(record.to_json(), WHERE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000.jpg", ("000", "jpg")),
        ("a.b/000.seg.PNG", ("a.b/000", "seg.png")),
        ("./000.json", ("./000", "json")),
        ("README", ("README", "")),
        ("folder.d/.hidden", ("folder.d/.hidden", "")),
    ],
)
def test_keys_are_cut_as_webdataset_cuts_them(name: str, expected: tuple[str, str]) -> None:
    from webdataset.tariterators import base_plus_ext

    assert split_key(name) == expected
    if expected[1]:
        base, extension = base_plus_ext(name)
        assert (base, extension.lower()) == expected


def test_plain_captions_prefer_the_text_file_and_fall_back_to_json() -> None:
    assert plain_captions({"caption": "b"}, b" a \n", WHERE) == ("a",)
    assert plain_captions({"caption": "b"}, b" \n", WHERE) == ("b",)
    assert plain_captions({"captions": ["b", "", 3, "c"]}, b"", WHERE) == ("b", "c")
    assert plain_captions({"caption": None}, b"", WHERE) == ()
    with pytest.raises(RecordError, match="UTF-8"):
        plain_captions({}, b"\xff\xfe", WHERE)


def test_plain_size_needs_two_sound_numbers() -> None:
    assert plain_size({"width": 5, "height": 6}) == (5, 6)
    for bad in ({}, {"width": 5}, {"width": 5, "height": "6"}, {"width": 0, "height": 6}):
        assert plain_size(bad) is None
