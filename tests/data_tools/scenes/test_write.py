from __future__ import annotations

import argparse
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.scenes import cli, write
from data_tools.scenes.config import SceneConfig
from data_tools.scenes.write import write_scenes
from data_tools.sources.base import Draft, Source
from data_tools.sources.coco import read_coco
from data_tools.sources.refcoco import read_refcoco
from wholegrain.errors import DataError

CONFIG = SceneConfig(train=20, val=3, test=2, size=64, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "out"
    counts = write_scenes(out, CONFIG)
    assert (counts["train"], counts["val"], counts["test"]) == (20, 3, 2)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def good(source: Source) -> list[Draft]:
    return [
        sample for sample in source.read(0, source.units, Counter()) if isinstance(sample, Draft)
    ]


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_layout_is_coco_and_refer(folder: Path) -> None:
    everything = load(folder / "instances.json")
    assert len(everything["images"]) == 25
    by_id = {annotation["id"]: annotation for annotation in everything["annotations"]}
    assert len(by_id) == len(everything["annotations"])
    for image in everything["images"]:
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (64, 64)
    for name in ("scenes", "phrases"):
        # Bytes that this test has just had written; the readers of the project restrict theirs.
        refs = pickle.loads((folder / f"refs({name}).p").read_bytes())
        assert len({ref["ref_id"] for ref in refs}) == len(refs)
        assert {ref["split"] for ref in refs} == {"train", "val", "test"}
        sentences = [sentence for ref in refs for sentence in ref["sentences"]]
        assert len({sentence["sent_id"] for sentence in sentences}) == len(sentences)
        for ref in refs:
            assert by_id[ref["ann_id"]]["image_id"] == ref["image_id"]
            assert by_id[ref["ann_id"]]["category_id"] == ref["category_id"]
            assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
    assert load(folder / "scenes.json")["seed"] == 3


def test_the_pickles_name_no_class(folder: Path) -> None:
    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            raise AssertionError(f"{module}.{name}")

    for name in ("scenes", "phrases"):
        path = folder / f"refs({name}).p"
        with path.open("rb") as file:
            assert file.peek(2)[:2] == b"\x80\x02"  # protocol 2
            assert Plain(file).load()


def test_the_converters_read_it(folder: Path) -> None:
    refs = read_refcoco(folder, folder / "images", split_by="scenes")
    drafts = good(refs)
    assert len(drafts) == 25
    assert all(draft.regions[0].texts for draft in drafts)
    phrases = read_refcoco(folder, folder / "images", split_by="phrases", split="val")
    assert len(good(phrases)) == 3
    coco = read_coco(
        folder / "images", folder / "captions_train.json", folder / "instances_train.json"
    )
    drafts = good(coco)
    assert len(drafts) == 20
    assert all(len(draft.captions) >= 3 and len(draft.regions) >= 3 for draft in drafts)


def test_any_number_of_workers_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "two", CONFIG, workers=2)
    assert contents(tmp_path / "two") == contents(folder)


def test_a_scene_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", SceneConfig(train=2, val=1, test=0, size=64, seed=3))
    few, all_of_them = contents(tmp_path / "few"), contents(folder)
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 3
    assert all(few[name] == all_of_them[name] for name in pictures)
    known = {json.dumps(entry) for entry in load(folder / "instances.json")["annotations"]}
    written = load(tmp_path / "few" / "instances.json")["annotations"]
    assert {json.dumps(entry) for entry in written} < known


def test_an_existing_folder_is_refused_or_replaced_whole(tmp_path: Path) -> None:
    out, tiny = tmp_path / "out", SceneConfig(train=1, val=0, test=0, size=64)
    write_scenes(out, SceneConfig(train=0, val=1, test=0, size=64))
    before = contents(out)
    with pytest.raises(DataError, match=r"out: exists; .*--overwrite"):
        write_scenes(out, tiny)
    assert contents(out) == before
    write_scenes(out, tiny, overwrite=True)
    assert [path.name for path in (out / "images").iterdir()] == ["train_000000.jpg"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_folder_of_scenes_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(DataError, match=r"holds no scenes\.json, so it is not replaced"):
        write_scenes(tmp_path, SceneConfig(train=1, val=0, test=0, size=64), overwrite=True)
    assert contents(tmp_path) == {"mine": b"precious"}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write, "_write_instances", broken)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(tmp_path / "out", SceneConfig(train=1, val=0, test=0, size=64))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert parser.parse_args(["--out", "x"]).train == 3000
    options = ["--train=2", "--val=1", "--test=1", "--size=64", "--workers=1"]
    assert cli.run(parser.parse_args(["--out", str(tmp_path / "out"), *options])) == 0
    assert "2 train, 1 val, 1 test" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4
