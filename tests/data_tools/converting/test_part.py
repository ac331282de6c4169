import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from rich.console import Console

from data_tools.convert import convert
from data_tools.converting.part import write_part
from data_tools.converting.plan import ConvertOptions, Plan
from data_tools.sources.base import Bad, Draft, Drafts, Source
from wholegrain.data.part import read_part

PIXELS = np.zeros((8, 8, 3), np.uint8)
PHOTO = simplejpeg.encode_jpeg(PIXELS) + bytes(20_000)  # what follows the end is no fault


def draft(number: int, **more: object) -> Draft:
    given = {"image": PHOTO, "captions": ("a caption",), **more}
    return Draft(id=str(number), source="s", split="train", where=f"line {number}", **given)  # type: ignore[arg-type]


def plan(out: Path, units: int, **options: object) -> Plan:
    def read(start: int, stop: int, left_out: Counter[str]) -> Drafts:
        return (draft(number) for number in range(start, stop))

    return Plan(Source("s", {}, units, read), ConvertOptions(out, **options))  # type: ignore[arg-type]


def peak(out: Path, units: int) -> int:
    tracemalloc.start()
    try:
        assert convert(plan(out, units, shard_size=20), Console(quiet=True))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_photos(tmp_path: Path) -> None:
    peak(tmp_path / "first", 20)  # what is imported and cached once
    few, many = peak(tmp_path / "few", 40), peak(tmp_path / "many", 800)
    # 760 photos of 20 kB more: 15 MB. What grows is a few kilobytes for each of 38 parts.
    assert many - few < 1_000_000, (few, many)


def test_what_a_part_notes(tmp_path: Path) -> None:
    def read(start: int, stop: int, left_out: Counter[str]) -> Drafts:
        left_out["phrase without box"] += 2
        yield draft(0)
        yield Bad("1", "annotation broken", "line 1: broken")
        yield draft(2, image=b"<html>")
        yield draft(0)
        yield draft(4, captions=())

    heard: list[Bad | None] = []
    made = Plan(Source("s", {}, 5, read), ConvertOptions(tmp_path / "out"))
    write_part(made, tmp_path, 0, heard.append)
    marker = read_part(tmp_path, 0)
    assert marker is not None and marker["samples"] == 1
    notes = marker["notes"]
    assert notes["seen"] == len(heard) == 5
    assert notes["left_out"] == {"phrase without box": 2}
    causes = [(one["id"], one["cause"]) for one in notes["skipped"]]
    assert causes == [
        ("1", "annotation broken"),
        ("2", "image: not an image"),
        ("0", "record: id"),
        ("4", "record: captions"),
    ]
    assert [one for one in heard if one is not None] == [Bad(**one) for one in notes["skipped"]]
    # Told from where the annotation stands, not from where the corpus is written.
    assert notes["skipped"][2]["detail"].startswith("line 0: id is '0'; already in this split")


def test_a_photo_that_no_shard_may_hold_is_one_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.converting.part.MAX_IMAGE_BYTES", 10_000)
    heard: list[Bad | None] = []
    write_part(plan(tmp_path / "out", 1), tmp_path, 0, heard.append)
    (bad,) = heard
    assert bad is not None and bad.cause == "image: too large"
