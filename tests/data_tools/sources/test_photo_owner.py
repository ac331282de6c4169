"""Whose photos a set shows: COCO's by its name or theirs, otherwise whose the user says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.scenes.config import SceneConfig
from data_tools.scenes.write import write_scenes
from data_tools.sources.coco import read_coco
from data_tools.sources.photo_owner import PhotoOwner
from data_tools.sources.refcoco import read_refcoco
from wholegrain.data.corpus import Corpus

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("given", "set_name", "file", "identity"),
    [
        (None, None, "000000000009.jpg", "coco/9"),
        (None, None, "COCO_val2014_000000000009.jpg", "coco/9"),
        (None, None, "COCO_test2015_000000000009.jpg", "coco/9"),
        (None, None, "000000000009.png", "coco/9"),
        (None, None, "9.jpg", None),
        (None, None, "train_000009.jpg", None),
        (None, None, "x000000000009.jpg", None),
        (None, None, "000000000008.jpg", None),  # another number than the annotation's
        (None, "mine-unc", "9.jpg", None),
        (None, "mine-unc", "COCO_train2014_000000000009.jpg", "coco/9"),
        (None, "coco_small", "9.jpg", "coco/9"),
        (None, "refcoco+-unc", "9.jpg", "coco/9"),
        (None, "grefcoco-unc", "9.jpg", "coco/9"),
        ("none", "refcoco-unc", "COCO_train2014_000000000009.jpg", None),
        ("none", None, "000000000009.jpg", None),
        ("coco", "mine", "9.jpg", "coco/9"),
        ("vg", None, "000000000009.jpg", "vg/9"),
    ],
)
def test_a_photo_s_identity(
    given: str | None, set_name: str | None, file: str, identity: str | None
) -> None:
    assert PhotoOwner.of(given, set_name).identity(Path("photos") / file, 9) == identity


def renamed(coco_layout: Any) -> None:
    """The photos under names of one's own."""
    for file in (coco_layout.captions, coco_layout.instances):

        def edit(layout: Any) -> None:
            for image in layout["images"]:
                image["file_name"] = f"mine_{image['id']}.jpg"

        coco_layout.change(file, edit)
    for path in list(coco_layout.images.iterdir()):
        path.rename(path.with_name(f"mine_{int(path.stem)}.jpg"))


def ids(corpus: Path) -> list[tuple[str, str | None]]:
    opened = Corpus.open(corpus)
    records = [opened.record(number) for number in range(len(opened))]
    assert all(record.photo_id == (record.photo or record.id) for record in records)
    return [(record.id, record.photo) for record in records]


def test_a_set_of_one_s_own_is_not_taken_for_coco(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    renamed(coco_layout)
    command = ["convert", "coco", *coco_layout.flags, "--out"]
    assert data_tools(*command, tmp_path / "own").status == 0
    assert ids(tmp_path / "own") == [("own/9", None), ("own/25", None), ("own/30", None)]
    assert data_tools(*command, tmp_path / "named", "--name", "birds").status == 0
    assert ids(tmp_path / "named")[0] == ("birds/9", None)
    assert data_tools(*command, tmp_path / "vg", "--photos-of", "vg").status == 0
    assert ids(tmp_path / "vg")[0] == ("vg/9", "vg/9")
    assert data_tools(*command, tmp_path / "small", "--name", "coco_small").status == 0
    assert ids(tmp_path / "small")[0] == ("coco/9", "coco/9")


def test_photos_named_as_coco_s_may_be_one_s_own(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    command = ["convert", "coco", *coco_layout.flags, "--out", tmp_path / "out"]
    assert data_tools(*command).status == 0
    assert ids(tmp_path / "out")[0] == ("coco/9", "coco/9")
    ran = data_tools(*command, "--photos-of", "none")  # another result, so no work to go on with
    assert ran.status == 2 and "other inputs or options" in ran.err
    assert data_tools(*command, "--photos-of", "none", "--overwrite").status == 0
    assert ids(tmp_path / "out")[0] == ("own/9", None)
    with pytest.raises(SystemExit):
        data_tools(*command, "--photos-of", "My Set")


def test_the_digest_is_that_of_before_where_photos_are_coco_s(
    coco_layout: Any, refer_layout: Any
) -> None:
    files = coco_layout.images, coco_layout.captions, coco_layout.instances
    before = {"reader", "split", "annotations", "images"}
    assert read_coco(*files).description.keys() == before
    assert read_coco(*files, name="birds").description.keys() == before
    assert read_coco(*files, photos_of="coco").key() == read_coco(*files).key()
    assert read_coco(*files, photos_of="none").key() != read_coco(*files).key()
    refer = refer_layout.root, refer_layout.images
    assert read_refcoco(*refer).description.keys() == {*before, "set"}
    assert read_refcoco(*refer, photos_of="none").key() != read_refcoco(*refer).key()
    renamed(coco_layout)
    assert read_coco(*files).description["photos_of"] == "by their names"


def test_a_refer_set_of_one_s_own(refer_layout: Any, tmp_path: Path, data_tools: Run) -> None:
    own = tmp_path / "mine"
    shutil.copytree(refer_layout.root / "refcoco", own)
    photos = tmp_path / "pictures"
    photos.mkdir()
    instances = json.loads((own / "instances.json").read_text())
    for image, path in zip(instances["images"], sorted(refer_layout.images.iterdir()), strict=True):
        image["file_name"] = f"{image['id']}.jpg"
        shutil.copy(path, photos / image["file_name"])
    (own / "instances.json").write_text(json.dumps(instances))
    flags = ["--root", own, "--images", photos]
    assert data_tools("convert", "refcoco", *flags, "--out", tmp_path / "out").status == 0
    assert {photo for _, photo in ids(tmp_path / "out")} == {None}
    flags += ["--photos-of", "coco"]
    assert data_tools("convert", "refcoco", *flags, "--out", tmp_path / "coco").status == 0
    assert {photo for _, photo in ids(tmp_path / "coco")} == {"coco/11", "coco/12"}


def test_scenes_are_nobody_s_photos(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    write_scenes(scenes, SceneConfig(train=2, val=1, test=0, size=64, seed=3))
    files = [scenes / f"{kind}_train.json" for kind in ("captions", "instances")]
    for source in (
        read_coco(scenes / "images", *files),
        read_refcoco(scenes, scenes / "images", split_by="scenes"),
    ):
        drafts = list(source.read(0, source.units, source.left_out))
        assert [draft.photo for draft in drafts] == [None] * len(drafts)  # type: ignore[union-attr]
        assert not any(draft.id.startswith("coco/") for draft in drafts)
