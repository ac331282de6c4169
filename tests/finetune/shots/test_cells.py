"""Finished parts of a run: whole or absent, and never those of other settings."""

from pathlib import Path

import pytest

from finetune.shots.cells import Cells, digest, write_json


def test_a_digest_knows_values_and_not_their_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError):
        digest({"a": float("nan")})


def test_a_cell_is_found_under_its_key_alone(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells")
    key, other = digest({"a": 1}), digest({"a": 2})
    assert cells.read("x", key) is None
    path = cells.write("x", key, {"correct": 3})
    found = cells.read("x", key)
    assert found is not None
    assert found["correct"] == 3
    assert cells.read("x", other) is None
    assert cells.read("y", key) is None
    # Names hold a part of the digest; the whole of it is in the file.
    path.rename(cells.path("x", other))
    assert cells.read("x", other) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"key": 1}'])
def test_a_damaged_cell_is_absent(content: bytes, tmp_path: Path) -> None:
    cells, key = Cells(tmp_path), digest({})
    cells.write("x", key, {"correct": 3}).write_bytes(content)
    assert cells.read("x", key) is None


def test_nothing_is_left_beside_a_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a" / "x.json", {"a": float("inf")})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]
    assert '"a": 1' in (tmp_path / "a" / "x.json").read_text()
