import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.base import Bad, Draft, Source
from data_tools.sources.coco import read_coco
from wholegrain.errors import DataError


def everything(source: Source) -> list[Draft | Bad]:
    """All that a source holds, read in pieces of two units; what it leaves out is added to it."""
    pieces = (
        source.read(start, min(start + 2, source.units), source.left_out)
        for start in range(0, source.units, 2)
    )
    return [item for piece in pieces for item in piece]


def drafts(layout: Any, **options: Any) -> list[Draft]:
    items = everything(read_coco(layout.images, layout.captions, layout.instances, **options))
    assert not any(isinstance(item, Bad) for item in items)
    return items  # type: ignore[return-value]


def test_captions_and_objects_meet_in_one_record(coco_layout: Any) -> None:
    first, second, third = drafts(coco_layout)
    assert (first.id, first.size, first.license) == ("coco/9", (64, 48), "Attribution License")
    assert first.captions == ("caption 0 of photo 9", "caption 1 of photo 9")
    assert [(r.grain, r.texts, r.box) for r in first.regions] == [
        ("object", ("dog",), (1.5, 2.25, 20, 30)),
        ("object", ("car",), (30, 8, 34, 40)),
    ]
    assert len(second.regions) == 1  # the crowd box is no object
    assert third.regions == ()


def test_captions_may_be_a_plain_mapping(coco_layout: Any) -> None:
    before = drafts(coco_layout)
    mapping: dict[str, list[str]] = {}
    for entry in json.loads(coco_layout.captions.read_text())["annotations"]:
        mapping.setdefault(str(entry["image_id"]), []).append(entry["caption"])
    coco_layout.captions.write_text(json.dumps(mapping))
    assert drafts(coco_layout) == before


def test_either_file_alone_is_enough(coco_layout: Any) -> None:
    captions = read_coco(coco_layout.images, coco_layout.captions, None)
    assert [len(item.captions) for item in everything(captions)] == [2, 2, 2]  # type: ignore[union-attr]
    objects = read_coco(coco_layout.images, None, coco_layout.instances)
    assert [len(item.regions) for item in everything(objects)] == [2, 1]  # type: ignore[union-attr]
    assert objects.left_out == {"crowd box": 1, "image without caption or object": 1}
    with pytest.raises(DataError, match="pass --captions FILE, --instances FILE or both"):
        read_coco(coco_layout.images, None, None)


def test_the_split_is_in_the_file_name_or_given(coco_layout: Any) -> None:
    assert {draft.split for draft in drafts(coco_layout)} == {"val"}
    assert {draft.split for draft in drafts(coco_layout, split="mine")} == {"mine"}


def test_no_file_name_leads_out_of_the_folder(coco_layout: Any) -> None:
    def edit(layout: Any) -> None:
        layout["images"][0]["file_name"] = "../../../etc/passwd"
        layout["images"][1]["file_name"] = "train2017/000000000025.jpg"

    coco_layout.change(coco_layout.instances, edit)
    coco_layout.captions.write_text(json.dumps({"9": ["a"], "25": ["b"]}))
    first, second = drafts(coco_layout)
    assert first.image == coco_layout.images / "000000000009.jpg"
    assert second.image == coco_layout.images / "000000000025.jpg"


@pytest.mark.parametrize("box", [None, "wide", [1, 2, 3], [1, 2, 3, "x"], [1, 2, 3, float("nan")]])
def test_a_box_that_is_no_box_becomes_nan(coco_layout: Any, box: object) -> None:
    coco_layout.change(
        coco_layout.instances, lambda layout: layout["annotations"][0].update(bbox=box)
    )
    assert any(math.isnan(number) for number in drafts(coco_layout)[0].regions[0].box)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("instances", lambda x: x.pop("categories"), "no list 'categories'"),
        ("instances", lambda x: x["annotations"][1].pop("bbox"), r"annotations\[1\].*bbox"),
        (
            "instances",
            lambda x: x["annotations"][1].update(category_id=99),
            r"annotations\[1\].*99",
        ),
        ("instances", lambda x: x["images"][0].pop("height"), "images: an entry without 'height'"),
        ("captions", lambda x: x["annotations"][0].pop("caption"), "'caption'"),
        ("captions", lambda x: x["annotations"][0].update(caption=7), "captions must be COCO's"),
    ],
)
def test_another_layout_is_named(coco_layout: Any, file: str, edit: Any, message: str) -> None:
    path = getattr(coco_layout, file)
    coco_layout.change(path, lambda layout: edit(layout) and None)
    with pytest.raises(DataError, match=message) as raised:
        drafts(coco_layout)
    assert str(path) in str(raised.value)


