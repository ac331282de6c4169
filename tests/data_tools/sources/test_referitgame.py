import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.base import Bad
from data_tools.sources.referitgame import read_referitgame
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError


@dataclass(frozen=True)
class Layout:
    """The refer tool's folder ``refclef`` and the photos; `write` writes what was changed."""

    root: Path
    images: Path
    refs: list[dict[str, Any]]
    instances: dict[str, Any]

    def write(self, split_by: str = "berkeley") -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / f"refs({split_by}).p").write_bytes(pickle.dumps(self.refs, protocol=2))
        (self.root / "instances.json").write_text(json.dumps(self.instances))


def ref(number: int, image: int, ann: object, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * number + turn, "sent": text, "raw": f"{text}!", "tokens": text.split()}
        for turn, text in enumerate(texts)
    ]
    return {
        "ref_id": number,
        "image_id": image,
        "ann_id": ann,
        "category_id": 3,
        "split": split,
        "file_name": f"{image}_{number}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


@pytest.fixture
def layout(tmp_path: Path, photo: Callable[..., bytes]) -> Layout:
    """Photos 112 and 20149 in their folders of a thousand."""
    images = tmp_path / "saiapr_tc-12"
    for number, folder in ((112, "00"), (20149, "20")):
        place = images / folder / "images" / f"{number}.jpg"
        place.parent.mkdir(parents=True)
        place.write_bytes(photo(number))
    refs = [
        ref(1, 20149, "20149_2", "test", "sky", "blue part at the top"),
        ref(2, 112, 5, "train", "left tree"),
        ref(3, 112, 6, "train", "the other tree", " "),
    ]
    annotations = [
        {"id": "20149_2", "image_id": 20149, "bbox": [0, 0, 64, 20.5]},
        {"id": 5, "image_id": 112, "bbox": [1, 2, 30, 40]},
        {"id": 6, "image_id": 112, "bbox": [31, 2, 30, 40]},
        {"id": 7, "image_id": 112, "bbox": [0, 0, 1, 1]},
    ]
    for annotation in annotations:
        # Masks are run-length codes here, not polygons.
        code = {"counts": 'Zc`1\\"[', "size": [48, 64]}
        annotation |= {"category_id": 3, "segmentation": [code], "area": 1}
    instances = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in (20149, 112)
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "thing"}],
    }
    layout = Layout(tmp_path / "refclef", images, refs, instances)
    layout.write()
    return layout


def test_expressions_find_boxes_and_photos(layout: Layout, read_all: Any) -> None:
    source = read_referitgame(layout.root, layout.images)
    assert (source.name, source.published) == ("refclef-berkeley", "refclef-berkeley")
    (first, second), _ = read_all(source)
    assert (first.id, first.photo, first.split) == (
        "refclef-berkeley/train/112",
        "saiapr/112",
        "train",
    )
    assert [(r.box, r.texts, r.ref.sent_ids) for r in first.regions] == [
        ((1, 2, 30, 40), ("left tree",), (20,)),
        ((31, 2, 30, 40), ("the other tree",), (30,)),
    ]
    assert second.image == layout.images / "20" / "images" / "20149.jpg"
    assert second.regions[0].texts == ("sky", "blue part at the top")
    assert second.regions[0].ref.set == "refclef-berkeley"
    assert source.left_out["empty expression"] == 1


def test_photos_may_lie_above_or_in_one_folder(layout: Layout, tmp_path: Path) -> None:
    def photos(images: Path) -> list[Path]:
        source = read_referitgame(layout.root, images)
        return [draft.image for draft in source.read(0, 2, Counter())]  # type: ignore[union-attr]

    assert all(path.is_file() for path in photos(tmp_path))
    for path in sorted(layout.images.rglob("*.jpg")):
        path.rename(layout.images / path.name)
    assert photos(layout.images) == [layout.images / "112.jpg", layout.images / "20149.jpg"]


def test_the_division_is_asked_for_where_there_are_two(layout: Layout, read_all: Any) -> None:
    layout.write("unc")
    with pytest.raises(DataError, match=r"several refs files .*berkeley.*--split-by"):
        read_referitgame(layout.root, layout.images)
    source = read_referitgame(layout.root, layout.images, split_by="unc", split="test")
    assert [draft.id for draft in read_all(source)[0]] == ["refclef-unc/test/20149"]
    with pytest.raises(DataError, match=r"no refs\(google\)\.p"):
        read_referitgame(layout.root, layout.images, split_by="google")
    with pytest.raises(DataError, match="no split 'val'; it has test, train"):
        read_referitgame(layout.root, layout.images, split_by="unc", split="val")


def test_conversion(layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]) -> None:
    flags = ["--root", layout.root, "--images", layout.images, "--out", tmp_path / "out"]
    ran = data_tools("convert", "referitgame", *flags)
    assert ran.status == 0, ran.err
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.splits == {"train": 1, "test": 1}
    assert corpus.record(0).photo_id == "saiapr/112"
    assert "refclef-berkeley train expressions: published 54,127, here 2, missing" in ran.out
    assert "nothing of split val, which the set should have" in ran.out


def test_what_instances_lacks_is_a_bad_sample(layout: Layout, read_all: Any) -> None:
    layout.instances["annotations"].pop(1)
    del layout.instances["images"][0]["width"]
    layout.write()
    items, _ = read_all(read_referitgame(layout.root, layout.images))
    assert all(isinstance(item, Bad) for item in items)
    assert [item.cause for item in items] == ["annotation not listed", "image not listed"]
    assert "annotations [5]" in items[0].detail


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x.refs[1].pop("ann_id"), "ref 1: KeyError.*every ref needs"),
        (lambda x: x.refs[1].update(ref_id="?"), "ref 1: ValueError"),
        (lambda x: x.instances.pop("images"), r"instances\.json: no list 'images'"),
        (lambda x: x.instances["annotations"][0].pop("id"), r"instances\.json: .*KeyError\('id'\)"),
    ],
)
def test_another_layout_is_named(layout: Layout, edit: Any, message: str) -> None:
    edit(layout)
    layout.write()
    with pytest.raises(DataError, match=message):
        read_referitgame(layout.root, layout.images)


def test_missing_files_are_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; pass the folder that holds refs"):
        read_referitgame(tmp_path / "none", layout.images)
    with pytest.raises(DataError, match=r"no refs\(\*\)\.p in it or in its folders"):
        read_referitgame(layout.images, layout.images)
    (layout.root / "instances.json").unlink()
    with pytest.raises(DataError, match=r"instances\.json: no such file"):
        read_referitgame(layout.root, layout.images)


def test_a_pickle_that_names_a_class_is_refused(layout: Layout) -> None:
    (layout.root / "refs(berkeley).p").write_bytes(pickle.dumps([Path("x")], protocol=2))
    with pytest.raises(DataError, match="not a pickle of plain data"):
        read_referitgame(layout.root, layout.images)
