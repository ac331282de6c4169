"""Servers, and settings under which a test of failing storage takes a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.wholegrain.data.storage.faulty_proxy import FaultyProxy
from tests.wholegrain.data.storage.servers import RangeServer, S3Server
from wholegrain.data.storage import NodeCache, StorageConfig


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's account, and nobody's proxy."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def web() -> Iterator[RangeServer]:
    server = RangeServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture
def proxy() -> Iterator[Callable[[int], FaultyProxy]]:
    """Puts a proxy in front of a port."""
    made: list[FaultyProxy] = []

    def put_before(port: int) -> FaultyProxy:
        made.append(FaultyProxy(port))
        return made[-1]

    yield put_before
    for each in made:
        each.close()


@pytest.fixture
def settings(tmp_path: Path) -> StorageConfig:
    return StorageConfig(
        cache=tmp_path / "cache",
        cache_gb=0.1,
        block_mb=0.25,
        attempts=6,
        patience_s=20.0,
        timeout_s=5.0,
    )


@pytest.fixture
def make_cache(settings: StorageConfig) -> Callable[..., NodeCache]:
    """A cache with the test's settings, changed as is told."""

    def make(max_bytes: int = 100_000_000, **changes: Any) -> NodeCache:
        config = replace(settings, **changes)
        return NodeCache(config.folder(), max_bytes, config)

    return make
