"""``docs/record.schema.json`` says what ``parse_record`` does, as far as a schema can say it."""

import copy
import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from wholegrain.data.record import Absent, Record, Reference, Region, parse_record
from wholegrain.data.record_parse import (
    MAX_ITEMS,
    MAX_RECORD_BYTES,
    MAX_SIDE_PX,
    MAX_TEXT_CHARS,
    SCHEMA,
)
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import RecordError

jsonschema = pytest.importorskip("jsonschema")

FULL: dict[str, Any] = {
    "schema": 1,
    "id": "coco/391895",
    "photo": "coco/391895",
    "source": "coco2014",
    "split": "train",
    "width": 640,
    "height": 360,
    "license": "CC BY 4.0",
    "captions": ["a man on a motor bike", "二匹の犬"],
    "regions": [
        {"grain": "region", "box": [10, 20.5, 30, 40], "texts": ["man in red"]},
        {
            "grain": "object",
            "box": [0, 0, 640, 360.5],
            "boxes": [[0, 0, 5, 5], [630, 350, 10, 10]],
            "texts": ["a", "b"],
            "attributes": ["red"],
            "ref": {"set": "refcoco-unc", "ref_id": 1, "sent_ids": [3, 4], "split": "train"},
        },
    ],
    "absent": [
        {"texts": ["no such man"]},
        {"texts": ["x"], "ref": {"set": "g", "ref_id": 0, "sent_ids": [0], "split": "val"}},
    ],
}


