"""Remote storage: corpora at URLs, read through a cache on the node's own disk."""

from wholegrain.data.storage.cache import NodeCache, RemoteFile
from wholegrain.data.storage.local_file import LocalFile
from wholegrain.data.storage.retry import StorageGone
from wholegrain.data.storage.settings import StorageConfig, configure, current
from wholegrain.data.storage.urls import as_url, file_name, is_url, join, shown

__all__ = [
    "LocalFile",
    "NodeCache",
    "RemoteFile",
    "StorageConfig",
    "StorageGone",
    "as_url",
    "configure",
    "current",
    "default_cache",
    "file_name",
    "is_url",
    "join",
    "shown",
]


def default_cache() -> NodeCache:
    """This process's cache with its settings as they are now."""
    return NodeCache.of(current())
