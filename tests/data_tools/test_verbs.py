"""index, lint and info on a small corpus."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wholegrain.data.corpus import Corpus

Run = Callable[..., Any]


@pytest.fixture
def corpus(coco_layout: Any, tmp_path: Path, data_tools: Run) -> Path:
    out = tmp_path / "corpus"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    return out


def shard(corpus: Path) -> Path:
    (path,) = corpus.glob("*.tar")
    return path


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def test_lint_passes_a_sound_corpus(corpus: Path, data_tools: Run) -> None:
    ran = data_tools("lint", corpus)
    assert (ran.status, "3 of 3 samples checked, no problem" in ran.out) == (0, True)
    ran = data_tools("lint", corpus, "--sample", "2", "--headers")
    assert (ran.status, "2 of 3 samples checked" in ran.out) == (0, True)


def test_lint_finds_a_changed_byte(corpus: Path, data_tools: Run) -> None:
    replace_bytes(shard(corpus), b"caption 0 of photo 9", b"caption 0 of photo 8")
    ran = data_tools("lint", corpus)
    assert ran.status == 1
    assert "sha256" in ran.out and shard(corpus).name in ran.out and "1 problem" in ran.out


def test_lint_finds_a_bad_record(corpus: Path, data_tools: Run) -> None:
    replace_bytes(shard(corpus), b"[30.0,8.0,34.0,40.0]", b"[30.0,8.0,94.0,40.0]")
    ran = data_tools("lint", corpus)
    assert ran.status == 1
    assert "sample 0: regions[1].box is [30.0, 8.0, 94.0, 40.0]" in ran.out


@pytest.mark.parametrize("flags", [[], ["--headers"]])
def test_lint_finds_a_bad_photo(corpus: Path, data_tools: Run, flags: list[str]) -> None:
    opened = Corpus.open(corpus)
    photo = opened.image_bytes(1)
    offset = int(opened.index[1]["image"])
    # Without its Huffman tables a JPEG has a sound header and cannot be decoded.
    at, fault = (0, b"<html>") if flags else (photo.index(b"\xff\xc4") + 5, b"\xff" * 16)
    with shard(corpus).open("r+b") as file:
        file.seek(offset + at)
        file.write(fault)
    ran = data_tools("lint", corpus, *flags)
    assert ran.status == 1
    assert f"{shard(corpus)}: sample 1 (coco/25)" in ran.out and "2 problems" in ran.out


def test_lint_finds_a_stale_index(corpus: Path, data_tools: Run) -> None:
    rows = np.load(corpus / "index.npy")
    rows["captions"][2] += 1
    np.save(corpus / "index.npy", rows)
    ran = data_tools("lint", corpus)
    assert ran.status == 1 and "data_tools index" in ran.out


def test_lint_of_what_is_no_corpus(tmp_path: Path, data_tools: Run) -> None:
    ran = data_tools("lint", tmp_path / "nowhere")
    assert ran.status == 2 and "nowhere" in ran.err


def test_index_renews_what_was_lost(corpus: Path, data_tools: Run) -> None:
    before = Corpus.open(corpus)
    manifest, records = before.manifest, [before.record(number) for number in range(3)]
    (corpus / "index.npy").unlink()
    ran = data_tools("index", corpus)
    assert ran.status == 0, ran.err
    after = Corpus.open(corpus)
    assert [after.record(number) for number in range(3)] == records
    assert after.manifest["source"] == manifest["source"]
    assert after.fingerprint == manifest["fingerprint"]


def test_index_leaves_foreign_tars_where_they_are(
    tmp_path: Path, write_tar: Any, photo: Any, data_tools: Run
) -> None:
    tar = write_tar(tmp_path / "cc" / "0.tar", [("a.jpg", photo(1)), ("a.txt", b"words")])
    out = tmp_path / "indexed"
    ran = data_tools("index", tar.parent / "*.tar", "--out", out, "--source", "cc")
    assert ran.status == 0, ran.err
    assert list(tar.parent.iterdir()) == [tar]
    record = Corpus.open(out).record(0)
    assert (record.source, record.captions) == ("cc", ("words",))
    assert data_tools("lint", out).status == 0
    ran = data_tools("index", tar, "--out", out)
    assert ran.status == 2 and "exists" in ran.err


def test_index_says_what_it_wants(tmp_path: Path, data_tools: Run) -> None:
    ran = data_tools("index", tmp_path / "none.tar")
    assert ran.status == 2 and "--out" in ran.err
    ran = data_tools("index", tmp_path / "*.tar", "--out", tmp_path / "out")
    assert ran.status == 2 and "no tar there" in ran.err


def test_info(corpus: Path, data_tools: Run) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert json.loads(data_tools("info", corpus, "--json").out) == manifest
    ran = data_tools("info", corpus)
    assert "captions" in ran.out and manifest["fingerprint"] in ran.out


@pytest.mark.parametrize("split", ["train", "val"])
def test_published_counts_come_out_of_the_shards(
    real_data: Path, tmp_path: Path, data_tools: Run, split: str
) -> None:
    out, limit = tmp_path / "out", 200
    flags = ["--root", real_data / "flickr30k_entities_8k", "--split", split, "--limit", limit]
    ran = data_tools("convert", "flickr30k_entities", *flags, "--out", out)
    assert ran.status == 0, ran.err
    assert not (out / "skipped.jsonl").exists()
    assert data_tools("lint", out).status == 0
    counts = Corpus.open(out).manifest["counts"]
    assert (counts["images"], counts["captions"]) == (limit, 5 * limit)
