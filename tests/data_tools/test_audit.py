"""Planted leaks are found, whatever they are called, and nothing else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.auditing import by_hash, by_id, hash_cache, phash

Picture = Callable[[int], Image.Image]
Encode = Callable[..., bytes]
WriteCorpus = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture
def protected(write_corpus: WriteCorpus, picture: Picture, encode: Encode) -> Path:
    """A converted RefCOCO: a training photo, two of val, one of testA (which val shares)."""
    rows = [
        ("refcoco-unc/train/1", "coco/1", "train", encode(picture(1))),
        ("refcoco-unc/val/25", "coco/25", "val", encode(picture(25))),
        ("refcoco-unc/val/30", "coco/30", "val", encode(picture(30))),
        ("refcoco-unc/testA/25", "coco/25", "testA", encode(picture(25))),
    ]
    return write_corpus("refcoco", rows)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def matrix(audit: dict[str, Any]) -> dict[str, dict[str, tuple[int, int | None]]]:
    """Corpus and split to column to (by id, by hash), of what is not zero."""
    out = {}
    for corpus in audit["corpora"]:
        for split, found in corpus["splits"].items():
            by_looks = found["by_hash"] or [None] * len(audit["columns"])
            cells = {
                " ".join(column): (a, b)
                for column, a, b in zip(audit["columns"], found["by_id"], by_looks, strict=True)
                if a or b
            }
            out[f"{corpus['name']} {split}"] = cells
    return out


# By id


def test_ids_are_found_whatever_the_corpus_is_called(
    protected: Path,
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    tmp_path: Path,
) -> None:
    photos = [encode(picture(number)) for number in range(100, 104)]
    coco = write_corpus("coco", [(f"coco/{n}", None, "train", photos[0]) for n in (1, 9, 25)])
    vg = write_corpus(
        "vg",
        [
            ("vg/2407", None, "train", photos[1]),
            ("vg/25", None, "train", photos[2]),  # Visual Genome's own number 25 is another photo
            ("vg/107", "coco/30", "train", photos[3]),
            ("vg/108", "coco/30", "train", photos[3]),  # one photo, two records
        ],
    )
    out = tmp_path / "audit.json"
    ran = data_tools("audit", coco, vg, "--against", f"refcoco={protected}", "--out", out)
    assert ran.status == 1, ran.err
    audit = load(out)
    assert matrix(audit) == {
        "coco train": {"refcoco val": (1, None), "refcoco testA": (1, None)},
        "vg train": {"refcoco val": (1, None)},
    }
    assert audit["leaked"] == 2
    assert [c["splits"]["train"]["photos"] for c in audit["corpora"]] == [["coco/25"], ["coco/30"]]
    assert audit["protected"][0]["splits"] == {"val": 2, "testA": 1}
    assert audit["perceptual"] is None
    assert f"protected photos in the corpora: 2; convert again with --exclude {out}" in ran.out
    for part in ("coco train", "vg train", "refcoco", "testA"):
        assert part in ran.out


def test_2014_names_2017_names_and_refs_mean_one_photo(
    coco_layout: Any, data_tools: Run, tmp_path: Path
) -> None:
    """COCO as of 2017 (000000000009.jpg), protected by a list that names photos as of 2014."""
    corpus = tmp_path / "converted"
    flags = [*coco_layout.flags, "--split", "train", "--out", corpus]
    assert data_tools("convert", "coco", *flags).status == 0
    listed = tmp_path / "listed.txt"
    for name, status in (
        ("val2014/COCO_val2014_000000000009.jpg", 1),
        ("COCO_train2014_000000000009.jpg", 1),
        ("train2017/000000000009.jpg", 1),
        ("000000000010.jpg", 0),
    ):
        listed.write_text(name)
        ran = data_tools("audit", corpus, "--against", f"karpathy={listed}")
        assert ran.status == status, (name, ran.out, ran.err)


def test_a_clean_corpus_passes(
    protected: Path,
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    tmp_path: Path,
) -> None:
    clean = write_corpus(
        "clean", [(f"coco/{n}", None, "train", encode(picture(n))) for n in (1, 2, 3)]
    )
    out = tmp_path / "audit.json"
    against = f"refcoco={protected}"
    ran = data_tools("audit", clean, "--against", against, "--perceptual", "--out", out)
    assert ran.status == 0, ran.out
    assert load(out)["leaked"] == 0
    assert "none of 2 protected photos is in the corpora" in ran.out


def test_held_out_splits_are_counted_and_leak_nothing_unless_asked_for(
    protected: Path, data_tools: Run, tmp_path: Path
) -> None:
    out = tmp_path / "audit.json"
    given = ["audit", protected, "--against", f"refcoco={protected}", "--out", out]
    ran = data_tools(*given)
    assert ran.status == 0, ran.out
    assert "refcoco val (held out)" in ran.out
    splits = load(out)["corpora"][0]["splits"]
    assert {split: found["audited"] for split, found in splits.items()} == {
        "train": True,
        "val": False,
        "testA": False,
    }
    assert splits["val"]["by_id"] == [2, 1] and splits["val"]["leaked"] == 0
    assert data_tools(*given, "--split", "val").status == 1
    splits = load(out)["corpora"][0]["splits"]
    assert [found["audited"] for found in splits.values()] == [False, True, False]
    assert [found["leaked"] for found in splits.values()] == [0, 2, 0]
    assert data_tools(*given, "--split", "train", "--split", "val").status == 1
    assert data_tools(*given, "--split", "all").status == 1
    assert load(out)["leaked"] == 3
    assert data_tools(*given, "--split", "train").status == 0


def test_a_hash_that_two_identities_share_is_no_leak(
    protected: Path,
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wholegrain.data.index_file import id_hash

    corpus = write_corpus("other", [("other/1", None, "train", encode(picture(5)))])
    monkeypatch.setattr(by_id, "id_hash", lambda photo: id_hash("other/1"))
    assert data_tools("audit", corpus, "--against", f"refcoco={protected}").status == 0


def test_the_index_is_read_in_pieces(
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    data = encode(picture(0))
    corpus = write_corpus("coco", [(f"coco/{n}", None, "train", data) for n in range(11)])
    listed, out = tmp_path / "ids.txt", tmp_path / "audit.json"
    listed.write_text("0\n3\n4\n10\n77\n")
    monkeypatch.setattr(by_id, "_ROWS_AT_A_TIME", 4)
    data_tools("audit", corpus, "--against", f"karpathy={listed}", "--out", out)
    found = load(out)["corpora"][0]["splits"]["train"]["photos"]
    assert found == ["coco/0", "coco/10", "coco/3", "coco/4"]


def test_sets_without_a_place_lie_in_corpora_then_in_raw_or_where_told(
    protected: Path,
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    corpus = write_corpus("coco", [("coco/30", None, "train", encode(picture(30)))])
    other = write_corpus("other", [("coco/99", None, "val", encode(picture(99)))])
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    given = ("audit", corpus, "--against", "refcoco")
    ran = data_tools(*given)
    assert ran.status == 2
    assert "none of corpora/refcoco, corpora/refer/refcoco, raw/refcoco" in ran.err
    shutil.copytree(protected, work / "raw" / "refcoco")
    assert data_tools(*given).status == 1
    shutil.copytree(other, work / "corpora" / "refcoco")
    assert data_tools(*given).status == 0
    assert data_tools(*given, "--protected", "empty", "--protected", protected.parent).status == 1


# By what they show


@pytest.fixture
def renamed(write_corpus: WriteCorpus, picture: Picture, encode: Encode) -> Path:
    """Photos under names of their own: copies of protected photos, a training photo, others."""
    one, other = picture(25), picture(30)
    width, height = one.size
    flip, turn = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90
    photos = {
        "exact": encode(one),
        "re-encoded": encode(one, quality=30),
        "half": encode(one.resize((width // 2, height // 2))),
        "double": encode(one.resize((2 * width, 2 * height)), "PNG"),
        "webp": encode(other, "WEBP", quality=60),
        "cut": encode(other.crop((3, 2, width, height))),
        "mirrored": encode(other.transpose(flip)),
        "turned": encode(other.transpose(turn)),
        "of train": encode(picture(1)),
        "another": encode(picture(99)),
        "white": encode(Image.new("RGB", (90, 60), "white")),
        "grey": encode(Image.new("RGB", (90, 60), "#808080")),
    }
    return write_corpus("sbu", [(f"sbu/{n}", None, "train", d) for n, d in photos.items()])


COPIES = {
    "sbu/exact": ("coco/25", "as it is"),
    "sbu/re-encoded": ("coco/25", "as it is"),
    "sbu/half": ("coco/25", "as it is"),
    "sbu/double": ("coco/25", "as it is"),
    "sbu/webp": ("coco/30", "as it is"),
    "sbu/cut": ("coco/30", "as it is"),
    "sbu/mirrored": ("coco/30", "mirrored"),
    "sbu/turned": ("coco/30", "turned by 90"),
}


def test_copies_under_other_names_are_found_by_what_they_show(
    protected: Path, renamed: Path, data_tools: Run, tmp_path: Path
) -> None:
    against = ["--against", f"refcoco={protected}"]
    ran = data_tools("audit", renamed, *against)
    assert ran.status == 0  # ids alone say nothing
    assert "photos of sbu have no id of the protected sets; compare" in ran.out
    out = tmp_path / "audit.json"
    ran = data_tools("audit", renamed, *against, "--perceptual", "--out", out)
    assert ran.status == 1
    audit = load(out)
    rows = audit["corpora"][0]["look_alikes"]
    assert {row["id"]: (row["shows"], row["turn"]) for row in rows} == COPIES
    assert all(row["source"] == "sbu" and row["photo"] is None for row in rows)
    assert matrix(audit) == {
        "sbu train": {"refcoco val": (0, 8), "refcoco testA": (0, 4)},
    }
    assert audit["leaked"] == 8
    assert audit["perceptual"]["compared"] == 2
    assert audit["perceptual"]["compared_by_column"] == [2, 1]
    assert audit["corpora"][0]["splits"]["train"]["flat"] == 2
    assert "sbu: 2 flat and 0 unreadable photos were not compared" in ran.out


def test_a_photo_found_by_its_id_is_not_found_again_by_its_looks(
    protected: Path,
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    tmp_path: Path,
) -> None:
    corpus = write_corpus("coco", [("coco/30", None, "train", encode(picture(30), quality=40))])
    out = tmp_path / "audit.json"
    against = f"refcoco={protected}"
    data_tools("audit", corpus, "--against", against, "--perceptual", "--out", out)
    assert matrix(load(out)) == {"coco train": {"refcoco val": (1, 0)}}
    assert load(out)["corpora"][0]["look_alikes"] == []


def test_flat_protected_photos_match_nothing(
    write_corpus: WriteCorpus, picture: Picture, encode: Encode, data_tools: Run, tmp_path: Path
) -> None:
    white = encode(Image.new("RGB", (90, 60), "white"))
    rows = [("coco/1", None, "val", white), ("coco/2", None, "val", encode(picture(2)))]
    against = f"karpathy={write_corpus('val', rows)}"
    corpus = write_corpus("cc", [(f"cc/{n}", None, "train", white) for n in range(5)])
    out = tmp_path / "audit.json"
    ran = data_tools("audit", corpus, "--against", against, "--perceptual", "--out", out)
    assert ran.status == 0, ran.out
    assert load(out)["perceptual"]["flat"] == ["coco/1"]
    assert "1 protected photos are flat: coco/1" in ran.out


def test_sets_given_as_lists_find_their_photos_elsewhere(
    renamed: Path, picture: Picture, encode: Encode, data_tools: Run, tmp_path: Path
) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("25\n30\n391895\n")
    given = ["audit", renamed, "--against", f"refcoco={listed}", "--perceptual"]
    ran = data_tools(*given)
    assert ran.status == 2
    assert "no protected photo is at hand" in ran.err and "--photos" in ran.err
    photos = tmp_path / "train2014"
    photos.mkdir()
    for number in (1, 25, 30):
        name = f"COCO_train2014_{number:012d}.jpg"
        (photos / name).write_bytes(encode(picture(number)))
    out = tmp_path / "audit.json"
    ran = data_tools(*given, "--photos", photos, "--out", out)
    assert ran.status == 1
    rows = load(out)["corpora"][0]["look_alikes"]
    assert {row["id"]: (row["shows"], row["turn"]) for row in rows} == COPIES
    assert "1 protected photos are not at hand" in ran.out
    assert load(out)["perceptual"]["compared"] == 2


def test_broken_photos_are_counted(
    protected: Path,
    write_corpus: WriteCorpus,
    picture: Picture,
    encode: Encode,
    data_tools: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    data = encode(picture(7))
    rows = [("a/1", None, "train", data[: len(data) // 2]), ("a/2", None, "train", data)]
    corpus = write_corpus("a", rows)
    out = tmp_path / "audit.json"
    against = f"refcoco={protected}"
    ran = data_tools("audit", corpus, "--against", against, "--perceptual", "--out", out)
    assert ran.status == 0, ran.err
    found = load(out)["corpora"][0]["splits"]["train"]
    assert (found["flat"], found["unreadable"]) == (0, 1)


# The file, and running again


def test_the_same_audit_is_the_same_bytes_and_reads_no_photo_twice(
    protected: Path,
    renamed: Path,
    data_tools: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    out = tmp_path / "audits" / "audit.json"
    given = ["audit", renamed, "--against", f"refcoco={protected}", "--perceptual", "--out", out]
    monkeypatch.setattr(hash_cache, "PIECE", 5)
    assert data_tools(*given, "--workers", 1).status == 1
    first = out.read_bytes()
    assert not [path for path in out.parent.rglob("*") if "partial" in path.name]
    read: list[str] = []
    squeezed = phash.squeezed

    def counted(data: bytes, where: str) -> Any:
        read.append(where)
        return squeezed(data, where)

    monkeypatch.setattr(phash, "squeezed", counted)
    assert data_tools(*given, "--workers", 3).status == 1
    assert out.read_bytes() == first
    assert len(read) == len(COPIES)  # those to be confirmed, not the rest
    # A piece that is damaged or missing is made anew, and it alone.
    pieces = sorted((out.parent / "audit_hashes").glob("[!p]*.npz"))
    assert len(pieces) == 3
    pieces[0].write_bytes(pieces[0].read_bytes()[:100])
    pieces[2].unlink()
    read.clear()
    assert data_tools(*given).status == 1
    assert out.read_bytes() == first
    assert len(read) == len(COPIES) + 5 + 2


def test_hashes_are_kept_where_told(
    protected: Path, renamed: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "audits" / "audit.json"
    given = ["audit", renamed, "--against", f"refcoco={protected}", "--perceptual"]
    assert data_tools(*given, "--hashes", kept, "--out", out).status == 1
    assert list(kept.glob("*.npz"))
    assert list(out.parent.iterdir()) == [out]
    monkeypatch.setattr(hash_cache, "_hash_rows", None)  # of the corpus there is none left to do
    assert data_tools(*given, "--hashes", kept).status == 1


def test_without_out_nothing_is_written(
    protected: Path, renamed: Path, data_tools: Run, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    data_tools("audit", renamed, "--against", f"refcoco={protected}", "--perceptual")
    assert sorted(tmp_path.rglob("*")) == before


def test_too_many_look_alikes_end_the_audit(
    protected: Path, renamed: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.auditing import findings

    monkeypatch.setattr(findings, "MAX_LOOK_ALIKES", 3)
    ran = data_tools("audit", renamed, "--against", f"refcoco={protected}", "--perceptual")
    assert ran.status == 2
    assert "more than 3 rows of split 'train' show protected photos" in ran.err


def test_a_candidate_of_many_copies_is_kept_as_it_lies_closest(
    protected: Path, renamed: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With every pair a candidate, the second comparison alone gives the same result."""
    monkeypatch.setattr(phash, "RADIUS", 64)
    monkeypatch.setattr(by_hash, "HammingIndex", _Everything)
    out = tmp_path / "audit.json"
    against = f"refcoco={protected}"
    data_tools("audit", renamed, "--against", against, "--perceptual", "--out", out)
    rows = load(out)["corpora"][0]["look_alikes"]
    assert {row["id"]: (row["shows"], row["turn"]) for row in rows} == COPIES


class _Everything:
    def __init__(self, known: Any, radius: int) -> None:
        self.known = len(known)

    def search(self, hashes: Any) -> Any:
        import numpy as np

        rows, entries = np.indices((len(hashes), self.known))
        return rows.ravel(), entries.ravel()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name corpora, or the --out of an exclusion list"),
        (["{corpus}", "--split", "vall"], "--split vall: no corpus has such a split; they have t"),
        (["{corpus}", "--photos", "x"], "photos are compared with --perceptual only; add it"),
        (["nowhere"], "nowhere: no such corpus folder"),
        (["{corpus}", "--perceptual", "--photos", "nowhere"], "--photos nowhere: No such file"),
        (["{corpus}", "--out", "{corpus}/index.npy/x.json"], "cannot be written"),
    ],
)
def test_errors_end_with_status_2(
    protected: Path, data_tools: Run, flags: list[str], message: str
) -> None:
    given = [flag.format(corpus=protected) for flag in flags]
    ran = data_tools("audit", *given, "--against", f"refcoco={protected}")
    assert ran.status == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
