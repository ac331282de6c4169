"""What an audit excludes is not converted, and the next audit finds nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.exclusion import Exclusion
from data_tools.sources.base import Draft
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError

Run = Callable[..., Any]


def draft(identity: str, photo: str | None = None, source: str = "coco") -> Draft:
    return Draft(identity, source, "train", b"", "here", photo=photo)


def test_a_list_made_before_any_corpus_excludes_the_union(
    coco_layout: Any, data_tools: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("9\n391895\n")
    (tmp_path / "b.txt").write_text("COCO_val2014_000000000009.jpg\n25\n")
    sets = f"refcoco={tmp_path}/a.txt,karpathy={tmp_path}/b.txt"
    out = tmp_path / "protected.json"
    ran = data_tools("audit", "--against", sets, "--out", out)
    assert ran.status == 0, ran.err
    assert f"3 photos to leave out, by `convert SOURCE --exclude {out}`" in ran.out
    exclusion = Exclusion.load(out)
    assert len(exclusion) == 3
    assert exclusion.reason(draft("coco/9")) == "refcoco listed"
    assert exclusion.reason(draft("vg/7", "coco/25")) == "karpathy listed"
    assert exclusion.reason(draft("coco/25", "vg/7")) is None  # the photo counts, not the record
    assert exclusion.reason(draft("coco/30")) is None
    corpus = tmp_path / "coco_clean"
    flags = [*coco_layout.flags, "--split", "train", "--exclude", out, "--out", corpus]
    ran = data_tools("convert", "coco", *flags)
    assert ran.status == 0, ran.err
    left = Corpus.open(corpus)
    assert [left.record(n).id for n in range(len(left))] == ["coco/30"]
    assert data_tools("audit", corpus, "--against", sets).status == 0


def test_rows_that_look_like_a_protected_photo_are_left_out_of_the_next_conversion(
    write_corpus: Callable[..., Path],
    write_tar: Callable[..., Path],
    picture: Callable[[int], Image.Image],
    encode: Callable[..., bytes],
    data_tools: Run,
    tmp_path: Path,
) -> None:
    rows = [("coco/25", None, "val", encode(picture(25)))]
    against = ["--against", f"karpathy={write_corpus('val', rows)}", "--perceptual"]
    files = {"000": encode(picture(25), quality=40), "001": encode(picture(26))}
    members = [
        (f"{key}.{kind}", data)
        for key, photo in files.items()
        for kind, data in (("jpg", photo), ("txt", b"a thing"))
    ]
    tar = write_tar(tmp_path / "tars" / "00000.tar", members)
    convert = ["convert", "image_text", "--tars", tar, "--name", "cc3m"]
    corpus, leaks, audit = tmp_path / "cc3m", tmp_path / "leaks.json", tmp_path / "audit.json"
    assert data_tools(*convert, "--out", corpus).status == 0
    assert data_tools("audit", corpus, *against, "--out", leaks).status == 1
    (row,) = json.loads(leaks.read_text())["corpora"][0]["look_alikes"]
    exclusion = Exclusion.load(leaks)
    assert exclusion.reason(draft(row["id"], source="cc3m")) == "karpathy val (looks the same)"
    # Keys repeat from set to set: another set's sample of that id is another photo.
    assert exclusion.reason(draft(row["id"], source="cc12m")) is None
    ran = data_tools(*convert, "--out", corpus, "--exclude", leaks, "--overwrite")
    assert ran.status == 0, ran.err
    left = Corpus.open(corpus)
    assert len(left) == 1
    assert left.manifest["source"]["left_out"] == {"excluded: karpathy val (looks the same)": 1}
    assert data_tools("audit", corpus, *against, "--out", audit).status == 0


def test_all_records_of_a_photo_that_looks_like_a_protected_one_go(
    write_corpus: Callable[..., Path],
    picture: Callable[[int], Image.Image],
    encode: Callable[..., bytes],
    data_tools: Run,
    tmp_path: Path,
) -> None:
    val = write_corpus("val", [("coco/25", None, "val", encode(picture(25)))])
    copy = [("vg_objects/1", "vg/2407", "train", encode(picture(25), quality=50))]
    out = tmp_path / "leaks.json"
    given = ["--against", f"karpathy={val}", "--perceptual", "--out", out]
    assert data_tools("audit", write_corpus("vg", copy), *given).status == 1
    exclusion = Exclusion.load(out)
    assert exclusion.reason(draft("vg_regions/1", "vg/2407", source="other")) == "karpathy val"
    assert exclusion.reason(draft("vg_regions/2", "vg/2408", source="other")) is None


def test_the_digest_is_that_of_what_is_excluded(data_tools: Run, tmp_path: Path) -> None:
    digests = []
    for name, ids in (("one", "9\n25\n"), ("two", "25\n9\n9\n"), ("three", "9\n26\n")):
        (tmp_path / "ids.txt").write_text(ids)
        out = tmp_path / f"{name}.json"
        data_tools("audit", "--against", f"refcoco={tmp_path}/ids.txt", "--out", out)
        digests.append(Exclusion.load(out).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_file_that_is_no_audit(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read \(No such file"):
        Exclusion.load(path)
    path.write_text('{"schema": 2}')
    with pytest.raises(DataError, match="audit is None, this version reads 1; name a file of"):
        Exclusion.load(path)
