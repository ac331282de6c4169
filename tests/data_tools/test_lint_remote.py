"""``lint`` of a corpus at a URL: as in a folder, and storage that fails is no fault of a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_tools.lint import problems
from wholegrain.data import storage
from wholegrain.data.corpus import Corpus
from wholegrain.data.storage import StorageConfig, StorageGone

Run = Callable[..., Any]


@pytest.fixture
def url(coco_layout: Any, tmp_path: Path, data_tools: Run) -> Iterator[str]:
    """A corpus in fsspec's memory."""
    out = tmp_path / "corpus"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    files = fsspec.filesystem("memory")
    for path in out.iterdir():
        files.pipe_file(f"/{tmp_path.name}/c/{path.name}", path.read_bytes())
    before = storage.current()
    storage.configure(StorageConfig(cache=tmp_path / "cache", attempts=2, patience_s=2.0))
    yield f"memory://{tmp_path.name}/c"
    storage.configure(before)
    files.rm(f"/{tmp_path.name}", recursive=True)


def test_an_address_is_linted_as_a_folder_is(url: str, data_tools: Run) -> None:
    ran = data_tools("lint", url)
    assert ran.status == 0, ran.err
    assert f"{url}: 3 of 3 samples checked, no problem" in ran.out


def test_storage_that_is_gone_ends_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(url)

    def gone(*_: object, **__: object) -> None:
        raise StorageGone("memory://x: the storage is gone")

    monkeypatch.setattr(storage.NodeCache, "local", gone)
    with pytest.raises(StorageGone, match="the storage is gone"):
        list(problems(corpus))
    monkeypatch.setattr(Corpus, "verify", lambda self: None)  # now while samples are read
    with pytest.raises(StorageGone, match="the storage is gone"):
        list(problems(corpus))
