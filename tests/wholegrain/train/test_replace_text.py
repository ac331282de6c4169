"""A small file of a run folder is the old one or the new one, also after the machine crashed."""

import errno
import os
from pathlib import Path

import pytest

from wholegrain.train.run_folder import replace_text


def test_it_is_flushed_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    seen: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        seen.extend([os.readlink(f"/proc/self/fd/{descriptor}"), path.read_text()])

    monkeypatch.setattr(os, "fsync", fsync)
    replace_text(path, "naïve")
    assert seen == [f"{path}.partial", "old"]
    assert path.read_text(encoding="utf-8") == "naïve"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_stays_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*results\.json"):
        replace_text(path, "new")
    assert path.read_text() == "old"
