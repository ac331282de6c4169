import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.base import Bad, Draft
from data_tools.sources.visual_genome import read_visual_genome
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError


@dataclass(frozen=True)
class Layout:
    """The four files of version 1.4; `change` edits one in place."""

    root: Path

    def change(self, name: str, edit: Callable[[Any], Any]) -> None:
        path = self.root / f"{name}.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(edit(content) or content))


def region(number: int, image: int, phrase: str, *box: float) -> dict[str, Any]:
    x, y, width, height = box
    entry = {"region_id": number, "image_id": image, "phrase": phrase, "x": x, "y": y}
    return {**entry, "width": width, "height": height}


def thing(number: int, names: list[str], *box: float, **more: Any) -> dict[str, Any]:
    x, y, w, h = box
    entry: dict[str, Any] = {"object_id": number, "names": names, "x": x, "y": y, "w": w, "h": h}
    return {"synsets": [f"{name}.n.01" for name in names], "merged_object_ids": [], **entry, **more}


@pytest.fixture
def layout(tmp_path: Path, photo: Callable[..., bytes]) -> Layout:
    """Photos 1 (COCO's 77) and 2 in the first folder, 5 in the second, 7 without annotation.

    The files list images in different orders.
    """
    root = tmp_path / "vg"
    for folder, images in (("VG_100K", (1, 2, 7)), ("VG_100K_2", (5,))):
        (root / folder).mkdir(parents=True)
        for image in images:
            (root / folder / f"{image}.jpg").write_bytes(photo(image))
    address = "https://cs.stanford.edu/people/rak248/VG_100K/{}.jpg"
    about = {"width": 64, "height": 48, "flickr_id": None}
    coco = {1: 77, 2: None, 5: None, 7: None}
    files = {
        "image_data": [
            {"image_id": n, "url": address.format(n), "coco_id": coco[n], **about}
            for n in (2, 1, 7, 5)
        ],
        "region_descriptions": [
            {"id": 1, "regions": [
                region(11, 1, "a red car", 2, 3, 20, 10),
                region(12, 1, "a red car", 2, 3, 20, 10),
                region(13, 1, "sky above it ", -4, 0, 64, 9),
                region(14, 1, " ", 1, 1, 5, 5),
            ]},
            {"id": 7, "regions": []},
            {"id": 2, "regions": [region(21, 2, "nothing", 5, 5, 0, 7)]},
            {"id": 5, "regions": [region(51, 5, "a \"man\" {on [a bike\\", 0, 0, 64, 48)]},
        ],
        "objects": [
            {"image_id": 2, "objects": [thing(200, ["dog"], 1, 1, 10, 12)], "image_url": "x"},
            {"image_id": 7, "objects": [], "image_url": "x"},
            {"image_id": 1, "objects": [
                thing(100, ["car", "race car"], 2, 3, 20, 10, merged_object_ids=[101]),
                thing(102, ["car", "race car"], 2, 3, 20, 10),
                thing(103, [" "], 1, 1, 2, 2),
                thing(104, ["tree"], 30, 5, 40, 50),
            ], "image_url": "x"},
        ],
        "attributes": [
            {"image_id": 1, "attributes": [
                thing(104, ["tree"], 30, 5, 40, 50),
                thing(100, ["car"], 2, 3, 20, 10, attributes=["red", "shiny ", "red"]),
                thing(102, ["car"], 2, 3, 20, 10, attributes=["parked", "red"]),
                thing(103, [" "], 1, 1, 2, 2, attributes=["odd"]),
                thing(999, ["ghost"], 2, 3, 20, 10, attributes=["pale", "thin"]),
            ]},
            {"image_id": 2, "attributes": [thing(200, ["dog"], 1, 1, 10, 12, attributes=None)]},
        ],
    }  # fmt: skip
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    return Layout(root)