@pytest.fixture(scope="module")
def validator(repository: Path) -> Any:
    schema = json.loads((repository / "docs" / "record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def changed(path: str, *value: object) -> dict[str, Any]:
    """The full record with one place changed, or removed where no value is given."""
    record = copy.deepcopy(FULL)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place: Any = record
    for key in parents:
        place = place[key]
    if value:
        place[last] = value[0]
    else:
        del place[last]
    return record


def accepts(record: dict[str, Any]) -> bool:
    try:
        parse_record(record, "here")
        parse_record(json.dumps(record), "here")
    except RecordError:
        return False
    return True


SOUND = [
    FULL,
    changed("license", None),
    changed("photo", None),
    changed("photo"),
    changed("license"),
    changed("absent"),
    changed("captions"),
    changed("captions", []),
    changed("regions", []),
    changed("regions.0.ref", None),
    changed("regions.0.boxes", []),
    changed("regions.0.attributes", []),
    changed("regions.0.box", [-1, -1, 642, 362]),
    changed("captions", ["x" * MAX_TEXT_CHARS]),
    changed("captions", ["x"] * MAX_ITEMS),
    changed("absent.1.ref", None),
    {
        **{key: FULL[key] for key in ("schema", "id", "source", "split", "width", "height")},
        "absent": [{"texts": ["x"]}],
    },
]

UNSOUND = [
    *(changed(key) for key in ("schema", "id", "source", "split", "width", "height")),
    changed("schema", 2),
    changed("schema", "1"),
    changed("schema", True),
    changed("id", ""),
    changed("id", " \n"),
    changed("id", 7),
    changed("split", None),
    changed("photo", ""),
    changed("license", 3),
    changed("width", 0),
    changed("width", True),
    changed("width", 640.5),
    changed("height", MAX_SIDE_PX + 1),
    changed("captions", "a cat"),
    changed("captions", None),
    changed("captions.0", "\t"),
    changed("captions.0", None),
    changed("captions", ["x" * (MAX_TEXT_CHARS + 1)]),
    changed("captions", ["x"] * (MAX_ITEMS + 1)),
    changed("captoins", ["x"]),
    changed("regions", {}),
    changed("regions.0", "cat"),
    changed("regions.0.grain", "image"),
    changed("regions.0.grain"),
    changed("regions.0.box"),
    changed("regions.0.box", [0, 0, 5]),
    changed("regions.0.box", [0, 0, 5, 5, 5]),
    changed("regions.0.box.0", "0"),
    changed("regions.0.box.0", None),
    changed("regions.0.box.0", True),
    changed("regions.0.box.0", -1.5),
    changed("regions.0.box.0", 1e12),
    changed("regions.0.box.2", 0),
    changed("regions.0.box.3", -5),
    changed("regions.0.texts", []),
    changed("regions.0.texts"),
    changed("regions.0.texts.0", ""),
    changed("regions.0.colour", "red"),
    changed("regions.1.boxes.0", [0, 0, 5, -5]),
    changed("regions.1.attributes.0", 1),
    changed("regions.1.ref", []),
    changed("regions.1.ref.set"),
    changed("regions.1.ref.ref_id", -1),
    changed("regions.1.ref.ref_id", 1 << 63),
    changed("regions.1.ref.sent_ids.0", 1.5),
    changed("regions.1.ref.split", " "),
    changed("regions.1.ref.page", 1),
    changed("absent.0.texts", []),
    changed("absent.0.box", [0, 0, 1, 1]),
    changed("absent.0", None),
    {**FULL, "captions": [], "regions": [], "absent": []},
    {key: FULL[key] for key in ("schema", "id", "source", "split", "width", "height")},
]

# What the schema's comment says that it leaves to a reader.
ONLY_A_READER_SEES = [
    changed("regions.0.box", [636, 0, 5.5, 5]),
    changed("regions.0.box", [640.5, 0, 0.4, 5]),
    changed("regions.1.box", [0, 0, 5, 5]),
    changed("regions.1.ref.sent_ids", [3]),
    changed("captions.0", "\ud800"),
    changed("width", 640.0),
]


@pytest.mark.parametrize("record", SOUND, ids=range(len(SOUND)))
def test_schema_and_reader_accept(validator: Any, record: dict[str, Any]) -> None:
    assert list(validator.iter_errors(record)) == []
    assert accepts(record)


@pytest.mark.parametrize("record", UNSOUND, ids=range(len(UNSOUND)))
def test_schema_and_reader_refuse(validator: Any, record: dict[str, Any]) -> None:
    assert not validator.is_valid(record)
    assert not accepts(record)


@pytest.mark.parametrize("record", ONLY_A_READER_SEES, ids=range(len(ONLY_A_READER_SEES)))
def test_a_reader_checks_more(validator: Any, record: dict[str, Any]) -> None:
    assert validator.is_valid(record)
    assert not accepts(record)


def test_numbers_in_the_schema_are_the_readers(validator: Any) -> None:
    schema = validator.schema
    kinds = schema["$defs"]
    assert schema["properties"]["schema"]["const"] == SCHEMA
    assert kinds["text"]["maxLength"] == MAX_TEXT_CHARS
    assert kinds["texts"]["maxItems"] == schema["properties"]["regions"]["maxItems"] == MAX_ITEMS
    assert kinds["side"]["maximum"] == MAX_SIDE_PX
    assert f"{MAX_RECORD_BYTES:,} bytes" in schema["$comment"]
    assert schema["properties"].keys() == {*FULL}
    assert kinds["region"]["properties"].keys() == {*FULL["regions"][1]}


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def test_every_record_that_a_writer_writes_is_valid_and_webdataset_reads_it(
    validator: Any, tmp_path: Path
) -> None:
    ref = Reference("refcoco-unc", 7, (3, 4), "testA")
    boxes = ((0.0, 0.0, 10.0, 10.0), (20.0, 10.0, 10.0, 10.0))
    records = [
        Record("a", "s", "train", 100, 50, ("x", "y\0\u2028"), photo="coco/1", license="CC0"),
        Record("b", "s", "train", 100, 50, absent=(Absent(("x", "y"), ref), Absent(("z",)))),
        Record(
            "c",
            "s",
            "val",
            100,
            50,
            regions=(
                Region("region", (0.0, 0.0, 30.0, 20.0), ("x", "y"), ("red",), ref, boxes),
                Region("object", (-1.0, -1.0, 102.0, 52.0), ("z",)),
                Region("object", (math.pi, 1 / 3, 2 / 3, 1e-9), ("tiny",)),
            ),
        ),
    ]
    with ShardWriter(tmp_path / "c", source={}, max_samples=2) as writer:
        for record in records:
            writer.write(record, _jpeg(), "jpg")
    tars = sorted((tmp_path / "c").glob("*.tar"))
    found = {}
    for tar in tars:
        with tarfile.open(tar) as opened:
            for name in opened.getnames():
                data = opened.extractfile(name).read()  # type: ignore[union-attr]
                found[tar.name, name] = data
                if name.endswith(".json"):
                    assert list(validator.iter_errors(json.loads(data))) == []
    read = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False))
    assert len(read) == len(records)
    assert {json.loads(sample["json"])["id"] for sample in read} == {"a", "b", "c"}
    for sample in read:
        shard = Path(sample["__url__"]).name
        assert sample["jpg"] == found[shard, f"{sample['__key__']}.jpg"] == _jpeg()
        assert sample["json"] == found[shard, f"{sample['__key__']}.json"]
    decoded = webdataset.WebDataset(str(tars[0]), shardshuffle=False).decode("pil")
    first = next(iter(decoded))
    assert first["jpg"].size == (100, 50) and first["json"]["width"] == 100