def test_json_that_is_none_is_named(coco_layout: Any) -> None:
    coco_layout.instances.write_text('{"images": [')
    with pytest.raises(
        DataError, match=r"instances_val2017\.json: not valid JSON.*ends at byte 12"
    ):
        drafts(coco_layout)
    coco_layout.instances.unlink()
    with pytest.raises(DataError, match="no such file"):
        drafts(coco_layout)


def test_objects_of_an_unlisted_image_are_a_bad_sample(coco_layout: Any) -> None:
    for file in (coco_layout.captions, coco_layout.instances):
        coco_layout.change(file, lambda layout: layout["images"].pop(0) and None)
    items = everything(read_coco(coco_layout.images, coco_layout.captions, coco_layout.instances))
    assert isinstance(items[0], Bad) and items[0].cause == "image not listed"


def test_phrases_and_attributes_beside_a_category(coco_layout: Any) -> None:
    def edit(layout: Any) -> None:
        first, second, third, _ = layout["annotations"]
        first.update(attributes=["red", "small"], phrases=["a small red dog", "the dog"])
        second.update(attributes={"occluded": False})
        third.update(phrases=[])

    coco_layout.change(coco_layout.instances, edit)
    first, second, _ = drafts(coco_layout)
    dog, phrase, car = first.regions
    assert (dog.grain, dog.texts, dog.attributes) == ("object", ("dog",), ("red", "small"))
    assert (phrase.grain, phrase.box) == ("region", dog.box)
    assert phrase.texts == ("a small red dog", "the dog")
    assert (car.grain, car.attributes) == ("object", ())
    assert [region.grain for region in second.regions] == ["object"]


def test_empty_captions_are_counted(coco_layout: Any) -> None:
    coco_layout.change(
        coco_layout.captions, lambda layout: layout["annotations"][0].update(caption=" \n")
    )
    source = read_coco(coco_layout.images, coco_layout.captions, None)
    assert everything(source)[0].captions == ("caption 1 of photo 9",)  # type: ignore[union-attr]
    assert source.left_out["empty caption"] == 1


def test_any_piece_reads_the_same(coco_layout: Any) -> None:
    source = read_coco(coco_layout.images, coco_layout.captions, coco_layout.instances)
    whole = everything(source)
    for start in reversed(range(source.units)):
        assert list(source.read(start, start + 1, Counter())) == whole[start : start + 1]
    assert list(source.read(0, source.units, Counter())) == whole


def test_a_photo_is_known_by_cocos_number(coco_layout: Any) -> None:
    assert [draft.photo for draft in drafts(coco_layout)] == ["coco/9", "coco/25", "coco/30"]


def test_the_year_in_the_names_says_which_counts_were_published(
    coco_layout: Any, tmp_path: Path
) -> None:
    source = read_coco(coco_layout.images, coco_layout.captions, coco_layout.instances)
    assert source.published == "coco2017"
    other = coco_layout.captions.rename(tmp_path / "captions.json")
    assert read_coco(coco_layout.images, other, coco_layout.instances).published is None


def test_real_photos(real_data: Path) -> None:
    root = real_data / "refcoco_native"
    source = read_coco(root / "images", root / "captions.json", root / "instances.json")
    found = [item for item in everything(source) if isinstance(item, Draft)]
    assert len(found) == 74
    assert sum(len(draft.captions) for draft in found) == 120
    assert sum(len(draft.regions) for draft in found) == 683
    assert source.left_out["crowd box"] == 2
