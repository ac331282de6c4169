"""The fast parser of records against the full one: equal records, and no fault let through."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wholegrain.data import record as record_module
from wholegrain.data.record import (
    Absent,
    Record,
    Reference,
    Region,
    parse_record,
    parse_record_fully,
)
from wholegrain.data.record_parse import MAX_ITEMS, MAX_RECORD_BYTES, MAX_TEXT_CHARS
from wholegrain.errors import RecordError

WHERE = "a.tar: sample 3"
parse_fast = record_module._parse_common

FULL = Record(
    id="coco/1",
    source="coco",
    split="val",
    width=100,
    height=50,
    captions=("ein Hund läuft", "二匹の犬", 'quote " and \\ and \0'),
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
        Region(
            "region", (-0.0, 0.0, 100.0, 50.0), ("all",), ref=Reference("a", 0, (1 << 62,), "b")
        ),
    ),
    license="CC BY 4.0",
    photo="coco/1",
    absent=(Absent(("a cat",), Reference("grefcoco", 1, (2,), "val")), Absent(("x", "y"))),
)


def outcome(parse: Any, raw: Any) -> tuple[str, str]:
    """What a parser makes of ``raw``, to the last bit, or its error's field and message."""
    try:
        return "record", repr(parse(raw, WHERE))
    except RecordError as error:
        return error.field, str(error)


def agree(raw: bytes | str) -> None:
    found = parse_fast(raw)
    if found is not None:
        assert outcome(parse_record_fully, raw) == ("record", repr(found))
    assert outcome(parse_record, raw) == outcome(parse_record_fully, raw)


@pytest.mark.parametrize(
    "record",
    [
        FULL,
        Record("a", "s", "train", 4, 3, ("x",)),
        Record("a", "s", "train", 4, 3, regions=(Region("object", (0.0, 0.0, 1.0, 1.0), ("y",)),)),
        Record("a", "s", "train", 4, 3, absent=(Absent(("no such thing",)),)),
    ],
)
def test_what_the_writer_writes_takes_the_fast_way(record: Record) -> None:
    data = record.to_json()
    for raw in (data, data.decode()):
        assert repr(parse_fast(raw)) == repr(parse_record_fully(raw, WHERE)) == repr(record)


def test_what_is_made_the_fast_way_is_as_frozen_and_as_whole() -> None:
    found = parse_fast(FULL.to_json())
    assert found is not None and hash(found) == hash(FULL)
    region = found.regions[0]
    assert copy.deepcopy(region) == dataclasses.replace(region) == region
    with pytest.raises(dataclasses.FrozenInstanceError):
        region.box = (0.0, 0.0, 1.0, 1.0)  # type: ignore[misc]


def test_real_records_take_the_fast_way(real_data: Path, tmp_path: Path) -> None:
    from data_tools.__main__ import main
    from wholegrain.data.corpus import Corpus

    root, out = real_data / "flickr30k_entities_8k", tmp_path / "c"
    given = ["convert", "flickr30k_entities", "--root", str(root), "--out", str(out)]
    assert main([*given, "--limit", "200"]) == 0
    corpus = Corpus.open(out)
    for number in range(len(corpus)):
        data = corpus.record(number).to_json()
        found = parse_fast(data)
        assert found is not None
        assert repr(found) == repr(parse_record_fully(data, WHERE))


@pytest.mark.parametrize(
    "text",
    [
        '{"a"',
        "[]",
        "null",
        '"text"',
        "[" * 5000,
        '{"schema": 1}' + " " * MAX_RECORD_BYTES,
        "\ufeff" + FULL.to_json().decode(),
    ],
)
def test_what_is_no_record(text: str) -> None:
    agree(text)
    agree(text.encode())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_left_to_the_full_parser(encoding: str) -> None:
    agree(FULL.to_json().decode().encode(encoding))


def test_half_a_surrogate_pair_is_found_however_it_is_written() -> None:
    values = json.loads(Record("a", "s", "train", 4, 3, ("x",)).to_json())
    values["captions"] = ["\ud800"]
    raw = json.dumps(values, ensure_ascii=False)
    for one in (raw, json.dumps(values), raw.encode("utf-8", "surrogatepass")):
        assert outcome(parse_record, one)[0] == "captions[0]"
        agree(one)
    # Two halves that the text joins are a letter; two texts do not join theirs.
    values["captions"] = ["a \ud83d", "\ude00"]
    agree(json.dumps(values))
    values["captions"] = ["\U0001f600"]
    assert parse_fast(json.dumps(values)) is not None


