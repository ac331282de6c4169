import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.grefcoco import read_grefcoco
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError


@dataclass(frozen=True)
class Layout:
    """gRefCOCO's folder and COCO's photos; `write` writes what was changed."""

    root: Path
    images: Path
    refs: list[dict[str, Any]]
    instances: dict[str, Any]

    def write(self) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / "grefs(unc).json").write_text(json.dumps(self.refs))
        (self.root / "instances.json").write_text(json.dumps(self.instances))


def ref(number: int, image: int, ann: object, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * number + turn, "sent": text, "raw": text, "tokens": text.split()}
        for turn, text in enumerate(texts)
    ]
    name = f"COCO_train2014_{image:012d}.jpg"
    kinds = [-1] if ann in (-1, [-1]) else [1]
    about = {"ref_id": number, "image_id": image, "ann_id": ann, "category_id": kinds}
    return {**about, "split": split, "file_name": name, "sentences": sentences}


@pytest.fixture
def layout(tmp_path: Path, photo: Callable[..., bytes]) -> Layout:
    """Photo 11 with one, two and no target; photo 12, of which nothing is said that is there.

    The instances are all of COCO's, with photos of which nothing is said.
    """
    images = tmp_path / "train2014"
    images.mkdir()
    names = {n: f"COCO_train2014_{n:012d}.jpg" for n in (11, 12, 99)}
    for number, name in names.items():
        (images / name).write_bytes(photo(number))
    refs = [
        ref(0, 11, [101], "train", "left man"),
        ref(1, 11, [103, 101], "train", "two men", "both men"),
        ref(2, 11, [-1], "train", "the dog"),
        ref(3, 12, -1, "val", "a zebra"),
    ]
    boxes = {101: (11, [2, 3, 20, 30]), 103: (11, [30, 1, 33.5, 40]), 990: (99, [0, 0, 5, 5])}
    instances = {
        "images": [
            {"id": n, "file_name": name, "width": 64, "height": 48, "license": 1}
            for n, name in names.items()
        ],
        "annotations": [
            {"id": ann, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0}
            for ann, (image, box) in boxes.items()
        ],
        "categories": [{"id": 1, "name": "person"}],
        "licenses": [{"id": 1, "name": "Some licence"}],
    }
    layout = Layout(tmp_path / "grefcoco", images, refs, instances)
    layout.write()
    return layout


def test_one_several_and_no_target(layout: Layout, read_all: Any) -> None:
    source = read_grefcoco(layout.root, layout.images)
    (first, second), _ = read_all(source)
    assert (first.id, first.photo) == ("grefcoco-unc/train/11", "coco/11")
    assert first.license == "Some licence"
    one, several = first.regions
    assert (one.box, one.boxes, one.texts) == ((2, 3, 20, 30), (), ("left man",))
    assert several.boxes == ((30, 1, 33.5, 40), (2, 3, 20, 30))
    assert several.box == (2, 1, 61.5, 40)
    assert several.ref.sent_ids == (10, 11)
    (absent,) = first.absent
    assert (absent.texts, absent.ref.ref_id, absent.ref.split) == (("the dog",), 2, "train")
    assert second.regions == () and second.absent[0].texts == ("a zebra",)


def test_either_form_of_the_list(layout: Layout, read_all: Any) -> None:
    before, _ = read_all(read_grefcoco(layout.root, layout.images))
    (layout.root / "grefs(unc).p").write_bytes(pickle.dumps(layout.refs, protocol=2))
    both = read_grefcoco(layout.root, layout.images)
    assert "grefs(unc).json" in both.description["annotations"]
    (layout.root / "grefs(unc).json").unlink()
    after, _ = read_all(read_grefcoco(layout.root.parent, layout.images))
    assert [(d.regions, d.absent) for d in after] == [(d.regions, d.absent) for d in before]


def test_conversion_keeps_what_is_absent(
    layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    flags = ["--root", layout.root, "--images", layout.images, "--out", tmp_path / "out"]
    ran = data_tools("convert", "grefcoco", *flags)
    assert ran.status == 0, ran.err
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.splits == {"train": 1, "val": 1}
    assert corpus.record(0).absent[0].texts == ("the dog",)
    assert corpus.record(1).absent[0].ref.set == "grefcoco-unc"  # type: ignore[union-attr]
    assert corpus.manifest["counts"]["expressions"] == 5
    assert "grefcoco-unc expressions: published 278,232, here 5, missing" in ran.out
    assert "the first release held back testA and testB" in ran.out


def test_a_box_outside_is_not_mended_away(
    layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    layout.instances["annotations"][0]["bbox"] = [-20, 3, 20, 30]
    layout.write()
    flags = ["--root", layout.root, "--images", layout.images, "--max-bad", "60%"]
    ran = data_tools("convert", "grefcoco", *flags, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert Corpus.open(tmp_path / "out").splits == {"val": 1}


def test_what_is_wrong_is_named(layout: Layout, read_all: Any) -> None:
    layout.instances["annotations"].pop(1)
    layout.write()
    items, _ = read_all(read_grefcoco(layout.root, layout.images))
    assert (items[0].cause, "annotations [103]" in items[0].detail) == (
        "annotation not listed",
        True,
    )
    layout.refs[1]["ann_id"] = None
    layout.write()
    with pytest.raises(DataError, match=r"grefs\(unc\)\.json: ref 1: TypeError"):
        read_grefcoco(layout.root, layout.images)
    (layout.root / "grefs(unc).json").write_text('{"refs": []}')
    with pytest.raises(DataError, match="a dict instead of a list of refs"):
        read_grefcoco(layout.root, layout.images)
    (layout.root / "grefs(unc).json").unlink()
    with pytest.raises(DataError, match=r"no grefs\(\*\)\.json or grefs\(\*\)\.p"):
        read_grefcoco(layout.root, layout.images)
