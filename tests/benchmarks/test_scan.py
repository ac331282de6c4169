"""The benchmark of ScanFormer: that its rows are what they say, and that it runs."""

import json
from pathlib import Path

import pytest

from benchmarks import scan

TINY = ["--size", "tiny", "--tokens", "5", "--texts", "1", "2", "--rounds", "1", "--device", "cpu"]


def test_it_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scan.json"
    assert scan.main([*TINY, "--shares", "1", "0.4", "--json", str(file)]) == 0
    assert "finest scale" in capsys.readouterr().out
    written = json.loads(file.read_text())
    rows = {(row["texts"], row["method"], row["share"]): row for row in written["figures"]}
    assert len(rows) == 2 * (2 * 2 + 2)
    for row in rows.values():
        # Formula and torch's count; texts of one call read alike, so none is padded.
        assert row["macs"] == row["macs_counted"], row
        assert row["seconds"] > 0
        assert len(row["part_seconds"]) == (1 if row["share"] is None else 4)
    part = rows[1, "merged", 34 / 84]
    assert part["read"] == [4, 6, 24]
    assert part["macs"] < rows[1, "merged", 1.0]["macs"] == rows[1, "unmerged", 1.0]["macs"]
    assert part["macs"] < rows[1, "unmerged", 34 / 84]["macs"]
    assert written["parameters"]["body"] > written["parameters"]["added"] > 0


def test_the_base_sizes_are_the_published_ones() -> None:
    base = scan.SIZES["base"]
    assert (base.width, base.depth, base.heads, base.patch_size) == (768, 12, 12, 32)
    assert base.image_size // base.patch_size == 20