def test_limits_of_length_and_number() -> None:
    def raw(**changes: object) -> bytes:
        values = json.loads(Record("a", "s", "train", 4, 3, ("x",)).to_json())
        return json.dumps({**values, **changes}).encode()

    for values in (
        {"captions": ["x" * MAX_TEXT_CHARS]},
        {"captions": ["x" * (MAX_TEXT_CHARS + 1)]},
        {"captions": ["é" * MAX_TEXT_CHARS]},
        {"captions": ["x"] * MAX_ITEMS},
        {"captions": ["x"] * (MAX_ITEMS + 1)},
        {"regions": [{"grain": "object", "box": [0.0, 0.0, 1.0, 1.0], "texts": ["x"]}] * MAX_ITEMS},
        {"regions": [{}] * (MAX_ITEMS + 1)},
    ):
        agree(raw(**values))
    with pytest.raises(RecordError, match="16385 characters, above 16384") as caught:
        parse_record(raw(captions=["x" * 16385]), WHERE)
    assert caught.value.field == "captions[0]" and len(str(caught.value)) < 400


LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 120),
    st.sampled_from([1, 10**30, 1 << 62, (1 << 62) + 1, 1e999, -1e999, 1e308, -0.0, 1e-320]),
    st.floats(-3, 120),
    st.text(max_size=3),
    st.sampled_from(["object", "region", "train", "\ud800", " ", ""]),
    st.just([0.0, 0.0, 5.0, 5.0]),
    st.just([5, 5, 5, 5]),
    st.just([]),
    st.just({}),
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "schema",
        "id",
        "captions",
        "regions",
        "license",
        "photo",
        "absent",
        "box",
        "boxes",
        "texts",
        "grain",
        "attributes",
        "ref",
        "set",
        "ref_id",
        "sent_ids",
        "split",
        "width",
        "extra",
    ]
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


@st.composite
def spoilt_records(draw: st.DrawFn) -> Any:
    """A sound record in which up to three places hold something else, nothing, or one key more."""
    value = json.loads(FULL.to_json())
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(_places(value)))
        if not path:
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "remove":
            del parent[path[-1]]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(KEYS)] = copy.deepcopy(draw(VALUE))  # which is changed further
        else:
            parent[path[-1]] = copy.deepcopy(draw(VALUE))  # which is changed further
    return value


@settings(max_examples=600)
@given(spoilt_records(), st.booleans())
@example({"schema": 1, "captions": [[[]]]}, True)
def test_both_parsers_agree_on_spoilt_records(value: Any, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only)
    agree(raw)
    agree(raw.encode("utf-8", "surrogatepass"))


@settings(max_examples=300)
@given(VALUE)
def test_both_parsers_agree_on_any_json(value: Any) -> None:
    agree(json.dumps(value))


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 2000))
def test_both_parsers_agree_on_damaged_bytes(noise: bytes, at: int) -> None:
    agree(noise)
    data = FULL.to_json()
    at %= len(data)
    agree(data[:at] + noise + data[at + len(noise) :])


def test_levels_that_python_itself_cannot_show_are_an_error_of_the_record() -> None:
    for depth in (100, 400, 700, 900, 950, 980, 990, 1000, 5000):
        deep = "[" * depth + "]" * depth
        for text in (
            deep,
            f'{{"schema": {deep}}}',
            f'{{"schema": 1, "width": 4, "height": 4, "id": "a", "captions": [{deep}]}}',
            '{"a":' * depth + "1" + "}" * depth,
        ):
            with pytest.raises(RecordError):
                parse_record(text, WHERE)


def test_a_key_of_a_million_letters_is_shown_by_its_beginning() -> None:
    values = json.loads(Record("a", "s", "train", 4, 3, ("x",)).to_json())
    values["captoins" * 300_000] = 1
    with pytest.raises(RecordError, match="no such field") as caught:
        parse_record(json.dumps(values), WHERE)
    assert len(str(caught.value)) < 500


def test_of_a_key_that_occurs_twice_the_last_one_counts() -> None:
    data = Record("a", "s", "train", 4, 3, ("x",)).to_json().decode()
    twice = data.replace('{"captions"', '{"id":"b","captions"')
    agree(twice)
    assert parse_record(twice, WHERE).id == "a"


def test_a_newer_record_is_refused_by_name_before_anything_else() -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(json.dumps({"schema": 2, "novelty": [1], "id": 7}), WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: schema is 2; ")
    assert "reads record schema 1 only" in message and "update wholegrain" in message