def test_regions_and_objects_of_a_photo_meet(layout: Layout, read_all: Any) -> None:
    source = read_visual_genome(layout.root, layout.root)
    (first, second, third), left_out = read_all(source)
    assert [first.id, second.id, third.id] == ["vg/1", "vg/2", "vg/5"]
    assert (first.source, first.split, first.size) == ("visual_genome", "train", (64, 48))
    assert [(r.grain, r.texts, r.attributes, r.box) for r in first.regions] == [
        ("region", ("a red car",), (), (2, 3, 20, 10)),
        ("region", ("sky above it",), (), (-4, 0, 64, 9)),
        ("object", ("car", "race car"), ("red", "shiny", "parked"), (2, 3, 20, 10)),
        ("object", ("tree",), (), (30, 5, 40, 50)),
    ]
    assert third.regions[0].texts == ('a "man" {on [a bike\\',)
    assert left_out == {
        "repeated region": 1,
        "empty phrase": 1,
        "repeated object": 1,
        "object without name": 1,
        "attribute of an unknown object": 2,
    }
    assert +source.left_out == {"image without region or object": 1}


def test_photos_of_coco_are_known_as_such(layout: Layout, read_all: Any) -> None:
    drafts, _ = read_all(read_visual_genome(layout.root, layout.root))
    assert [draft.photo for draft in drafts] == ["coco/77", "vg/2", "vg/5"]


def test_photos_lie_in_either_folder_or_in_one(layout: Layout) -> None:
    def photos(images: Path) -> list[str]:
        source = read_visual_genome(layout.root, images)
        found = source.read(0, source.units, Counter())
        return [str(draft.image.relative_to(images)) for draft in found]  # type: ignore[union-attr]

    assert photos(layout.root) == ["VG_100K/1.jpg", "VG_100K/2.jpg", "VG_100K_2/5.jpg"]
    for path in layout.root.glob("VG_100K*/*.jpg"):
        (layout.root / "all").mkdir(exist_ok=True)
        path.rename(layout.root / "all" / path.name)
    assert photos(layout.root / "all") == ["1.jpg", "2.jpg", "5.jpg"]


def test_parts_may_be_left_out(layout: Layout) -> None:
    def texts(*without: str) -> set[str]:
        source = read_visual_genome(layout.root, layout.root, without=without)
        drafts = [d for d in source.read(0, source.units, Counter()) if isinstance(d, Draft)]
        return {region.grain for draft in drafts for region in draft.regions} | {
            text for draft in drafts for region in draft.regions for text in region.attributes
        }

    (layout.root / "attributes.json").rename(layout.root / "kept")
    assert texts("objects") == {"region"}
    assert texts("attributes") == {"region", "object"}
    with pytest.raises(DataError, match=r"attributes\.json: no such file"):
        texts()
    with pytest.raises(DataError, match="neither regions nor objects"):
        texts("regions", "objects")


