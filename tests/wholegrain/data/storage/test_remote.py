"""Drivers: which one is missing, and calls that do not return."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.wholegrain.data.storage.contents import digest
from wholegrain.data.storage import NodeCache, StorageGone
from wholegrain.data.storage.urls import DRIVERS
from wholegrain.errors import ConfigError

Make = Callable[..., NodeCache]
REGISTRY = importlib.import_module("fsspec.registry")


@pytest.mark.parametrize("scheme", [name for name, each in DRIVERS.items() if each.package])
def test_a_missing_driver_is_named(
    make_cache: Make, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    package = DRIVERS[scheme].package
    assert package is not None
    monkeypatch.setitem(sys.modules, package, None)
    # fsspec keeps what it has imported before.
    monkeypatch.delitem(REGISTRY._registry, DRIVERS[scheme].protocol, raising=False)
    for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    cache = make_cache(timeout_s=4.5)
    with pytest.raises(ConfigError, match=rf"{scheme}://h/a: .*pip install {package}"):
        cache.local(f"{scheme}://h/a", 5)


class Hanging(MemoryFileSystem):
    """As a blocking driver whose server has died; it hangs where a test says so."""

    hang = threading.Event()

    def cat_file(self, *arguments: Any, **options: Any) -> bytes:
        if self.hang.is_set():
            time.sleep(3.0)
        assert options.pop("seekable")  # Arrow's cannot read a range otherwise
        return bytes(super().cat_file(*arguments, **options))


def test_a_blocking_driver_that_hangs_is_given_up(
    make_cache: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY._registry, "hdfs", Hanging)
    system = Hanging()
    system.pipe_file("hdfs://h/a", b"content")
    cache = make_cache(timeout_s=0.2, attempts=2)
    Hanging.hang.set()
    try:
        with pytest.raises(StorageGone, match="no answer in"):
            cache.local("hdfs://h/a", 7, digest(b"content"))
    finally:
        Hanging.hang.clear()
    assert cache.local("hdfs://h/a", 7, digest(b"content")).read() == b"content"
    system.store.clear()
