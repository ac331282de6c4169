"""One request to storage: a range of bytes, or what a file is like. No retries, bounded time.

Drivers come from fsspec. Their instances hold sockets and an event loop, so each process has its
own, and a forked child makes new ones.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wholegrain.data.storage.retry import ShortReadError, is_timeout
from wholegrain.data.storage.settings import StorageConfig
from wholegrain.data.storage.urls import DRIVERS, place_of, scheme_of, shown
from wholegrain.errors import ConfigError

_CONNECT_S = 10.0
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "generation", "mtime")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class Stat:
    """What storage says of a file: its length in bytes, and a tag that changes with its content.

    Either may be unknown: None, and an empty tag.
    """

    size: int | None
    tag: str


def read_range(url: str, start: int, stop: int, config: StorageConfig, timeout_s: float) -> bytes:
    """Bytes ``start`` to ``stop`` of a file, or more: a server without ranges sends the whole.

    Raises:
        ConfigError: the driver is not installed.
        Exception: whatever the driver raises; `retry.is_transient` tells what it means.
    """
    # Arrow opens a stream, which begins at the beginning, unless it is told otherwise.
    extra = {"seekable": True} if scheme_of(url) == "hdfs" else {}
    data = _call(url, config, timeout_s, "cat_file", start=start, end=stop, **extra)
    if not isinstance(data, bytes):  # a cancelled coroutine gives nothing at all
        raise ShortReadError("the request was cut off")
    return data


def stat(url: str, config: StorageConfig, timeout_s: float) -> Stat:
    """Length and tag of a file; errors as of `read_range`."""
    info = _call(url, config, timeout_s, "info")
    if not isinstance(info, dict):
        raise ShortReadError("the request was cut off")
    if info.get("type") == "directory":
        raise IsADirectoryError(f"{shown(url)} is a folder")
    size = info.get("size")
    tags = [str(info[name]) for name in (*_TAGS, *_TIMES) if info.get(name)]
    return Stat(int(size) if size is not None else None, tags[0] if tags else "")


def _call(url: str, config: StorageConfig, timeout_s: float, name: str, **arguments: Any) -> Any:
    try:
        system = _system(url, config)
        path = system._strip_protocol(url)
        if system.async_impl:
            # Cancels the request at the deadline, and returns even where the loop itself hangs.
            asyn = importlib.import_module("fsspec.asyn")
            request = getattr(system, f"_{name}")
            return asyn.sync(system.loop, request, path, timeout=timeout_s, **arguments)
        if scheme_of(url) == "memory":
            return getattr(system, name)(path, **arguments)
        return _within(timeout_s, lambda: getattr(system, name)(path, **arguments))
    except Exception as error:
        options = config.options.get(scheme_of(url))
        if isinstance(error, TypeError) and options:  # some drivers only look at them here
            raise ConfigError(
                f"storage.options.{scheme_of(url)} is {sorted(options)}: the driver does not take "
                f"them ({error}); correct the names"
            ) from None
        if is_timeout(error):
            _systems.forget(url, config)  # with its connections, one of which may hang
        raise


def _within(timeout_s: float, call: Callable[[], Any]) -> Any:
    """What a blocking call returns, or TimeoutError; the thread of a hanging one is left behind."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:  # handed over to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="storage-request", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {timeout_s:.0f} s")
    if failure:
        raise failure[0]
    return result[0]


class _Systems:
    """This process's instances of fsspec's drivers."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.instances: dict[str, Any] = {}
        self.abandoned: list[Any] = []

    def forget(self, url: str, config: StorageConfig) -> None:
        with self.lock:
            self.instances.pop(_key(url, config), None)

    def after_in_child(self) -> None:
        self.lock = threading.Lock()
        # Kept alive: closing them here would say goodbye on connections that the parent is using.
        self.abandoned.append(self.instances)
        self.instances = {}


_systems = _Systems()
os.register_at_fork(after_in_child=_systems.after_in_child)


def _key(url: str, config: StorageConfig) -> str:
    return f"{place_of(url)} {config!r}"


def _system(url: str, config: StorageConfig) -> Any:
    key = _key(url, config)
    with _systems.lock:
        found = _systems.instances.get(key)
    if found is None:
        # Looking for credentials, or starting Java, may hang as a request may.
        made = _within(config.timeout_s, lambda: _make(url, config))
        with _systems.lock:
            found = _systems.instances.setdefault(key, made)
    return found


def _make(url: str, config: StorageConfig) -> Any:
    scheme = scheme_of(url)
    protocol, package = DRIVERS[scheme]
    try:
        options = {**_timeouts(protocol, config), **config.options.get(scheme, {})}
        core = importlib.import_module("fsspec.core")
        system, _ = core.url_to_fs(url, skip_instance_cache=True, **options)
    except ImportError as error:
        if package is None:
            raise
        raise ConfigError(
            f"{shown(url)}: {scheme}:// needs {package} ({error}); pip install {package}"
        ) from None
    if protocol == "s3":
        system.retries = 1  # we count, wait and report ourselves
    return system


def _timeouts(protocol: str, config: StorageConfig) -> dict[str, Any]:
    """Options of a driver that bound its waiting and leave retries to us."""
    connect = min(_CONNECT_S, config.timeout_s)
    if protocol == "s3":
        return {
            "use_listings_cache": False,
            "config_kwargs": {
                "connect_timeout": connect,
                "read_timeout": config.timeout_s,
                "retries": {"total_max_attempts": 1},
            },
        }
    if protocol == "http":
        aiohttp = importlib.import_module("aiohttp")
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect, sock_read=config.timeout_s
        )
        headers = {"Accept-Encoding": "identity"}  # ranges of the file, not of a compressed form
        return {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}
    if protocol == "gs":
        # Else it asks by gRPC what kind of bucket it is, and gRPC survives no fork.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        return {"requests_timeout": config.timeout_s, "access": "read_only"}
    return {}
