"""A preview's folder replaces another preview's and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def corpus(coco_layout: Any, tmp_path: Path, data_tools: Run) -> Path:
    out = tmp_path / "corpus"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    return out


def test_a_website_is_never_overwritten(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    site = tmp_path / "site"
    (site / "images").mkdir(parents=True)
    kept = {"index.html": "<h1>mine</h1>", "about.html": "me", "images/portrait.jpg": "a photo"}
    for name, text in kept.items():
        (site / name).write_text(text)
    ran = data_tools("preview", corpus, "--out", site, "--overwrite")
    assert ran.status == 2 and str(site) in ran.err and "not overwritten" in ran.err
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert files == set(kept)
    assert all((site / name).read_text() == text for name, text in kept.items())


def test_a_preview_is(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "folder"
    assert data_tools("preview", corpus, "--out", out).status == 0
    before = {path.name for path in (out / "images").iterdir()}
    assert data_tools("preview", corpus, "--out", out, "--count", "1", "--overwrite").status == 0
    assert {path.name for path in (out / "images").iterdir()} < before
    assert data_tools("preview", corpus, "--out", out, "--overwrite").status == 0
