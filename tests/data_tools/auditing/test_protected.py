"""Which photos a set protects, in every form in which sets are given."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.auditing import protected
from data_tools.auditing.protected import Protected, is_evaluation, parse_against
from wholegrain.errors import DataError

WriteCorpus = Callable[..., Path]


def split_photos(found: Protected, name: str) -> dict[str, list[str]]:
    (one,) = (one for one in found.sets if one.name == name)
    return {split: sorted(photos) for split, photos in one.splits.items()}


def against(*words: str, folders: tuple[Path, ...] = ()) -> Protected:
    return parse_against(words, folders)


@pytest.fixture(autouse=True)
def no_published_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protected, "PUBLISHED", {})


def test_a_converted_corpus(
    write_corpus: WriteCorpus, picture: Callable[..., Any], encode: Callable[..., bytes]
) -> None:
    data = encode(picture(0))
    rows = [
        ("refcoco/train/9", "coco/9", "train", data),
        ("refcoco/testA/25", "coco/25", "testA", data),
        ("refcoco/val/30", "coco/30", "val", data),
        ("refcoco/val/x", None, "val", data),  # without a photo of its own its id counts
        ("restval/7", "coco/7", "restval", data),
    ]
    folder = write_corpus("refcoco", rows)
    found = against(f"refcoco={folder}")
    assert split_photos(found, "refcoco") == {
        "testA": ["coco/25"],
        "val": ["coco/30", "refcoco/val/x"],
    }
    assert found.columns == [("refcoco", "val"), ("refcoco", "testA")]
    assert [corpus.path for corpus in found.sets[0].corpora] == [folder]


def _refs(*pairs: tuple[int, str]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "split": split, "ref_id": n} for n, (image, split) in enumerate(pairs)
    ]


def test_refs_of_the_refer_tool(tmp_path: Path) -> None:
    folder = tmp_path / "refcoco"
    folder.mkdir()
    refs = _refs((9, "train"), (25, "val"), (25, "val"), (30, "testB"))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    expected = {"val": ["coco/25"], "testB": ["coco/30"]}
    # The file, its folder, and the folder above.
    for place in (folder / "refs(unc).p", folder, tmp_path):
        found = against(f"refcoco={place}")
        assert split_photos(found, "refcoco") == expected
        assert not found.sets[0].corpora
    (folder / "refs(google).p").write_bytes(pickle.dumps(_refs((42, "val")), protocol=2))
    found = against(f"refcoco={folder}")
    assert split_photos(found, "refcoco") == expected
    assert "google division is left out" in found.sets[0].notes[0]
    named = against(f"refcoco={folder / 'refs(google).p'}")
    assert split_photos(named, "refcoco") == {"val": ["coco/42"]}


def test_refs_of_grefcoco_and_referit(tmp_path: Path) -> None:
    grefs = tmp_path / "grefs(unc).json"
    grefs.write_text(json.dumps(_refs((9, "train"), (25, "testA"))))
    refs = tmp_path / "refs(berkeley).p"
    refs.write_bytes(pickle.dumps(_refs((38001, "test"), (38002, "train")), protocol=2))
    found = against(f"grefcoco={grefs},referit={refs}")
    assert split_photos(found, "grefcoco") == {"testA": ["coco/25"]}
    assert split_photos(found, "referit") == {"test": ["saiapr/38001"]}


def test_karpathys_files(tmp_path: Path) -> None:
    coco = [
        {"split": "restval", "cocoid": 9, "filename": "COCO_val2014_000000000009.jpg"},
        {"split": "val", "cocoid": 25, "filename": "COCO_val2014_000000000025.jpg"},
        {"split": "test", "cocoid": 30, "filename": "COCO_val2014_000000000030.jpg"},
    ]
    flickr = [
        {"split": "test", "filename": "1000092795.jpg", "imgid": 0},
        {"split": "train", "filename": "36979.jpg", "imgid": 1},
    ]
    files = {
        "coco": coco,
        "flickr30k": flickr,
        "flickr8k": [{"split": "test", "filename": "1_f.jpg"}],
    }
    folder = tmp_path / "karpathy" / "splits"
    folder.mkdir(parents=True)
    for name, images in files.items():
        (folder / f"dataset_{name}.json").write_text(
            json.dumps({"images": images, "dataset": name})
        )
    both = {"val": ["coco/25"], "test": ["coco/30", "flickr30k/1000092795"]}
    assert split_photos(against(f"karpathy={folder}"), "karpathy") == both
    assert split_photos(against("karpathy", folders=(tmp_path,)), "karpathy") == both
    two = f"karpathy={folder}/dataset_coco.json,karpathy={folder}/dataset_flickr30k.json"
    assert split_photos(against(two), "karpathy") == both
    one = against(f"karpathy={folder}/dataset_flickr30k.json")
    assert split_photos(one, "karpathy") == {"test": ["flickr30k/1000092795"]}


def test_flickr30k_entities_lists(flickr_layout: Path) -> None:
    (flickr_layout / "test.txt").write_text("400\n500\n")
    for word in (f"flickr30k={flickr_layout}", "flickr30k"):
        found = against(word, folders=(Path("nowhere"), flickr_layout.parent))
        assert split_photos(found, "flickr30k") == {
            "val": ["flickr30k/300"],
            "test": ["flickr30k/400", "flickr30k/500"],
        }


def test_a_list_of_ids(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("# evaluated here\n391895\nCOCO_val2014_000000000009.jpg\n\nvg/2407\n")
    assert split_photos(against(f"refcoco={listed}"), "refcoco") == {
        "listed": ["coco/391895", "coco/9", "vg/2407"]
    }
    listed.write_text("coco/9\n")
    assert list(against(f"my-own_set={listed}").photos) == ["coco/9"]
    listed.write_text("coco/9\n391895\n")
    with pytest.raises(DataError, match=r"mine\.txt: line 2: '391895' is no photo id"):
        against(f"my-own_set={listed}")  # of a set without a name nobody knows whose number it is


def test_a_photo_of_several_sets_stands_once(tmp_path: Path) -> None:
    for name, ids in (("a", "9 25"), ("b", "25 30")):
        (tmp_path / f"{name}.txt").write_text("\n".join(ids.split()))
    found = against(f"refcoco={tmp_path}/a.txt", f"karpathy={tmp_path}/b.txt")
    assert found.photos == {"coco/9": (0,), "coco/25": (0, 1), "coco/30": (1,)}
    assert found.spaces == {"coco"}


def test_too_few_photos_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "refs(umd).p").write_bytes(pickle.dumps(_refs((9, "val")), protocol=2))
    (one,) = against(f"refcocog={tmp_path}").sets
    assert one.notes == [
        "refcocog has fewer photos than published (val 1 of 1,300, test 0 of 2,600); the others "
        "are not protected",
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "refcoco",
            r"refcoco: none of .*have/refcoco.* exists; get it with `python -m data_tools ",
        ),
        ("flickr30k", r"fetch flickr30k_entities --unpack`"),
        ("imagenet", r"no set of that name is known \(refcoco, .*imagenet=PATH"),
        ("imagenet=/nowhere", r"imagenet: /nowhere: no such file or folder; PATH is a corpus \("),
        ("re coco=x", r"'re coco' is no name"),
        (" , ", r"names no set"),
        ("refcoco={tmp}/empty", r"empty: of no known form; PATH is a corpus"),
        ("refcoco={tmp}/x.csv", r"x\.csv: of no known form"),
        ("refcoco={tmp}/bad.json", r"bad\.json: not valid JSON"),
        ("refcoco={tmp}/keys.json", r"images\[0\]: KeyError\('split'\); every image needs split"),
        ("refcoco={tmp}/refs(unc).p", r"ref 1: KeyError\('image_id'\); every ref needs"),
        ("refcoco={tmp}/evil.p", r"evil\.p: not a pickle of plain data"),
        ("refcoco={tmp}/train.json", r"no photo outside of its training split"),
        ("refcoco={tmp}/odd.json", r"'val \[x\]' is no name of a split"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, word: str, message: str) -> None:
    (tmp_path / "have").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").touch()
    (tmp_path / "bad.json").write_text('{"images": [{]}')
    (tmp_path / "keys.json").write_text('{"images": [{"cocoid": 9}]}')
    (tmp_path / "train.json").write_text('{"images": [{"cocoid": 9, "split": "train"}]}')
    (tmp_path / "odd.json").write_text('{"images": [{"cocoid": 9, "split": "val [x]"}]}')
    refs = [*_refs((9, "val")), {"split": "val"}]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (tmp_path / "evil.p").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(DataError, match=message):
        against(word.format(tmp=tmp_path), folders=(tmp_path / "have",))


def test_splits_that_are_held_out() -> None:
    held = ("val", "val2014", "validation", "dev", "test", "testA", "minival")
    assert all(map(is_evaluation, held))
    assert not any(map(is_evaluation, ("train", "train2017", "restval", "all", "default")))
