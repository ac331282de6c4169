"""Shards, local and remote, behind one interface."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pytest

from wholegrain.data import corpus_files
from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.storage import StorageConfig
from wholegrain.errors import DataError

CONTENTS = [bytes([65 + number]) * 1000 for number in range(6)]


class Numbered(Sequence[str]):
    """A million addresses that nobody has written down."""

    def __init__(self, folder: str) -> None:
        self.folder, self.asked = folder, list[int]()

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        self.asked.append(number)
        return f"{self.folder}/{number}.tar"


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        for number, data in enumerate(CONTENTS):
            (tmp_path / f"{number}.tar").write_bytes(data)
        yield str(tmp_path)
    else:
        system = fsspec.filesystem("memory")
        for number, data in enumerate(CONTENTS):
            system.pipe_file(f"/corpus/{number}.tar", data)
        yield "memory://corpus"
        system.store.clear()


@pytest.fixture
def settings(tmp_path: Path) -> StorageConfig:
    return StorageConfig(cache=tmp_path / "cache", cache_gb=2500 / 1e9)


def shards_of(folder: str, settings: StorageConfig) -> ShardFiles:
    paths = [f"{folder}/{number}.tar" for number in range(len(CONTENTS))]
    return ShardFiles(paths, [1000] * len(CONTENTS), storage=settings)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_reads_are_the_same_and_open_files_bounded(
    folder: str, settings: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "MAX_OPEN", 2)
    shards, before = shards_of(folder, settings), open_files()
    for _ in range(3):
        for number, data in enumerate(CONTENTS):
            assert shards.read(number, 990, 10) == data[990:]
            assert open_files() - before <= 2
    with pytest.raises(DataError, match=r"5\.tar: ends before byte 1001"):
        shards.read(5, 991, 10)
    with pytest.raises(DataError, match="names shard 6 of 6"):
        shards.read(6, 0, 1)


def test_a_wrong_size_is_named(folder: str, settings: StorageConfig) -> None:
    shards = ShardFiles([f"{folder}/0.tar"], [999], storage=settings)
    with pytest.raises(DataError, match=r"0\.tar: 1000 bytes where the manifest says 999"):
        shards.read(0, 0, 1)


def test_addresses_are_asked_for_one_by_one(folder: str, settings: StorageConfig) -> None:
    paths = Numbered(folder)
    shards = ShardFiles(paths, range(1000, 1_001_000), storage=settings)
    assert shards.read(0, 1, 2) == b"AA"
    shards.prefetch(iter([]))
    assert set(paths.asked) == {0}
    assert str(shards.path(999_999)) == f"{folder}/999999.tar"


def test_threads_share_it(folder: str, settings: StorageConfig) -> None:
    shards, wrong = shards_of(folder, settings), list[object]()

    def read(seed: int) -> None:
        try:
            for step in range(40):
                number = (seed + step) % len(CONTENTS)
                if shards.read(number, step, 5) != CONTENTS[number][:5]:
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_travels_by_pickle_with_its_settings(folder: str, settings: StorageConfig) -> None:
    shards = shards_of(folder, settings)
    shards.read(0, 0, 1)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(1, 0, 3) == b"BBB"
    if folder.startswith("memory:"):
        assert len(list(settings.folder().glob("*.whole"))) == 2


def test_copies_that_the_cache_has_dropped_are_closed(settings: StorageConfig) -> None:
    """They would take up room on the disk that nobody accounts for."""
    system = fsspec.filesystem("memory")
    for number, data in enumerate(CONTENTS):
        system.pipe_file(f"/corpus/{number}.tar", data)
    shards, before = shards_of("memory://corpus", settings), open_files()
    for number in range(len(CONTENTS)):
        shards.read(number, 0, 1)
    assert open_files() - before <= 3  # two fit into the cache, and the one before
    system.store.clear()
