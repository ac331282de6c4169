"""Names and numbers that nobody expects are one bad sample or none, never the end of the work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.prepare import prepare
from data_tools.sources.base import Bad, Draft, listing_digest
from data_tools.sources.coco import read_coco, xywh
from wholegrain.data.corpus import Corpus

Run = Callable[..., Any]


def test_a_listing_of_names_that_are_no_utf_8() -> None:
    odd = os.fsdecode(b"caf\xe9.jpg")
    digest = listing_digest([(odd, 3), ("b.jpg", 4)])
    assert digest == listing_digest([("b.jpg", 4), (odd, 3)]) != listing_digest([("b.jpg", 4)])
    # Of all others it is what it was, so that conversions go on.
    plain = hashlib.sha256("ä.jpg\0001\n".encode()).hexdigest()
    assert listing_digest([("ä.jpg", 1)]) == plain


def test_a_folder_with_such_a_name_is_converted(
    coco_layout: Any, tmp_path: Path, data_tools: Run, photo: Callable[..., bytes]
) -> None:
    odd = os.fsencode(coco_layout.images) + b"/caf\xe9.jpg"
    with open(odd, "wb") as file:
        file.write(photo(9)[:200])  # and cut short, so that its name stands among the bad samples
    name = os.fsdecode(b"caf\xe9.jpg")

    def edit(layout: Any) -> None:
        layout["images"][0]["file_name"] = name

    for file in (coco_layout.captions, coco_layout.instances):
        coco_layout.change(file, edit)
    out = tmp_path / "out"
    ran = data_tools("convert", "coco", *coco_layout.flags, "--out", out, "--max-bad", "0.5")
    assert ran.status == 0, ran.err
    (bad,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert bad["cause"] == "image: truncated" and "caf\\udce9.jpg" in bad["detail"]
    assert len(Corpus.open(out)) == 2


@pytest.mark.parametrize("name", ["a\0b.jpg", "half \ud800.jpg", "x" * 5000 + ".jpg"])
def test_a_name_that_no_file_can_have_is_one_bad_sample(
    coco_layout: Any, tmp_path: Path, data_tools: Run, name: str
) -> None:
    draft = Draft("set/1", "set", "train", tmp_path / name, "a.json: image 1", captions=("a",))
    bad = prepare(draft)
    assert isinstance(bad, Bad) and bad.cause == "image: unreadable"

    def edit(layout: Any) -> None:
        layout["images"][0]["file_name"] = name

    for file in (coco_layout.captions, coco_layout.instances):
        coco_layout.change(file, edit)
    (coco_layout.images / "000000000009.jpg").unlink()
    out = tmp_path / "out"
    ran = data_tools("convert", "coco", *coco_layout.flags, "--out", out, "--max-bad", "0.5")
    assert ran.status == 0, ran.err
    (bad,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert bad["cause"] == "image: unreadable"
    assert len(Corpus.open(out)) == 2
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0  # up to date


def test_a_number_beyond_floats_is_no_box(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    assert all(number != number for number in xywh([10**400, 0, 5, 5]))
    coco_layout.change(
        coco_layout.instances, lambda layout: layout["annotations"][0].update(bbox=[10**400] * 4)
    )
    assert read_coco(coco_layout.images, None, coco_layout.instances).units == 2
    out = tmp_path / "out"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    left_out = Corpus.open(out).manifest["source"]["left_out"]
    assert left_out["region: box not finite"] == 1