def test_conversion_mends_boxes_and_keeps_the_photo(
    layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    ran = data_tools("convert", "visual_genome", "--root", layout.root, "--out", out)
    assert ran.status == 0, ran.err
    corpus = Corpus.open(out)
    assert (corpus.manifest["counts"]["regions"], corpus.manifest["counts"]["objects"]) == (3, 3)
    boxes = [region.box for region in corpus.record(0).regions]
    assert boxes[1] == (0, 0, 60, 9) and boxes[3] == (30, 5, 34, 43)
    assert corpus.record(0).photo_id == "coco/77"
    assert "left out: region: box clipped" in ran.out
    assert "visual_genome images: published 108,077, here 3" in ran.out


def test_the_program_leaves_parts_out(
    layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    command = ["convert", "visual_genome", "--root", layout.root, "--out", tmp_path / "out"]
    ran = data_tools(*command, "--without", "regions", "objects", "attributes")
    assert ran.status == 2
    assert "visual_genome: --without leaves neither regions nor objects to read" in ran.err
    assert data_tools(*command, "--without", "regions", "attributes").status == 0
    corpus = Corpus.open(tmp_path / "out")
    assert (corpus.manifest["counts"]["regions"], corpus.manifest["counts"]["objects"]) == (0, 3)
    assert [region.attributes for region in corpus.record(0).regions] == [(), ()]


def test_a_size_that_is_not_the_photos_is_a_bad_sample(
    layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    layout.change("image_data", lambda rows: rows[0].update(width=63))
    (layout.root / "VG_100K_2" / "5.jpg").unlink()
    flags = ["--root", layout.root, "--out", tmp_path / "out", "--max-bad", "99%"]
    ran = data_tools("convert", "visual_genome", *flags)
    assert ran.status == 0, ran.err
    listed = [
        json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    ]
    causes = {bad["id"]: bad["cause"] for bad in listed}
    assert causes == {"vg/2": "image: wrong size", "vg/5": "image: missing"}


def test_a_broken_annotation_costs_its_image_only(layout: Layout, read_all: Any) -> None:
    def edit(entries: Any) -> None:
        del entries[0]["regions"][1]["width"]

    layout.change("region_descriptions", edit)
    layout.change("objects", lambda entries: entries[0]["objects"][0].update(names="dog"))
    (first, second, third), _ = read_all(read_visual_genome(layout.root, layout.root))
    assert isinstance(first, Bad) and first.cause == "annotation broken"
    assert "region_descriptions.json: image 1: regions[1]: KeyError('width')" in first.detail
    assert isinstance(second, Bad) and "objects[0]: TypeError" in second.detail
    assert isinstance(third, Draft)


def test_a_box_that_is_no_number_is_nan(layout: Layout, read_all: Any) -> None:
    layout.change("objects", lambda entries: entries[0]["objects"][0].update(x="left"))
    drafts, _ = read_all(read_visual_genome(layout.root, layout.root))
    assert math.isnan(drafts[1].regions[1].box[0])


def test_an_image_that_image_data_lacks_is_a_bad_sample(layout: Layout, read_all: Any) -> None:
    layout.change("image_data", lambda rows: rows[1:])
    items, _ = read_all(read_visual_genome(layout.root, layout.root))
    assert isinstance(items[1], Bad) and items[1].cause == "image not listed"


def test_an_image_listed_again_is_counted(layout: Layout) -> None:
    layout.change("objects", lambda entries: [*entries, entries[0]])
    source = read_visual_genome(layout.root, layout.root)
    assert source.left_out["image listed again in objects.json"] == 1


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("image_data", lambda x: x[2].pop("height"), r"image_data\.json: entry 2: KeyError"),
        ("image_data", lambda x: x[2].update(coco_id="?"), "entry 2: ValueError"),
        ("image_data", lambda x: x.append(x[0]), "image 2 is listed twice"),
        ("objects", lambda x: x[1].pop("objects"), "entry 1: KeyError.*version 1.2 and later"),
        ("region_descriptions", lambda x: x[0].pop("id"), "entry 0: KeyError.*image_id"),
        ("attributes", lambda x: x.insert(0, 1), "something other than objects"),
        ("attributes", lambda x: x.append("end"), "something other than objects"),
    ],
)
def test_another_layout_is_named(layout: Layout, name: str, edit: Any, message: str) -> None:
    layout.change(name, lambda content: edit(content) and None)
    with pytest.raises(DataError, match=message) as raised:
        read_visual_genome(layout.root, layout.root)
    assert f"{name}.json" in str(raised.value)


def test_a_file_that_is_no_list_is_named(layout: Layout) -> None:
    layout.change("image_data", lambda rows: {"images": rows})
    with pytest.raises(DataError, match=r"image_data\.json: it is not one list"):
        read_visual_genome(layout.root, layout.root)


def test_a_file_that_is_cut_off_is_named(layout: Layout) -> None:
    path = layout.root / "objects.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"objects\.json: not valid JSON.*download"):
        read_visual_genome(layout.root, layout.root)


def test_a_folder_without_photos_is_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder of images"):
        read_visual_genome(layout.root, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        read_visual_genome(layout.root, tmp_path / "empty")
