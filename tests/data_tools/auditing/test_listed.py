"""A list of photo ids as editors on Windows save it."""

from __future__ import annotations

from pathlib import Path

from data_tools.auditing.protected import parse_against


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_bytes(b"\xef\xbb\xbfcoco/9\r\ncoco/25\r\n")
    assert sorted(parse_against([f"mine={listed}"], []).photos) == ["coco/25", "coco/9"]
    listed.write_bytes(b"\xef\xbb\xbf# a comment\r\ncoco/9\r\n")
    assert sorted(parse_against([f"mine={listed}"], []).photos) == ["coco/9"]
