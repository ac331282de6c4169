import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.base import Bad, Draft, Source
from data_tools.sources.refcoco import read_refcoco
from wholegrain.errors import DataError


def everything(source: Source) -> list[Draft | Bad]:
    """All that a source holds, read in pieces of two units; what it leaves out is added to it."""
    pieces = (
        source.read(start, min(start + 2, source.units), source.left_out)
        for start in range(0, source.units, 2)
    )
    return [item for piece in pieces for item in piece]


def by_id(layout: Any, **options: Any) -> dict[str, Draft | Bad]:
    source = read_refcoco(layout.root, layout.images, **options)
    return {item.id: item for item in everything(source)}


def test_a_referred_object_becomes_a_region_with_all_its_expressions(refer_layout: Any) -> None:
    draft = by_id(refer_layout)["refcoco-unc/train/11"]
    assert isinstance(draft, Draft)
    (region,) = draft.regions
    assert region.grain == "region"
    assert region.box == (2, 3, 20, 30)
    assert region.texts == ("left man", "man in red")
    assert region.ref is not None
    assert (region.ref.set, region.ref.ref_id, region.ref.split) == ("refcoco-unc", 0, "train")
    assert region.ref.sent_ids == (0, 1)


def test_an_image_of_two_splits_becomes_two_records(refer_layout: Any) -> None:
    drafts = by_id(refer_layout)
    assert list(drafts) == ["refcoco-unc/train/11", "refcoco-unc/train/12", "refcoco-unc/val/12"]
    texts = [draft.regions[0].texts for draft in drafts.values() if isinstance(draft, Draft)]
    assert texts == [("left man", "man in red"), ("the boy",), ("man on right",)]


def test_photos_are_found_under_either_name(refer_layout: Any) -> None:
    names = {d.image.name for d in by_id(refer_layout).values()}  # type: ignore[union-attr]
    assert names == {"COCO_train2014_000000000011.jpg", "000000000012.jpg"}


def test_one_split_can_be_chosen(refer_layout: Any) -> None:
    assert list(by_id(refer_layout, split="val")) == ["refcoco-unc/val/12"]
    with pytest.raises(DataError, match="no split 'testA'; it has train, val"):
        read_refcoco(refer_layout.root, refer_layout.images, split="testA")


def test_the_division_is_asked_for_where_there_are_several(refer_layout: Any) -> None:
    refer_layout.write("google")
    with pytest.raises(DataError, match=r"several refs files .*refs\(google\)\.p.*--split-by"):
        by_id(refer_layout)
    assert "refcoco-google/train/11" in by_id(refer_layout, split_by="google")
    with pytest.raises(DataError, match=r"no refs\(umd\)"):
        by_id(refer_layout, split_by="umd")


def test_the_root_may_be_the_data_set_itself(refer_layout: Any) -> None:
    source = read_refcoco(refer_layout.root / "refcoco", refer_layout.images)
    assert source.name == "refcoco-unc"


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("attacked"),)


@pytest.mark.parametrize("payload", [_Attack(), Path("x"), Counter(), {1}, print])
def test_a_pickle_that_names_anything_is_refused(
    refer_layout: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, payload: object
) -> None:
    monkeypatch.chdir(tmp_path)
    file = refer_layout.root / "refcoco" / "refs(unc).p"
    file.write_bytes(pickle.dumps([payload], protocol=2))
    with pytest.raises(DataError, match="not a pickle of plain data"):
        by_id(refer_layout)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1, 2])[:-3]])
def test_a_broken_pickle_is_named(refer_layout: Any, data: bytes) -> None:
    (refer_layout.root / "refcoco" / "refs(unc).p").write_bytes(data)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: not a pickle"):
        by_id(refer_layout)


def test_byte_strings_of_python_2_are_read(refer_layout: Any) -> None:
    refer_layout.refs[0]["sentences"][0]["sent"] = "PLACEHOLDER"
    data = pickle.dumps(refer_layout.refs, protocol=2)
    unicode_text = b"X\x0b\x00\x00\x00PLACEHOLDER"
    assert unicode_text in data
    data = data.replace(unicode_text, b"U\x0bcaf\xc3\xa9 \xff foo")
    (refer_layout.root / "refcoco" / "refs(unc).p").write_bytes(data)
    draft = by_id(refer_layout)["refcoco-unc/val/12"]
    assert draft.regions[0].texts == ("café � foo",)  # type: ignore[union-attr]


def test_a_ref_without_a_field_is_named(refer_layout: Any) -> None:
    del refer_layout.refs[1]["ann_id"]
    refer_layout.write()
    with pytest.raises(DataError, match=r"ref 1: KeyError\('ann_id'\)"):
        by_id(refer_layout)


def test_empty_expressions_are_counted_and_left_out(refer_layout: Any) -> None:
    refer_layout.refs[1]["sentences"][0].update(sent=" ", raw="")
    refer_layout.write()
    source = read_refcoco(refer_layout.root, refer_layout.images)
    first = everything(source)[0]
    assert first.regions[0].texts == ("man in red",)  # type: ignore[union-attr]
    assert first.regions[0].ref.sent_ids == (1,)  # type: ignore[union-attr]
    assert source.left_out["empty expression"] == 1


def test_what_instances_lacks_is_a_bad_sample(refer_layout: Any) -> None:
    refer_layout.instances["annotations"].pop(0)
    refer_layout.instances["images"].pop(1)
    refer_layout.write()
    causes = {name: item.cause for name, item in by_id(refer_layout).items()}  # type: ignore[union-attr]
    assert causes == {
        "refcoco-unc/train/11": "annotation not listed",
        "refcoco-unc/train/12": "image not listed",
        "refcoco-unc/val/12": "image not listed",
    }


def test_a_file_of_another_layout_is_named(refer_layout: Any) -> None:
    file = refer_layout.root / "refcoco" / "instances.json"
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match=r"instances\.json: no list 'annotations'"):
        by_id(refer_layout)


def test_a_photo_is_known_by_cocos_number(refer_layout: Any) -> None:
    photos = [draft.photo for draft in by_id(refer_layout).values()]  # type: ignore[union-attr]
    assert photos == ["coco/11", "coco/12", "coco/12"]


def test_real_expressions(real_data: Path) -> None:
    root = real_data / "refcoco_native"
    source = read_refcoco(root / "refer_format", root / "images", split_by="unc")
    drafts = [item for item in everything(source) if isinstance(item, Draft)]
    assert len(drafts) == source.total == 74
    regions = [region for draft in drafts for region in draft.regions]
    assert len(regions) == 79
    assert sum(len(region.texts) for region in regions) == 83
    # The same boxes as in the list from which the pickle was made.
    listed = {
        (line["image_id"], tuple(line["bbox_xywh"]))
        for line in map(json.loads, (root / "refs.jsonl").read_text().splitlines())
    }
    found = {
        (int(draft.id.rsplit("/")[-1]), region.box) for draft in drafts for region in draft.regions
    }
    assert found <= listed
