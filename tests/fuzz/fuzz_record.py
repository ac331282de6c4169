"""Any bytes are a record or a RecordError, by both parsers alike; and so of plain samples."""

from __future__ import annotations

import json

from wholegrain.data.record import (
    Absent,
    Record,
    Reference,
    Region,
    parse_record,
    parse_record_fully,
)
from wholegrain.data.record_plain import (
    is_record,
    plain_captions,
    plain_meta,
    plain_record,
    plain_size,
)
from wholegrain.errors import RecordError

WHERE = "a.tar: sample 1"


def seeds() -> list[bytes]:
    """Records of each shape, and the JSON of plain samples."""
    ref = Reference("refcoco-unc", 7, (3, 4), "testA")
    boxes = ((0.0, 0.0, 10.0, 10.0), (20.0, 10.0, 10.0, 10.0))
    regions = (
        Region("region", (0.0, 0.0, 30.0, 20.0), ("two dogs", "les chiens"), ("red",), ref, boxes),
        Region("object", (1 / 3, 0.1, 2 / 3, 0.7), ("dog",)),
    )
    full = Record("a", "s", "val", 100, 50, ("läuft", "二匹"), regions, "CC0", photo="coco/1")
    absent = Record("a", "s", "val", 9, 9, absent=(Absent(("x", "y"), ref), Absent(("z",))))
    plain = {"caption": "a cat", "width": 30, "height": 20, "license": "CC0", "url": "x"}
    return [
        full.to_json(),
        absent.to_json(),
        json.dumps(json.loads(full.to_json()), indent=1).encode(),
        json.dumps(plain).encode(),
        json.dumps({"captions": ["a", "b"], "text": None}).encode(),
    ]


def check(data: bytes) -> bool:
    """Whether it is accepted; raises AssertionError, or whatever a parser must not."""
    found = _outcome(parse_record, data)
    assert found == _outcome(parse_record_fully, data)
    accepted = isinstance(found, Record)
    if isinstance(found, Record):
        again = found.to_json()
        assert parse_record(again, WHERE).to_json() == again
    try:
        meta = plain_meta(data, WHERE)
        if not is_record(meta):
            captions = plain_captions(meta, data[:40], WHERE)
            if captions:
                size = plain_size(meta) or (8, 8)
                names = {"sample_id": "a", "source": "s", "split": "t"}
                plain_record(meta, captions, size, **names, where=WHERE)
                accepted = True
    except RecordError as error:
        assert len(str(error)) < 2000
    return accepted


def _outcome(parse: object, data: bytes) -> object:
    try:
        return parse(data, WHERE)  # type: ignore[operator]
    except RecordError as error:
        assert len(str(error)) < 2000
        return str(error)
