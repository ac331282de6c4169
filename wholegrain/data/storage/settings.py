"""How remote files are fetched and kept: one configuration a process, with sound defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import ConfigError

CACHE_VARIABLE = "WHOLEGRAIN_CACHE"
CACHE_GB_VARIABLE = "WHOLEGRAIN_CACHE_GB"
_DEFAULT_CACHE = "~/.cache/wholegrain/shards"
_DEFAULT_GB = 50.0


@config
class StorageConfig:
    """Access to corpora at URLs."""

    cache: Path | None = None
    """Folder on a fast local disk, shared by all processes of the node, for copies of remote
    files; None: ``$WHOLEGRAIN_CACHE``, or ``~/.cache/wholegrain/shards``."""

    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """Size that the copies never exceed together, in 10^9 bytes; None: ``$WHOLEGRAIN_CACHE_GB``,
    or 50."""

    block_mb: Annotated[float, Field(gt=0, le=1024)] = 8.0
    """Size of one ranged read, in 2^20 bytes; smaller by itself while storage is slow."""

    attempts: Annotated[int, Field(gt=0)] = 16
    """Failures in a row, without a byte in between, after which storage counts as gone."""

    patience_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without a byte after which storage counts as gone."""

    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that one request may take."""

    prefetch: Annotated[int, Field(ge=0)] = 4
    """Files that may wait to be fetched ahead of their use; 0: none is fetched ahead."""

    options: dict[str, dict[str, str | int | float | bool]] = Field(default_factory=dict)
    """Further arguments of a driver of fsspec, by scheme: ``{s3: {anon: true}}``. Keep passwords
    out of here: drivers find them where their vendors' tools do."""

    def folder(self) -> Path:
        """The cache's folder."""
        if self.cache is not None:
            return Path(os.path.abspath(self.cache.expanduser()))
        given = os.environ.get(CACHE_VARIABLE) or _DEFAULT_CACHE
        return Path(os.path.abspath(Path(given).expanduser()))

    def max_bytes(self) -> int:
        """The cache's bound in bytes.

        Raises:
            ConfigError: the environment variable is no positive number.
        """
        size = self.cache_gb
        if size is None:
            size = _positive(CACHE_GB_VARIABLE, os.environ.get(CACHE_GB_VARIABLE), _DEFAULT_GB)
        return int(size * 1e9)

    def block_bytes(self) -> int:
        """Bytes of one ranged read."""
        return max(1, int(self.block_mb * 2**20))


def _positive(name: str, text: str | None, default: float) -> float:
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"environment: {name} is {text!r}; give a positive number, or unset it")
    return value


_current = StorageConfig()


def configure(settings: StorageConfig) -> None:
    """Makes ``settings`` those of this process and of the ones that it forks from now on."""
    global _current  # noqa: PLW0603  one for the process is what is meant
    _current = settings


def current() -> StorageConfig:
    """The settings of this process."""
    return _current
