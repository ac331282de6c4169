import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources import objects365
from data_tools.sources.base import Bad
from data_tools.sources.objects365 import read_objects365
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Annotations and photos; `change` edits the annotations in place."""

    annotations: Path
    images: Path

    def change(self, edit: Callable[[Any], Any]) -> None:
        content = json.loads(self.annotations.read_text())
        edit(content)
        self.annotations.write_text(json.dumps(content))


@pytest.fixture
def layout(tmp_path: Path, photo: Callable[..., bytes]) -> Layout:
    """Photos 7 and 420917 of version 1 and 908726 of version 2, and 5 without a box.

    Boxes of the photos alternate, and one is a crowd.
    """
    names = {
        420917: "images/v1/patch8/objects365_v1_00420917.jpg",
        7: "images/v1/patch0/objects365_v1_00000007.jpg",
        908726: "images/v2/patch16/objects365_v2_00908726.jpg",
        5: "images/v1/patch0/objects365_v1_00000005.jpg",
    }
    root = tmp_path / "objects365"
    for number, name in names.items():
        place = root / "train" / name.removeprefix("images/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(photo(number))
    images = [
        {"id": n, "file_name": name, "height": 48, "width": 64, "license": 5, "url": ""}
        for n, name in names.items()
    ]
    boxes = [
        (420917, 13, [3.0469055296, 7.123456789, 20.5, 30.25], {}),
        (7, 1, [0.0, 0.0, 64.0, 48.0], {}),
        (420917, 301, [-9.5, -0.4, 30.0, 20.0], {"isfake": 1, "isreflected": 1}),
        (420917, 1, [1, 1, 9, 9], {"iscrowd": 1}),
        (908726, 24, [60, 40, 3.9999999, 7.5], {}),
        (7, 13, [5, 5, 7, 8], {}),
    ]
    flags = {"iscrowd": 0, "isfake": 0, "isreflected": 0}
    annotations = [
        {"id": n, "image_id": image, "category_id": kind, "bbox": box, "area": 1, **flags, **more}
        for n, (image, kind, box, more) in enumerate(boxes)
    ]
    categories = [
        {"id": 301, "name": "Tape Measur/ Ruler"},
        {"id": 1, "name": "Person"},
        {"id": 13, "name": "Cabinet/shelf"},
        {"id": 24, "name": "Wild Bird"},
    ]
    path = root / "zhiyuan_objv2_train.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps({**content, "licenses": [{"name": "CC"}]}))
    return Layout(path, root / "train")


def test_boxes_find_their_photos(layout: Layout, read_all: Any) -> None:
    source = read_objects365(layout.annotations, layout.images)
    (first, second, third), left_out = read_all(source)
    assert [d.id for d in (first, second, third)] == [
        "objects365/7",
        "objects365/420917",
        "objects365/908726",
    ]
    assert (first.split, first.size, first.photo) == ("train", (64, 48), "objects365/7")
    assert [(r.texts, r.box) for r in first.regions] == [
        (("Person",), (0, 0, 64, 48)),
        (("Cabinet", "shelf"), (5, 5, 7, 8)),
    ]
    assert [(r.texts, r.box) for r in second.regions] == [
        (("Cabinet", "shelf"), (3.047, 7.123, 20.5, 30.25)),
        (("Tape Measur", "Ruler"), (-9.5, -0.4, 30, 20)),
    ]
    assert [(r.grain, r.texts, r.box) for r in third.regions] == [
        ("object", ("Wild Bird",), (60, 40, 4, 7.5))
    ]
    assert all(draft.image.is_file() for draft in (first, second, third))
    assert not left_out
    assert +source.left_out == {"crowd box": 1, "image without object": 1}


def test_patches_may_lie_anywhere_below(layout: Layout, read_all: Any) -> None:
    for patch in sorted(layout.images.glob("v*/patch*")):
        patch.rename(layout.images / patch.name)
    drafts, _ = read_all(read_objects365(layout.annotations, layout.images))
    assert [draft.image.parent.name for draft in drafts] == ["patch0", "patch8", "patch16"]
    assert all(draft.image.is_file() for draft in drafts)


def test_lists_may_come_in_any_order_and_in_pieces(
    layout: Layout, read_all: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = read_all(read_objects365(layout.annotations, layout.images))
    content = json.loads(layout.annotations.read_text())
    layout.annotations.write_text(json.dumps(dict(reversed(content.items())), indent=1))
    monkeypatch.setattr("data_tools.sources.stream_json._CHUNK", 100)
    monkeypatch.setattr(objects365, "_MERGE", 2)
    assert read_all(read_objects365(layout.annotations, layout.images))[0] == before


def test_conversion(layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]) -> None:
    flags = ["--annotations", layout.annotations, "--images", layout.images]
    ran = data_tools("convert", "objects365", *flags, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.splits == {"train": 3}
    assert [region.box for region in corpus.record(1).regions][1] == (0, 0, 20.5, 19.6)
    assert "objects365 train images: published 1,742,289, here 3, missing 1,742,286" in ran.out


def test_a_missing_photo_is_a_bad_sample(
    layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    next(layout.images.glob("v2/*/*.jpg")).unlink()
    flags = ["--annotations", layout.annotations, "--images", layout.images, "--max-bad", "40%"]
    ran = data_tools("convert", "objects365", *flags, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["cause"] == "image: missing"
    assert "objects365_v2_00908726.jpg" in json.loads(line)["detail"]


def test_the_split_is_in_the_file_name_or_given(layout: Layout, read_all: Any) -> None:
    path = layout.annotations.rename(layout.annotations.with_name("zhiyuan_objv2_val.json"))
    drafts, _ = read_all(read_objects365(path, layout.images))
    assert {draft.split for draft in drafts} == {"val"}
    drafts, _ = read_all(read_objects365(path, layout.images, split="mine"))
    assert {draft.split for draft in drafts} == {"mine"}


def test_an_image_without_size_is_a_bad_sample(layout: Layout, read_all: Any) -> None:
    layout.change(lambda content: content["images"][0].pop("width"))
    items, _ = read_all(read_objects365(layout.annotations, layout.images))
    assert isinstance(items[1], Bad) and "KeyError('width')" in items[1].detail


@pytest.mark.parametrize("box", [None, [1, 2, 3], [1, 2, 3, "x"], [1, 2, 3, float("nan")]])
def test_a_box_that_is_no_box_becomes_nan(layout: Layout, read_all: Any, box: object) -> None:
    layout.change(lambda content: content["annotations"][1].update(bbox=box))
    items, _ = read_all(read_objects365(layout.annotations, layout.images))
    assert math.isnan(items[0].regions[0].box[3])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda x: x["annotations"][3].update(iscrowd=0, category_id=99),
            "category_id 99: no",
        ),
        (lambda x: x["annotations"][0].update(image_id=98), "image_id 98: no such image"),
        (lambda x: x["annotations"][0].pop("bbox"), "annotations from .0. on: KeyError.'bbox'"),
        (lambda x: x["annotations"][0].update(image_id=10**30), "OverflowError"),
        (lambda x: x["images"].append(x["images"][0]), "images: id 420917: it is listed twice"),
        (lambda x: x["images"][0].pop("id"), "images from .0. on: KeyError.'id'"),
        (lambda x: x["categories"][0].update(name=" / "), "category 301 has the name ' / '"),
        (lambda x: x.pop("categories"), "no list 'categories'"),
        (lambda x: x["images"].clear(), "image_id 420917: no such image"),
    ],
)
def test_another_layout_is_named(layout: Layout, edit: Any, message: str) -> None:
    layout.change(edit)
    with pytest.raises(DataError, match=message) as raised:
        read_objects365(layout.annotations, layout.images)
    assert str(layout.annotations) in str(raised.value)


def test_a_missing_file_is_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_objects365(tmp_path / "none.json", layout.images)
    with pytest.raises(DataError, match="no such folder of images"):
        read_objects365(layout.annotations, tmp_path / "none")
